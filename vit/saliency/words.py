"""Which words a word attends to: the same record and walk as for images, from the tokens of one word.

N tokens, W words; a word may have several tokens, and special tokens such as [CLS] don't belong to a word
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from vit.foundation import UserError
from vit.layers.attention import Recorded
from vit.models.text import TextEncoder
from vit.saliency.last_attention import last_attention
from vit.saliency.record import record
from vit.saliency.rollout import rollout

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TEXT_METHODS = ("last_attention", "rollout")


class Text(NamedTuple):
    """A text as a model reads it.

    Args:
        ids: (1, N).
        words: as they are written in the text, in order.
        word_of: (N,) index of the word that each token belongs to, -1 for special tokens.
    """

    ids: Tensor
    words: list[str]
    word_of: Tensor


def read_text(tokenizer: "Tokenizer", text: str) -> Text:
    """Splits a text into words and tokens.

    Raises:
        UserError: when it has no words.
    """
    encoded = tokenizer.encode(text)
    spans: dict[int, tuple[int, int]] = {}
    for word, (start, end) in zip(encoded.word_ids, encoded.offsets, strict=True):
        if word is not None:
            spans[word] = (min(start, spans.get(word, (start, end))[0]), end)
    if not spans:
        raise UserError(f"There are no words in the text {text!r}.\nGive a sentence.")
    places = {word: place for place, word in enumerate(spans)}
    word_of = torch.tensor([-1 if word is None else places[word] for word in encoded.word_ids])
    return Text(torch.tensor([encoded.ids]), [text[start:end] for start, end in spans.values()], word_of)


@torch.inference_mode()
def word_attention(model: TextEncoder, text: Text, *, method: str = "last_attention", start_block: int = 0) -> Tensor:
    """(W, W) how much each word (row) attends to each word. What is missing from a row's sum of 1 goes to special
    tokens.

    A word attends with the mean of its tokens, and is attended to with the sum of its tokens.

    Args:
        model: the text encoder, on the device of `text.ids`.
        text: the text.
        method: "last_attention", or "rollout" through all blocks from `start_block` on.
        start_block: the first block of rollout.

    Raises:
        ValueError: for another method, a `start_block` that does not exist, or more tokens than the model takes.
    """
    if method not in TEXT_METHODS:
        raise ValueError(f"method is {method!r}; allowed for texts are {', '.join(TEXT_METHODS)}")
    walk: Callable[[list[Recorded], Tensor], Tensor] = last_attention
    if method == "rollout":
        walk = partial(rollout, start_block=start_block)
    with record(model, values=False) as trace:
        model(text.ids)
    owners = torch.stack([(text.word_of == word).float() for word in range(len(text.words))])  # (W, N)
    rows = [walk(trace.blocks, owner / owner.sum())[0] for owner in owners.to(text.ids.device)]
    return torch.stack(rows) @ owners.to(text.ids.device).T

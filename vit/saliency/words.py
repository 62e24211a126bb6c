"""Which words a word attends to: the same record and walk as of images, from the tokens of one word.

N tokens, W words; a word may be several tokens, and special tokens such as [CLS] are of no word
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
        words: as they stand in the text, in order.
        word_of: (N,) the word that each token is of, -1 for special tokens.
    """

    ids: Tensor
    words: list[str]
    word_of: Tensor


def read_text(tokenizer: "Tokenizer", text: str) -> Text:
    """Cuts a text into words and tokens.

    Raises:
        UserError: when there is no word in it.
    """
    encoded = tokenizer.encode(text)
    spans: dict[int, tuple[int, int]] = {}
    for word, (start, end) in zip(encoded.word_ids, encoded.offsets, strict=True):
        if word is not None:
            spans[word] = (min(start, spans.get(word, (start, end))[0]), end)
    if not spans:
        raise UserError(f"There is no word in the text {text!r}.\nGive a sentence.")
    places = {word: place for place, word in enumerate(spans)}
    word_of = torch.tensor([-1 if word is None else places[word] for word in encoded.word_ids])
    return Text(torch.tensor([encoded.ids]), [text[start:end] for start, end in spans.values()], word_of)


@torch.inference_mode()
def word_attention(model: TextEncoder, text: Text, *, method: str = "last_attention", start_block: int = 0) -> Tensor:
    """(W, W) how much each word, by row, attends to each word. What a row lacks to 1 went to special tokens.

    A word asks with the mean of its tokens, and is given what all its tokens get.

    Args:
        method: "last_attention", or "rollout" through all blocks from `start_block` on.

    Raises:
        ValueError: for another method; a `start_block` that there is not; more tokens than the model has places.
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

"""Generates text with a decoder, token by token: the likeliest next token, a sampled one, or the best of many beams.

B batch, T tokens of text, V vocab_size, K beams
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vit.models.decoder import Decoder, DecoderCache


@dataclass(frozen=True)
class GenerationOptions:
    """How texts are generated.

    Args:
        max_tokens: maximum number of tokens, including the end token.
        beams: texts followed in parallel; with 1, the likeliest next token is taken, or one is sampled.
        length_penalty: exponent a in the beams' score, log p / length^a (Wu et al. 2016, section 7, without their
            offset); above 0 favours longer texts.
        temperature: tokens are sampled from softmax(logits / temperature); 0 takes the likeliest.
        top_k: sample from this many of the likeliest tokens; 0 for all.
        top_p: sample from the likeliest tokens that together have this probability (Holtzman et al. 2020).

    Raises:
        ValueError: for a value out of range, or beams with a temperature; says what arrived and what is allowed.
    """

    max_tokens: int = 32
    beams: int = 1
    length_penalty: float = 0.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.beams < 1 or self.top_k < 0:
            raise ValueError(
                f"max_tokens {self.max_tokens} and beams {self.beams} must be 1 or more, top_k {self.top_k} 0 or more"
            )
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"temperature {self.temperature} must be 0 or more, and top_p {self.top_p} above 0 to 1")
        if self.beams > 1 and self.temperature > 0:
            raise ValueError(f"{self.beams} beams are searched, not sampled; use temperature 0, or 1 beam")


class Generated(NamedTuple):
    """Texts without their prompts.

    Args:
        ids: (B, T), each row up to its end token, then padding.
        mask: (B, T), False for padding.
        log_prob: (B,) log-probability of the text given the context: the sum over its tokens, including the end token.
    """

    ids: Tensor
    mask: Tensor
    log_prob: Tensor


class Stepper:
    """A decoder in the middle of texts: takes their next tokens, and returns the probabilities of what comes next.

    Args:
        decoder: the decoder.
        context, context_mask: as `Decoder.forward` takes them.
        mask: (B, T), False for padding of the prompt; None if it has none.
    """

    def __init__(self, decoder: Decoder, context: Tensor, context_mask: Tensor | None, mask: Tensor | None):
        self.decoder = decoder
        self.context = context
        self.context_mask = context_mask
        self.mask = mask
        self.cache = DecoderCache(len(decoder.blocks))

    def step(self, ids: Tensor) -> Tensor:
        """(B, T) new tokens -> (B, V) float32 log-probabilities of the token after the last of them."""
        if self.mask is not None and self.cache.num_tokens:
            self.mask = torch.cat([self.mask, torch.ones_like(ids, dtype=torch.bool)], dim=1)
        logits = self.decoder(ids, self.context, mask=self.mask, context_mask=self.context_mask, cache=self.cache)
        return logits[:, -1].float().log_softmax(dim=-1)

    def select(self, rows: Tensor) -> None:
        """Continues with these rows of the batch, in this order; a row may occur more than once."""
        self.cache.select(rows)
        self.context = self.context[rows]
        self.context_mask = None if self.context_mask is None else self.context_mask[rows]
        self.mask = None if self.mask is None else self.mask[rows]


@torch.no_grad()
def generate(
    decoder: Decoder,
    context: Tensor,
    prompt: Tensor,
    *,
    end: int,
    pad: int,
    options: GenerationOptions | None = None,
    prompt_mask: Tensor | None = None,
    context_mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Generated:
    """Continues each prompt until its end token, or for `options.max_tokens` tokens.

    Args:
        decoder: the decoder.
        context: (B, M, context_dim), such as an encoder's tokens.
        prompt: (B, T) ids, at least one: a start token, or the first words.
        end, pad: ids of the end token and of padding.
        options: how texts are generated; None for the defaults.
        prompt_mask: boolean (B, T), False for padding, which comes before the shorter prompts.
        context_mask: boolean (B, M), False for padding of the context.
        generator: random generator for sampled tokens; None uses torch's global one.

    Raises:
        ValueError: for padding after a prompt, or texts longer than the decoder was made for.
    """
    options = options or GenerationOptions()
    if prompt_mask is not None and not prompt_mask[:, -1].all():
        raise ValueError("a prompt ends with padding; padding must come before the shorter prompts")
    # What comes after the last token is never computed.
    longest = prompt.shape[1] + options.max_tokens - 1
    if longest > decoder.max_tokens:
        raise ValueError(
            f"{prompt.shape[1]} prompt tokens and {options.max_tokens} more need {longest} positions; this decoder "
            f"has {decoder.max_tokens}; try max_tokens {decoder.max_tokens - prompt.shape[1] + 1}"
        )
    stepper = Stepper(decoder, context, context_mask, prompt_mask)
    if options.beams > 1:
        return _search(stepper, prompt, end, pad, options)
    return _follow(stepper, prompt, end, pad, options, generator)


def _follow(
    stepper: Stepper, prompt: Tensor, end: int, pad: int, options: GenerationOptions, generator: torch.Generator | None
) -> Generated:
    """One token after another, without going back."""
    finished = torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)
    total = torch.zeros(len(prompt), device=prompt.device)
    ids, mask, new = [], [], prompt
    for _ in range(options.max_tokens):
        log_probs = stepper.step(new)
        token = log_probs.argmax(dim=-1) if options.temperature == 0 else draw(log_probs, options, generator)
        token = token.masked_fill(finished, pad)
        total += log_probs.gather(1, token[:, None])[:, 0].masked_fill(finished, 0.0)
        ids.append(token)
        mask.append(~finished)
        finished = finished | (token == end)
        if finished.all():
            break
        new = token[:, None]
    return Generated(torch.stack(ids, dim=1), torch.stack(mask, dim=1), total)


def draw(log_probs: Tensor, options: GenerationOptions, generator: torch.Generator | None = None) -> Tensor:
    """(B, V) log-probabilities -> (B,) tokens, sampled from the likeliest of them as `options` say."""
    scores, ranked = (log_probs / options.temperature).sort(dim=-1, descending=True, stable=True)
    probs = scores.softmax(dim=-1)
    # A token is kept as long as those before it have not reached top_p, so the likeliest is always kept.
    excluded = probs.cumsum(dim=-1) - probs >= options.top_p
    if options.top_k:
        excluded[:, options.top_k :] = True
    place = torch.multinomial(probs.masked_fill(excluded, 0.0), 1, generator=generator)
    return ranked.gather(1, place)[:, 0]


def _search(stepper: Stepper, prompt: Tensor, end: int, pad: int, options: GenerationOptions) -> Generated:
    """Beam search: of all continuations of K texts, the K best are kept (Sutskever et al. 2014, section 3.2).

    A finished text is kept as long as it is one of the best; its only next token, with probability 1, is padding.
    """
    (B, K), device = (len(prompt), options.beams), prompt.device
    log_probs = stepper.step(prompt)  # (B, V)
    V = log_probs.shape[1]
    first_rows = torch.arange(B, device=device)[:, None] * K  # of each text's beams, in a batch of B · K
    stepper.select(torch.arange(B, device=device).repeat_interleave(K))
    log_probs = log_probs[:, None].expand(B, K, V)
    only_padding = torch.full((V,), float("-inf"), device=device)
    only_padding[pad] = 0.0
    total = torch.full((B, K), float("-inf"), device=device)
    total[:, 0] = 0.0  # the beams are still identical, so only one of them counts
    length = torch.zeros(B, K, dtype=torch.int64, device=device)
    finished = torch.zeros(B, K, dtype=torch.bool, device=device)
    ids = torch.empty(B, K, 0, dtype=torch.int64, device=device)
    for number in range(options.max_tokens):
        if number:
            log_probs = stepper.step(ids[:, :, -1].reshape(-1, 1)).view(B, K, V)
        sums = total[..., None] + torch.where(finished[..., None], only_padding, log_probs)  # (B, K, V)
        length = length + ~finished
        scores = sums / length[..., None] ** options.length_penalty
        best = scores.flatten(1).topk(K).indices  # sorted, the best first
        beam, token = best // V, best % V
        total = sums.flatten(1).gather(1, best)
        length, finished = length.gather(1, beam), finished.gather(1, beam)
        ids = torch.cat([ids.gather(1, beam[..., None].expand_as(ids)), token[..., None]], dim=2)
        finished = finished | (token == end)
        # Without a length penalty, nothing can overtake a leading finished text, because factors are at most 1.
        if (finished[:, 0] if options.length_penalty == 0 else finished.all(dim=1)).all():
            break
        stepper.select((first_rows + beam).flatten())
    mask = torch.arange(ids.shape[2], device=device) < length[:, :1]
    return Generated(ids[:, 0], mask, total[:, 0])

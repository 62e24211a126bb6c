"""Where each word of a caption looked: generic attention attribution for an encoder and a decoder (Chefer, Gur & Wolf
2021, ICCV, section 3), with the same record and walk as for an encoder alone.

    C = mean over heads of relu(A * dA), dA the gradient of the word's log-probability      (equation 5)
    encoder block             Rii <- Rii + C Rii                                            (6)
    decoder self-attention    Rtt <- Rtt + C Rtt,   Rti <- Rti + C Rti                      (6, 7)
    decoder cross-attention   Rti <- Rti + norm(Rtt)ᵀ C norm(Rii)                           (10)
    norm(R) = (R - I) / its row sums + I                                                    (8, 9)

i are the tokens of the image, t those of the text. The map of a word is the row of Rti of the token that predicted it,
which is the one before it. No N x N matrix of the image is made: that row is walked, and the row sums are one more walk
of a column of ones.

The paper differentiates a class's logit, which also rises when all logits rise. The log-probability only rises with
evidence for this word and not another, and hardly at all if the words before it leave no choice.

    B batch, T tokens of text, N image tokens
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vit.layers.attention import Recorded
from vit.models.captioner import Captioner
from vit.models.generation import GenerationOptions
from vit.saliency.attribution import attribution_step, attribution_times, times_attribution
from vit.saliency.explain import evaluating
from vit.saliency.record import record
from vit.saliency.walk import check_start_block, walk


@dataclass(frozen=True)
class CaptionMaps:
    """Captions, and where each of their words looked.

    Args:
        ids: (B, T) words, including the end token, then padding.
        mask: (B, T), False for padding, whose maps are meaningless.
        maps: (B, T, grid_h, grid_w) float32, one number per patch.
        log_probs: (B, T) log-probability of each word, given the words before it and the image.
    """

    ids: Tensor
    mask: Tensor
    maps: Tensor
    log_probs: Tensor


def explain_captions(
    model: Captioner,
    images: Tensor,
    ids: Tensor | None = None,
    *,
    options: GenerationOptions | None = None,
    generator: torch.Generator | None = None,
    start_block: int = 0,
) -> CaptionMaps:
    """A map for every word in the captions of images.

    Args:
        model: the captioner; its parameters, gradients, mode and hooks are left as they were.
        images: (B, C, img_h, img_w), normalised as the model takes them.
        ids: (B, T) captions to explain, without the start token, padded at their ends; None for those that the model
            generates.
        options: how the model generates captions.
        generator: random generator for sampled words; None uses torch's global one.
        start_block: encoder blocks before this one are treated as the identity.

    Raises:
        ValueError: for a block that does not exist, or captions longer than the model was made for.
    """
    check_start_block(start_block, len(model.encoder.blocks))
    with evaluating(model), torch.inference_mode(False):
        images = images.clone()  # autograd does not accept tensors from a caller's inference mode
        if ids is None:
            ids = model.generate(images, options, generator=generator).ids
        shown = torch.cat([torch.full_like(ids[:, :1], model.start), ids[:, :-1]], dim=1)
        with record(model, gradients=True) as trace:
            logits = model(images, shown)
        with torch.enable_grad():
            log_probs = logits.log_softmax(dim=-1).gather(2, ids[..., None])[..., 0]
        relevance = []
        for place in range(ids.shape[1]):
            gradients = trace.gradients(log_probs[:, place, None], keep=place + 1 < ids.shape[1])
            pairs = zip(trace.blocks, gradients, strict=True)
            blocks = [recorded._replace(gradient=gradient) for recorded, gradient in pairs]
            relevance.append(word_relevance(model, blocks, place, start_block=start_block))
    prefix, grid = model.encoder.num_prefix_tokens, model.encoder.grid_of(images)
    maps = torch.stack(relevance, dim=1)[..., prefix:].unflatten(-1, grid)
    return CaptionMaps(ids, (ids != model.pad), maps, log_probs.detach().float())


def beyond_the_caption(maps: Tensor, mask: Tensor) -> Tensor:
    """Where each word looked more than the words of its caption do on average: what all of them share (usually the most
    striking object) says little about any single word.

    Each map is divided by its sum, the mean of these over the caption is subtracted, and negative values become 0.

    Args:
        maps: (B, T, grid_h, grid_w), 0 or more.
        mask: (B, T), see `CaptionMaps`; the maps of padding become 0.
    """
    real = mask[..., None, None].float()
    shares = _over(maps, maps.sum(dim=(2, 3), keepdim=True)) * real
    common = shares.sum(dim=1, keepdim=True) / real.sum(dim=1, keepdim=True)
    return (shares - common).clamp(min=0) * real


@torch.no_grad()
def word_relevance(model: Captioner, blocks: list[Recorded], place: int, *, start_block: int = 0) -> Tensor:
    """Relevance (B, N) of each image token for the word that the text token at `place` predicts; see the top of this
    file.

    Args:
        model: the captioner.
        blocks: `Trace.blocks` of a record of the model, each with its gradient for that word.
        place: position of the text token.
        start_block: encoder blocks before this one are treated as the identity.
    """
    depth = len(model.decoder.blocks)
    encoder, itself, cross = blocks[: -2 * depth], blocks[-2 * depth : -depth], blocks[-depth:]
    seen = _normalised_text(itself)
    word = itself[0].q.new_zeros(itself[0].q.shape[0], itself[0].q.shape[2], dtype=torch.float32)  # (B, T)
    word[:, place] = 1.0
    image = torch.zeros((), device=word.device)
    for own, other, text in zip(reversed(itself), reversed(cross), reversed(seen), strict=True):
        image = image + times_attribution((text @ word[..., None])[..., 0], other)  # word · norm(Rtt)ᵀ · C
        word = word + times_attribution(word, own)
    return _through_encoder(image, encoder[start_block:])


def _normalised_text(itself: list[Recorded]) -> list[Tensor]:
    """norm(Rtt) (B, T, T) at each block's cross-attention; texts are short, so the whole matrices are made."""
    batch, _, length, _ = itself[0].q.shape
    identity = torch.eye(length, device=itself[0].q.device).expand(batch, -1, -1)
    found, whole = [], identity
    for recorded in itself:
        columns = [attribution_times(recorded, whole[..., column]) for column in range(length)]
        whole = whole + torch.stack(columns, dim=-1)
        found.append(_over(whole - identity, (whole - identity).sum(dim=-1, keepdim=True)) + identity)
    return found


def _through_encoder(relevance: Tensor, blocks: list[Recorded]) -> Tensor:
    """relevance (B, N) · norm(Rii)."""
    sums = torch.zeros_like(relevance)
    for recorded in blocks:
        sums = sums + attribution_times(recorded, 1 + sums)  # (Rii - I) · 1
    shares = _over(relevance, sums)
    return walk(blocks, shares, attribution_step) - shares + relevance


def _over(values: Tensor, sums: Tensor) -> Tensor:
    """values / sums, and 0 where the sum is 0, as for a token that attended to no other."""
    return torch.where(sums > 0, values / sums.where(sums > 0, 1.0), 0.0)

"""The attention-based methods on a model: record one forward pass, walk it, place the result on the grid of patches.

Attention pooling is one more attention after the last block, with one query and no residual connection. A method's
result for it is where the method's walk starts.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from vit.layers.attention import Recorded
from vit.models.classifier import Classifier
from vit.saliency.attribution import cross_attribution, generic_attribution
from vit.saliency.explanation import Explanation, chosen_classes, to_grid
from vit.saliency.gradient_rollout import gradient_rollout
from vit.saliency.last_attention import last_attention, value_norms
from vit.saliency.legrad import legrad
from vit.saliency.prototypes import prototype_contrast, seed_fusion
from vit.saliency.record import Trace, record
from vit.saliency.rollout import RolloutOptions, rollout
from vit.saliency.walk import check_start_block

# ([an attention], weight of each of its queries) -> (B, tokens) relevance of the tokens that they attend to
OneAttention = Callable[[list[Recorded], Tensor], Tensor]


@torch.inference_mode()
def rollout_maps(
    model: Classifier,
    images: Tensor,
    target: Tensor | None,
    *,
    start_block: int = 0,
    head_fusion: str = "mean",
    discard_ratio: float = 0.0,
    residual: float = 0.5,
) -> Explanation:
    """Attention rollout; see `RolloutOptions` for the options. Raises ValueError for invalid ones."""
    settings = RolloutOptions(head_fusion, discard_ratio, residual)
    with record(model, values=False) as trace:
        # Ranking whole maps needs all rows of the last block; otherwise it only computes the rows that are read.
        logits = model(images, whole=settings.discard_ratio > 0)
    pooled = replace(settings, residual=1.0, discard_ratio=0.0)
    readout = _readout(model, trace, lambda pooling, query: rollout(pooling, query, pooled))
    kept = 0 if model.encoder.embed.cls_token is None else 1
    relevance = rollout(trace.blocks, readout, settings, kept_columns=kept, start_block=start_block)
    return _explanation(model, images, trace, relevance, logits)


@torch.inference_mode()
def last_attention_maps(
    model: Classifier, images: Tensor, target: Tensor | None, *, head_fusion: str = "mean"
) -> Explanation:
    """The last block's attention; `head_fusion` is "mean" or "median"."""
    with record(model, values=False) as trace:
        logits = model(images)
    relevance = _of_the_last(model, trace, partial(last_attention, head_fusion=head_fusion))
    return _explanation(model, images, trace, relevance, logits)


@torch.inference_mode()
def value_norm_maps(model: Classifier, images: Tensor, target: Tensor | None) -> Explanation:
    """The length of the vector that each token sends in the last block."""
    with record(model) as trace:
        logits = model(images)
    last = model.encoder.attentions()[-1] if model.attn_pool is None else model.attn_pool.attn
    relevance = _of_the_last(model, trace, partial(value_norms, projection=last.proj.weight))
    return _explanation(model, images, trace, relevance, logits)


@torch.inference_mode()
def default_maps(model: Classifier, images: Tensor, target: Tensor | None) -> Explanation:
    """The method that performed best in our measurements, see `prototype_contrast`."""
    with record(model, values=False) as trace:
        logits = model(images, whole=True)
    fusion = seed_fusion(trace.blocks[-1].k.shape[1])
    seeds = _of_the_last(model, trace, partial(last_attention, head_fusion=fusion))
    contrast = prototype_contrast(trace.blocks[-1], to_grid(model, images, seeds).flatten(1))
    return Explanation(contrast.unflatten(1, model.encoder.grid_of(images)), logits.float(), trace.blocks[-1].k)


def attribution_maps(model: Classifier, images: Tensor, target: Tensor | None, *, start_block: int = 0) -> Explanation:
    """Generic attention attribution of the target's logit."""
    return _class_maps(model, images, target, partial(generic_attribution, start_block=start_block), cross_attribution)


def gradient_rollout_maps(
    model: Classifier, images: Tensor, target: Tensor | None, *, start_block: int = 0, residual: float = 0.5
) -> Explanation:
    """Rollout of attention maps multiplied by the gradient of the target's logit."""
    method = partial(gradient_rollout, start_block=start_block, residual=residual)
    return _class_maps(model, images, target, method, partial(gradient_rollout, residual=1.0))


def _class_maps(
    model: Classifier,
    images: Tensor,
    target: Tensor | None,
    method: Callable[[list[Recorded], list[Tensor], Tensor], Tensor],
    through_pooling: Callable[[list[Recorded], list[Tensor], Tensor], Tensor],
) -> Explanation:
    """A walk that needs the gradient of each block's output, and, if it starts at attention pooling, of its output."""
    with record(model, gradients=True) as trace:
        logits = model(images)
        gradients = trace.gradients(logits.gather(1, chosen_classes(logits, target)[:, None]))
    with torch.inference_mode():
        readout = _readout(model, trace, lambda pooling, query: through_pooling(pooling, gradients[-1:], query))
        relevance = method(trace.blocks, gradients[: len(trace.blocks)], readout)
        return _explanation(model, images, trace, relevance, logits)


def legrad_maps(model: Classifier, images: Tensor, target: Tensor | None, *, start_block: int = 0) -> Explanation:
    """LeGrad: the tokens of each block go through the final norm, the pooling and the head, for a score per block.

    Args:
        model: in evaluation mode, with a head that reads a single block.
        images: (B, C, img_h, img_w).
        target: (B,) class indices; None for the class that is predicted from the last block.
        start_block: the first block that counts.

    Returns:
        Maps (B, grid_h, grid_w), with the logits of the last block and its keys.

    Raises:
        ValueError: for a block that does not exist, or a target that is not a class of the model.
    """
    depth = len(model.encoder.blocks)
    check_start_block(start_block, depth)
    with record(model, gradients=True) as trace:
        outputs = model.encoder.last_tokens(images, depth - start_block)
        scores = [model.logits(model.pooled(tokens)) for tokens in outputs]
        chosen = chosen_classes(scores[-1], target)[:, None]
        gradients = [trace.gradient(score.gather(1, chosen), start_block + place) for place, score in enumerate(scores)]
    with torch.inference_mode():
        relevance = legrad(trace.blocks[start_block:], gradients)
        return _explanation(model, images, trace, relevance, scores[-1])


def _readout(model: Classifier, trace: Trace, through_pooling: OneAttention) -> Tensor:
    """(N,) or (B, N) the weight of each token after the last block, where a walk starts.

    Args:
        through_pooling: the method, applied to attention pooling.
    """
    if trace.pooling is None:
        return model.readout(trace.blocks[-1].k.shape[2])
    return _of_pooling(model, trace.pooling, through_pooling)


def _of_the_last(model: Classifier, trace: Trace, method: OneAttention) -> Tensor:
    """(B, N) the method's result for the last attention: that of the pooling, if there is one, or of the last block."""
    if trace.pooling is None:
        return method(trace.blocks, model.readout(trace.blocks[-1].k.shape[2]))
    return _of_pooling(model, trace.pooling, method)


def _of_pooling(model: Classifier, pooling: Recorded, method: OneAttention) -> Tensor:
    """(B, N): the pooling's query only attends to patches, so the relevance of prefix tokens is zero."""
    query = torch.zeros(pooling.k.shape[2])
    query[0] = 1.0
    return F.pad(method([pooling], query), (model.encoder.num_prefix_tokens, 0))


def _explanation(model: Classifier, images: Tensor, trace: Trace, relevance: Tensor, logits: Tensor) -> Explanation:
    maps = to_grid(model, images, relevance)
    return Explanation(maps, logits.detach().float(), trace.blocks[-1].k.detach())

"""Saliency maps of a classifier: one call for every method."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.foundation import nearest
from vit.models.classifier import Classifier
from vit.saliency.attribution import generic_attribution
from vit.saliency.record import record
from vit.saliency.rollout import RolloutOptions, rollout


@dataclass(frozen=True)
class Explanation:
    """Maps of a batch, and what the model said.

    Args:
        maps: (B, grid_h, grid_w) float32, relevance of each patch.
        logits: (B, num_classes) of the same forward pass; of a model without a head, its pooled vector.
    """

    maps: Tensor
    logits: Tensor


@torch.inference_mode()
def rollout_maps(
    model: Classifier, images: Tensor, target: Tensor | None, start_block: int, **options: Any
) -> Explanation:
    """Attention rollout; it knows no class, and `target` changes nothing."""
    settings = RolloutOptions(**options)
    settings = replace(settings, kept_columns=0 if model.encoder.embed.cls_token is None else 1)
    with record(model, values=False) as trace:
        # Ranking whole maps takes every row of the last block; otherwise it works for the rows that are read.
        tokens = model.encoder(images, read=None if settings.discard_ratio else model.read)
        logits = model.head(model.pooled(tokens))
    readout = model.readout(trace.blocks[-1].k.shape[2])
    relevance = rollout(trace.blocks, readout, settings, start_block=start_block)
    return Explanation(to_grid(model, images, relevance), logits.float())


def attribution_maps(model: Classifier, images: Tensor, target: Tensor | None, start_block: int) -> Explanation:
    """Generic attention attribution of the target's logit; of the predicted class when there is no target."""
    if model.num_classes == 0:
        raise ValueError("attribution explains a class, but the model has no head; try method='rollout'")
    if target is not None and not ((target >= 0) & (target < model.num_classes)).all():
        raise ValueError(f"target is {target.tolist()}; the model has the classes 0 to {model.num_classes - 1}")
    with record(model, gradients=True) as trace:
        logits = model(images)
        # A target made inside inference_mode can't be saved for the backward pass; its clone can.
        chosen = logits.argmax(dim=1) if target is None else target.clone()
        gradients = trace.gradients(logits.gather(1, chosen[:, None]))
    with torch.inference_mode():
        readout = model.readout(trace.blocks[-1].k.shape[2])
        relevance = generic_attribution(trace.blocks, gradients, readout, start_block=start_block)
        return Explanation(to_grid(model, images, relevance), logits.detach().float())


METHODS: Mapping[str, Callable[..., Explanation]] = {"rollout": rollout_maps, "attribution": attribution_maps}


def explain(
    model: Classifier,
    images: Tensor,
    *,
    method: str = "rollout",
    target: Tensor | int | None = None,
    start_block: int = 0,
    **options: Any,
) -> Tensor:
    """Saliency maps (B, img_h, img_w), float32: how much each pixel's patch counted. Bilinear between patches.

    Args:
        model: a Classifier; its parameters, gradients, mode and hooks are left as they were.
        images: (B, C, img_h, img_w), normalised as `model(images)` takes them; any size that the patches divide.
        method: "rollout" (Abnar & Zuidema 2020) or "attribution" (Chefer et al. 2021).
        target: class index, one for all images or (B,); None for the predicted class. Rollout knows no class.
        start_block: blocks before this one are left out.
        options: of the method; for rollout `head_fusion`, `discard_ratio`, `residual`, see `RolloutOptions`.

    Raises:
        ValueError: for an unknown method or option, an image size that the patches don't divide, or a model that
            the method can't serve.
    """
    explanation = explain_batch(model, images, method=method, target=target, start_block=start_block, **options)
    maps = F.interpolate(explanation.maps[:, None], size=tuple(images.shape[-2:]), mode="bilinear")
    return maps[:, 0]


def explain_batch(
    model: Classifier,
    images: Tensor,
    *,
    method: str = "rollout",
    target: Tensor | int | None = None,
    start_block: int = 0,
    **options: Any,
) -> Explanation:
    """As `explain`, with one number a patch, and the logits of the same forward pass."""
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; allowed are {', '.join(METHODS)}{nearest(method, METHODS)}")
    if isinstance(target, int):
        target = torch.full((len(images),), target, device=images.device)
    if target is not None and target.shape != (len(images),):
        raise ValueError(
            f"target has the shape {tuple(target.shape)}; give one class for all, or one for each of the "
            f"{len(images)} images"
        )
    with evaluating(model):
        try:
            return METHODS[method](model, images, target, start_block, **options)
        except TypeError as error:
            if "unexpected keyword" not in str(error):
                raise
            raise ValueError(f"method {method!r} has no such option: {str(error).split('argument ')[-1]}") from None


def to_grid(model: Classifier, images: Tensor, relevance: Tensor) -> Tensor:
    """(B, N) relevance of tokens -> (B, grid_h, grid_w) of patches; the prefix tokens have no place on the image."""
    return relevance[:, model.encoder.num_prefix_tokens :].unflatten(1, model.encoder.grid_of(images))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the body; every module's own mode comes back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training

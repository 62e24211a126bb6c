"""Saliency maps of a classifier: one call for every method."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vit.foundation import nearest
from vit.models.classifier import Classifier
from vit.saliency.explanation import Explanation
from vit.saliency.methods import METHODS, check_serves, options_of
from vit.saliency.record import record
from vit.saliency.refine import refine as refine_maps
from vit.saliency.upsample import upsample_maps

__all__ = ["METHODS", "Explanation", "explain", "explain_batch"]


def explain(
    model: Classifier,
    images: Tensor,
    *,
    method: str = "default",
    target: Tensor | int | None = None,
    start_block: int = 0,
    refine: bool = False,
    **options: Any,
) -> Tensor:
    """Saliency maps (B, img_h, img_w), float32: the relevance of each pixel's patch, interpolated bilinearly.

    Args:
        model: a Classifier; its parameters, gradients, mode and hooks are left as they were.
        images: (B, C, img_h, img_w), normalised as `model(images)` takes them; any size that the patches divide.
        method: a name in `vit.saliency.methods.METHODS`, with its textbook settings; "default" is the tuned choice.
        target: class index, one for all images or (B,); None for the predicted class. Some methods ignore it.
        start_block: the first block that counts, from 0, for methods that go through the blocks.
        refine: average the map over patches with similar keys, see `vit.saliency.refine`.
        options: options of the method; for rollout `head_fusion`, `discard_ratio`, `residual`, see `RolloutOptions`.

    Raises:
        ValueError: for an unknown method or option, an image size that the patches don't divide, a target that is not a
            class of the model or has another shape, or a model that the method can't explain.
    """
    explanation = explain_batch(
        model, images, method=method, target=target, start_block=start_block, refine=refine, **options
    )
    return upsample_maps(explanation.maps, (images.shape[-2], images.shape[-1]))


def explain_batch(
    model: Classifier,
    images: Tensor,
    *,
    method: str = "default",
    target: Tensor | int | None = None,
    start_block: int = 0,
    refine: bool = False,
    **options: Any,
) -> Explanation:
    """Like `explain`, but without upsampling, and with the logits of the same forward pass.

    Args:
        model, images, method, target, start_block, refine, options: see `explain`.

    Returns:
        Maps (B, grid_h, grid_w), one number per patch, and logits (B, num_classes).

    Raises:
        ValueError: as `explain` does.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; allowed are {', '.join(METHODS)}{nearest(method, METHODS)}")
    if isinstance(target, int):
        target = torch.full((len(images),), target, device=images.device)
    if target is not None and target.shape != (len(images),):
        raise ValueError(
            f"target has the shape {tuple(target.shape)}; give one class for all, or one for each of the "
            f"{len(images)} images"
        )
    check_serves(method, model)
    if start_block:
        options["start_block"] = start_block
    _check_options(method, options)
    with evaluating(model):
        found = METHODS[method].maps(model, images, target, **options)
        if refine:
            found = replace(found, maps=_refined(model, images, found))
    return replace(found, keys=None)


def _check_options(method: str, options: Mapping[str, Any]) -> None:
    """Raises ValueError for an option that the method does not take."""
    taken = options_of(method)
    for option in options:
        if option not in taken:
            told = f"it takes {', '.join(taken)}" if taken else "it takes none"
            raise ValueError(f"method {method!r} has no option {option!r}{nearest(option, taken)}; {told}")


@torch.inference_mode()
def _refined(model: Classifier, images: Tensor, found: Explanation) -> Tensor:
    keys = found.keys
    if keys is None:
        with record(model, values=False) as trace:
            model(images)
        keys = trace.blocks[-1].k
    return refine_maps(found.maps, keys)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within the context; afterwards the mode of every module is restored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training

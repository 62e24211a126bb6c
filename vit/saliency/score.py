"""How well maps hit the object: a method beside the baselines that know nothing of the image."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from vit.foundation import UserError
from vit.inference import arithmetic
from vit.models.classifier import Classifier
from vit.saliency.baselines import centre_gaussian, random_map
from vit.saliency.explain import explain_batch
from vit.saliency.localization import evaluate_maps

Scores = dict[str, dict[str, float]]  # method -> metric -> mean over images


def score_localization(
    model: Classifier,
    batches: Iterable[dict[str, Any]],
    *,
    method: str = "rollout",
    device: torch.device,
    precision: str = "fp32",
    method_options: Mapping[str, Any] | None = None,
) -> Scores:
    """Mean pointing game, energy inside and IoU at equal area over images with masks.

    Args:
        batches: dicts of image (B, C, h, w), index (B,) and mask (B, h, w) bool, True on the object. Images
            without any object are left out.

    Returns:
        For `method` and for the centre and random baselines.

    Raises:
        UserError: when no image has an object.
    """
    model = model.to(device)
    found: dict[str, list[dict[str, Tensor]]] = {method: [], "centre": [], "random": []}
    for batch in batches:
        shown = batch["mask"].flatten(1).any(dim=1)
        images, masks, numbers = batch["image"][shown], batch["mask"][shown], batch["index"][shown]
        if len(images) == 0:
            continue
        with arithmetic(precision, device):
            maps = explain_batch(model, images.to(device), method=method, **(method_options or {})).maps.cpu()
        grid_h, grid_w = maps.shape[-2:]
        found[method].append(evaluate_maps(maps, masks))
        found["centre"].append(evaluate_maps(centre_gaussian(grid_h, grid_w).expand(len(maps), -1, -1), masks))
        noise = torch.stack([random_map(grid_h, grid_w, seed=int(number)) for number in numbers])
        found["random"].append(evaluate_maps(noise, masks))
    if not found[method]:
        raise UserError("There is no image with an object, so there is nothing to score maps against.")
    return {name: _means(parts) for name, parts in found.items()}


def _means(parts: list[dict[str, Tensor]]) -> dict[str, float]:
    return {metric: float(torch.cat([part[metric] for part in parts]).mean()) for metric in parts[0]}

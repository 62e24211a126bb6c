"""Is a saliency map on the object? Scores against masks, 0 to 1, higher is better.

Maps and masks are (B, img_h, img_w), floating point and boolean (True on the object); scores are (B,).
All three scores follow the same rules:

- Values that differ by less than one part in a million are tied, because upsampling a flat map leaves differences of
  that size. Ties count with their expected value under a random order, independently of the order of the pixels: a
  constant map scores the same as a blind guess.
- A NaN or infinite value marks a pixel that the map does not cover. It is never chosen and has no energy, so a map
  with only NaN scores 0.
- An empty mask has no right answer and raises ValueError.
"""

import torch
from torch import Tensor

from vit.saliency.upsample import upsample_maps

TIE = 1e-6  # relative


def evaluate_maps(maps: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """All three scores of each image.

    Args:
        maps: (B, grid_h, grid_w) or (B, img_h, img_w), upsampled bilinearly to the masks' size.
        masks: (B, img_h, img_w) bool.

    Returns:
        "pointing_game", "energy_inside" and "iou_at_equal_area", each (B,).

    Raises:
        ValueError: when maps and masks are not three-dimensional or not of one batch, the masks are not bool, the maps
            are not floating point, or a mask is empty.
    """
    if maps.ndim != 3 or masks.ndim != 3 or len(maps) != len(masks):
        raise ValueError(
            f"Maps (B, grid_h, grid_w) and masks (B, img_h, img_w) of one batch are needed, "
            f"got {tuple(maps.shape)} and {tuple(masks.shape)}."
        )
    maps = upsample_maps(maps, (masks.shape[1], masks.shape[2]))
    return {
        "pointing_game": pointing_game(maps, masks),
        "energy_inside": energy_inside(maps, masks),
        "iou_at_equal_area": iou_at_equal_area(maps, masks),
    }


def pointing_game(maps: Tensor, masks: Tensor) -> Tensor:
    """1 if the map's largest value is on the object, else 0; for tied values, the share of them on the object.

    Zhang et al. 2016, without their margin of 15 pixels around the object.
    """
    values, inside = _flatten(maps, masks)
    highest = values.amax(dim=1, keepdim=True)
    tied = _tied(values, highest)
    return (tied & inside).sum(1).to(values.dtype) / tied.sum(1).clamp(min=1)


def energy_inside(maps: Tensor, masks: Tensor) -> Tensor:
    """Share of the map's sum that is on the object (the energy-based pointing game, Wang et al. 2020).

    Negative values count as 0. A map without positive values is treated as constant: it scores the object's share of
    the area that it covers.
    """
    values, inside = _flatten(maps, masks)
    covered = values.isfinite()
    # Divided by the largest value first, so that neither huge nor tiny values leave the range of the sum.
    energy = values.clamp(min=0)
    highest = energy.amax(dim=1, keepdim=True)
    energy = torch.where(highest > 0, energy / highest, covered.to(values.dtype))
    total = energy.sum(1)
    return torch.where(inside, energy, 0).sum(1) / torch.where(total > 0, total, 1)


def iou_at_equal_area(maps: Tensor, masks: Tensor) -> Tensor:
    """Intersection over union of the object and the same number of the map's highest pixels.

    If the threshold falls among tied pixels, the expected intersection for a random choice of them is used.
    """
    values, inside = _flatten(maps, masks)
    area = inside.sum(1, keepdim=True)
    ranked = values.sort(dim=1, descending=True).values
    threshold = ranked.gather(1, area - 1)
    # If the map covers fewer pixels than the object, the threshold is -inf and all covered pixels are chosen.
    tied = _tied(values, threshold)
    above = (values > threshold) & ~tied
    wanted = (area.squeeze(1) - above.sum(1)).to(values.dtype)
    share = (wanted / tied.sum(1).clamp(min=1)).clamp(0, 1)
    chosen = above.sum(1) + share * tied.sum(1)
    common = (above & inside).sum(1) + share * (tied & inside).sum(1)
    return common / (area.squeeze(1) + chosen - common)


def _flatten(maps: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Checked, and flattened to (B, img_h * img_w); what the map does not cover becomes -inf."""
    shapes_fit = maps.ndim == 3 and maps.shape == masks.shape
    if not shapes_fit or masks.dtype != torch.bool or not maps.is_floating_point():
        raise ValueError(
            f"Maps and masks must both be (B, img_h, img_w), floating point and bool, "
            f"got {tuple(maps.shape)} {maps.dtype} and {tuple(masks.shape)} {masks.dtype}."
        )
    inside = masks.flatten(1)
    empty = (~inside.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"The masks {empty} of the batch are empty: there is no object to find.")
    values = maps.flatten(1)
    values = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    return torch.where(values.isfinite(), values, -torch.inf), inside


def _tied(values: Tensor, level: Tensor) -> Tensor:
    """Where the finite values (B, P) equal the level (B, 1) up to rounding."""
    return values.isfinite() & ((values - level).abs() <= TIE * level.abs())

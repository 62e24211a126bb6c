"""Learned positions on a grid of patches, and how they are resized to another grid."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Filters by name, as arguments of `interpolate`. `offset` is added to the new grid where the scale is computed.
_FILTERS: dict[str, dict[str, Any]] = {
    "bicubic_antialias": {"mode": "bicubic", "antialias": True},  # timm; DINOv2 with registers
    "bicubic": {"mode": "bicubic"},  # transformers
    "bicubic_offset": {"mode": "bicubic", "offset": 0.1},  # DINO's and the first DINOv2's code
    "bicubic_corners": {"mode": "bicubic", "align_corners": True},  # torchvision
    "bilinear_corners": {"mode": "bilinear", "align_corners": True},  # Google's code: scipy.ndimage.zoom, order 1
}
INTERPOLATIONS = tuple(_FILTERS)


def resize_positions(pos_embed: Tensor, grid: tuple[int, int], new_grid: tuple[int, int], interpolation: str) -> Tensor:
    """Positions of a grid of patches, resized to another grid (Dosovitskiy et al. 2021, section 3.2).

    Families differ in the filter, and a model answers exactly as its library does only with that library's one.

    Args:
        pos_embed: (1, prefix + grid_h · grid_w, D); positions of prefix tokens, if any, come first and stay.
        grid: (grid_h, grid_w) that `pos_embed` is for.
        new_grid: the grid wanted.
        interpolation: one of INTERPOLATIONS: "bicubic_antialias" (timm), "bicubic" (transformers), "bicubic_offset"
            (DINO, the first DINOv2), "bicubic_corners" (torchvision), "bilinear_corners" (Google).

    Returns:
        (1, prefix + new_h · new_w, D), in the dtype of `pos_embed`.
    """
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"pos_interpolation is {interpolation!r}; allowed are {', '.join(INTERPOLATIONS)}")
    if grid == new_grid:
        return pos_embed
    prefix = pos_embed.shape[1] - grid[0] * grid[1]
    patches = pos_embed[:, prefix:].unflatten(1, grid).permute(0, 3, 1, 2)  # (1, D, grid_h, grid_w)
    options = {"align_corners": False, **_FILTERS[interpolation]}
    if offset := options.pop("offset", 0):  # the scale that it gives differs from that of the two sizes
        options["scale_factor"] = tuple((new + offset) / old for new, old in zip(new_grid, grid, strict=True))
    else:
        options["size"] = new_grid
    patches = F.interpolate(patches.float(), **options)
    patches = patches.to(pos_embed.dtype).flatten(2).transpose(1, 2)
    return torch.cat([pos_embed[:, :prefix], patches], dim=1)

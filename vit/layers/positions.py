"""Learned positions on a grid of patches, and how they are resized to another grid."""

import torch
import torch.nn.functional as F
from torch import Tensor

INTERPOLATIONS = ("bicubic_antialias", "bicubic")


def resize_positions(pos_embed: Tensor, grid: tuple[int, int], new_grid: tuple[int, int], interpolation: str) -> Tensor:
    """Positions of a grid of patches, resized to another grid (Dosovitskiy et al. 2021, section 3.2).

    Families differ in the filter, and a model answers exactly as its library does only with that library's one.

    Args:
        pos_embed: (1, prefix + grid_h · grid_w, D); positions of prefix tokens, if any, come first and stay.
        grid: (grid_h, grid_w) that `pos_embed` is for.
        new_grid: the grid wanted.
        interpolation: "bicubic_antialias" (timm) or "bicubic" (DINOv2's code, transformers).

    Returns:
        (1, prefix + new_h · new_w, D), in the dtype of `pos_embed`.
    """
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"pos_interpolation is {interpolation!r}; allowed are {', '.join(INTERPOLATIONS)}")
    if grid == new_grid:
        return pos_embed
    prefix = pos_embed.shape[1] - grid[0] * grid[1]
    patches = pos_embed[:, prefix:].unflatten(1, grid).permute(0, 3, 1, 2)  # (1, D, grid_h, grid_w)
    antialias = interpolation == "bicubic_antialias"
    patches = F.interpolate(patches.float(), size=new_grid, mode="bicubic", antialias=antialias, align_corners=False)
    patches = patches.to(pos_embed.dtype).flatten(2).transpose(1, 2)
    return torch.cat([pos_embed[:, :prefix], patches], dim=1)

"""Positions on a grid of patches: learned ones, resized to another grid, and rotary ones, computed for any grid."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Filters by name, as arguments of `interpolate`. `offset` is added to the new grid when the scale is computed.
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

    Libraries use different filters, and a model gives exactly the same results as in its library only with that
    library's filter.

    Args:
        pos_embed: (1, prefix + grid_h · grid_w, D); positions of prefix tokens, if any, come first and are kept.
        grid: (grid_h, grid_w) that `pos_embed` is for.
        new_grid: the new (grid_h, grid_w).
        interpolation: one of INTERPOLATIONS: "bicubic_antialias" (timm), "bicubic" (transformers), "bicubic_offset"
            (DINO, the first DINOv2), "bicubic_corners" (torchvision), "bilinear_corners" (Google).

    Returns:
        (1, prefix + new_h · new_w, D), in the dtype of `pos_embed`.

    Raises:
        ValueError: for an interpolation that is not in INTERPOLATIONS.
    """
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"pos_interpolation is {interpolation!r}; allowed are {', '.join(INTERPOLATIONS)}")
    if grid == new_grid:
        return pos_embed
    prefix = pos_embed.shape[1] - grid[0] * grid[1]
    patches = pos_embed[:, prefix:].unflatten(1, grid).permute(0, 3, 1, 2)  # (1, D, grid_h, grid_w)
    options = {"align_corners": False, **_FILTERS[interpolation]}
    if offset := options.pop("offset", 0):  # the resulting scale differs from the ratio of the two sizes
        options["scale_factor"] = tuple((new + offset) / old for new, old in zip(new_grid, grid, strict=True))
    else:
        options["size"] = new_grid
    patches = F.interpolate(patches.float(), **options)
    patches = patches.to(pos_embed.dtype).flatten(2).transpose(1, 2)
    return torch.cat([pos_embed[:, :prefix], patches], dim=1)


# How the position of a patch along an axis becomes a number, which is multiplied by each frequency.
ROTARY = ("centred", "counted")

Rotation = tuple[Tensor, Tensor]  # cosines and sines of the angles, (patches, Dh / 2) each


def rotation(
    grid: tuple[int, int], head_dim: int, *, kind: str, theta: float, reference: tuple[int, int] | None = None
) -> Rotation:
    """The rotations of queries and keys at each position of a grid (Su et al. 2021, RoFormer; in two dimensions as Heo
    et al. 2024, RoPE-ViT, axial): half of the angles encode the row, the other half the column.

    Args:
        grid: (grid_h, grid_w).
        head_dim: Dh, a multiple of 4. There are Dh / 4 frequencies per axis; number j is theta^(-j / (Dh / 4)).
        kind: "centred" (from -2 pi at the upper or left edge of the image to 2 pi at the opposite one, as in DINOv3),
            or "counted" (0, 1, 2, ... patches).
        theta: base of the frequencies.
        reference: for "counted": (grid_h, grid_w) whose range of numbers is used for any grid; None for the grid's own.

    Returns:
        Cosines and sines, (grid_h · grid_w, Dh / 2) each, row by row.

    Raises:
        ValueError: for another kind, or heads whose width is not a multiple of 4.
    """
    if kind not in ROTARY:
        raise ValueError(f"rotary is {kind!r}; allowed are {', '.join(ROTARY)}")
    if head_dim % 4:
        raise ValueError(f"rotary positions need heads with a multiple of 4 channels, but these have {head_dim}")
    bands = theta ** -(torch.arange(head_dim // 4, dtype=torch.float32) / (head_dim // 4))
    angles = []
    for axis, size in enumerate(grid):
        places = torch.arange(size, dtype=torch.float32)
        if kind == "centred":
            places = 2 * torch.pi * (2 * (places + 0.5) / size - 1)
        elif reference is not None:
            places = places / size * reference[axis]
        along = places[:, None] * bands  # (size, Dh / 4)
        angles.append(along.unsqueeze(1 - axis).expand(*grid, -1))
    both = torch.cat(angles, dim=-1).flatten(0, 1)  # (N, Dh / 2)
    return both.cos(), both.sin()


def rotate(tokens: Tensor, turned: Rotation, num_prefix: int) -> Tensor:
    """Rotates the first half of each head's channels with the second half; prefix tokens have no position and stay.

    Args:
        tokens: (B, H, N, Dh) queries or keys, or only the first of them.
        turned: the result of `rotation`, on their device.
        num_prefix: number of tokens before those of the patches.
    """
    places = tokens.shape[2] - num_prefix
    if places <= 0:  # only prefix tokens, because the last block need not compute more
        return tokens
    cos, sin = (part[:places] for part in turned)
    prefix, patches = tokens.split((num_prefix, places), dim=2)
    first, second = patches.chunk(2, dim=-1)
    patches = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return torch.cat([prefix, patches.to(prefix.dtype)], dim=2)


def sincos_positions(grid: tuple[int, int], embed_dim: int) -> Tensor:
    """(1, grid_h · grid_w, D): sines and cosines of the column and the row, in D / 4 wavelengths each (He et al. 2022,
    appendix A.1, after Vaswani et al. 2017, section 3.5).

    Raises:
        ValueError: when D is not a multiple of 4.
    """
    if embed_dim % 4:
        raise ValueError(f"sine and cosine positions need a width that is a multiple of 4, not {embed_dim}")
    frequencies = 10_000.0 ** -(torch.arange(embed_dim // 4, dtype=torch.float64) / (embed_dim // 4))
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = [place.flatten().outer(frequencies) for place in (columns, rows)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)[None].float()

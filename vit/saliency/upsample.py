"""Upsampling of a map of patches to the size of the image."""

import torch
from torch import Tensor
from torch.nn import functional


def upsample_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, grid_h, grid_w) -> (B, *size), bilinear between the centres of the patches; half precision becomes float32.

    A pixel is NaN if the patch that it is in is not finite; otherwise such neighbours are left out of the mean.
    `vit.saliency.render.upsample` does the same for a NumPy map.
    """
    if maps.shape[1:] == size:
        return maps
    maps = maps.float() if maps.dtype in (torch.float16, torch.bfloat16) else maps
    covered = maps.isfinite()
    if covered.all():
        return _resized(maps, size, "bilinear")
    weight = _resized(covered.to(maps.dtype), size, "bilinear")
    values = _resized(torch.where(covered, maps, 0), size, "bilinear") / weight.clamp(min=1e-6)
    return torch.where(_resized(covered.to(maps.dtype), size, "nearest-exact") > 0, values, torch.nan)


def _resized(values: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    align = False if mode == "bilinear" else None
    return functional.interpolate(values[:, None], size, mode=mode, align_corners=align)[:, 0]

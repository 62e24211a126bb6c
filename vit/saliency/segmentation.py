"""A saliency map used as a segmentation: the ImageNet-Segmentation protocol of Chefer, Gur & Wolf 2021 (CVPR).

The map is upsampled bilinearly to the mask (224 x 224 in the paper) and scaled to 0..1. Pixels above its own mean are
the object, all others the background. Three numbers are computed:

    pixel accuracy      share of the pixels that are classified correctly
    average precision   of the 2 P answers "R is object" and "1 - R is background", ranked together
    IoU                 of the object and of the background; over a data set each is sum(intersections) / sum(unions),
                        and mIoU is their mean

As in the authors' code, a map that cannot be scaled (constant, or not finite) calls everything background, and has
the average precision of a blind guess.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics.functional.classification import binary_average_precision


class Segmentation(NamedTuple):
    """Scores per image: pixel_accuracy, average_precision (B,); intersection, union (B, 2): background, object."""

    pixel_accuracy: Tensor
    average_precision: Tensor
    intersection: Tensor
    union: Tensor

    @property
    def mean_iou(self) -> Tensor:
        """(B,) the mean IoU of each image by itself."""
        return (self.intersection / self.union.clamp(min=1)).mean(dim=1)


def segment(maps: Tensor, masks: Tensor) -> Segmentation:
    """Scores maps (B, grid_h, grid_w) or (B, img_h, img_w) against masks (B, img_h, img_w), True on the object.

    Raises:
        ValueError: when they are not of one batch, or the masks are not bool.
    """
    if maps.ndim != 3 or masks.ndim != 3 or len(maps) != len(masks) or masks.dtype != torch.bool:
        raise ValueError(
            f"Maps (B, grid_h, grid_w) and bool masks (B, img_h, img_w) of one batch are needed, "
            f"got {tuple(maps.shape)} and {tuple(masks.shape)} {masks.dtype}."
        )
    stretched = stretch(maps, (masks.shape[1], masks.shape[2])).flatten(1)
    # In double precision, so that a threshold between equal numbers does not depend on the rounding of their mean.
    chosen = stretched.double() > stretched.double().mean(dim=1, keepdim=True)
    truth = masks.flatten(1)
    answers = torch.stack([~chosen, chosen], dim=1)  # (B, 2, P)
    classes = torch.stack([~truth, truth], dim=1)
    ranked = torch.cat([1 - stretched, stretched], dim=1).nan_to_num(0)
    targets = classes.flatten(1).long()
    precision = [binary_average_precision(*each, validate_args=False) for each in zip(ranked, targets, strict=True)]
    return Segmentation(
        (chosen == truth).double().mean(dim=1),
        torch.stack(precision).double() if precision else torch.empty(0, dtype=torch.double),
        (answers & classes).sum(dim=2).double(),
        (answers | classes).sum(dim=2).double(),
    )


def stretch(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, grid_h, grid_w) -> (B, *size) in 0..1, bilinear; all NaN when the map is constant or not finite."""
    full = functional.interpolate(maps[:, None].float(), size, mode="bilinear", align_corners=False)[:, 0]
    low, high = full.amin(dim=(1, 2), keepdim=True), full.amax(dim=(1, 2), keepdim=True)
    # Upsampling leaves rounding differences in a flat map, which scaling would turn into a picture.
    usable = (high - low > 1e-6 * torch.maximum(high.abs(), low.abs())) & high.isfinite() & low.isfinite()
    return torch.where(usable, (full - low) / torch.where(usable, high - low, 1), torch.nan)

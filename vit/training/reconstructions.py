"""Pictures of masked pretraining: an image, what the model saw of it, and its reconstruction."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vit.models.masked import MaskedImageModel, patchify, unpatchify
from vit.saliency.render import Picture, contact_sheet, save_overlay

IMAGES = 8
SIDE = 128  # minimum length of the longer side of each picture, in pixels


def draw_reconstructions(
    model: MaskedImageModel,
    images: Tensor,
    hidden: Tensor,
    path: Path,
    *,
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    """Writes a PNG of the first images of a batch, three pictures each: the image, the same with its hidden patches
    in grey, and with the model's guess in their place.

    Args:
        images: (B, 3, img_h, img_w), normalised.
        hidden: boolean (B, P), True means hidden.
        path: path of the PNG.
        mean, std: the values that the images were normalised with.
    """
    images, hidden = images[:IMAGES].float(), hidden[:IMAGES]
    guessed = model.reconstruct(images, hidden).float()
    patches = patchify(images, model.patch_size).masked_fill(hidden[..., None], 0.0)  # the mean colour
    seen = unpatchify(patches, model.patch_size, model.encoder.grid_of(images))
    share = f"{hidden.float().mean():.0%} hidden"
    tiles = [
        (_as_picture(image, mean, std), caption)
        for three in zip(images, seen, guessed, strict=True)
        for image, caption in zip(three, ("image", share, "guess"), strict=True)
    ]
    height, width = tiles[0][0].shape[:2]
    (sheet,) = contact_sheet(tiles, columns=6, tile=(height, width), per_page=len(tiles))
    save_overlay(path, sheet)


def _as_picture(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Picture:
    """(3, img_h, img_w) normalised -> uint8 RGB, enlarged to be visible."""
    pixels = image.cpu() * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    picture = (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    scale = max(1, -(-SIDE // max(picture.shape[:2])))  # an integer, so that patches keep their edges
    return np.kron(picture, np.ones((scale, scale, 1), np.uint8))

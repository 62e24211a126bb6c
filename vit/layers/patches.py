"""Images are cut into patches, and patches are projected to tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Cuts an image into patches and projects each to a token (Dosovitskiy et al. 2021, equation 1).

    A convolution whose stride equals its kernel is the same matrix product as cutting and projecting.

    Args:
        patch_size: (height, width) of a patch in pixels.
        in_chans: channels of the image.
        embed_dim: D.
        bias: whether the projection has a bias.
    """

    def __init__(self, patch_size: tuple[int, int], in_chans: int, embed_dim: int, *, bias: bool = True):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size, bias=bias)

    def grid(self, img_h: int, img_w: int) -> tuple[int, int]:
        """(grid_h, grid_w), the number of patches, for an image size in pixels.

        Raises:
            ValueError: when the patch size does not divide the image; names the nearest sizes that it divides.
        """
        patch_h, patch_w = self.patch_size
        if img_h % patch_h or img_w % patch_w or min(img_h, img_w) < 1:
            raise ValueError(
                f"an image of {img_h} x {img_w} pixels can't be cut into patches of {patch_h} x {patch_w}; "
                f"possible heights: {_multiples(img_h, patch_h)}; widths: {_multiples(img_w, patch_w)}"
            )
        return img_h // patch_h, img_w // patch_w

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_chans, img_h, img_w) -> (B, grid_h · grid_w, D), row by row."""
        self.grid(*images.shape[-2:])
        return self.proj(images).flatten(2).transpose(1, 2)


def resize_patches(weight: Tensor, new_size: tuple[int, int]) -> Tensor:
    """The projection for patches of another size (Beyer et al. 2023, FlexiViT, equation 4).

    With B the matrix that resizes a patch (bicubic, antialiased), the new weights are the pseudo-inverse of Bᵀ times
    the old ones: the least-squares optimum. If patches grow, a resized image gets exactly the same tokens.

    Args:
        weight: (D, in_chans, patch_h, patch_w).
        new_size: (height, width) of the new patch in pixels.

    Returns:
        (D, in_chans, new_h, new_w), in the dtype of `weight`.
    """
    size = (weight.shape[2], weight.shape[3])
    if size == new_size:
        return weight
    pixels = torch.eye(size[0] * size[1], dtype=torch.float64).unflatten(1, (1, *size))  # each pixel's own image
    resized = F.interpolate(pixels, new_size, mode="bicubic", antialias=True).flatten(1)  # Bᵀ: (old, new) pixels
    fitted = weight.double().flatten(2) @ torch.linalg.pinv(resized).T
    return fitted.unflatten(2, new_size).to(weight.dtype)


def adapt_channels(weight: Tensor, in_chans: int) -> Tensor:
    """The projection of colour images (red, green, blue), converted for images with `in_chans` channels.

    For grey images the three are summed: a grey image then gets the same tokens as a colour image with three equal
    channels. More channels get red, green and blue in turn, times 3 / in_chans, so that the sum keeps its magnitude.
    The projection of grey images is converted in the same way: it then sees the mean of the channels.

    Args:
        weight: (D, 3 or 1, patch_h, patch_w).

    Returns:
        (D, in_chans, patch_h, patch_w).

    Raises:
        ValueError: when the weights have another number of channels than 3, 1 or `in_chans`.
    """
    colours = weight.shape[1]
    if colours == in_chans:
        return weight
    if colours not in (1, 3) or in_chans < 1:
        raise ValueError(
            f"a projection of {colours} channels can't be converted to {in_chans}; only one of 3 or of 1 can"
        )
    if in_chans == 1:
        return weight.sum(dim=1, keepdim=True)
    return weight[:, [channel % colours for channel in range(in_chans)]] * (colours / in_chans)


def _multiples(size: int, patch: int) -> str:
    below = size // patch * patch
    return " or ".join(str(n) for n in (below, below + patch) if n > 0)

"""Images cut into patches, and patches made into tokens."""

from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Cuts an image into patches and projects each to a token (Dosovitskiy et al. 2021, equation 1).

    A convolution whose stride is its kernel is the same matrix product as cutting and projecting.

    Args:
        patch_size: pixels (height, width) of a patch.
        in_chans: channels of the image.
        embed_dim: D.
        bias: whether the projection has one.
    """

    def __init__(self, patch_size: tuple[int, int], in_chans: int, embed_dim: int, *, bias: bool = True):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size, bias=bias)

    def grid(self, img_h: int, img_w: int) -> tuple[int, int]:
        """(grid_h, grid_w) in patches of an image in pixels.

        Raises:
            ValueError: when the patch size does not divide the image; says which sizes near it do.
        """
        patch_h, patch_w = self.patch_size
        if img_h % patch_h or img_w % patch_w or min(img_h, img_w) < 1:
            raise ValueError(
                f"an image of {img_h} x {img_w} pixels can't be cut into patches of {patch_h} x {patch_w}; "
                f"heights that can: {_multiples(img_h, patch_h)}; widths: {_multiples(img_w, patch_w)}"
            )
        return img_h // patch_h, img_w // patch_w

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_chans, img_h, img_w) -> (B, grid_h · grid_w, D), row by row."""
        self.grid(*images.shape[-2:])
        return self.proj(images).flatten(2).transpose(1, 2)


def _multiples(size: int, patch: int) -> str:
    below = size // patch * patch
    return " or ".join(str(n) for n in (below, below + patch) if n > 0)

"""Masked image modelling: patches are hidden, and the encoder learns by reconstructing them.

    MaskedAutoencoder   the encoder only sees the visible patches; a light decoder fills in the rest (He et al. 2022)
    SimMIM              the encoder sees a mask token in place of each hidden patch (Xie et al. 2022; BEiT's masks)

Both apply BERT's pretraining to images (Devlin et al. 2019, section 3.1), and both wrap the shared encoder, which is
all that is kept afterwards.

B batch, P patches, D embed_dim; hidden (B, P) is boolean, True means hidden
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vit.layers.positions import resize_positions, sincos_positions
from vit.models.encoder import Encoder, ImageEmbed, init_weights

PIXEL_EPS = 1e-6  # added to a patch's variance under the square root, as in He et al.'s code


def patchify(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """(B, C, img_h, img_w) -> (B, P, patch_h · patch_w · C), patches row by row, each pixel's channels together."""
    patch_h, patch_w = patch_size
    grid = images.unflatten(3, (-1, patch_w)).unflatten(2, (-1, patch_h))  # (B, C, grid_h, patch_h, grid_w, patch_w)
    return grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, patch_size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """The inverse of `patchify`, for a grid of (grid_h, grid_w) patches."""
    pixels = patches.unflatten(2, (*patch_size, -1)).unflatten(1, grid)  # (B, grid_h, grid_w, patch_h, patch_w, C)
    return pixels.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def num_visible(count: int, ratio: float) -> int:
    """How many of `count` patches are not hidden at a mask ratio: ⌊count (1 - ratio)⌋.

    Raises:
        ValueError: when no patch is hidden, or none visible.
    """
    visible = int(count * (1 - ratio))
    if not 0 < visible < count:
        raise ValueError(f"a mask ratio of {ratio} leaves {visible} of {count} visible; it must leave 1 to {count - 1}")
    return visible


def hide(noise: Tensor, ratio: float) -> Tensor:
    """(B, P) numbers -> hidden (B, P): the same number of patches in each row, those with the highest numbers.

    With uniform noise this is a random choice (He et al. 2022, section 3).

    Raises:
        ValueError: see `num_visible`.
    """
    return noise.argsort(dim=1, stable=True).argsort(dim=1) >= num_visible(noise.shape[1], ratio)


def squares(grid: tuple[int, int], cell: int) -> tuple[int, int]:
    """How many (rows, columns) of squares with cell x cell patches a grid has.

    Raises:
        ValueError: when the squares don't divide the grid.
    """
    if grid[0] % cell or grid[1] % cell:
        raise ValueError(f"squares of {cell} x {cell} patches don't divide a grid of {grid[0]} x {grid[1]}")
    return grid[0] // cell, grid[1] // cell


def random_hidden(
    batch: int, grid: tuple[int, int], ratio: float, *, cell: int = 1, generator: torch.Generator | None = None
) -> Tensor:
    """hidden (B, grid_h · grid_w), a function of the generator only; on the CPU.

    Args:
        ratio: share of the patches that are hidden.
        cell: patches are hidden in squares of cell x cell (Xie et al. 2022, section 3.2).

    Raises:
        ValueError: see `squares` and `num_visible`.
    """
    rows, columns = squares(grid, cell)
    hidden = hide(torch.rand(batch, rows * columns, generator=generator), ratio).view(batch, rows, columns)
    return hidden.repeat_interleave(cell, dim=1).repeat_interleave(cell, dim=2).flatten(1)


class Guess(NamedTuple):
    """The output of a masked model: the loss, a scalar, and the predicted patches (B, P, pixels · C) in the layout of
    `patchify`, in the units of the loss's targets."""

    loss: Tensor
    patches: Tensor


class MaskedImageModel(nn.Module):
    """What both recipes share: the encoder, the choice of hidden patches, and pictures of the reconstruction.

    Args:
        encoder: the encoder that is trained and kept.
        mask_ratio: share of the patches that are hidden.
        cell: see `random_hidden`.

    Raises:
        ValueError: see `squares` and `num_visible`; for an encoder with rotary positions.
    """

    def __init__(self, encoder: Encoder, *, mask_ratio: float, cell: int = 1):
        super().__init__()
        if encoder.rotary is not None:
            raise ValueError("masked pretraining of an encoder with rotary positions is not possible here")
        self.encoder = encoder
        self.mask_ratio = mask_ratio
        self.cell = cell
        rows, columns = squares(encoder.grid, cell)
        num_visible(rows * columns, mask_ratio)  # raises now, not in the middle of training

    @property
    def patch_size(self) -> tuple[int, int]:
        return self.encoder.embed.patch_embed.patch_size  # type: ignore[union-attr, return-value]

    def hide(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """hidden (B, P) for images (B, C, img_h, img_w), a function of the generator only."""
        grid = self.encoder.grid_of(images)
        hidden = random_hidden(len(images), grid, self.mask_ratio, cell=self.cell, generator=generator)
        return hidden.to(images.device)

    def forward(self, images: Tensor, hidden: Tensor) -> Guess:
        """Predicts the hidden patches of images (B, C, img_h, img_w)."""
        raise NotImplementedError

    def as_pixels(self, patches: Tensor, images: Tensor) -> Tensor:
        """Predicted patches as pixels of the images."""
        return patches

    @torch.no_grad()
    def reconstruct(self, images: Tensor, hidden: Tensor) -> Tensor:
        """The images with the prediction in place of the hidden patches: (B, C, img_h, img_w)."""
        guessed = self.as_pixels(self(images, hidden).patches, images)
        patches = torch.where(hidden[..., None], guessed, patchify(images, self.patch_size))
        return unpatchify(patches, self.patch_size, self.encoder.grid_of(images))


class FilledTokens(nn.Module):
    """The tokens that MAE's decoder sees: the encoder's tokens at their positions, a learned token elsewhere.

    Args:
        grid: the (grid_h, grid_w) that the positions are made for.
        num_prefix_tokens: how many tokens come before those of the patches.
        context_dim: width of the encoder's tokens; a linear layer projects them to `embed_dim`.
        embed_dim: width of the decoder's tokens, a multiple of 4.
        pos_interpolation: see `resize_positions`.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        num_prefix_tokens: int,
        context_dim: int,
        embed_dim: int,
        pos_interpolation: str,
    ):
        super().__init__()
        self.grid = grid
        self.num_prefix_tokens = num_prefix_tokens
        self.pos_interpolation = pos_interpolation
        self.proj = nn.Linear(context_dim, embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        positions = sincos_positions(grid, embed_dim)
        self.pos_embed = nn.Parameter(torch.cat([positions.new_zeros(1, num_prefix_tokens, embed_dim), positions], 1))

    def forward(self, seen: Tensor, hidden: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, prefix + visible, context_dim) tokens and hidden (B, P) -> (B, prefix + P, embed_dim)."""
        tokens = self.proj(seen)
        prefix, visible = tokens.tensor_split([self.num_prefix_tokens], dim=1)
        places = self.mask_token.to(tokens.dtype).expand(*hidden.shape, -1)
        patches = places.masked_scatter(~hidden[..., None], visible)  # in order, so visible ones keep their positions
        positions = resize_positions(self.pos_embed, self.grid, grid, self.pos_interpolation)
        return torch.cat([prefix, patches], dim=1) + positions


class MaskedAutoencoder(MaskedImageModel):
    """MAE (He et al. 2022): the encoder only sees the visible patches, a quarter of the work if 75 % are hidden.

    Its tokens, and a mask token for each hidden patch, go through a light decoder of the same kind of blocks, which
    predicts pixels. The loss is the mean squared error over the hidden patches, each patch's pixels normalised by
    their own mean and variance (section 3, "Reconstruction target").

    Args:
        encoder: the encoder that is trained and kept.
        mask_ratio: share of the patches that are hidden; 0.75 in the paper (figure 5).
        decoder_dim, decoder_depth, decoder_heads: sizes of the decoder; a decoder_dim of None is half the encoder's
            width. One block is enough if the encoder is fine-tuned afterwards (table 1a).
        normalised: whether the pixels of the targets are normalised.
        norm_eps, block_options: for the decoder, as `Encoder` takes them.

    Raises:
        ValueError: see `MaskedImageModel`; for sizes that don't make a decoder.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        mask_ratio: float = 0.75,
        decoder_dim: int | None = None,
        decoder_depth: int = 1,
        decoder_heads: int = 4,
        normalised: bool = True,
        norm_eps: float = 1e-6,
        **block_options: Any,
    ):
        super().__init__(encoder, mask_ratio=mask_ratio)
        self.normalised = normalised
        decoder_dim = decoder_dim or encoder.embed_dim // 2
        embed: ImageEmbed = encoder.embed  # type: ignore[assignment]
        filled = FilledTokens(
            encoder.grid, encoder.num_prefix_tokens, encoder.embed_dim, decoder_dim, embed.pos_interpolation
        )
        self.decoder = Encoder(filled, decoder_dim, decoder_depth, decoder_heads, norm_eps=norm_eps, **block_options)
        self.head = nn.Linear(decoder_dim, _pixels(embed))
        self.decoder.apply(init_weights)
        init_weights(self.head)

    def forward(self, images: Tensor, hidden: Tensor) -> Guess:
        """As `MaskedImageModel.forward`; every image must have the same number of hidden patches.

        Raises:
            ValueError: when they have different numbers.
        """
        visible = (~hidden).sum(dim=1)
        if (visible != visible[0]).any():
            raise ValueError(f"{visible.min()} to {visible.max()} patches are visible; MAE needs equal numbers")
        tokens = self.encoder.embed(images)
        prefix, patches = tokens.tensor_split([self.encoder.num_prefix_tokens], dim=1)
        shown = patches[~hidden].unflatten(0, (len(images), -1))  # (B, visible, D), in order
        seen = self.encoder.encode(torch.cat([prefix, shown], dim=1))
        filled = self.decoder.embed(seen, hidden, self.encoder.grid_of(images))
        predicted = self.head(self.decoder.encode(filled)[:, self.encoder.num_prefix_tokens :])
        targets = patchify(images, self.patch_size)
        if self.normalised:
            mean, std = _mean_and_std(targets)
            targets = (targets - mean) / std
        errors = (predicted.float() - targets.float()).square().mean(dim=2)  # (B, P)
        return Guess(errors[hidden].mean(), predicted)

    def as_pixels(self, patches: Tensor, images: Tensor) -> Tensor:
        """Predicted patches as pixels. Mean and variance of normalised patches are not predicted, but taken from the
        images."""
        if not self.normalised:
            return patches
        mean, std = _mean_and_std(patchify(images, self.patch_size))
        return patches * std + mean


class SimMIM(MaskedImageModel):
    """SimMIM (Xie et al. 2022): the encoder sees all positions, with a learned mask token in place of hidden patches,
    as in BEiT (Bao et al. 2022), and a linear layer predicts the pixels. The loss is the mean absolute error over the
    hidden pixels.

    Args:
        encoder: the encoder that is trained and kept.
        mask_ratio: share of the patches that are hidden; 0.6 in the paper (table 1).
        cell: patches are hidden in squares of cell x cell; those of the paper have sides of 32 pixels.

    Raises:
        ValueError: see `MaskedImageModel`.
    """

    def __init__(self, encoder: Encoder, *, mask_ratio: float = 0.6, cell: int = 1):
        super().__init__(encoder, mask_ratio=mask_ratio, cell=cell)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder.embed_dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.head = nn.Linear(encoder.embed_dim, _pixels(encoder.embed))  # type: ignore[arg-type]
        init_weights(self.head)

    def forward(self, images: Tensor, hidden: Tensor) -> Guess:
        tokens = self.encoder.encode(self._embed(images, hidden))
        predicted = self.head(tokens[:, self.encoder.num_prefix_tokens :])
        errors = (predicted.float() - patchify(images, self.patch_size).float()).abs().mean(dim=2)  # (B, P)
        return Guess(errors[hidden].mean(), predicted)

    def _embed(self, images: Tensor, hidden: Tensor) -> Tensor:
        """(B, prefix + P, D): the embedded images, with the mask token in place of hidden patches."""
        embed: ImageEmbed = self.encoder.embed  # type: ignore[assignment]
        tokens = embed(images)
        assert embed.pos_embed is not None  # rotary positions were refused
        positions = resize_positions(embed.pos_embed, embed.grid, self.encoder.grid_of(images), embed.pos_interpolation)
        masked = embed.norm(self.mask_token + positions).to(tokens.dtype)
        prefix, patches = tokens.tensor_split([embed.num_prefix_tokens], dim=1)
        return torch.cat([prefix, torch.where(hidden[..., None], masked, patches)], dim=1)


def _pixels(embed: ImageEmbed) -> int:
    """Numbers in one patch of an image."""
    return embed.patch_embed.proj.weight[0].numel()


def _mean_and_std(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the pixels of each patch, (B, P, 1) each."""
    variance, mean = torch.var_mean(patches, dim=2, keepdim=True)
    return mean, (variance + PIXEL_EPS).sqrt()

"""The shared encoder: an embedding makes tokens, and a stack of blocks lets them attend to each other.

B batch, N tokens = prefix + patches, D embed_dim; prefix tokens = class, distillation, registers, in this order
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vit.layers.attention import Attention
from vit.layers.blocks import Block
from vit.layers.patches import PatchEmbed
from vit.layers.positions import INTERPOLATIONS, Rotation, resize_positions, rotation


class ImageEmbed(nn.Module):
    """Images to tokens: the prefix tokens, followed by the patches with learned positions, if there are any.

    Prefix tokens have no entry in `pos_embed`, because a learned token plus a learned position is one learned vector.

    Args:
        image_size: (height, width) in pixels that the positions are learned for; for other sizes they are resized.
        patch_size: (height, width) of a patch in pixels; must divide `image_size`.
        embed_dim: D.
        in_chans: channels of the images.
        class_token, dist_token, num_registers: which prefix tokens there are, in this order.
        pos_interpolation: the filter that resizes positions, see `vit.layers.positions`.
        learned_positions: whether there are learned positions; rotary ones belong to the encoder.
        patch_bias: whether the projection of the patches has a bias.
        embed_norm: whether the tokens are layer-normalised, as in CLIP.
        norm_eps: epsilon of that norm.

    Raises:
        ValueError: for an unknown pos_interpolation, or a patch size that does not divide the image size.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        patch_size: tuple[int, int],
        embed_dim: int,
        *,
        in_chans: int = 3,
        class_token: bool = True,
        dist_token: bool = False,
        num_registers: int = 0,
        pos_interpolation: str = "bicubic_antialias",
        learned_positions: bool = True,
        patch_bias: bool = True,
        embed_norm: bool = False,
        norm_eps: float = 1e-6,
    ):
        super().__init__()
        if pos_interpolation not in INTERPOLATIONS:
            raise ValueError(f"pos_interpolation is {pos_interpolation!r}; allowed are {', '.join(INTERPOLATIONS)}")
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim, bias=patch_bias)
        self.grid = self.patch_embed.grid(*image_size)
        self.pos_interpolation = pos_interpolation
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if class_token else None
        self.dist_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if dist_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, num_registers, embed_dim)) if num_registers else None
        places = self.grid[0] * self.grid[1]
        self.pos_embed = nn.Parameter(torch.zeros(1, places, embed_dim)) if learned_positions else None
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps) if embed_norm else nn.Identity()

    @property
    def num_prefix_tokens(self) -> int:
        return sum(token.shape[1] for token in self._prefix())

    def _prefix(self) -> list[nn.Parameter]:
        return [token for token in (self.cls_token, self.dist_token, self.reg_token) if token is not None]

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_chans, img_h, img_w) -> (B, N, D)."""
        grid = self.patch_embed.grid(*images.shape[-2:])
        patches = self.patch_embed(images)
        if self.pos_embed is not None:
            patches = patches + resize_positions(self.pos_embed, self.grid, grid, self.pos_interpolation)
        prefix = [token.to(patches.dtype).expand(len(images), -1, -1) for token in self._prefix()]
        return self.norm(torch.cat([*prefix, patches], dim=1))


class Encoder(nn.Module):
    """An embedding, `depth` blocks and a final norm (Dosovitskiy et al. 2021, equations 1 to 4).

    Args:
        embed: makes tokens (B, N, D) of the inputs and has `num_prefix_tokens`.
        embed_dim: D.
        depth: number of blocks.
        num_heads: H.
        drop_path: rate of stochastic depth in the last block, rising linearly from 0 in the first.
        norm_eps: epsilon of all norms.
        final_norm: whether there is a norm after the last block.
        rotary: rotary positions of the patches, only for images: keywords of `vit.layers.positions.rotation`; None for
            none.
        architecture: the keywords that `image_encoder` was called with, kept to be saved with the weights.
        block_options: the rest, as `Block` takes them.

    Raises:
        ValueError: as `Block` does, and for invalid rotary positions.
    """

    activation_checkpointing = False  # in training, blocks only keep their input, and are recomputed for gradients

    def __init__(
        self,
        embed: nn.Module,
        embed_dim: int,
        depth: int,
        num_heads: int,
        *,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
        final_norm: bool = True,
        rotary: Mapping[str, Any] | None = None,
        architecture: Mapping[str, Any] | None = None,
        **block_options: Any,
    ):
        super().__init__()
        rates = [drop_path * index / max(depth - 1, 1) for index in range(depth)]
        self.embed_dim = embed_dim
        self.architecture = dict(architecture or {})
        self.embed = embed
        self.rotary = rotary
        if rotary is not None:
            rotation((1, 1), embed_dim // num_heads, **rotary)  # raises for invalid options
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, drop_path=rate, norm_eps=norm_eps, **block_options) for rate in rates
        )
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps) if final_norm else nn.Identity()

    @property
    def num_prefix_tokens(self) -> int:
        """How many tokens come before those of the patches."""
        return int(self.embed.num_prefix_tokens)  # type: ignore[arg-type]

    @property
    def grid(self) -> tuple[int, int]:
        """The (grid_h, grid_w) that the positions are learned for."""
        return self.embed.grid  # type: ignore[return-value]

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """The (grid_h, grid_w) of images (B, C, img_h, img_w)."""
        return self.embed.patch_embed.grid(*images.shape[-2:])  # type: ignore[operator, union-attr]

    def attentions(self) -> list[Attention]:
        """The attention of each block, first block first."""
        return [block.attn for block in self.blocks]  # type: ignore[misc]

    def forward(self, inputs: Tensor, *, mask: Tensor | None = None, read: int | None = None) -> Tensor:
        """Tokens of the inputs.

        Args:
            inputs: what `embed` takes: images (B, in_chans, img_h, img_w).
            mask: boolean, broadcastable to (B, H, N, N); True means attend.
            read: number of first tokens that are needed; None for all. The last block then only computes these, with
                the same result.

        Returns:
            (B, N, D), or (B, read, D).
        """
        turned = None if self.rotary is None else self.rotation(inputs)
        return self.encode(self.embed(inputs), mask=mask, read=read, turned=turned)

    def rotation(self, images: Tensor) -> Rotation:
        """The rotary positions of the patches of images (B, C, img_h, img_w)."""
        assert self.rotary is not None
        cos, sin = rotation(self.grid_of(images), self.attentions()[0].head_dim, **self.rotary)
        return cos.to(images.device), sin.to(images.device)

    def encode(
        self, tokens: Tensor, *, mask: Tensor | None = None, read: int | None = None, turned: Rotation | None = None
    ) -> Tensor:
        """The blocks and the final norm, for tokens (B, N, D) that are already embedded; see `forward`.

        Args:
            turned: the rotary positions of the tokens.

        Raises:
            ValueError: when the encoder has rotary positions, but `turned` is missing.
        """
        if self.rotary is not None and turned is None:
            raise ValueError("this encoder has rotary positions; give `turned`, the positions of the tokens")
        return self._last(tokens, 1, mask=mask, read=read, turned=turned)[0]

    def last_tokens(self, inputs: Tensor, count: int, *, read: int | None = None) -> list[Tensor]:
        """The tokens after each of the last `count` blocks, each after the final norm; see `forward`.

        With `read`, the last block only returns that many first tokens, and the others return all.
        """
        turned = None if self.rotary is None else self.rotation(inputs)
        return self._last(self.embed(inputs), count, read=read, turned=turned)

    def _last(self, tokens: Tensor, count: int, *, read: int | None, **options: Any) -> list[Tensor]:
        last, found = len(self.blocks) - 1, []
        for index, block in enumerate(self.blocks):
            tokens = self._run(block, tokens, read=read if index == last else None, **options)
            if index > last - count:
                found.append(self.norm(tokens))
        return found

    def _run(self, block: nn.Module, tokens: Tensor, **options: Any) -> Tensor:
        """Runs one block. Recording must see the first computation, so it never uses activation checkpointing."""
        if self.activation_checkpointing and self.training and torch.is_grad_enabled() and not block.attn.recording:  # type: ignore[union-attr]
            again: Tensor = checkpoint(block, tokens, use_reentrant=False, **options)
            return again
        return block(tokens, **options)


def image_encoder(
    *,
    image_size: tuple[int, int],
    patch_size: tuple[int, int],
    embed_dim: int,
    depth: int,
    num_heads: int,
    in_chans: int = 3,
    class_token: bool = True,
    dist_token: bool = False,
    num_registers: int = 0,
    pos_interpolation: str = "bicubic_antialias",
    learned_positions: bool = True,
    rotary: Mapping[str, Any] | None = None,
    patch_bias: bool = True,
    embed_norm: bool = False,
    drop_path: float = 0.0,
    act: str = "gelu",
    norm_eps: float = 1e-6,
    **block_options: Any,
) -> Encoder:
    """A new Vision Transformer encoder with random weights; sizes by name are in `vit.models.variants`.

    Apart from `drop_path` and the random weights, the same keywords make the same model: a model folder keeps them as
    its architecture.

    Args:
        image_size to embed_norm: see `ImageEmbed` and `Encoder`.
        act, block_options: see `Block`.

    Raises:
        ValueError: as `ImageEmbed` and `Encoder` do.
    """
    embed_options = {
        "in_chans": in_chans,
        "class_token": class_token,
        "dist_token": dist_token,
        "num_registers": num_registers,
        "pos_interpolation": pos_interpolation,
        "learned_positions": learned_positions,
        "patch_bias": patch_bias,
        "embed_norm": embed_norm,
    }
    stack_options = {
        "embed_dim": embed_dim,
        "depth": depth,
        "num_heads": num_heads,
        "act": act,
        "norm_eps": norm_eps,  # the weights don't show this and `act`, so they are kept even if they are defaults
        "rotary": rotary,
        **block_options,
    }
    sizes = {"image_size": tuple(image_size), "patch_size": tuple(patch_size)}
    encoder = Encoder(
        ImageEmbed(sizes["image_size"], sizes["patch_size"], embed_dim, norm_eps=norm_eps, **embed_options),  # type: ignore[arg-type]
        drop_path=drop_path,
        architecture={**sizes, **stack_options, **embed_options},
        **stack_options,
    )
    encoder.apply(init_weights)
    return encoder


def init_weights(module: nn.Module) -> None:
    """Weights for training from scratch: truncated normals of 0.02, zero biases (Dosovitskiy et al. 2021)."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, ImageEmbed):
        for token in [*module._prefix(), *([] if module.pos_embed is None else [module.pos_embed])]:
            nn.init.trunc_normal_(token, std=0.02)

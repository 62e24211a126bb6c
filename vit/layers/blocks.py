"""One block of the Transformer: attention, then an MLP, each added to the stream of tokens."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vit.layers.attention import Attention, KeyValues
from vit.layers.mlp import Mlp, SwiGLU
from vit.layers.positions import Rotation


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch (Touvron et al. 2021, CaiT).

    Args:
        embed_dim: number of channels, D.
        init_value: initial value of the factors.
    """

    def __init__(self, embed_dim: int, init_value: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((embed_dim,), init_value))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class DropPath(nn.Module):
    """Drops a residual branch for whole samples at random in training (Huang et al. 2016, stochastic depth).

    Branches that are kept are divided by 1 - rate, so that their expected value is the same as in evaluation.

    Args:
        rate: probability of dropping the branch of a sample, 0 to below 1.

    Raises:
        ValueError: for another rate.
    """

    def __init__(self, rate: float):
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"drop path rate is {rate}; allowed are 0 to below 1")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        return x * x.new_empty(shape).bernoulli_(1.0 - self.rate).div_(1.0 - self.rate)


class Block(nn.Module):
    """Attention and MLP around a residual stream (Dosovitskiy et al. 2021, equations 2 and 3).

        pre-norm:   x = x + attn(norm1(x));   x = x + mlp(norm2(x))
        post-norm:  x = norm1(x + attn(x));   x = norm2(x + mlp(x))      (Vaswani et al. 2017; BERT)

    Args:
        embed_dim: D.
        num_heads: H.
        mlp_ratio: hidden width of the MLP, relative to D; rounded down.
        qkv_bias, qk_norm: see `Attention`.
        init_values: initial value of the layer scale; None for no layer scale.
        drop_path: rate of stochastic depth, see `DropPath`.
        act: activation of the MLP, one of `vit.layers.mlp.ACTIVATIONS`; "swiglu" has its own.
        mlp: "mlp", or "swiglu" (whose hidden width counts both halves).
        norm_eps: epsilon of the norms.
        post_norm: norms after the residual sums, instead of before the branches.

    Raises:
        ValueError: when the heads don't divide embed_dim, a SwiGLU's hidden width is odd, the drop path rate is not in
            [0, 1), or there is no such MLP or activation.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        init_values: float | None = None,
        drop_path: float = 0.0,
        act: str = "gelu",
        mlp: str = "mlp",
        norm_eps: float = 1e-6,
        post_norm: bool = False,
    ):
        super().__init__()
        self.post_norm = post_norm
        self.norm1 = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.attn = Attention(embed_dim, num_heads, qkv_bias=qkv_bias, qk_norm=qk_norm, norm_eps=norm_eps)
        self.ls1 = nn.Identity() if init_values is None else LayerScale(embed_dim, init_values)
        self.norm2 = nn.LayerNorm(embed_dim, eps=norm_eps)
        # Rounded down, as in timm; the 1e-6 is for ratios of integers, because 22 * (49 / 22) is below 49.
        self.mlp = _make_mlp(mlp, embed_dim, int(embed_dim * mlp_ratio + 1e-6), act)
        self.ls2 = nn.Identity() if init_values is None else LayerScale(embed_dim, init_values)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(
        self, x: Tensor, *, mask: Tensor | None = None, read: int | None = None, turned: Rotation | None = None
    ) -> Tensor:
        """(B, N, D) -> (B, N, D), or (B, read, D) when only the first `read` tokens are needed.

        Every token is still a key and a value for those that are read, so the result is the same; this only saves the
        work on tokens that are not used afterwards.

        Args:
            mask: boolean, broadcastable to (B, H, N, N); True means attend.
            read: number of first tokens to compute; None for all.
            turned: rotary positions, as `Attention` takes them.
        """
        if self.post_norm:
            x = self.norm1(x[:, :read] + self._attend(x, mask, read, turned))
            return self.norm2(x + self.drop_path(self.ls2(self.mlp(x))))
        x = x[:, :read] + self._attend(self.norm1(x), mask, read, turned)
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))

    def _attend(self, x: Tensor, mask: Tensor | None, read: int | None, turned: Rotation | None) -> Tensor:
        if read is None:
            attended = self.attn(x, mask=mask, turned=turned)
        else:
            mask = None if mask is None else mask[..., :read, :]  # one row per query, or one for all
            attended = self.attn(x[:, :read], x, mask=mask, turned=turned)
        return self.drop_path(self.ls1(attended))


class DecoderBlock(Block):
    """A block that also attends to the tokens of a context, such as an encoder's (Vaswani et al. 2017, section 3.1).

        pre-norm:   x = x + attn(norm1(x));   x = x + cross_attn(cross_norm(x), context);   x = x + mlp(norm2(x))
        post-norm:  x = norm1(x + attn(x));   x = cross_norm(x + cross_attn(x, context));   x = norm2(x + mlp(x))

    Args:
        embed_dim: D, of the tokens and the context.
        num_heads, qkv_bias, qk_norm: of both attentions, see `Attention`.
        init_values, norm_eps, options: as `Block` takes them.

    Raises:
        ValueError: as `Block` does.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        init_values: float | None = None,
        norm_eps: float = 1e-6,
        **options: Any,
    ):
        attention: dict[str, Any] = {"qkv_bias": qkv_bias, "qk_norm": qk_norm, "norm_eps": norm_eps}
        super().__init__(embed_dim, num_heads, init_values=init_values, **attention, **options)
        self.cross_norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.cross_attn = Attention(embed_dim, num_heads, **attention)
        self.cross_ls = nn.Identity() if init_values is None else LayerScale(embed_dim, init_values)

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        context: Tensor,
        *,
        mask: Tensor | None = None,
        is_causal: bool = False,
        context_mask: Tensor | None = None,
        caches: tuple[KeyValues | None, KeyValues | None] = (None, None),
    ) -> Tensor:
        """(B, N, D) tokens and (B, M, D) context -> (B, N, D).

        Args:
            mask, is_causal: for the self-attention of the tokens, as `Attention` takes them.
            context_mask: boolean, broadcastable to (B, H, N, M); True means attend.
            caches: keys and values of earlier tokens, and of the context.
        """

        def look_around(tokens: Tensor) -> Tensor:
            return self.ls1(self.attn(tokens, mask=mask, is_causal=is_causal, cache=caches[0]))

        def look_at_context(tokens: Tensor) -> Tensor:
            return self.cross_ls(self.cross_attn(tokens, context, mask=context_mask, cache=caches[1]))

        x = self._add(x, look_around, self.norm1)
        x = self._add(x, look_at_context, self.cross_norm)
        return self._add(x, lambda tokens: self.ls2(self.mlp(tokens)), self.norm2)

    def _add(self, x: Tensor, branch: Callable[[Tensor], Tensor], norm: nn.Module) -> Tensor:
        if self.post_norm:
            return norm(x + self.drop_path(branch(x)))
        return x + self.drop_path(branch(norm(x)))


def _make_mlp(kind: str, embed_dim: int, hidden_dim: int, act: str) -> nn.Module:
    if kind == "mlp":
        return Mlp(embed_dim, hidden_dim, act)
    if kind == "swiglu":
        return SwiGLU(embed_dim, hidden_dim)
    raise ValueError(f"mlp is {kind!r}; allowed are mlp and swiglu")

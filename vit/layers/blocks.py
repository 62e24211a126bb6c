"""One block of the Transformer: attention, then an MLP, each added to the stream of tokens."""

import torch
from torch import Tensor, nn

from vit.layers.attention import Attention
from vit.layers.mlp import Mlp, SwiGLU


class LayerScale(nn.Module):
    """A learned factor a channel on a residual branch (Touvron et al. 2021, CaiT)."""

    def __init__(self, embed_dim: int, init_value: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((embed_dim,), init_value))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class DropPath(nn.Module):
    """Drops a residual branch for a whole sample at `rate` (Huang et al. 2016, stochastic depth).

    What is kept is divided by 1 - rate, so that the expected value is that of evaluation.
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
        mlp_ratio: hidden width of the MLP, in D.
        mlp: "mlp", or "swiglu" (whose hidden width counts both halves).
        init_values: start of the layer scale; None for no layer scale.
        post_norm: norms after the residual sums, not before the branches.
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
        # Rounded down, as timm does; the 1e-6 is for ratios of whole numbers, where 22 * (49 / 22) is below 49.
        self.mlp = _make_mlp(mlp, embed_dim, int(embed_dim * mlp_ratio + 1e-6), act)
        self.ls2 = nn.Identity() if init_values is None else LayerScale(embed_dim, init_values)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, *, mask: Tensor | None = None, read: int | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D), or (B, read, D) when only the first `read` tokens are asked for.

        Every token is still a key and a value for those that are read, so they come out the same; what is
        saved is the work on tokens that nobody looks at afterwards.
        """
        if self.post_norm:
            x = self.norm1(x[:, :read] + self._attend(x, mask, read))
            return self.norm2(x + self.drop_path(self.ls2(self.mlp(x))))
        x = x[:, :read] + self._attend(self.norm1(x), mask, read)
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))

    def _attend(self, x: Tensor, mask: Tensor | None, read: int | None) -> Tensor:
        if read is None:
            attended = self.attn(x, mask=mask)
        else:
            mask = None if mask is None else mask[..., :read, :]  # a row for each query, or one for all
            attended = self.attn(x[:, :read], x, mask=mask)
        return self.drop_path(self.ls1(attended))


def _make_mlp(kind: str, embed_dim: int, hidden_dim: int, act: str) -> nn.Module:
    if kind == "mlp":
        return Mlp(embed_dim, hidden_dim, act)
    if kind == "swiglu":
        return SwiGLU(embed_dim, hidden_dim)
    raise ValueError(f"mlp is {kind!r}; allowed are mlp and swiglu")

"""Attention: every query is compared with all keys, and gets a weighted mean of the values.

B batch, N query tokens, M context tokens, D embed_dim, H heads, Dh head_dim = D / H
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.layers.positions import Rotation, rotate


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √Dh): how much each query attends to each key (Vaswani et al. 2017, equation 1).

    The textbook's N x M matrix, for reading and for the tiles of a walk. The layers themselves only build it where that
    is the fastest way to train, see `attend`.

    Args:
        q: (..., N, Dh) queries.
        k: (..., M, Dh) keys.
        mask: boolean, broadcastable to (..., N, M); True means attend.

    Returns:
        (..., N, M), each row summing to 1.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1)


# Up to this number of tokens, the matrices that training keeps are small compared with everything else that it keeps.
MATRIX_TOKENS = 600


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, is_causal: bool = False, training: bool = False
) -> Tensor:
    """(B, H, N, Dh) queries, (B, H, M, Dh) keys and values -> (B, H, N, Dh), each query's mean of the values.

    Uses the fused kernel, whose memory is linear in the number of tokens. For training in bfloat16 on a CPU, torch's
    kernel took four times as long as the textbook's matrix products for 65 tokens, and twice as long for 577, including
    the gradient (AMD Zen 4, benchmarks/results); so there, up to MATRIX_TOKENS, the products are computed, with their
    scores rounded to bfloat16.
    """
    if training and q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[2] <= MATRIX_TOKENS:
        mask = causal_mask(q.shape[2], k.shape[2], q.device) if is_causal else mask
        return attention_weights(q, k.contiguous(), mask) @ v.contiguous()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)


def causal_mask(num_queries: int, num_keys: int, device: torch.device | None = None) -> Tensor:
    """(N, M) boolean: each query sees the keys up to its own position (Vaswani et al. 2017, section 3.2.3).

    The queries are the last N of the M tokens; the tokens before them were processed earlier.
    """
    return torch.ones(num_queries, num_keys, dtype=torch.bool, device=device).tril(num_keys - num_queries)


class KeyValues:
    """Keys and values that an attention has already projected, (B, H, tokens, Dh) each: while a sequence is generated,
    each new token attends to those of all earlier tokens, which need not be computed again."""

    def __init__(self) -> None:
        self.k: Tensor | None = None
        self.v: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        return 0 if self.k is None else self.k.shape[2]

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Appends the keys and values of new tokens; returns all of them."""
        if self.k is None or self.v is None:
            self.k, self.v = k, v
        elif k.shape[2]:
            self.k, self.v = torch.cat([self.k, k], dim=2), torch.cat([self.v, v], dim=2)
        return self.k, self.v

    def select(self, rows: Tensor) -> None:
        """Keeps these rows of the batch, in this order; a row may occur more than once."""
        if self.k is not None and self.v is not None:
            self.k, self.v = self.k[rows], self.v[rows]


class Recorded(NamedTuple):
    """The inputs and the output of one fused attention call, (B, H, tokens, Dh) each; q and output have the query
    tokens, k and v the context tokens. What was not requested is None."""

    q: Tensor
    k: Tensor
    v: Tensor | None = None
    output: Tensor | None = None
    gradient: Tensor | None = None  # gradient of the output, once a method has computed it
    mask: Tensor | None = None  # boolean (B, H, N, M), a view of the given mask; True means attend

    def of(self, images: slice) -> "Recorded":
        """The part of it that belongs to some images of the batch."""
        kept = {name: value[images] for name, value in self._asdict().items() if value is not None}
        return Recorded(**kept)


class Attention(nn.Module):
    """Multi-head attention, self or cross, see `attend` (Vaswani et al. 2017, section 3.2).

    The same weights serve both: `qkv` contains the query, key and value projections one above the other, and
    cross-attention uses its rows separately.

    Args:
        embed_dim: D, a multiple of `num_heads`.
        num_heads: H.
        qkv_bias: whether the three projections have a bias.
        qk_norm: whether q and k are layer-normalised in each head (Dehghani et al. 2023, ViT-22B).
        norm_eps: epsilon of those norms.

    Raises:
        ValueError: when the heads don't divide embed_dim.
    """

    # Set by vit.saliency.record while it records: "", "qk", "qkv", or "qkvo" for gradients as well.
    recording: str = ""
    recorded: Recorded | None = None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        norm_eps: float = 1e-6,
    ):
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(
                f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}; try {_divisors(embed_dim)} heads"
            )
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.q_norm = nn.LayerNorm(self.head_dim, eps=norm_eps) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(self.head_dim, eps=norm_eps) if qk_norm else nn.Identity()
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(
        self,
        query_tokens: Tensor,
        context_tokens: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        is_causal: bool = False,
        cache: KeyValues | None = None,
        turned: Rotation | None = None,
    ) -> Tensor:
        """For each query token, the projected mean of the values of the context tokens.

        Args:
            query_tokens: (B, N, D).
            context_tokens: (B, M, D); None for self-attention, where the queries are their own context.
            mask: boolean, broadcastable to (B, H, N, M); True means attend.
            is_causal: token n attends only to tokens 0 to n; can't be combined with a mask or tokens in the cache.
            cache: keys and values of earlier context tokens. Those of `context_tokens`, which may then be empty, are
                added to it, and the queries attend to all of them: M includes the earlier ones.
            turned: rotary positions of the last tokens, see `vit.layers.positions.rotation`; the tokens before them
                have none. For self-attention, in which the queries are the keys' tokens, or the first of them.

        Returns:
            (B, N, D).
        """
        q, k, v = self._project(query_tokens, context_tokens)  # (B, H, N or M, Dh)
        q, k = self.q_norm(q), self.k_norm(k)
        if turned is not None:
            num_prefix = k.shape[2] - len(turned[0])
            q, k = rotate(q, turned, num_prefix), rotate(k, turned, num_prefix)
        q, k = q.to(v.dtype), k.to(v.dtype)
        if cache is not None:
            k, v = cache.extend(k, v)
        output = attend(q, k, v, mask=mask, is_causal=is_causal, training=self.training)
        if self.recording:
            mask = causal_mask(q.shape[2], k.shape[2], q.device) if is_causal else mask
            output = self._record(q, k, v, output, mask)
        return self.proj(output.transpose(1, 2).flatten(2))  # (B, H, N, Dh) -> (B, N, D)

    def _record(self, q: Tensor, k: Tensor, v: Tensor, output: Tensor, mask: Tensor | None) -> Tensor:
        """Keeps what was requested; returns the output to continue with, which has the same values."""
        if mask is not None:
            mask = mask.expand(*q.shape[:3], k.shape[2])
        if self.recording == "qk":
            # Views would keep the whole projection, including v, alive; and a walk reads q and k many times.
            self.recorded = Recorded(q.contiguous(), k.contiguous(), mask=mask)
        elif self.recording == "qkv":
            self.recorded = Recorded(q, k, v, mask=mask)
        else:
            if not output.requires_grad:
                output = output.detach().requires_grad_()  # the graph starts here: no gradients below are needed
            self.recorded = Recorded(q, k, v, output, mask=mask)
        return output

    def _project(self, query_tokens: Tensor, context_tokens: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        if context_tokens is None:
            q, k, v = self._split(self.qkv(query_tokens), 3)
            return q, k, v
        rows = self.num_heads * self.head_dim
        if not isinstance(self.qkv, nn.Linear):  # LoRA's layer, which has more weights than the one to take rows of
            (q,) = self._split(self.qkv(query_tokens)[..., :rows], 1)
            k, v = self._split(self.qkv(context_tokens)[..., rows:], 2)
            return q, k, v
        bias = self.qkv.bias
        q_bias, kv_bias = (None, None) if bias is None else (bias[:rows], bias[rows:])
        (q,) = self._split(F.linear(query_tokens, self.qkv.weight[:rows], q_bias), 1)
        k, v = self._split(F.linear(context_tokens, self.qkv.weight[rows:], kv_bias), 2)
        return q, k, v

    def _split(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        B, N, _ = projected.shape
        heads = projected.view(B, N, parts, self.num_heads, self.head_dim)
        return heads.permute(2, 0, 3, 1, 4).unbind(0)  # (parts, B, H, N, Dh)


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, min(number, 32) + 1) if number % n == 0)

"""The decoder: each token attends to the earlier tokens and, by cross-attention, to the tokens of a context.

B batch, T tokens of text, M tokens of context, D embed_dim, V vocab_size
"""

from typing import Any

import torch
from torch import Tensor, nn

from vit.layers.attention import Attention, KeyValues, causal_mask
from vit.layers.blocks import DecoderBlock
from vit.models.encoder import init_weights
from vit.models.text import TokenEmbed


class DecoderCache:
    """Keys and values that a decoder has already computed, block by block: of the earlier tokens and the context.

    Args:
        depth: number of the decoder's blocks.
    """

    def __init__(self, depth: int):
        self.blocks = [(KeyValues(), KeyValues()) for _ in range(depth)]

    @property
    def num_tokens(self) -> int:
        """How many tokens of text are in it."""
        return self.blocks[0][0].num_tokens

    @property
    def num_context_tokens(self) -> int:
        """How many tokens of the context are in it: none before the first call, all of them afterwards."""
        return self.blocks[0][1].num_tokens

    def select(self, rows: Tensor) -> None:
        """Keeps these rows of the batch, in this order; a row may occur more than once (beam search)."""
        for caches in self.blocks:
            for cache in caches:
                cache.select(rows)


class Decoder(nn.Module):
    """The decoder of the Transformer (Vaswani et al. 2017, section 3.1), which predicts the next token.

    Each block has self-attention with a causal mask, cross-attention to the context, and an MLP. The pre-norm stack
    ends with a norm; in the post-norm stack, as in the paper, each block already ends with one.

    Args:
        vocab_size: V.
        max_tokens: maximum length of a text.
        embed_dim: D.
        depth: number of blocks.
        num_heads: H.
        context_dim: width of the context's tokens, if it is not `embed_dim`; a linear layer then projects them to it.
        drop_path: rate of stochastic depth in the last block, rising linearly from 0 in the first.
        norm_eps: epsilon of the norms.
        post_norm: norms after the residual sums, instead of before the branches.
        block_options: the rest, as `DecoderBlock` takes them.

    Raises:
        ValueError: as `DecoderBlock` does.
    """

    def __init__(
        self,
        vocab_size: int,
        max_tokens: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        *,
        context_dim: int | None = None,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
        post_norm: bool = False,
        **block_options: Any,
    ):
        super().__init__()
        options: dict[str, Any] = {"norm_eps": norm_eps, "post_norm": post_norm, **block_options}
        self.architecture = {
            "vocab_size": vocab_size,
            "max_tokens": max_tokens,
            "embed_dim": embed_dim,
            "depth": depth,
            "num_heads": num_heads,
            "context_dim": context_dim,
            **options,
        }
        self.context_dim = context_dim or embed_dim
        self.embed = TokenEmbed(vocab_size, max_tokens, embed_dim)
        same_width = self.context_dim == embed_dim
        self.context_proj = nn.Identity() if same_width else nn.Linear(self.context_dim, embed_dim)
        self.blocks = nn.ModuleList(
            DecoderBlock(embed_dim, num_heads, drop_path=drop_path * index / max(depth - 1, 1), **options)
            for index in range(depth)
        )
        self.norm = nn.Identity() if post_norm else nn.LayerNorm(embed_dim, eps=norm_eps)
        self.head = nn.Linear(embed_dim, vocab_size)
        self.apply(init_weights)

    @property
    def max_tokens(self) -> int:
        return self.embed.max_tokens

    def attentions(self) -> list[Attention]:
        """The self-attention of each block, first block first."""
        return [block.attn for block in self.blocks]  # type: ignore[misc]

    def cross_attentions(self) -> list[Attention]:
        """The cross-attention of each block, first block first."""
        return [block.cross_attn for block in self.blocks]  # type: ignore[misc]

    def forward(
        self,
        ids: Tensor,
        context: Tensor,
        *,
        mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        cache: DecoderCache | None = None,
    ) -> Tensor:
        """Logits of the next token after each token.

        Args:
            ids: (B, T). With a cache, only those that are not in it yet.
            context: (B, M, context_dim), such as an encoder's tokens. With a cache it is only read the first time.
            mask: boolean (B, T), False for padding; with a cache for all tokens, those in it first. Padding may come
                before a text: positions are counted from the first token of the text.
            context_mask: boolean (B, M), False for padding of the context.
            cache: the cache of earlier calls, to which new keys and values are added.

        Returns:
            (B, T, V).

        Raises:
            ValueError: for more tokens than `max_tokens`.
        """
        seen = 0 if cache is None else cache.num_tokens
        end = seen + ids.shape[1]
        if end > self.max_tokens:
            raise ValueError(f"a text has {end} tokens; this decoder was made for at most {self.max_tokens}")
        positions = torch.arange(end, device=ids.device) if mask is None else (mask.cumsum(1) - 1).clamp_min(0)
        tokens = self.embed(ids, positions=positions[..., seen:])
        return self.head(self.decode(tokens, context, mask=mask, context_mask=context_mask, cache=cache))

    def decode(
        self,
        tokens: Tensor,
        context: Tensor,
        *,
        mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        cache: DecoderCache | None = None,
    ) -> Tensor:
        """The blocks and the final norm, for tokens (B, T, D) that are already embedded; see `forward`."""
        cache = cache or DecoderCache(len(self.blocks))
        num_tokens = tokens.shape[1]
        # The fused kernel has its own causal mask, which takes no memory.
        plain = mask is None and cache.num_tokens == 0
        allowed = None if plain else _visible(num_tokens, cache.num_tokens + num_tokens, mask, tokens.device)
        options = {
            "mask": allowed,
            "is_causal": plain,
            "context_mask": None if context_mask is None else context_mask[:, None, None],
        }
        context = self.context_proj(context[:, cache.num_context_tokens :])
        for block, caches in zip(self.blocks, cache.blocks, strict=True):
            tokens = block(tokens, context, caches=caches, **options)
        return self.norm(tokens)


def _visible(num_queries: int, num_keys: int, mask: Tensor | None, device: torch.device) -> Tensor:
    """Boolean, broadcastable to (B, H, T, all tokens): the tokens that each of the last T tokens attends to.

    These are the earlier ones that are not padding, and itself: padding before a text has nothing else to attend to,
    and a softmax over nothing is NaN.
    """
    earlier = causal_mask(num_queries, num_keys, device)
    if mask is None:
        return earlier
    itself = torch.eye(num_keys, dtype=torch.bool, device=device)[num_keys - num_queries :]
    return earlier & (mask[:, None, None] | itself)

"""Attention pooling: one learned query attends to all tokens, and the result is the pooled vector."""

import torch
from torch import Tensor, nn

from vit.layers.attention import Attention
from vit.layers.mlp import Mlp


class AttentionPool(nn.Module):
    """The head of SigLIP and of scaled ViTs: cross-attention of one learned token, then an MLP around a residual
    (Lee et al. 2019, Set Transformer, equation 11, with a single seed; Zhai et al. 2022, section 3.3).

    (B, N, D) -> (B, D).

    Args:
        embed_dim: D.
        num_heads: H, of the attention.
        mlp_ratio: hidden width of the MLP, relative to D; rounded down.
        act: activation of the MLP, one of `vit.layers.mlp.ACTIVATIONS`.
        norm_eps: epsilon of the norm before the MLP.

    Raises:
        ValueError: when the heads don't divide embed_dim, or there is no such activation.
    """

    def __init__(self, embed_dim: int, num_heads: int, *, mlp_ratio: float, act: str, norm_eps: float):
        super().__init__()
        self.latent = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.attn = Attention(embed_dim, num_heads)
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.mlp = Mlp(embed_dim, int(embed_dim * mlp_ratio + 1e-6), act)
        nn.init.trunc_normal_(self.latent, std=embed_dim**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        latent = self.latent.to(tokens.dtype).expand(len(tokens), -1, -1)
        asked = self.attn(latent, tokens)
        return (asked + self.mlp(self.norm(asked)))[:, 0]

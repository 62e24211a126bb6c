"""Text: tokens of words from a table, and the text encoder, which is the same encoder as that of images.

B batch, N tokens, D embed_dim; ids are places in the vocabulary
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.models.encoder import Encoder, init_weights


class TokenEmbed(nn.Module):
    """Ids to tokens: a learned vector for each word plus one for each place (Vaswani et al. 2017, sections 3.4, 3.5).

    Args:
        vocab_size: number of ids.
        max_tokens: number of places.
        token_types: how many kinds of token there are, each with a vector of its own (Devlin et al. 2019, figure 2:
            which of two sentences a token is of); 0 for none.
        norm_eps: epsilon of a norm of the sum, as BERT has it; None for no norm.
    """

    num_prefix_tokens = 0  # where a text has a class token, it is an id like others

    def __init__(
        self,
        vocab_size: int,
        max_tokens: int,
        embed_dim: int,
        *,
        token_types: int = 0,
        norm_eps: float | None = None,
    ):
        super().__init__()
        self.token_embed = nn.Embedding(vocab_size, embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, max_tokens, embed_dim))
        self.type_embed = nn.Embedding(token_types, embed_dim) if token_types else None
        self.norm = nn.Identity() if norm_eps is None else nn.LayerNorm(embed_dim, eps=norm_eps)
        nn.init.trunc_normal_(self.token_embed.weight, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if self.type_embed is not None:
            nn.init.trunc_normal_(self.type_embed.weight, std=0.02)

    @property
    def max_tokens(self) -> int:
        return self.pos_embed.shape[1]

    def forward(self, ids: Tensor, *, positions: Tensor | None = None, token_types: Tensor | None = None) -> Tensor:
        """(B, N) ids -> (B, N, D).

        Args:
            positions: (N,) or (B, N) place of each token; None for 0, 1, 2 ...
            token_types: (B, N) kind of each token; None for the first kind.

        Raises:
            ValueError: for more tokens than there are places.
        """
        if positions is None:
            if ids.shape[1] > self.max_tokens:
                raise ValueError(f"a text has {ids.shape[1]} tokens; at most {self.max_tokens} have a place")
            positions = torch.arange(ids.shape[1], device=ids.device)
        tokens = self.token_embed(ids) + self.pos_embed[0, positions]
        if self.type_embed is not None:
            tokens = tokens + (self.type_embed.weight[0] if token_types is None else self.type_embed(token_types))
        return self.norm(tokens)


class TextEncoder(nn.Module):
    """BERT: the encoder with tokens of words, in which every word sees every other (Devlin et al. 2019, section 3).

    Args:
        encoder: one whose `embed` is a TokenEmbed; see `text_encoder`.
        pooler: whether there is BERT's linear layer on the first token.
    """

    def __init__(self, encoder: Encoder, *, pooler: bool = False):
        super().__init__()
        self.encoder = encoder
        self.pooler = nn.Linear(encoder.embed_dim, encoder.embed_dim) if pooler else None
        if self.pooler is not None:
            init_weights(self.pooler)

    def forward(self, ids: Tensor, *, mask: Tensor | None = None, token_types: Tensor | None = None) -> Tensor:
        """(B, N) ids -> (B, N, D) tokens.

        Args:
            mask: boolean (B, N), False for padding, which no token then sees; its own tokens mean nothing.
            token_types: see `TokenEmbed`.
        """
        tokens = self.encoder.embed(ids, token_types=token_types)
        return self.encoder.encode(tokens, mask=None if mask is None else mask[:, None, None])

    def pooled(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, D): tanh of a linear layer of the first token, as BERT was trained to compare sentences.

        Raises:
            ValueError: when the model has no pooler.
        """
        if self.pooler is None:
            raise ValueError("this text encoder has no pooler; take the mean of its tokens, `sentence`")
        return torch.tanh(self.pooler(tokens[:, 0]))

    def sentence(self, ids: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """(B, N) ids -> (B, D): the mean of the tokens that are no padding, of length 1 (Reimers & Gurevych 2019).

        The product of two of these is the cosine of the angle between two sentences.
        """
        tokens = self(ids, mask=mask)
        counted = torch.ones_like(ids) if mask is None else mask
        weights = counted.to(tokens.dtype)[..., None]
        return F.normalize((tokens * weights).sum(dim=1) / weights.sum(dim=1), dim=-1)


def text_encoder(
    *,
    vocab_size: int,
    max_tokens: int,
    embed_dim: int,
    depth: int,
    num_heads: int,
    token_types: int = 2,
    pooler: bool = False,
    drop_path: float = 0.0,
    act: str = "gelu",
    norm_eps: float = 1e-12,
    **block_options: Any,
) -> TextEncoder:
    """A new text encoder with random weights, post-norm, its defaults those of BERT (Devlin et al. 2019).

    The same keywords make the same model, `drop_path` and the random weights apart: `encoder.architecture`.
    """
    embed_options = {"token_types": token_types}
    sizes: dict[str, Any] = {"vocab_size": vocab_size, "max_tokens": max_tokens}
    stack_options: dict[str, Any] = {
        "embed_dim": embed_dim,
        "depth": depth,
        "num_heads": num_heads,
        "act": act,
        "norm_eps": norm_eps,
        **block_options,
    }
    encoder = Encoder(
        TokenEmbed(vocab_size, max_tokens, embed_dim, norm_eps=norm_eps, **embed_options),
        drop_path=drop_path,
        final_norm=False,
        post_norm=True,
        architecture={**sizes, **stack_options, **embed_options, "pooler": pooler},
        **stack_options,
    )
    encoder.apply(init_weights)
    return TextEncoder(encoder, pooler=pooler)

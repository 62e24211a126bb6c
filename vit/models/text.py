"""Text: word tokens from a table, and the text encoder, which is the same encoder as for images.

B batch, N tokens, D embed_dim; ids are positions in the vocabulary
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.models.encoder import Encoder, init_weights


class TokenEmbed(nn.Module):
    """Ids to tokens: a learned vector per word plus one per position (Vaswani et al. 2017, sections 3.4 and 3.5).

    Args:
        vocab_size: number of ids.
        max_tokens: number of positions.
        embed_dim: D.
        token_types: number of token types, each with its own vector (Devlin et al. 2019, figure 2: which of two
            sentences a token belongs to); 0 for none.
        norm_eps: epsilon of a norm of the sum, as in BERT; None for no norm.
    """

    num_prefix_tokens = 0  # a class token, if a text has one, is an id like the others

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
            positions: (N,) or (B, N) position of each token; None for 0, 1, 2 ...
            token_types: (B, N) type of each token; None for the first type.

        Raises:
            ValueError: for more tokens than there are positions.
        """
        if positions is None:
            if ids.shape[1] > self.max_tokens:
                raise ValueError(f"a text has {ids.shape[1]} tokens; this model takes at most {self.max_tokens}")
            positions = torch.arange(ids.shape[1], device=ids.device)
        tokens = self.token_embed(ids) + self.pos_embed[0, positions]
        if self.type_embed is not None:
            tokens = tokens + (self.type_embed.weight[0] if token_types is None else self.type_embed(token_types))
        return self.norm(tokens)


class TextEncoder(nn.Module):
    """BERT: the encoder with word tokens, in which every word attends to every other (Devlin et al. 2019, section 3).

    Args:
        encoder: an encoder whose `embed` is a TokenEmbed; see `text_encoder`.
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
            mask: boolean (B, N), False for padding, which no token then attends to; its own output is meaningless.
            token_types: see `TokenEmbed`.
        """
        tokens = self.encoder.embed(ids, token_types=token_types)
        return self.encoder.encode(tokens, mask=None if mask is None else mask[:, None, None])

    def pooled(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, D): tanh of a linear layer of the first token, by which BERT was trained to compare
        sentences.

        Raises:
            ValueError: when the model has no pooler.
        """
        if self.pooler is None:
            raise ValueError("this text encoder has no pooler; use `sentence`, the mean of its tokens")
        return torch.tanh(self.pooler(tokens[:, 0]))

    def sentence(self, ids: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """(B, N) ids -> (B, D): the mean of the tokens without padding, scaled to length 1 (Reimers & Gurevych 2019).

        The dot product of two of these is the cosine similarity of two sentences.
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
    """A new post-norm text encoder with random weights; the defaults are those of BERT (Devlin et al. 2019).

    Apart from `drop_path` and the random weights, the same keywords make the same model; they are kept in
    `encoder.architecture`.
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

"""What the last block attends to: the simplest maps, from its attention weights or the vectors that they weight."""

import torch
from torch import Tensor

from vit.layers.attention import Recorded
from vit.saliency.walk import attention_tiles, walk

FUSIONS = ("mean", "median")


def last_attention(blocks: list[Recorded], readout: Tensor, *, head_fusion: str = "mean") -> Tensor:
    """(B, N) attention that the readout pays to each token in the last block: r fuse_heads(A), A = softmax(q kᵀ / √Dh).

    Caron et al. 2021 (DINO) show the mean over the heads, for the class token. With the median no single head decides:
    some attend to a few tokens that the model uses as scratch space (Darcet et al. 2024).

    Args:
        blocks: `Trace.blocks`; only the last one is used.
        readout: (N,) or (B, N), weight of each token after the last block.
        head_fusion: "mean" or "median" (for an even number of heads, the lower of the two middle values).

    Raises:
        ValueError: for another fusion; see also `walk`.
    """
    if head_fusion not in FUSIONS:
        raise ValueError(f"head_fusion is {head_fusion!r}; allowed are {', '.join(FUSIONS)}")

    def step(relevance: Tensor, recorded: Recorded) -> Tensor:
        before = torch.zeros_like(relevance)
        for rows, attention in attention_tiles(recorded):
            fused = attention.mean(dim=1) if head_fusion == "mean" else attention.median(dim=1).values
            before += (relevance[:, None, rows] @ fused).squeeze(1)
        return before

    return walk([_rows_that_are_read(blocks[-1], readout)], readout, step)


def value_norms(blocks: list[Recorded], readout: Tensor, projection: Tensor) -> Tensor:
    """(B, N) length of the vector that each token sends to the readout in the last block:

        ‖ Σ_h A_h[i, j] v_h[j] W_h ‖        (Kobayashi et al. 2020, section 3.2; W_h: the rows of W_O of head h)

    A token that is attended to, but has a value close to zero, sends nothing. The square of the length is aᵀ G a with
    the weights a = A[i, j] of the heads and the Gram matrix G = (v_h · v_g) of token j's projected values, so the
    vectors of all pairs of tokens are never built.

    Args:
        blocks: `Trace.blocks`, with values; only the last one is used.
        readout: (N,) or (B, N), weight of each token i after the last block.
        projection: (D, D) weight of the last attention's output projection, as in nn.Linear.

    Raises:
        ValueError: see `walk`.
    """

    def step(relevance: Tensor, recorded: Recorded) -> Tensor:
        assert recorded.v is not None
        heads = recorded.v.shape[1]
        per_head = projection.float().unflatten(1, (heads, -1)).transpose(0, 1)  # (H, D, Dh)
        sent = recorded.v.float() @ per_head.transpose(1, 2)  # (B, H, N, D)
        gram = torch.einsum("bhnd,bgnd->bhgn", sent, sent)
        del sent
        before = torch.zeros_like(relevance)
        for rows, attention in attention_tiles(recorded):
            squares = torch.zeros_like(attention[:, 0])  # (B, rows, N)
            for head in range(heads):
                squares += attention[:, head] * (attention * gram[:, head, :, None]).sum(dim=1)
            before += (relevance[:, None, rows] @ squares.clamp_(min=0).sqrt_()).squeeze(1)
        return before

    return walk([_rows_that_are_read(blocks[-1], readout)], readout, step)


def _rows_that_are_read(recorded: Recorded, readout: Tensor) -> Recorded:
    """The block without the queries after the last one that the readout uses: for a class token, one row is left."""
    read = int(readout.reshape(-1, readout.shape[-1]).any(dim=0).nonzero().max()) + 1
    mask = None if recorded.mask is None else recorded.mask[:, :, :read]
    return recorded._replace(q=recorded.q[:, :, :read], mask=mask)

"""Generic attention attribution (Chefer, Gur & Wolf 2021, ICCV): attention times its gradient, for any class."""

from collections.abc import Iterator

import torch
from torch import Tensor

from vit.layers.attention import Recorded
from vit.saliency.walk import add_product, exponential_tiles, walk


def generic_attribution(
    blocks: list[Recorded], gradients: list[Tensor], readout: Tensor, *, start_block: int = 0
) -> Tensor:
    """Relevance (B, N) of each input token for the target whose gradients are given: the readout times

        R <- R + R C,    C = mean over heads of relu(A * dA)        (equations 5 and 6 of the paper)

    block by block. dA, the gradient of the attention weights, is dO vᵀ, because the block's output is O = A v, so no
    N x N map is needed in the autograd graph.

    Args:
        blocks: `Trace.blocks` of a record with gradients.
        gradients: `Trace.gradients(target)`, (B, H, Q, Dh) per block.
        readout: (N,) or (B, N), weight of each token after the last block.
        start_block: blocks before this one are treated as the identity.

    Raises:
        ValueError: see `walk`.
    """
    paired = [recorded._replace(gradient=gradient) for recorded, gradient in zip(blocks, gradients, strict=True)]
    return walk(paired, readout, attribution_step, start_block=start_block)


def cross_attribution(attention: list[Recorded], gradients: list[Tensor], readout: Tensor) -> Tensor:
    """(B, M) relevance of the context tokens of one cross-attention: the readout of its queries times C. The queries
    are not part of the context, so no readout is added (equation 10 of the paper, without its normalisation)."""
    (recorded,), (gradient,) = attention, gradients
    return walk([recorded._replace(gradient=gradient)], readout, times_attribution)


def attribution_step(relevance: Tensor, recorded: Recorded) -> Tensor:
    """(B, N) relevance + relevance @ C."""
    return relevance + times_attribution(relevance, recorded)


def times_attribution(relevance: Tensor, recorded: Recorded) -> Tensor:
    """Relevance of the query tokens (B, N) times C, tile by tile: the relevance of the context tokens, (B, M)."""
    total = relevance.new_zeros(*recorded.k.shape[:3])
    for rows, weighed, sums in _weighed_tiles(recorded):
        add_product(total, relevance[:, None, rows] / sums, weighed)
    return total.mean(dim=1)


def attribution_times(recorded: Recorded, column: Tensor) -> Tensor:
    """C times a number per context token, (B, M): a number per query token, (B, N)."""
    parts = [
        ((weighed @ column[:, None, :, None])[..., 0] / sums).mean(dim=1)
        for _, weighed, sums in _weighed_tiles(recorded)
    ]
    return torch.cat(parts, dim=1)


def _weighed_tiles(recorded: Recorded) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """relu(A * dA) of each head, before A's rows are normalised: (rows, (B, H, rows, M), the row sums of A)."""
    gradient = recorded.gradient
    assert gradient is not None
    assert recorded.v is not None
    v_transposed = recorded.v.float().contiguous().transpose(-2, -1)  # (B, H, Dh, M)
    for rows, exponentials, sums in exponential_tiles(recorded):
        d_attention = gradient[:, :, rows].float() @ v_transposed  # (B, H, rows, M)
        # relu(A * dA) = A * relu(dA), because A is positive, so dividing by its row sums can also be done later.
        yield rows, exponentials.mul_(d_attention.relu_()), sums

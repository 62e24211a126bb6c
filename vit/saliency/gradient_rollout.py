"""Gradient rollout: attention rollout with each map multiplied by its gradient, for any class."""

import torch
from torch import Tensor

from vit.layers.attention import Recorded
from vit.saliency.walk import attention_tiles, walk


def gradient_rollout(
    blocks: list[Recorded], gradients: list[Tensor], readout: Tensor, *, residual: float = 0.5, start_block: int = 0
) -> Tensor:
    """Relevance (B, N) of each input token for the target: the readout times the product over blocks of

        M = (1 - a) I + a W,    W = mean over heads of relu(A * dA),    rows re-normalised to sum to 1

    which is rollout (Abnar & Zuidema 2020, equation 1) of weighted maps, the idea of vit-explain (Gildenblat 2020).
    Each map is multiplied by the gradient of its own block; dA = dO vᵀ, see `generic_attribution`. The heads are
    rectified before they are averaged, as in Chefer et al. 2021, so that two that disagree do not cancel.

    Args:
        blocks: `Trace.blocks` of a record with gradients.
        gradients: `Trace.gradients(target)`, (B, H, Q, Dh) per block.
        readout: (N,) or (B, N), weight of each token after the last block.
        residual: weight a of the maps against the identity, 0 to 1.
        start_block: blocks before this one are treated as the identity.

    Raises:
        ValueError: for a weight outside 0 to 1; see also `walk`.
    """
    if not 0.0 <= residual <= 1.0:
        raise ValueError(f"residual is {residual}; allowed are 0 to 1")

    def step(relevance: Tensor, recorded: Recorded) -> Tensor:
        assert recorded.gradient is not None
        assert recorded.v is not None
        num_queries = recorded.q.shape[2]
        v_transposed = recorded.v.float().transpose(-2, -1)  # (B, H, Dh, N)
        weights = relevance[:, :num_queries].clone()  # (B, Q), to be divided by the sum of the row it will multiply
        before = torch.zeros_like(relevance)
        for rows, attention in attention_tiles(recorded):
            d_attention = recorded.gradient[:, :, rows].float() @ v_transposed  # (B, H, rows, N)
            weighed = attention.mul_(d_attention).relu_().mean(dim=1)
            sums = (1 - residual) + residual * weighed.sum(dim=-1)
            weights[:, rows] /= sums.clamp_min(torch.finfo(sums.dtype).tiny)  # with a = 1 a row can be empty
            before += (weights[:, None, rows] @ weighed).squeeze(1)
        before *= residual
        before[:, :num_queries] += (1 - residual) * weights
        return before

    paired = [recorded._replace(gradient=gradient) for recorded, gradient in zip(blocks, gradients, strict=True)]
    return walk(paired, readout, step, start_block=start_block)

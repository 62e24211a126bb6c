"""Attention rollout (Abnar & Zuidema 2020): attention multiplied through the blocks, including the residuals."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vit.layers.attention import Recorded
from vit.saliency.walk import attention_tiles, times_mean_attention, walk

FUSIONS = ("mean", "max", "min")


@dataclass(frozen=True)
class RolloutOptions:
    """The settings of rollout; the defaults are the paper's.

    Args:
        head_fusion: how the attention of a block's heads is combined: "mean" (as in the paper), "max" or "min".
        discard_ratio: share of the entries of each fused map, the lowest ones, that is set to zero, 0 to below 1. Of
            equal entries the first are discarded, row by row, so that it is never more than this share.
        residual: weight a of the attention against the identity, (1 - a) I + a A; 0.5 in the paper.

    Raises:
        ValueError: for a value that is not allowed; says what arrived and what is allowed.
    """

    head_fusion: str = "mean"
    discard_ratio: float = 0.0
    residual: float = 0.5

    def __post_init__(self) -> None:
        if self.head_fusion not in FUSIONS:
            raise ValueError(f"head_fusion is {self.head_fusion!r}; allowed are {', '.join(FUSIONS)}")
        if not 0.0 <= self.discard_ratio < 1.0:
            raise ValueError(f"discard_ratio is {self.discard_ratio}; allowed are 0 to below 1")
        if not 0.0 <= self.residual <= 1.0:
            raise ValueError(f"residual is {self.residual}; allowed are 0 to 1")


def rollout(
    blocks: list[Recorded],
    readout: Tensor,
    options: RolloutOptions | None = None,
    *,
    kept_columns: int = 1,
    start_block: int = 0,
) -> Tensor:
    """Relevance (B, N) of each input token: the readout times the product over blocks of

        M = (1 - a) I + a fuse_heads(A),    rows re-normalised to sum to 1

    which equals the textbook product of N x N matrices (Abnar & Zuidema 2020, equation 1).

    Args:
        blocks: `Trace.blocks`. With a discard ratio, the last block must have computed all tokens.
        readout: (N,) or (B, N), weight of each token after the last block.
        options: head fusion, discard ratio, residual.
        kept_columns: number of first columns that are never discarded: 1 with a class token, 0 without.
        start_block: blocks before this one are treated as the identity.

    Raises:
        ValueError: see `walk`.
    """
    options = options or RolloutOptions()
    if options.discard_ratio and blocks[-1].q.shape[2] < blocks[-1].k.shape[2]:
        raise ValueError(
            "discard_ratio ranks the whole map of each block, but the last block computed its first tokens alone; "
            "record encoder(images) in place of model(images)"
        )
    return walk(blocks, readout, partial(_step, options=options, kept_columns=kept_columns), start_block=start_block)


def _step(relevance: Tensor, recorded: Recorded, options: RolloutOptions, kept_columns: int) -> Tensor:
    if options.discard_ratio:
        return _step_with_discard(relevance, recorded, options, kept_columns)
    a = options.residual
    num_queries = recorded.q.shape[2]
    weights = relevance[:, :num_queries].clone()  # (B, Q), to be divided by the sum of the row it will multiply
    if options.head_fusion == "mean":  # its rows already sum to 1
        before = times_mean_attention(relevance, recorded)
    else:
        before = torch.zeros_like(relevance)
        for rows, attention in attention_tiles(recorded):
            fused = _fuse(attention, options.head_fusion)
            weights[:, rows] /= _row_sums(fused, a)
            before += (weights[:, None, rows] @ fused).squeeze(1)
    before *= a
    before[:, :num_queries] += (1 - a) * weights
    return before


def _step_with_discard(relevance: Tensor, recorded: Recorded, options: RolloutOptions, kept_columns: int) -> Tensor:
    """Like `_step`; ranking the entries of a map needs the whole N x N map, which is freed after the block."""
    a = options.residual
    fused = torch.cat([_fuse(tile, options.head_fusion) for _, tile in attention_tiles(recorded)], dim=1)  # (B, N, N)
    lowest = int(fused[0].numel() * options.discard_ratio)
    if lowest:
        discarded = _lowest(fused.flatten(1), lowest).view_as(fused)
        discarded[:, :, :kept_columns] = False
        fused.masked_fill_(discarded, 0.0)
    weights = relevance / _row_sums(fused, a)
    return (1 - a) * weights + a * (weights[:, None] @ fused).squeeze(1)


def _lowest(values: Tensor, count: int) -> Tensor:
    """(B, numbers) bool: the `count` lowest numbers of each row; of equal ones, the first."""
    threshold = values.kthvalue(count, dim=1, keepdim=True).values
    found = values <= threshold
    spare = found.sum(dim=1) - count  # surplus numbers that equal the threshold
    for row in spare.nonzero()[:, 0].tolist():
        equal = (values[row] == threshold[row]).nonzero()[:, 0]
        found[row, equal[-spare[row] :]] = False
    return found


def _row_sums(fused: Tensor, a: float) -> Tensor:
    """(B, rows) sums of (1 - a) I + a W, kept above zero: with a = 1 a row can be empty, and then passes nothing on."""
    return ((1 - a) + a * fused.sum(dim=-1)).clamp_min(torch.finfo(fused.dtype).tiny)


def _fuse(attention: Tensor, head_fusion: str) -> Tensor:
    """(B, H, rows, N) -> (B, rows, N)."""
    if head_fusion == "mean":
        return attention.mean(dim=1)
    return attention.amax(dim=1) if head_fusion == "max" else attention.amin(dim=1)

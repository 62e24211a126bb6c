"""The walk: one row vector, from the last block to the first, through attention that is computed in tiles.

A method such as rollout is the product of one N x N matrix per block, of which only one row is needed, because one
readout is explained. That row is a row vector times the matrices, last block first: O(N²) per block instead of O(N³),
and no N x N matrix in memory.

    B batch, N tokens, Q query tokens (N, or fewer if the last block was only computed in part), H heads, Dh head_dim
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from vit.layers.attention import Recorded

# Numbers in one tile of attention, for all heads together. The fastest of the sizes tried with 4,097 tokens, where it
# is 128 rows of 6 heads: with fewer rows the product of q and k gets slow, and more don't fit the caches of a core.
TILE_NUMBERS = 3 * 2**20

# e^±40 is 10^±17: sums of thousands of them, and their products with relevance, are well within the range of float32.
LARGEST_SCORE = 40.0

# (relevance of the tokens after a block (B, N), the recorded block) -> relevance before it (B, N)
Step = Callable[[Tensor, Recorded], Tensor]


def walk(blocks: Sequence[Recorded], readout: Tensor, step: Step, *, start_block: int = 0) -> Tensor:
    """Relevance of each input token for the readout.

    Args:
        blocks: as recorded, first block first.
        readout: (N,) or (B, N), weight of each token after the last block; see `Classifier.readout`.
        step: one block of the method.
        start_block: the walk ends at this block; blocks before it are treated as the identity.

    Returns:
        (B, N) float32.

    Raises:
        ValueError: when there is no block `start_block`, or the readout reads a token that the last block did not
            compute.
    """
    check_start_block(start_block, len(blocks))
    last = blocks[-1]
    batch, num_queries, num_tokens = last.q.shape[0], last.q.shape[2], last.k.shape[2]
    relevance = readout.to(device=last.q.device, dtype=torch.float32).expand(batch, num_tokens)
    if relevance[:, num_queries:].any():
        raise ValueError(
            f"the readout reads all {num_tokens} tokens, but the last block only computed the first {num_queries}; "
            "record encoder(images) in place of model(images)"
        )
    # On a CPU one image at a time, because the tiles of a batch would not fit its caches; on a GPU all at once.
    together = 1 if last.q.device.type == "cpu" else batch
    parts = [slice(first, first + together) for first in range(0, batch, together)]
    # In float32, even if the caller runs the model in less; without a graph, even if the caller keeps one.
    with torch.autocast(last.q.device.type, enabled=False), torch.no_grad():
        return torch.cat([_walk(blocks[start_block:], relevance, step, images) for images in parts])


def check_start_block(start_block: int, blocks: int) -> None:
    """Raises ValueError unless `start_block` is the index of one of the model's blocks."""
    if not 0 <= start_block < blocks:
        raise ValueError(f"start_block is {start_block}; the model has blocks 0 to {blocks - 1}")


def _walk(blocks: Sequence[Recorded], relevance: Tensor, step: Step, images: slice) -> Tensor:
    """The walk of some images of the batch."""
    relevance = relevance[images]
    for recorded in reversed(blocks):
        relevance = step(relevance, recorded.of(images))
    return relevance


def attention_tiles(recorded: Recorded) -> Iterator[tuple[slice, Tensor]]:
    """The attention weights of a block in tiles of query rows, float32: (rows, (B, H, rows, N)).

    The caller may overwrite a tile; the next one uses the same memory.
    """
    for rows, scores in _score_tiles(recorded):
        yield rows, torch.softmax(scores, dim=-1, out=scores)


def exponential_tiles(recorded: Recorded) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Like `attention_tiles`, before the rows are normalised: (rows, E (B, H, rows, N), its row sums (B, H, rows)).

    The attention weights are E divided by its row sums. A caller that multiplies each row by a number anyway can divide
    that number instead of the whole row.
    """
    small = _scores_are_small(recorded)
    # As powers of 2, because torch's exp uses MKL, which takes four times as long on an AMD CPU.
    for rows, scores in _score_tiles(recorded, unit=math.log2(math.e)):
        if not small:
            scores -= scores.amax(dim=-1, keepdim=True)
        exponentials = scores.exp2_()
        yield rows, exponentials, exponentials.sum(dim=-1)


def times_mean_attention(relevance: Tensor, recorded: Recorded) -> Tensor:
    """Relevance (B, N) of the query tokens times the heads' mean attention: (B, N)."""
    total = relevance.new_zeros(*recorded.k.shape[:3])
    for rows, exponentials, sums in exponential_tiles(recorded):
        add_product(total, relevance[:, None, rows] / sums, exponentials)
    return total.mean(dim=1)


def add_product(total: Tensor, weights: Tensor, tile: Tensor) -> None:
    """Adds the weights of rows (B, H, rows) times a tile (B, H, rows, N), for each head, to total (B, H, N)."""
    total.flatten(0, 1)[:, None].baddbmm_(weights.flatten(0, 1)[:, None], tile.flatten(0, 1))


def _scores_are_small(recorded: Recorded) -> bool:
    """Whether all scores are too small for their exponentials to overflow float32, by the Cauchy-Schwarz inequality."""
    # Sums of squares, because torch's norm of short rows takes five times as long.
    longest_q, longest_k = (x.float().square().sum(dim=-1).amax() for x in (recorded.q, recorded.k))
    return bool(longest_q * longest_k <= LARGEST_SCORE**2 * recorded.q.shape[-1])


def _score_tiles(recorded: Recorded, *, unit: float = 1.0) -> Iterator[tuple[slice, Tensor]]:
    """The attention scores of a block before the softmax, masked and multiplied by `unit`: (rows, (B, H, rows, N)). All
    tiles use the same memory."""
    batch, heads, num_tokens, head_dim = recorded.k.shape
    q, k = (x.detach().float().flatten(0, 1) for x in (recorded.q, recorded.k))  # (B · H, tokens, Dh)
    k_transposed = k.contiguous().transpose(1, 2)  # otherwise each tile would copy the keys
    memory: Tensor | None = None
    for rows in row_tiles(recorded):
        shape = (batch * heads, rows.stop - rows.start, num_tokens)
        memory = q.new_empty(math.prod(shape)) if memory is None else memory  # the first tile is the largest
        tile = memory[: math.prod(shape)].view(shape)
        torch.baddbmm(tile, q[:, rows], k_transposed, beta=0, alpha=unit * head_dim**-0.5, out=tile)
        scores = tile.view(batch, heads, *shape[1:])
        if recorded.mask is not None:
            scores.masked_fill_(~recorded.mask[:, :, rows], float("-inf"))
        yield rows, scores


def row_tiles(recorded: Recorded) -> Iterator[slice]:
    """Slices of the query rows such that a tile of all heads (and images) has about TILE_NUMBERS numbers."""
    batch, heads, num_queries, _ = recorded.q.shape
    height = max(1, TILE_NUMBERS // (batch * heads * recorded.k.shape[2]))
    for start in range(0, num_queries, height):
        yield slice(start, min(start + height, num_queries))

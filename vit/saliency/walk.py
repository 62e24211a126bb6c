"""The walk: one row vector, from the last block to the first, through attention that is computed in tiles.

A method such as rollout is the product of one N x N matrix a block, of which only one row is read, because one
readout is explained. That row is a row vector times the matrices, last block first: O(N²) a block in place of
O(N³), and no N x N matrix in memory.

    B batch, N tokens, Q query tokens (N, or fewer in a last block that was read in part), H heads, Dh head_dim
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from vit.layers.attention import Recorded, attention_weights

# Numbers in one tile of attention, all heads together: what the caches of a core hold. The fastest of those
# tried on 4,097 tokens, where it is 64 rows of 6 heads; half and twice as many were slower.
TILE_NUMBERS = 3 * 2**19

# (relevance of the tokens after a block (B, N), what the block recorded) -> relevance before it (B, N)
Step = Callable[[Tensor, Recorded], Tensor]


def walk(blocks: Sequence[Recorded], readout: Tensor, step: Step, *, start_block: int = 0) -> Tensor:
    """Relevance of each input token for the readout.

    Args:
        blocks: as recorded, first block first.
        readout: (N,) or (B, N), how much of each last token is read; see `Classifier.readout`.
        step: one block of the method.
        start_block: the walk ends at this block; those before it are taken as the identity.

    Returns:
        (B, N) float32.

    Raises:
        ValueError: when there is no block `start_block`, or when the readout reads a token that the last block
            did not compute.
    """
    if not 0 <= start_block < len(blocks):
        raise ValueError(f"start_block is {start_block}; the model has blocks 0 to {len(blocks) - 1}")
    last = blocks[-1]
    batch, num_queries, num_tokens = last.q.shape[0], last.q.shape[2], last.k.shape[2]
    relevance = readout.to(device=last.q.device, dtype=torch.float32).expand(batch, num_tokens)
    if relevance[:, num_queries:].any():
        raise ValueError(
            f"the readout reads all {num_tokens} tokens, but the last block computed the first {num_queries}; "
            "record encoder(images) in place of model(images)"
        )
    # On a processor an image at a time: the tiles of a batch would not fit its caches. A GPU wants all at once.
    together = 1 if last.q.device.type == "cpu" else batch
    parts = [slice(first, first + together) for first in range(0, batch, together)]
    with torch.autocast(last.q.device.type, enabled=False):  # float32, also where the caller runs the model in less
        return torch.cat([_walk(blocks[start_block:], relevance, step, images) for images in parts])


def _walk(blocks: Sequence[Recorded], relevance: Tensor, step: Step, images: slice) -> Tensor:
    """The walk of some images of the batch."""
    relevance = relevance[images]
    for recorded in reversed(blocks):
        relevance = step(relevance, recorded.of(images))
    return relevance


def attention_tiles(recorded: Recorded) -> Iterator[tuple[slice, Tensor]]:
    """The attention weights of a block in tiles of query rows, float32: (rows, (B, H, rows, N))."""
    q, k = recorded.q.float(), recorded.k.float().contiguous()  # else each tile would copy the keys
    for rows in row_tiles(recorded):
        yield rows, attention_weights(q[:, :, rows], k)


def row_tiles(recorded: Recorded) -> Iterator[slice]:
    """Slices of the query rows such that a tile of all heads (and images) has about TILE_NUMBERS numbers."""
    batch, heads, num_queries, _ = recorded.q.shape
    height = max(1, TILE_NUMBERS // (batch * heads * recorded.k.shape[2]))
    for start in range(0, num_queries, height):
        yield slice(start, min(start + height, num_queries))

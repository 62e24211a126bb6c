"""The walk: its tiles, its order, its arithmetic, and what it refuses."""

import pytest
import torch

from vit.layers.attention import Recorded, attention_weights
from vit.saliency import walk as walking
from vit.saliency.walk import attention_tiles, row_tiles, walk

B, H, N, DH = 2, 3, 13, 5


def recorded(queries=N, dtype=torch.float32):
    q, k, v = (torch.randn(B, H, count, DH, dtype=dtype) for count in (queries, N, N))
    return Recorded(q, k, v, attention_weights(q, k) @ v)


def times_mean_attention(relevance, block):
    """relevance @ A, by the tiles."""
    total = torch.zeros_like(relevance)
    for rows, attention in attention_tiles(block):
        total += (relevance[:, None, None, rows] @ attention).mean(dim=1).squeeze(1)
    return total


@pytest.mark.parametrize("queries", [N, 1])
@pytest.mark.parametrize(("numbers", "height"), [(1, 1), (B * H * N * 5 + 1, 5), (10**9, N)])
def test_tiles_cover_every_row_once(monkeypatch, queries, numbers, height):
    monkeypatch.setattr(walking, "TILE_NUMBERS", numbers)
    block = recorded(queries)
    slices = list(row_tiles(block))
    assert [row for rows in slices for row in range(N)[rows]] == list(range(queries))
    assert slices[0] == slice(0, min(height, queries))
    whole = attention_weights(block.q, block.k)
    for rows, attention in attention_tiles(block):
        torch.testing.assert_close(attention, whole[:, :, rows])


@pytest.mark.parametrize("numbers", [1, 10**9])
def test_row_times_matrices_equals_their_product(monkeypatch, numbers):
    monkeypatch.setattr(walking, "TILE_NUMBERS", numbers)
    blocks = [recorded(dtype=torch.float64) for _ in range(4)]
    readout = torch.rand(B, N)
    first, second, third, fourth = (attention_weights(block.q, block.k).mean(dim=1) for block in blocks)
    expected = readout[:, None].double() @ fourth @ third @ second
    relevance = walk(blocks, readout, times_mean_attention, start_block=1)
    assert relevance.dtype == torch.float32
    torch.testing.assert_close(relevance.double(), expected[:, 0], rtol=1e-5, atol=0)
    relevance = walk(blocks, readout, times_mean_attention)
    torch.testing.assert_close(relevance.double(), (expected @ first)[:, 0], rtol=1e-5, atol=0)


def test_one_readout_serves_the_batch():
    blocks = [recorded(), recorded(queries=1)]
    readout = torch.eye(N)[0]
    together = walk(blocks, readout, times_mean_attention)
    torch.testing.assert_close(together, walk(blocks, readout.expand(B, N), times_mean_attention))
    assert together.shape == (B, N)


def test_half_precision_is_walked_in_single():
    block = Recorded(*(value.bfloat16() for value in recorded() if value is not None))
    exact = Recorded(*(value.float() for value in block if value is not None))
    readout = torch.rand(N)
    assert torch.equal(walk([block], readout, times_mean_attention), walk([exact], readout, times_mean_attention))


def test_autocast_does_not_reach_the_walk():
    blocks = [recorded(), recorded()]
    readout = torch.rand(N)
    expected = walk(blocks, readout, times_mean_attention)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(walk(blocks, readout, times_mean_attention), expected)


@pytest.mark.parametrize("start_block", [-1, 2, 7])
def test_blocks_that_are_not_there_are_refused(start_block):
    with pytest.raises(ValueError, match=f"start_block is {start_block}; the model has blocks 0 to 1"):
        walk([recorded(), recorded()], torch.rand(N), times_mean_attention, start_block=start_block)


def test_reading_tokens_that_were_not_computed_is_refused():
    with pytest.raises(ValueError, match="reads all 13 tokens, but the last block computed the first 1"):
        walk([recorded(), recorded(queries=1)], torch.ones(N) / N, times_mean_attention)

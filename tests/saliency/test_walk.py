"""The walk: its tiles, its order, its arithmetic, and what it refuses."""

import pytest
import torch

from vit.layers.attention import Recorded, attention_weights
from vit.saliency import walk as walking
from vit.saliency.walk import attention_tiles, exponential_tiles, row_tiles, times_mean_attention, walk

B, H, N, DH = 2, 3, 13, 5


def recorded(queries=N, dtype=torch.float32):
    q, k, v = (torch.randn(B, H, count, DH, dtype=dtype) for count in (queries, N, N))
    return Recorded(q, k, v, attention_weights(q, k) @ v)


def by_tiles(relevance, block):
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
    relevance = walk(blocks, readout, by_tiles, start_block=1)
    assert relevance.dtype == torch.float32
    torch.testing.assert_close(relevance.double(), expected[:, 0], rtol=1e-5, atol=0)
    relevance = walk(blocks, readout, by_tiles)
    torch.testing.assert_close(relevance.double(), (expected @ first)[:, 0], rtol=1e-5, atol=0)


def test_one_readout_serves_the_batch():
    blocks = [recorded(), recorded(queries=1)]
    readout = torch.eye(N)[0]
    together = walk(blocks, readout, by_tiles)
    torch.testing.assert_close(together, walk(blocks, readout.expand(B, N), by_tiles))
    assert together.shape == (B, N)


def test_half_precision_is_walked_in_single():
    block = Recorded(*(value.bfloat16() for value in recorded() if value is not None))
    exact = Recorded(*(value.float() for value in block if value is not None))
    readout = torch.rand(N)
    assert torch.equal(walk([block], readout, by_tiles), walk([exact], readout, by_tiles))


def test_autocast_does_not_reach_the_walk():
    blocks = [recorded(), recorded()]
    readout = torch.rand(N)
    expected = walk(blocks, readout, by_tiles)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(walk(blocks, readout, by_tiles), expected)


@pytest.mark.parametrize("start_block", [-1, 2, 7])
def test_blocks_that_are_not_there_are_refused(start_block):
    with pytest.raises(ValueError, match=f"start_block is {start_block}; the model has blocks 0 to 1"):
        walk([recorded(), recorded()], torch.rand(N), by_tiles, start_block=start_block)


def test_reading_tokens_that_were_not_computed_is_refused():
    with pytest.raises(ValueError, match="reads all 13 tokens, but the last block only computed the first 1"):
        walk([recorded(), recorded(queries=1)], torch.ones(N) / N, by_tiles)


@pytest.mark.parametrize("numbers", [1, 10**9])
def test_masked_keys_are_not_walked_to(monkeypatch, numbers):
    monkeypatch.setattr(walking, "TILE_NUMBERS", numbers)
    mask = (torch.rand(B, 1, N, N) > 0.4).expand(B, H, N, N).clone()
    mask[..., 0] = True
    block = recorded()._replace(mask=mask)
    expected = attention_weights(block.q, block.k, mask).mean(dim=1)
    readout = torch.rand(B, N)
    found = walk([block], readout, by_tiles)
    torch.testing.assert_close(found, (readout[:, None] @ expected)[:, 0])


def test_padding_gets_no_relevance_and_changes_none():
    """A text in a batch with longer ones is walked as it is alone."""
    padded = recorded()._replace(mask=(torch.arange(N) < 9).expand(B, H, N, N))
    alone = Recorded(*(value[:, :, :9] for value in padded[:4]))
    readout = torch.eye(N)[0]
    found = walk([padded, padded], readout, by_tiles)
    assert (found[:, 9:] == 0).all()
    torch.testing.assert_close(found[:, :9], walk([alone, alone], readout[:9], by_tiles))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scale", [1.0, 40.0])  # scores that are exponentiated as they are, and that are shifted first
@pytest.mark.parametrize("numbers", [1, B * H * N * 5 + 1, 10**9])
def test_row_times_mean_attention_for_scores_of_any_size(monkeypatch, numbers, scale, masked):
    monkeypatch.setattr(walking, "TILE_NUMBERS", numbers)
    q, k = (scale * torch.randn(B, H, N, DH, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(B, H, N, N) < 0.7 if masked else None
    if masked:
        mask |= torch.eye(N, dtype=torch.bool)  # each row attends to something
    block = Recorded(q, k, mask=mask)
    # Beyond exp's range in float32, e^±88, where they are shifted; q and k are rounded as the walk rounds them.
    scores = (q.float().double() @ k.float().double().transpose(-2, -1)).abs().max() / DH**0.5
    assert (scores > 88) == (scale > 1)
    relevance = torch.rand(B, N)
    expected = relevance[:, None].double() @ attention_weights(q.float().double(), k.float().double(), mask).mean(dim=1)
    found = times_mean_attention(relevance, block)
    torch.testing.assert_close(found.double(), expected[:, 0], rtol=1e-5 * scale, atol=1e-9)


def test_tiles_share_one_memory():
    walking_tiles = attention_tiles(recorded())
    assert len({tile.data_ptr() for _, tile in walking_tiles}) == 1
    for rows, exponentials, sums in exponential_tiles(recorded()):
        torch.testing.assert_close(exponentials.sum(dim=-1), sums)
        assert rows == slice(0, N)


def test_a_walk_keeps_no_graph():
    block = recorded()
    block.q.requires_grad_()
    assert not walk(
        [block], torch.rand(N), lambda relevance, block: times_mean_attention(relevance, block)
    ).requires_grad

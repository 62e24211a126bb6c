"""Resizing of positions against timm's filter and torch's."""

import pytest
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed

from vit.layers.positions import resize_positions

D = 11
SIZES = [((5, 7), (3, 4)), ((5, 7), (11, 13)), ((3, 3), (4, 2))]


@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize(("grid", "new_grid"), SIZES)
def test_antialiased_equals_timm(grid, new_grid, prefix):
    positions = torch.randn(1, prefix + grid[0] * grid[1], D)
    expected = resample_abs_pos_embed(positions, list(new_grid), list(grid), num_prefix_tokens=prefix)
    resized = resize_positions(positions, grid, new_grid, "bicubic_antialias")
    torch.testing.assert_close(resized, expected)
    assert torch.equal(resized[:, :prefix], positions[:, :prefix])


@pytest.mark.parametrize(("grid", "new_grid"), SIZES)
def test_plain_bicubic_equals_torch(grid, new_grid):
    image = torch.randn(1, D, *grid)
    expected = F.interpolate(image, new_grid, mode="bicubic").flatten(2).mT
    resized = resize_positions(image.flatten(2).mT, grid, new_grid, "bicubic")
    torch.testing.assert_close(resized, expected)


def test_filters_differ_when_shrinking():
    positions = torch.randn(1, 35, D)
    filtered, plain = (resize_positions(positions, (5, 7), (3, 4), name) for name in ("bicubic_antialias", "bicubic"))
    assert (filtered - plain).abs().max() > 0.1


def test_half_precision_comes_back_as_half_precision():
    positions = torch.randn(1, 36, D).bfloat16()
    resized = resize_positions(positions, (5, 7), (7, 5), "bicubic_antialias")
    assert resized.dtype == torch.bfloat16
    expected = resize_positions(positions.float(), (5, 7), (7, 5), "bicubic_antialias")
    torch.testing.assert_close(resized, expected.bfloat16(), rtol=0, atol=0)


def test_the_same_grid_changes_nothing():
    positions = torch.randn(1, 36, D)
    assert resize_positions(positions, (5, 7), (5, 7), "bicubic") is positions


def test_unknown_filter_is_refused():
    with pytest.raises(ValueError, match="'lanczos'; allowed are bicubic_antialias, bicubic"):
        resize_positions(torch.zeros(1, 4, D), (2, 2), (3, 3), "lanczos")

"""Localisation scores against numbers worked by hand, and the baselines they are compared with."""

import pytest
import torch

from vit.saliency.baselines import centre_gaussian, random_map
from vit.saliency.localization import energy_inside, evaluate_maps, iou_at_equal_area, pointing_game

NAN, INF = float("nan"), float("inf")


def one(values: list[list[float]]) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float32)


# The object is the left column and the upper middle: 3 of 6 pixels.
MASK = torch.tensor([[[True, True, False], [True, False, False]]])


def scores(values: list[list[float]]) -> list[float]:
    maps = one(values)
    return [round(score(maps, MASK).item(), 5) for score in (pointing_game, energy_inside, iou_at_equal_area)]


@pytest.mark.parametrize(
    ("values", "pointing", "energy", "iou"),
    [
        # Highest 8 inside; 8 + 1 + 2 of 20 inside; the top three 8, 5, 4 share one: 1 / (6 - 1).
        ([[8, 1, 5], [2, 4, 0]], 1, 11 / 20, 1 / 5),
        # Highest 9 outside; 1 + 3 + 2 of 16; the top three 9, 3, 2 share two: 2 / (6 - 2).
        ([[1, 3, 9], [2, 1, 0]], 0, 6 / 16, 2 / 4),
        # Two tied maxima, one of them inside. Top three: 7, 7 and the 2 inside: 2 / 4.
        ([[7, 0, 7], [2, 0, 0]], 1 / 2, 9 / 16, 2 / 4),
        # A place for two is left among three 1s, two of them inside: 1 + 2 * 2/3 = 7/3 shared.
        ([[5, 1, 1], [1, 0, 0]], 1, 7 / 8, (7 / 3) / (6 - 7 / 3)),
        # Negative values hold no energy, but are ranked: top three 4, 1, -1 share two.
        ([[4, -1, 1], [-3, -2, -9]], 1, 4 / 5, 2 / 4),
    ],
)
def test_hand_worked(values: list[list[float]], pointing: float, energy: float, iou: float) -> None:
    assert scores(values) == pytest.approx([pointing, energy, iou], abs=1e-5)


@pytest.mark.parametrize("level", [0.0, 0.1, -3.0, 1e-30, 1e30])
def test_constant_map_scores_a_blind_guess(level: float) -> None:
    # Half of the area is the object; three pixels picked blindly share 1.5 with it: 1.5 / 4.5.
    assert scores([[level] * 3] * 2) == pytest.approx([1 / 2, 1 / 2, 1 / 3], abs=1e-5)


def test_rounding_left_by_upsampling_is_a_tie() -> None:
    up = 0.1 * (1 + 3e-7)
    assert scores([[0.1, 0.1, up], [0.1, 0.1, up]]) == pytest.approx([1 / 2, 1 / 2, 1 / 3], abs=1e-5)
    # A real difference, small as it is, is none.
    more = 0.1 * (1 + 1e-5)
    assert scores([[0.1, 0.1, more], [0.1, 0.1, more]])[0] == 0


def test_uncovered_places_are_never_chosen() -> None:
    assert scores([[NAN] * 3] * 2) == [0, 0, 0]
    # Infinity is a failure, not the highest value. 1 inside and 3 outside are chosen: 1 / (3 + 2 - 1).
    assert scores([[INF, 1, 3], [NAN, NAN, -INF]]) == pytest.approx([0, 1 / 4, 1 / 4])
    # Three ties cover as many pixels as the object: two are shared.
    assert scores([[2, 2, 2], [NAN, NAN, NAN]]) == pytest.approx([2 / 3, 2 / 3, 2 / 4], abs=1e-5)


def test_each_image_of_a_batch_is_scored_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(5, 7, 11, generator=generator)
    maps[2] = NAN
    maps[3] = 0
    masks = torch.rand(5, 7, 11, generator=generator) > 0.8
    masks[4] = True
    together = evaluate_maps(maps, masks)
    for name, values in together.items():
        alone = torch.cat([evaluate_maps(maps[i : i + 1], masks[i : i + 1])[name] for i in range(5)])
        torch.testing.assert_close(values, alone)
        assert values.shape == (5,)
        assert values[2] == 0
        assert values[4] == pytest.approx(1)


def test_perfect_and_opposite_maps() -> None:
    for maps, expected in ((MASK.double(), 1.0), (1 - MASK.double(), 0.0)):
        for values in evaluate_maps(maps, MASK).values():
            assert values.dtype == torch.float64
            assert values.item() == expected


def test_grid_is_upsampled_to_the_mask() -> None:
    # The lower right of four tokens: its maximum fills the corner that lies beyond its centre.
    masks = torch.zeros(1, 8, 8, dtype=torch.bool)
    masks[:, 4:, 4:] = True
    result = evaluate_maps(one([[0, 0], [0, 1]]), masks)
    assert result["pointing_game"].item() == 1
    assert result["iou_at_equal_area"].item() == pytest.approx(1)
    # Bilinear weights along a side are 0, 0, 1/8, 3/8, 5/8, 7/8, 1, 1: 3.5 of 4 in the right half.
    assert result["energy_inside"].item() == pytest.approx((3.5 / 4) ** 2)


def test_flat_grid_stays_a_blind_guess_when_upsampled() -> None:
    masks = torch.zeros(1, 101, 67, dtype=torch.bool)
    masks[:, :20, :30] = True
    share = 20 * 30 / (101 * 67)
    result = evaluate_maps(torch.full((1, 7, 7), 0.1), masks)
    assert result["pointing_game"].item() == pytest.approx(share, rel=1e-5)
    assert result["energy_inside"].item() == pytest.approx(share, rel=1e-4)
    assert result["iou_at_equal_area"].item() == pytest.approx(share / (2 - share), rel=1e-4)


def test_nan_of_the_grid_does_not_spread() -> None:
    masks = torch.zeros(1, 4, 4, dtype=torch.bool)
    masks[:, :, 0] = True
    # The two columns of the covered patch are equal; the object is one of them: 2 of 4 shared, 2 / (8 - 2).
    result = evaluate_maps(one([[1, NAN], [1, NAN]]), masks)
    assert [value.item() for value in result.values()] == pytest.approx([1 / 2, 1 / 2, 1 / 3])


@pytest.mark.parametrize(
    ("maps", "masks", "message"),
    [
        (torch.rand(2, 3, 3), torch.ones(2, 3, 4, dtype=torch.bool), r"\(2, 3, 4\)"),
        (torch.rand(2, 3, 3), torch.ones(2, 3, 3), "float32"),
        (torch.ones(2, 3, 3, dtype=torch.int64), torch.ones(2, 3, 3, dtype=torch.bool), "int64"),
        (torch.rand(3, 3), torch.ones(3, 3, dtype=torch.bool), r"\(3, 3\)"),
        (torch.rand(2, 1, 1), torch.tensor([[[True]], [[False]]]), r"\[1\] of the batch are empty"),
    ],
)
def test_wrong_input_is_refused(maps: torch.Tensor, masks: torch.Tensor, message: str) -> None:
    for score in (pointing_game, energy_inside, iou_at_equal_area):
        with pytest.raises(ValueError, match=message):
            score(maps, masks)


def test_batches_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="of one batch"):
        evaluate_maps(torch.rand(2, 3, 3), torch.ones(1, 6, 6, dtype=torch.bool))


def test_centre_gaussian() -> None:
    bump = centre_gaussian(3, 5, sigma=0.25)
    assert bump.shape == (3, 5)
    assert bump[1, 2] == 1
    # A third of the height from the centre: exp(-(1/3)^2 / (2 * 0.25^2)); symmetric both ways.
    assert bump[0, 2].item() == pytest.approx(0.41111, abs=1e-5)
    assert bump[1, 0].item() == pytest.approx(0.27804, abs=1e-5)
    torch.testing.assert_close(bump, bump.flip(0, 1))
    # The ranking, and with it two of the three scores, does not depend on sigma.
    masks = torch.zeros(1, 20, 30, dtype=torch.bool)
    masks[:, 3:11, 5:20] = True
    narrow, wide = (evaluate_maps(centre_gaussian(20, 30, sigma)[None], masks) for sigma in (0.2, 0.4))
    assert narrow["pointing_game"] == wide["pointing_game"]
    assert narrow["iou_at_equal_area"].item() == pytest.approx(wide["iou_at_equal_area"].item())
    assert narrow["energy_inside"] != wide["energy_inside"]
    with pytest.raises(ValueError, match="sigma above 0"):
        centre_gaussian(3, 5, sigma=0)


def test_random_map_is_a_function_of_its_seed() -> None:
    state = torch.get_rng_state()
    first = random_map(7, 5, seed=3)
    assert torch.equal(first, random_map(7, 5, seed=3))
    assert not torch.equal(first, random_map(7, 5, seed=4))
    assert first.shape == (7, 5)
    assert 0 <= first.min() < first.max() < 1
    assert torch.equal(state, torch.get_rng_state()), "the caller's generator was drawn from"

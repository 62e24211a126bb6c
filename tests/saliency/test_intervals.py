"""Bootstrap intervals against numbers worked by hand and scipy."""

import math

import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap

from vit.saliency import intervals
from vit.saliency.intervals import Interval, bootstrap


def test_two_images() -> None:
    # Two draws of 0 and 1: means 0, 1/2, 1 with chances 1/4, 1/2, 1/4, so that the tails of 2.5% are 0 and 1.
    (found,) = bootstrap(np.array([[0.0], [1.0]]))
    assert found.plain == Interval(0.5, 0.0, 1.0)
    assert found.grouped is None


def test_groups_count_alike_in_the_grouped_mean() -> None:
    (found,) = bootstrap(np.array([[1.0], [1.0], [1.0], [0.0]]), groups=["a", "a", "a", "b"])
    assert found.plain.mean == 3 / 4
    assert found.grouped is not None
    assert found.grouped.mean == 1 / 2
    assert (found.plain.low, found.plain.high) == (0, 1)


def test_copies_in_a_group_make_nothing_more_certain() -> None:
    values = np.random.default_rng(0).normal(size=(15, 2))
    copied, names = np.repeat(values, 10, axis=0), np.repeat(np.arange(15), 10).astype(str)
    once = bootstrap(values)
    for single, group, alone in zip(once, bootstrap(copied, groups=list(names)), bootstrap(copied), strict=True):
        width = single.plain.high - single.plain.low
        # The names sort as text, which permutes the groups: the same distribution, not the same draws.
        assert group.plain.high - group.plain.low == pytest.approx(width, rel=0.1)
        assert alone.plain.high - alone.plain.low < width / 2


def test_a_ratio_is_of_sums_and_means_over_its_parts() -> None:
    intersections = np.array([[[1.0, 4.0]], [[3.0, 0.0]]])
    unions = np.array([[[2.0, 4.0]], [[10.0, 4.0]]])
    (found,) = bootstrap(intersections, unions, groups=["a", "b"])
    assert found.plain.mean == pytest.approx((4 / 12 + 4 / 8) / 2)
    assert found.grouped is not None
    assert found.grouped.mean == pytest.approx(((1 / 2 + 1) / 2 + (3 / 10 + 0) / 2) / 2)


def test_it_is_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(1).exponential(size=120)
    (found,) = bootstrap(values[:, None], seed=3, resamples=20_000)
    theirs = scipy_bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(4)
    ).confidence_interval
    assert found.plain.low == pytest.approx(theirs.low, abs=0.01)
    assert found.plain.high == pytest.approx(theirs.high, abs=0.01)


def test_it_is_a_function_of_its_seed_whatever_is_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(9, 3))
    first = bootstrap(values, seed=1)
    monkeypatch.setattr(intervals, "_AT_ONCE", 100)
    for again, before in zip(bootstrap(values, seed=1), first, strict=True):
        assert again.plain == pytest.approx(before.plain)
    assert bootstrap(values, seed=2) != first


def test_of_one_group_the_bounds_are_not_known() -> None:
    (found,) = bootstrap(np.array([[1.0], [3.0]]), groups=["a", "a"])
    assert found.plain.mean == 2
    assert math.isnan(found.plain.low)
    assert math.isnan(found.plain.high)


def test_a_group_that_comes_to_no_number_is_left_out_of_the_grouped_mean() -> None:
    # Groups a and b have the ratios 1/4 and 3/4; in c the weights come to less than nothing, so it has none.
    values = np.array([[1.0], [3.0], [0.1]])
    weights = np.array([[4.0], [4.0], [-0.5]])
    (found,) = bootstrap(values, weights, groups=["a", "b", "c"])
    assert found.grouped is not None
    assert found.grouped.mean == pytest.approx(1 / 2)
    (alone,) = bootstrap(values[2:].repeat(2, axis=0), weights[2:].repeat(2, axis=0), groups=["c", "d"])
    assert alone.grouped is not None
    assert all(map(math.isnan, alone.grouped)), "there is no group to take the mean of"


def test_bounds_of_the_grouped_mean_are_of_the_groups_that_have_a_number() -> None:
    values, weights = np.tile([[1.0], [3.0]], (10, 1)), np.full((20, 1), 4.0)
    values[0], weights[0] = 0.1, -0.5
    (found,) = bootstrap(values, weights, groups=[f"group {number}" for number in range(20)])
    assert found.grouped is not None
    assert found.grouped.mean == pytest.approx((9 / 4 + 10 * 3 / 4) / 19)
    assert 0.3 < found.grouped.low < found.grouped.mean < found.grouped.high < 0.7


def test_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="0 images"):
        bootstrap(np.empty((0, 1)))
    with pytest.raises(ValueError, match="2 images and 1 groups"):
        bootstrap(np.ones((2, 1)), groups=["a"])

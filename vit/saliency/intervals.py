"""How far a mean over images can be trusted: bootstrap intervals (Efron 1979), with whole groups if images belong
together.

Frames of one video, or crops of one slide, carry less information than the same number of unrelated photographs. If
images have groups, whole groups are drawn (the cluster bootstrap: Davison & Hinkley 1997, section 3.8), and the mean
over groups is reported in addition to the mean over images.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
LEVEL = 0.95
_AT_ONCE = 2**21  # counts in memory at a time

Numbers = NDArray[np.float64]


class Interval(NamedTuple):
    """A mean, and the bounds between which 95% of the resampled means lie. With fewer than two things to draw from, the
    bounds are unknown: NaN."""

    mean: float
    low: float
    high: float


class Estimate(NamedTuple):
    """The mean in which all images count the same, and, if images have groups, the one in which all groups do."""

    plain: Interval
    grouped: Interval | None


def bootstrap(
    values: Numbers,
    weights: Numbers | None = None,
    *,
    groups: Sequence[str] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[Estimate]:
    """Percentile intervals of several statistics of the same images, all from the same resamples.

    A statistic is the mean over its K parts of sum(values) / sum(weights) over images: with one part and no weights,
    the plain mean; with intersections as values and unions as weights, the IoU of all images together.

    Args:
        values: (images, statistics) or (images, statistics, K).
        weights: the same shape as `values`; None for ones.
        groups: the group of each image; None makes each image its own group.
        seed: seed of the resamples, which are a pure function of it and of the number of groups.
        resamples: number of resamples.

    Returns:
        An estimate for each statistic; `grouped` is the mean over groups of the statistic within each group, from the
        same resamples. A group whose weights sum to zero or less has no such number, and is left out.

    Raises:
        ValueError: for no image, or another number of groups than images.
    """
    values = values[:, :, None] if values.ndim == 2 else values
    weights = np.ones_like(values) if weights is None else weights.reshape(values.shape)
    if len(values) == 0 or (groups is not None and len(groups) != len(values)):
        raise ValueError(f"Got {len(values)} images and {len(groups or ())} groups; one or more images are needed.")
    names, members = np.unique(np.arange(len(values)) if groups is None else np.asarray(groups), return_inverse=True)
    numerators, denominators = _sums(values, members, len(names)), _sums(weights, members, len(names))
    within = _ratio(numerators, denominators)  # (groups, statistics)
    known = np.isfinite(within)
    # A group without a number is left out of the mean, which would otherwise be NaN.
    of_groups, counted = (each[:, :, None] for each in (np.where(known, within, 0), known.astype(np.float64)))
    drawn_plain, drawn_grouped = [], []
    for counts in _resampled_counts(len(names), seed, resamples):
        drawn_plain.append(_drawn(counts, numerators, denominators))
        drawn_grouped.append(_drawn(counts, of_groups, counted))
    plain = _intervals(_ratio(numerators.sum(0), denominators.sum(0)), np.concatenate(drawn_plain), len(names))
    if groups is None:
        return [Estimate(each, None) for each in plain]
    grouped = _intervals(_ratio(of_groups.sum(0), counted.sum(0)), np.concatenate(drawn_grouped), len(names))
    return [Estimate(*pair) for pair in zip(plain, grouped, strict=True)]


def _sums(values: Numbers, members: NDArray[np.int64], count: int) -> Numbers:
    """(images, statistics, K) -> the sums of each group, (groups, statistics, K)."""
    sums = np.zeros((count, *values.shape[1:]))
    np.add.at(sums, members, values)
    return sums


def _ratio(numerators: Numbers, denominators: Numbers) -> Numbers:
    """(..., statistics, K) -> (..., statistics). A part whose denominator is zero or less is left out of the mean; NaN
    if there is no other part."""
    counted = denominators > 0
    parts = np.where(counted, numerators / np.where(counted, denominators, 1), 0).sum(axis=-1)
    number = counted.sum(axis=-1)
    return np.asarray(np.where(number > 0, parts / np.maximum(number, 1), np.nan), np.float64)


def _drawn(counts: Numbers, numerators: Numbers, denominators: Numbers) -> Numbers:
    """(rows, statistics) of the drawn groups, for counts (rows, groups)."""
    return _ratio(np.tensordot(counts, numerators, axes=1), np.tensordot(counts, denominators, axes=1))


def _resampled_counts(groups: int, seed: int, resamples: int) -> Iterator[Numbers]:
    """(rows, groups) how often each group is drawn: `groups` draws with replacement per row, some rows at a time."""
    generator = np.random.default_rng(seed)
    step = max(1, _AT_ONCE // groups)
    shares = np.full(groups, 1 / groups)
    for first in range(0, resamples, step):
        yield generator.multinomial(groups, shares, size=min(step, resamples - first)).astype(np.float64)


def _intervals(means: Numbers, drawn: Numbers, groups: int) -> list[Interval]:
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail], axis=0)
    if groups < 2:
        low = high = np.full_like(means, np.nan)
    return [Interval(*map(float, each)) for each in zip(means, low, high, strict=True)]

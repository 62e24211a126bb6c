"""How far a mean over images can be trusted: intervals by the bootstrap (Efron 1979), by whole groups where images
belong together.

Frames of one video, or crops of one slide, tell less than as many photographs of their own. Where images have groups,
whole groups are drawn (the cluster bootstrap: Davison & Hinkley 1997, section 3.8), and the mean over groups stands
beside the mean over images.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
LEVEL = 0.95
_AT_ONCE = 2**21  # counts that one step of the drawing holds

Numbers = NDArray[np.float64]


class Interval(NamedTuple):
    """A mean, and the bounds between which 95% of the resampled means lie. With fewer than two things to draw from
    nothing is known of the bounds: they are NaN."""

    mean: float
    low: float
    high: float


class Estimate(NamedTuple):
    """Of all images alike, and, where images have groups, of all groups alike."""

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

    A statistic is the mean over its K parts of sum(values) / sum(weights) over images: with one part and no weights
    the plain mean; with intersections as values and unions as weights the IoU of all images together.

    Args:
        values: (images, statistics) or (images, statistics, K).
        weights: of the same shape; None for ones.
        groups: which group each image belongs to; None makes each image one of its own.
        seed: of the resamples, which are a pure function of it and of the number of groups.
        resamples: how many.

    Returns:
        An estimate for each statistic; `grouped` is the mean over groups of the statistic within each, from the same
        resamples. A group whose weights come to nothing, or less, has no such number, and is left out.

    Raises:
        ValueError: for no image, or shapes that do not fit.
    """
    values = values[:, :, None] if values.ndim == 2 else values
    weights = np.ones_like(values) if weights is None else weights.reshape(values.shape)
    if len(values) == 0 or (groups is not None and len(groups) != len(values)):
        raise ValueError(f"Got {len(values)} images and {len(groups or ())} groups; one image or more is needed.")
    names, members = np.unique(np.arange(len(values)) if groups is None else np.asarray(groups), return_inverse=True)
    numerators, denominators = _sums(values, members, len(names)), _sums(weights, members, len(names))
    within = _ratio(numerators, denominators)  # (groups, statistics)
    known = np.isfinite(within)
    # A group that has no number of its own is left out of the mean, or it would leave none to all of them.
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
    """(..., statistics, K) -> (..., statistics). A part that nothing was counted for is left out of the mean; NaN when
    there is no other."""
    counted = denominators > 0
    parts = np.where(counted, numerators / np.where(counted, denominators, 1), 0).sum(axis=-1)
    number = counted.sum(axis=-1)
    return np.asarray(np.where(number > 0, parts / np.maximum(number, 1), np.nan), np.float64)


def _drawn(counts: Numbers, numerators: Numbers, denominators: Numbers) -> Numbers:
    """(rows, statistics) of the groups as they were drawn, counts (rows, groups)."""
    return _ratio(np.tensordot(counts, numerators, axes=1), np.tensordot(counts, denominators, axes=1))


def _resampled_counts(groups: int, seed: int, resamples: int) -> Iterator[Numbers]:
    """(rows, groups) how often each group is drawn: `groups` draws with replacement a row, some rows at a time."""
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

"""All problems of a data set, from its listing and from reading its images."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from datamodules.collection import SPLITS
from datamodules.doctor.classes import class_counts, class_problems
from datamodules.doctor.duplicates import near_duplicates, same_content
from datamodules.doctor.listing import Listing
from datamodules.doctor.problems import KINDS, Problem
from datamodules.doctor.scan import Scan

TINY = 32  # pixels of the shorter side
GIANT = 50_000_000  # pixels
LONG = 4.0  # longer side over shorter
BLANK = 2.0  # standard deviation of grey
_USUAL = {"RGB", "L"}
# Edges of the histograms: a value belongs to the last edge that it reaches.
RESOLUTIONS = (0, 32, 64, 128, 224, 384, 512, 1024, 2048, 4096)  # pixels of the shorter side
ASPECTS = (0.0, 0.25, 0.5, 0.7, 0.9, 1.1, 1.4, 2.0, 4.0)  # width over height


@dataclass
class Diagnosis:
    """The result of a check.

    Args:
        listing: the images.
        scan: what reading them showed.
        problems: errors first.
        counts: usable images by split and label, see `class_counts`.
        resolutions, aspects: number of readable images from each edge up to the next.
        keep: indices of the images without a problem that excludes them, ascending.
    """

    listing: Listing
    scan: Scan
    problems: list[Problem]
    counts: np.ndarray
    resolutions: list[int] = field(default_factory=list)
    aspects: list[int] = field(default_factory=list)
    keep: list[int] = field(default_factory=list)

    @property
    def by_kind(self) -> dict[str, int]:
        """Number of problems by kind, in the order of the problems."""
        return dict(Counter(problem.kind for problem in self.problems))

    @property
    def split_counts(self) -> dict[str, int]:
        """Number of usable images by split, for splits that have some."""
        images = np.bincount(self.listing.splits[self.scan.readable], minlength=len(SPLITS)).tolist()
        return {split: count for split, count in zip(SPLITS, images, strict=True) if count}

    def summary(self) -> list[str]:
        """Lines to print about the size of the data and how fast it was read."""
        total, splits = len(self.listing), [f"{split} {count:,}" for split, count in self.split_counts.items()]
        if self.listing.held_out:
            splits.append("val held out by the seed")
        rate, megabytes = total / max(self.scan.seconds, 1e-9), self.scan.file_bytes.sum() / 1e6
        return [
            f"{total:,} images of {len(self.listing.labels):,} classes; readable: {', '.join(splits)}",
            f"checked in {self.scan.seconds:.1f} s, {rate:.0f} images/s; {megabytes:,.0f} MB of files",
        ]

    @property
    def errors(self) -> int:
        """Number of problems that are errors."""
        return sum(count for kind, count in self.by_kind.items() if KINDS[kind].severity == "error")

    def table(self) -> list[tuple[str, str, int, str]]:
        """(severity, problem, how many, what to do), worst first."""
        return [
            (KINDS[kind].severity, KINDS[kind].title, count, KINDS[kind].advice) for kind, count in self.by_kind.items()
        ]


def diagnose(listing: Listing, scan: Scan) -> Diagnosis:
    """Combines all findings about the images of a listing."""
    counts = class_counts(listing, scan.readable)
    problems = [*listing.problems, *_unreadable(scan), *_single(scan), *_duplicates(listing, scan)]
    problems += class_problems(listing, counts)
    order = {kind: number for number, kind in enumerate(KINDS)}
    severities = ("error", "warning", "note")
    problems.sort(key=lambda one: (severities.index(KINDS[one.kind].severity), order[one.kind], one.image))
    dropped = {problem.image for problem in problems if KINDS[problem.kind].dropped}
    sizes = scan.sizes[scan.readable]
    return Diagnosis(
        listing,
        scan,
        problems,
        counts,
        _histogram(sizes.min(axis=1, initial=2**31 - 1), RESOLUTIONS),
        _histogram(sizes[:, 1] / sizes[:, 0], ASPECTS),
        [image for image in range(len(listing)) if image not in dropped],
    )


def _histogram(values: np.ndarray, edges: tuple[float, ...]) -> list[int]:
    places = np.searchsorted(np.array(edges), values, side="right") - 1
    return np.bincount(places, minlength=len(edges)).tolist()


def _unreadable(scan: Scan) -> list[Problem]:
    return [Problem("unreadable", reason, image) for image, reason in scan.reasons.items()]


def _single(scan: Scan) -> list[Problem]:
    """Problems of single images."""
    found: list[Problem] = []
    height, width = scan.sizes.T.astype(np.int64)
    shorter, longer = np.minimum(height, width), np.maximum(height, width)
    described = [
        ("blank", scan.contrast < BLANK, lambda i: f"grey differs by {scan.contrast[i]:.1f} of 255"),
        ("tiny", shorter < TINY, lambda i: f"{width[i]} x {height[i]} pixels"),
        ("giant", height * width > GIANT, lambda i: f"{width[i]} x {height[i]} pixels"),
        ("aspect", longer > LONG * shorter, lambda i: f"{width[i]} x {height[i]} pixels"),
        ("frames", scan.frames, lambda i: f"{scan.kind(i)} of several frames"),
    ]
    for kind, there, detail in described:
        found += [Problem(kind, detail(image), int(image)) for image in np.flatnonzero(there & scan.readable)]
    odd = [number for number, name in enumerate(scan.kind_names) if name.split()[-1] not in _USUAL]
    images = np.flatnonzero(np.isin(scan.kinds, odd) & scan.readable)
    return found + [Problem("mode", scan.kind(int(image)), int(image)) for image in images]


def _duplicates(listing: Listing, scan: Scan) -> list[Problem]:
    """Exact and near duplicates. Among identical files, only one is compared with others for near duplicates."""
    readable = np.flatnonzero(scan.readable)
    found: list[Problem] = []
    alone = np.ones(len(listing), bool)
    for group in same_content(scan.content, readable):
        alone[group[1:]] = False
        found += _same(listing, group)
    alike = readable[alone[readable] & (scan.contrast[readable] >= BLANK)]
    pairs = near_duplicates(scan.looks[alike], scan.thumbs[alike], listing.splits[alike], listing.targets[alike])
    for kind, others in zip(("near duplicate", "near leak", "near conflict"), pairs, strict=True):
        there = np.flatnonzero(others >= 0)
        for image, other in zip(alike[there].tolist(), alike[others[there]].tolist(), strict=True):
            found.append(_pair(kind, listing, image, other))
    return found


def _same(listing: Listing, group: np.ndarray) -> list[Problem]:
    """The problems of files with the same bytes; `group` is in the order of the splits, train first."""
    images = group.tolist()
    if len(set(listing.targets[group].tolist())) > 1:
        pairs = zip(images, [images[-1], *images[:-1]], strict=True)
        return [_pair("conflict", listing, image, other) for image, other in pairs]
    # Keep the copy in the last split, so that what is measured there is not in train.
    kept = images[-1]
    return [
        _pair("duplicate" if listing.splits[image] == listing.splits[kept] else "leak", listing, image, kept)
        for image in images[:-1]
    ]


def _pair(kind: str, listing: Listing, image: int, other: int) -> Problem:
    places = [f"{listing.split(one)}/{listing.label(one)}" for one in (image, other)]
    return Problem(kind, f"{places[0]}, and {places[1]}: {listing.name(other)}", image, other)

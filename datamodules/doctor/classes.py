"""Classes that can't be learned or measured."""

import unicodedata
from collections import defaultdict

import numpy as np

from datamodules.collection import SPLITS
from datamodules.doctor.listing import Listing
from datamodules.doctor.problems import Problem
from vit.foundation import nearest

FEW = 10  # with fewer training images, little can be learned about a class
UNEQUAL = 10.0  # ratio of the largest class to the smallest


def class_counts(listing: Listing, usable: np.ndarray) -> np.ndarray:
    """Usable images by split and label; (splits, labels) int64. `usable` is (images,) bool.

    An image with several labels counts for each of them.
    """
    together = np.zeros((len(SPLITS), len(listing.combinations)), np.int64)
    np.add.at(together, (listing.splits[usable], listing.targets[usable]), 1)
    number = {label: index for index, label in enumerate(listing.labels)}
    counts = np.zeros((len(SPLITS), len(listing.labels)), np.int64)
    for combination, images in zip(listing.combinations, together.T, strict=True):
        counts[:, [number[label] for label in combination]] += images[:, None]
    return counts


def class_problems(listing: Listing, counts: np.ndarray) -> list[Problem]:
    """The problems of the classes, given the usable images of each, see `class_counts`."""
    train = counts[0]
    found = _untrainable(listing, train)
    if not listing.labels:
        return found
    for split, row in zip(SPLITS[1:], counts[1:], strict=True):
        lacking = [label for label, count, known in zip(listing.labels, row, train, strict=True) if known and not count]
        if row.any() or split == "val":
            found += [
                Problem("unmeasured", f"{label} has no readable image in {split}", path=label) for label in lacking
            ]
    found += [
        Problem("few", f"{label} has {count} in train, fewer than {FEW}", path=label)
        for label, count in zip(listing.labels, train, strict=True)
        if 0 < count < FEW
    ]
    most, least = int(train.max()), int(train[train > 0].min(initial=train.max()))
    if least and most / least >= UNEQUAL:
        large, small = listing.labels[int(train.argmax())], listing.labels[int(np.flatnonzero(train == least)[0])]
        found.append(Problem("imbalance", f"{large} has {most} in train, {small} {least}", path=small))
    return found + _collisions(listing.labels)


def _untrainable(listing: Listing, train: np.ndarray) -> list[Problem]:
    """The problems of the classes that training refuses, given the usable training images of each."""
    learned = [label for label, count in zip(listing.labels, train, strict=True) if count]
    found = [
        Problem("classes", f"{label} has no readable image in train{nearest(label, learned)}", path=label)
        for label, count in zip(listing.labels, train, strict=True)
        if not count
    ]
    if not listing.labels:
        found.append(Problem("classes", "no image has a label"))
    elif len(listing.labels) < 2:
        found.append(Problem("classes", f"there is only one class, {listing.labels[0]}", path=listing.labels[0]))
    if listing.held_out and not (listing.splits == SPLITS.index("val")).any():
        found.append(Problem("validation", "there is only one image per class, or one group, so val stays empty"))
    return found


def _collisions(labels: tuple[str, ...]) -> list[Problem]:
    """Problems for names that some file systems, and most people, can't tell apart."""
    alike: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        alike[unicodedata.normalize("NFKC", label).casefold().strip()].append(label)
    return [Problem("collision", " and ".join(names), path=names[-1]) for names in alike.values() if len(names) > 1]

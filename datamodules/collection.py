"""The images of a data set with their labels and splits, and how some of train are held out."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import product
from pathlib import Path
from typing import NamedTuple, Protocol

from datamodules.reading import Photo
from vit.foundation import UserError

# Names of the splits in folders and archives; some well-known data sets use other names for val.
SPLIT_NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
SPLITS = tuple(SPLIT_NAMES)


class Source(Protocol):
    """A photo that is not a file of its own."""

    def photo(self, min_size: tuple[int, int] | None) -> Photo:
        """The photo, as `read_photo` returns it. Raises UnreadableImage."""

    def state(self) -> bytes:
        """A key that distinguishes the photo in its present state from all others."""


class Record(NamedTuple):
    """One image.

    Args:
        path: absolute.
        labels: one label; or any number, in a multi-label collection.
        group: images of one group are never in different splits; empty for an image by itself.
        weight: weight in the loss.
        source: what to read if there is no file at that path, such as a member of an archive.
    """

    path: str
    labels: tuple[str, ...]
    group: str = ""
    weight: float = 1.0
    source: Source | None = None

    @property
    def unit(self) -> str:
        """The group or image that is held out as a whole."""
        return self.group or self.path


@dataclass(frozen=True)
class Collection:
    """The images of each split.

    Args:
        base: absolute folder; names of images are relative to it.
        splits: the images of train, val and test, as far as they exist.
        multilabel: whether images have any number of labels, instead of one.
        weighted: whether images have weights.
        held_out: whether val was taken out of train.
    """

    base: Path
    splits: dict[str, list[Record]]
    multilabel: bool = False
    weighted: bool = False
    held_out: bool = False

    def with_val(self, fraction: float, seed: int) -> "Collection":
        """The same collection with a val; if it has none, some images of train become val.

        Raises:
            UserError: when the fraction is not between 0 and 1.
        """
        if "train" not in self.splits or "val" in self.splits:
            return self
        train, val = hold_out(self.splits["train"], self.base, fraction, seed)
        rest = {split: records for split, records in self.splits.items() if split != "train"}
        return replace(self, splits={"train": train, "val": val} | rest, held_out=True)

    def labels(self, split: str) -> set[str]:
        """The labels that the images of a split have."""
        return {label for record in self.splits.get(split, ()) for label in record.labels}


def hold_out(records: Sequence[Record], base: Path, fraction: float, seed: int) -> tuple[list[Record], list[Record]]:
    """(kept for training, held out for validation), in the given order; about `fraction` of each label is held out.

    Groups stay together, and so do the entries of an image that is listed twice. The choice depends only on the seed,
    the names of the groups and the paths below `base`, not on where the base is or on the order of the list, and it
    hardly changes when images are added.

    Raises:
        UserError: when the fraction is not between 0 and 1.
    """
    units = Units(records, base)
    labels, sizes, names = units.labels, units.sizes, units.names
    held: set[str] = set()
    for members in units.classes.values():
        held |= _draw(members, names, fraction, seed)
    every = {label for several in labels.values() for label in several}
    kept = {label for unit, several in labels.items() if unit not in held for label in several}
    for label in sorted(every - kept):  # in an order that is the same in every process
        if label not in kept:  # otherwise it came back with the unit of another label
            back = min((unit for unit in held if label in labels[unit]), key=lambda unit: (sizes[unit], names[unit]))
            held.remove(back)
            kept |= labels[back]
    return [one for one in records if one.unit not in held], [one for one in records if one.unit in held]


class Units:
    """The units that are held out as a whole: images, or groups of them.

    Attributes:
        labels: the labels of all images of a unit; {""} for a unit without any.
        sizes: number of images of a unit.
        names: names of the units, independent of where the data is stored.
        classes: label -> {unit: its size}; a unit with several labels counts for its rarest.
    """

    def __init__(self, records: Sequence[Record], base: Path) -> None:
        self.labels: defaultdict[str, set[str]] = defaultdict(set)
        self.sizes: Counter[str] = Counter()
        self.names: dict[str, str] = {}
        for record in records:
            self.labels[record.unit].update(record.labels or ("",))
            self.sizes[record.unit] += 1
            self.names[record.unit] = record.group or os.path.relpath(record.path, base)
        count = Counter(label for several in self.labels.values() for label in several)
        self.classes: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for unit, several in self.labels.items():
            rarest = min(several, key=lambda label: (count[label], label))
            self.classes[rarest][unit] = self.sizes[unit]


def deal(records: Sequence[Record], base: Path, count: int, seed: int) -> list[int]:
    """The part, 0 to `count` - 1, of each image: each label is spread evenly over the parts, and groups stay together.

    The result depends on the seed and the names only, as described for `hold_out`.

    Raises:
        UserError: when all images of a label are a single unit, which can't be in more than one part, or no way was
            found to have each label in several parts.
    """
    units = Units(records, base)
    having = _units_of_labels(units)
    if single := sorted(label for label, members in having.items() if len(members) < 2):
        raise UserError(
            f"{single[0]} has only one image or group, so no fold could both train and validate on it.\n"
            "Add images of it, or leave it out."
        )
    part_of: dict[str, int] = {}
    whole = [0] * count
    for _, members in sorted(units.classes.items()):
        own = [0] * count
        for unit in sorted(members, key=lambda unit: _lot(units.names[unit], seed)):
            part = min(range(count), key=lambda part: (own[part], whole[part], part))
            part_of[unit] = part
            own[part] += members[unit]
            whole[part] += members[unit]
    _spread(part_of, units, having, whole)
    return [part_of[record.unit] for record in records]


def _units_of_labels(units: Units) -> dict[str, list[str]]:
    """label -> the units that have it, in the order of their names."""
    having: defaultdict[str, list[str]] = defaultdict(list)
    for unit, several in sorted(units.labels.items(), key=lambda one: units.names[one[0]]):
        for label in several - {""}:
            having[label].append(unit)
    return having


def _spread(part_of: dict[str, int], units: Units, having: Mapping[str, list[str]], whole: Sequence[int]) -> None:
    """Moves units until each label is in several parts: a unit is dealt by its rarest label, so that all units with
    another one may come into the same part. `whole` are the sizes of the parts.

    Raises:
        UserError: when moving a unit would take another label out of all parts but one.
    """

    def parts(label: str) -> set[int]:
        return {part_of[unit] for unit in having[label]}

    for label in sorted(having):
        if len(here := parts(label)) > 1:
            continue
        others = sorted({*range(len(whole))} - here, key=lambda part: (whole[part], part))
        for unit, part in product(sorted(having[label], key=lambda unit: units.sizes[unit]), others):
            before, part_of[unit] = part_of[unit], part
            if all(len(parts(each)) > 1 for each in units.labels[unit] if each):
                break
            part_of[unit] = before
        else:
            raise UserError(
                f"All images with the label {label} would be in one fold, whose training could not learn it.\n"
                "Try another number of folds or another --seed, or add images of it."
            )


def split_class(paths: Iterable[str], base: Path, fraction: float, seed: int) -> tuple[list[str], list[str]]:
    """Splits the paths of one class (or without classes) into those kept for training and those held out for
    validation, both sorted; see `hold_out`."""
    kept, held = hold_out([Record(path, ()) for path in sorted(paths)], base, fraction, seed)
    return [record.path for record in kept], [record.path for record in held]


def straddling(splits: Mapping[str, Iterable[Record]]) -> dict[str, list[str]]:
    """The groups that are in several splits: name -> those splits, in order."""
    places: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for split in SPLITS:
        for record in splits.get(split, ()):
            if record.group:
                places[record.group][split] = None
    return {group: list(found) for group, found in places.items() if len(found) > 1}


def _draw(sizes: Mapping[str, int], names: Mapping[str, str], fraction: float, seed: int) -> set[str]:
    """The units of one class to hold out; `sizes` are their numbers of images. If there are two or more units, both
    parts get at least one."""
    if not 0 < fraction < 1:
        raise UserError(f"val_fraction is {fraction}; it must lie between 0 and 1, such as 0.2.")
    total = sum(sizes.values())
    wanted = min(max(round(total * fraction), 1), total - 1)
    drawn = sorted(sizes, key=lambda unit: _lot(names[unit], seed))
    held, count = set(), 0
    for unit in drawn:
        if count + sizes[unit] <= wanted:
            held.add(unit)
            count += sizes[unit]
    if not held and len(drawn) > 1:
        held = {min(drawn, key=lambda unit: sizes[unit])}
    return held


def _lot(name: str, seed: int) -> bytes:
    return blake2b(os.fsencode(name), key=str(seed).encode()).digest()

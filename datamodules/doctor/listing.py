"""What a data set claims to contain: images, each with a label and a split, from class folders or a manifest."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datamodules.collection import SPLITS, Collection, Record, straddling
from datamodules.doctor.problems import Problem
from datamodules.image_folder import find_splits
from datamodules.manifest import Row, is_manifest, read_manifest, write_manifest
from datamodules.reading import printable
from vit.foundation import UserError, claim_file


@dataclass(frozen=True)
class Listing:
    """Images of a data set, those of train first.

    Args:
        base: absolute folder; names of images are relative to it.
        records: the images.
        labels: names of the classes, sorted.
        combinations: the sets of labels that images have; with one label per image, each label by itself.
        targets: (images,) int32, which combination.
        splits: (images,) int8, which of SPLITS.
        multilabel: whether images have any number of labels.
        held_out: whether val was taken out of train, by the seed.
        problems: found while listing.
    """

    base: Path
    records: list[Record]
    labels: tuple[str, ...]
    combinations: list[tuple[str, ...]]
    targets: np.ndarray
    splits: np.ndarray
    multilabel: bool
    held_out: bool
    problems: list[Problem]

    def __len__(self) -> int:
        return len(self.records)

    @property
    def paths(self) -> list[str]:
        """Absolute paths, one per image."""
        return [record.path for record in self.records]

    def name(self, image: int) -> str:
        """The path below `base`, printable."""
        return printable(os.path.relpath(self.records[image].path, self.base))

    def label(self, image: int) -> str:
        """The label, or all labels joined by "|"."""
        return "|".join(self.records[image].labels)

    def split(self, image: int) -> str:
        return SPLITS[self.splits[image]]


def list_data(data: Path, *, val_fraction: float, seed: int) -> Listing:
    """The images of a folder as `ImageFolder` takes it, or of a manifest.

    Args:
        data: absolute path of the folder, or of a manifest.
        val_fraction, seed: decide what is held out of train, if the data has no val.

    Raises:
        UserError: the data can't be trained on; the message says what it should be.
    """
    if is_manifest(data):
        return _list_manifest(data, val_fraction, seed)
    notices: list[str] = []
    found = find_splits(data, val_fraction=val_fraction, seed=seed, notices=notices)
    return _listing(found, [Problem("ignored", notice, path=notice) for notice in notices])


def check_fix_list(path: Path, data: Path, *, overwrite: bool) -> None:
    """Raises UserError when the list of good images can't be written there."""
    if path.suffix.lower() != ".csv":
        raise UserError(f"--fix_list is {printable(path)}; it must end in .csv.")
    if path.exists() and data.exists() and path.samefile(data):
        raise UserError(f"--fix_list is {printable(path)}, which is the data itself.\nGive another name.")
    claim_file(str(path), overwrite=overwrite)


def write_fix_list(path: Path, listing: Listing, keep: Sequence[int]) -> None:
    """Writes a manifest of the images to keep, with paths relative to its own folder."""
    folder = path.absolute().parent
    rows = []
    for image in keep:
        record = listing.records[image]
        split = listing.split(image)
        rows.append(Row(os.path.relpath(record.path, folder), record.labels, split, record.group, record.weight))
    write_manifest(path, rows, multilabel=listing.multilabel)


def _listing(found: Collection, problems: list[Problem]) -> Listing:
    records = [record for split in SPLITS for record in found.splits.get(split, ())]
    combinations = sorted({tuple(sorted(record.labels)) for record in records})
    number = {combination: index for index, combination in enumerate(combinations)}
    counts = [len(found.splits.get(split, ())) for split in SPLITS]
    return Listing(
        found.base,
        records,
        tuple(sorted({label for combination in combinations for label in combination})),
        combinations,
        np.array([number[tuple(sorted(record.labels))] for record in records], np.int32),
        np.repeat(np.arange(len(SPLITS), dtype=np.int8), counts),
        found.multilabel,
        found.held_out,
        problems + _groups(found),
    )


def _list_manifest(file: Path, val_fraction: float, seed: int) -> Listing:
    """The images of a manifest, with problems such as missing files and invalid rows."""
    manifest = read_manifest(file)
    problems: list[Problem] = []
    splits: dict[str, list[Record]] = {}
    listed: set[tuple[str, tuple[str, ...], str]] = set()
    for line, row in manifest.rows:
        record, split = manifest.record(row), row.split or "train"
        entry = (record.path, record.labels, split)  # a copy in another split stays: it is a leak
        if wrong := manifest.fault(row):
            problems.append(Problem("label", f"line {line}: {wrong}", path=printable(row.path)))
        elif entry in listed:
            kind = "label" if manifest.multilabel else "duplicate"  # training refuses the former
            problems.append(Problem(kind, f"line {line} lists it again", path=printable(row.path)))
        elif not os.path.lexists(record.path):
            problems.append(Problem("missing", f"line {line}: no such file", path=printable(row.path)))
        else:
            listed.add(entry)
            splits.setdefault(split, []).append(record)
    if not splits:
        raise UserError(
            f"{printable(file)} lists no image that exists.\n"
            f"Paths are relative to its folder, {printable(file.parent)}."
        )
    found = Collection(file.parent, splits, manifest.multilabel, manifest.weighted)
    problems += [] if manifest.multilabel else _folder_labels(splits, file.parent)
    return _listing(found.with_val(val_fraction, seed), problems)


def _groups(found: Collection) -> list[Problem]:
    """Problems for the images of groups that are in several splits, except for the images in a group's last split."""
    apart = straddling(found.splits)
    measured = {(group, splits[-1]) for group, splits in apart.items()}
    image, problems = 0, []
    for split in SPLITS:
        for record in found.splits.get(split, ()):
            if record.group in apart and (record.group, split) not in measured:
                others = " and ".join(one for one in apart[record.group] if one != split)
                problems.append(Problem("group", f"group {record.group} is also in {others}", image))
            image += 1
    return problems


def _folder_labels(splits: Mapping[str, list[Record]], base: Path) -> list[Problem]:
    """Problems for images in a folder named after another label than theirs, if most folders agree with the labels."""
    pairs = [(record.path, record.labels[0]) for records in splits.values() for record in records]
    labels = {label for _, label in pairs}
    folders = [os.path.basename(os.path.dirname(path)) for path, _ in pairs]  # noqa: PTH119, PTH120
    counts = Counter(folder == label for folder, (_, label) in zip(folders, pairs, strict=True) if folder in labels)
    if counts[True] <= counts[False]:
        return []
    return [
        Problem("folder label", f"labelled {label}, in folder {folder}", path=printable(os.path.relpath(path, base)))
        for (path, label), folder in zip(pairs, folders, strict=True)
        if folder in labels and folder != label
    ]

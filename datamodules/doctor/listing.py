"""What a data set claims to hold: its images, each with a label and a split, from class folders or a manifest."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datamodules.doctor.problems import Problem
from datamodules.image_folder import find_splits, split_class
from datamodules.manifest import SPLITS, Row, fault, is_manifest, place, read_manifest, write_manifest
from datamodules.reading import printable
from vit.foundation import UserError


@dataclass(frozen=True)
class Listing:
    """Images of a data set, those of train first.

    Args:
        base: absolute folder that names are below.
        paths: absolute, one an image.
        labels: names of the classes, sorted.
        targets: (images,) int32, which label.
        splits: (images,) int8, which of SPLITS.
        given: whether the data says its splits, rather than the seed.
        problems: found while listing.
    """

    base: Path
    paths: list[str]
    labels: tuple[str, ...]
    targets: np.ndarray
    splits: np.ndarray
    given: bool
    problems: list[Problem]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, image: int) -> str:
        """The path below `base`, printable."""
        return printable(os.path.relpath(self.paths[image], self.base))

    def label(self, image: int) -> str:
        return self.labels[self.targets[image]]

    def split(self, image: int) -> str:
        return SPLITS[self.splits[image]]


def list_data(data: Path, *, val_fraction: float, seed: int) -> Listing:
    """The images of a folder as `ImageFolder` takes it, or of a manifest.

    Args:
        data: absolute path of the folder, or of a file that is a manifest.
        val_fraction, seed: what is held out of train for val, when the data has none.

    Raises:
        UserError: the data is nothing that could be trained on, and what it should be.
    """
    if is_manifest(data):
        return _list_manifest(data, val_fraction, seed)
    notices: list[str] = []
    found = find_splits(data, val_fraction=val_fraction, seed=seed, notices=notices)
    rows = [(path, label, split) for split in found for label, paths in found[split].items() for path in paths]
    given = any((data / name).is_dir() for name in ("val", "valid", "validation"))
    return _listing(data, rows, given, [Problem("ignored", notice, path=notice) for notice in notices])


def check_fix_list(path: Path, data: Path, *, overwrite: bool) -> None:
    """Raises UserError when the list of good images can't be written there."""
    if path.suffix.lower() != ".csv":
        raise UserError(f"--fix_list is {printable(path)}; it must end in .csv.")
    if path.exists() and data.exists() and path.samefile(data):
        raise UserError(f"--fix_list is {printable(path)}, the data itself.\nGive another name.")
    if path.exists() and not (path.is_file() and overwrite):
        raise UserError(f"{printable(path)} is there already.\nGive another name, or --overwrite.")


def write_fix_list(path: Path, listing: Listing, keep: Sequence[int]) -> None:
    """Writes a manifest of the images to keep, with paths relative to where it stands."""
    folder = path.absolute().parent
    rows = (
        Row(os.path.relpath(listing.paths[image], folder), listing.label(image), listing.split(image)) for image in keep
    )
    write_manifest(path, rows)


def _listing(base: Path, rows: list[tuple[str, str, str]], given: bool, problems: list[Problem]) -> Listing:
    rows = sorted(rows, key=lambda row: SPLITS.index(row[2]))
    labels = tuple(sorted({label for _, label, _ in rows}))
    number = {label: index for index, label in enumerate(labels)}
    return Listing(
        base,
        [path for path, _, _ in rows],
        labels,
        np.array([number[label] for _, label, _ in rows], np.int32),
        np.array([SPLITS.index(split) for _, _, split in rows], np.int8),
        given,
        problems,
    )


def _list_manifest(file: Path, val_fraction: float, seed: int) -> Listing:
    """The images of a manifest, with what is wrong in it: files that are not there, rows that make no sense."""
    base = file.parent
    problems: list[Problem] = []
    rows: list[tuple[str, str, str]] = []
    listed: set[tuple[str, str]] = set()
    for line, row in enumerate(read_manifest(file), 2):
        path = place(row, file)
        if wrong := fault(row):
            problems.append(Problem("label", f"line {line}: {wrong}", path=printable(row.path)))
        elif (path, row.label) in listed:
            problems.append(Problem("duplicate", f"line {line} lists it again", path=printable(row.path)))
        elif not os.path.lexists(path):
            problems.append(Problem("missing", f"line {line}: no such file", path=printable(row.path)))
        else:
            listed.add((path, row.label))
            rows.append((path, row.label, row.split or "train"))
    if not rows:
        raise UserError(
            f"{printable(file)} lists no image that is there.\nPaths are relative to its folder, {printable(base)}."
        )
    given = any(split == "val" for _, _, split in rows)
    if not given:
        rows = _hold_out(rows, base, val_fraction, seed)
    problems += _folder_labels(rows, base)
    return _listing(base, rows, given, problems)


def _hold_out(rows: list[tuple[str, str, str]], base: Path, fraction: float, seed: int) -> list[tuple[str, str, str]]:
    """The same with some of train turned into val."""
    held: set[str] = set()
    for label in {label for _, label, split in rows if split == "train"}:
        paths = [path for path, one, split in rows if (one, split) == (label, "train")]
        held.update(split_class(paths, base, fraction, seed)[1])
    return [(path, label, "val" if split == "train" and path in held else split) for path, label, split in rows]


def _folder_labels(rows: list[tuple[str, str, str]], base: Path) -> list[Problem]:
    """Images in a folder that has the name of another label than theirs. Only where folders mostly agree."""
    labels = {label for _, label, _ in rows}
    folders = [os.path.basename(os.path.dirname(path)) for path, _, _ in rows]  # noqa: PTH119, PTH120
    counts = Counter(folder == row[1] for folder, row in zip(folders, rows, strict=True) if folder in labels)
    if counts[True] <= counts[False]:
        return []
    return [
        Problem("folder label", f"labelled {label}, in folder {folder}", path=printable(os.path.relpath(path, base)))
        for (path, label, _), folder in zip(rows, folders, strict=True)
        if folder in labels and folder != label
    ]

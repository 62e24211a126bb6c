"""A manifest: a CSV of images with their labels, where folders don't say them.

    path,label,split
    photos/1.jpg,robin,train

Paths are relative to the manifest's folder, or absolute. Without the column `split`, there is none.
"""

import csv
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from datamodules.reading import printable
from vit.foundation import UserError, atomic_write, nearest

COLUMNS = ("path", "label", "split")
SPLITS = ("train", "val", "test")
_WANTED = "A manifest is a CSV with the columns path,label and perhaps split."


class Row(NamedTuple):
    """One image: its path as the file has it, its label and its split, or an empty text for none."""

    path: str
    label: str
    split: str


def read_manifest(path: str | os.PathLike[str]) -> list[Row]:
    """The rows of a manifest, in its order.

    Raises:
        UserError: the file can't be read as a CSV, or lacks a column.
    """
    name = printable(path)
    try:
        with Path(path).open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            rows = csv.DictReader(file, strict=True)
            missing = [column for column in COLUMNS[:2] if column not in (rows.fieldnames or ())]
            if missing:
                there = ",".join(rows.fieldnames or ())[:80]
                hint = nearest(missing[0], rows.fieldnames or ())
                raise UserError(f"{name} has no column {missing[0]!r}{hint}; its first line is {there!r}.\n{_WANTED}")
            found = [Row(*((row.get(column) or "").strip() for column in COLUMNS)) for row in rows]
    except OSError as error:
        raise UserError(f"Can't read {name}: {error.strerror}.\n{_WANTED}") from None
    except csv.Error as error:
        raise UserError(f"{name} is no CSV: {error}.\n{_WANTED}") from None
    if not found:
        raise UserError(f"{name} lists no images.\n{_WANTED}")
    return found


def is_manifest(path: Path) -> bool:
    """Whether this is to be read as a manifest, rather than as a folder of photographs."""
    return path.suffix.lower() == ".csv" and path.is_file()


def place(row: Row, manifest: Path) -> str:
    """The absolute path of a row's image; `manifest` is absolute."""
    return os.path.normpath(os.path.join(manifest.parent, row.path))  # noqa: PTH118


def fault(row: Row) -> str:
    """What makes a row useless, or an empty text."""
    if not row.path:
        return "no path"
    if not row.label:
        return "no label"
    if row.split and row.split not in SPLITS:
        return f"split {printable(row.split)!r} is none of {', '.join(SPLITS)}"
    return ""


def manifest_classes(manifest: Path) -> dict[str, dict[str, list[str]]]:
    """The images of a manifest by split and label, sorted; those without a split are of train.

    Raises:
        UserError: a row that is of no use, besides what `read_manifest` raises.
    """
    found: dict[str, dict[str, set[str]]] = {}
    for line, row in enumerate(read_manifest(manifest), 2):
        if wrong := fault(row):
            raise UserError(f"{printable(manifest)}, line {line}: {wrong}.\n{_WANTED}")
        found.setdefault(row.split or "train", {}).setdefault(row.label, set()).add(place(row, manifest))
    return {
        split: {label: sorted(paths) for label, paths in found[split].items()} for split in SPLITS if split in found
    }


def write_manifest(path: str | os.PathLike[str], rows: Iterable[Row]) -> None:
    """Writes a manifest, whole or not at all."""
    with (
        atomic_write(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        lines = csv.writer(file)
        lines.writerow(COLUMNS)
        lines.writerows(rows)

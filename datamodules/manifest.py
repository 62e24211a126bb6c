"""A manifest: a CSV or Parquet file that lists images with their labels, in place of class folders.

    path,label,split,group,weight
    photos/1.jpg,robin,train,garden,1
    photos/2.jpg,wren,,garden,0.5

    path      relative to the manifest's folder, or absolute
    label     the label, if each image has one; or
    labels    any number of labels, separated by | or ; (in Parquet also a list of texts); may be empty
    split     train, val or test; empty means train
    group     images that belong together, such as those of one animal: a group is never spread over several splits
    weight    weight of the image in the loss, above 0

The last three columns are optional, and any of their cells may be empty. Names of columns may have capitals.
"""

import csv
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.collection import SPLITS, Collection, Record
from datamodules.reading import printable
from vit.foundation import UserError, atomic_write, nearest

_SUFFIXES = {".csv", ".parquet"}
_SEPARATOR = re.compile(r"[|;]")
_WANTED = (
    "A manifest is a CSV or Parquet file with the columns path, label or labels, and optionally split, group, weight."
)


class Row(NamedTuple):
    """One row of the file. Missing text is an empty string; a weight that is not a number is NaN."""

    path: str
    labels: tuple[str, ...]
    split: str = ""
    group: str = ""
    weight: float = 1.0


_COLUMNS = {*Row._fields, "label"}


class Manifest(NamedTuple):
    """The rows of a file, in its order.

    Args:
        path: absolute.
        rows: (line number in a CSV, counted from 1, or row number in Parquet; row).
        multilabel: whether images have any number of labels, instead of one.
        weighted: whether there is a column weight.
    """

    path: Path
    rows: list[tuple[int, Row]]
    multilabel: bool
    weighted: bool

    def place(self, row: Row) -> str:
        """The absolute path of a row's image."""
        return os.path.normpath(os.path.join(self.path.parent, row.path))  # noqa: PTH118

    def fault(self, row: Row) -> str:
        """Why a row is invalid, or an empty string."""
        if not row.path:
            return "no path"
        if not row.labels and not self.multilabel:
            return "no label"
        if self.multilabel and any(_SEPARATOR.search(label) for label in row.labels):
            return f"a label that contains a separator: {printable(' '.join(row.labels))!r}"
        if row.split and row.split not in SPLITS:
            return f"split {printable(row.split)!r} is not one of {', '.join(SPLITS)}"
        if not 0 < row.weight < math.inf:
            return "a weight that is not a number above 0"
        return ""

    def record(self, row: Row) -> Record:
        return Record(self.place(row), row.labels, row.group, row.weight)


def is_manifest(path: Path) -> bool:
    """Whether this is a manifest, as opposed to a folder of photographs."""
    return path.suffix.lower() in _SUFFIXES and path.is_file()


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """The rows of a manifest.

    Raises:
        UserError: the file can't be read, lacks a column, has both label and labels, or lists no images.
    """
    path = Path(path).absolute()
    columns, lines = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
    name = printable(path)
    one, several = "label" in columns, "labels" in columns
    missing = [column for column in ("path", "label") if column not in columns and not (column == "label" and several)]
    if missing:
        there = ",".join(columns)[:80]
        hint = nearest(missing[0], columns)
        raise UserError(f"{name} has no column {missing[0]!r}{hint}; its columns are {there!r}.\n{_WANTED}")
    if one and several:
        raise UserError(f"{name} has both a column label and a column labels; give one of them.\n{_WANTED}")
    rows = [(number, _row(cells, several)) for number, cells in lines]
    if not rows:
        raise UserError(f"{name} lists no images.\n{_WANTED}")
    return Manifest(path, rows, several, "weight" in columns)


def collect_manifest(path: Path) -> Collection:
    """The images of a manifest; those without a split belong to train.

    Raises:
        UserError: as `read_manifest`, and for an invalid row, an image in two splits or with two labels, or one on two
            lines of a multi-label manifest.
    """
    manifest = read_manifest(path)
    found: dict[str, dict[Record, None]] = {}
    first: dict[str, tuple[int, Row]] = {}
    for line, row in manifest.rows:
        wrong, advice = manifest.fault(row), _WANTED
        record = manifest.record(row)
        if not wrong and (before := first.setdefault(record.path, (line, row))) != (line, row):
            wrong, advice = _repeated(row, *before, multilabel=manifest.multilabel)
        if wrong:
            raise UserError(f"{printable(path)}, line {line}: {wrong}.\n{advice}")
        found.setdefault(row.split or "train", {})[record] = None
    splits = {split: list(found[split]) for split in SPLITS if split in found}
    return Collection(path.parent, splits, multilabel=manifest.multilabel, weighted=manifest.weighted)


def _repeated(row: Row, line: int, before: Row, *, multilabel: bool) -> tuple[str, str]:
    """(What is wrong, what to do) when an image of an earlier line is listed again; empty texts if nothing is."""
    again = f"{printable(row.path)} is also on line {line}"
    if (split := before.split or "train") != (row.split or "train"):
        return f"{again}, in {split}", "Put it in one split, so that val and test are new images."
    if multilabel:
        return again, "List all labels of an image on one line."
    if row.labels != before.labels:
        return (
            f"{again}, with the label {printable(before.labels[0])}",
            "Keep the right one. If images have several labels, name the column labels and separate them by |.",
        )
    return "", ""


def write_manifest(path: str | os.PathLike[str], rows: Iterable[Row], *, multilabel: bool = False) -> None:
    """Writes a manifest as a CSV, atomically; with the columns group and weight only if they are used."""
    rows = list(rows)
    columns = ["path", "labels" if multilabel else "label", "split"]
    columns += ["group"] if any(row.group for row in rows) else []
    columns += ["weight"] if any(row.weight != 1 for row in rows) else []
    with (
        atomic_write(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        lines = csv.DictWriter(file, columns, extrasaction="ignore")
        lines.writeheader()
        for row in rows:
            joined = "|".join(row.labels)
            lines.writerow({**row._asdict(), "label": joined, "labels": joined, "weight": f"{row.weight:g}"})


Lines = Iterator[tuple[int, Mapping[str, Any]]]


@contextmanager
def open_csv(path: Path, wanted: str) -> Iterator[csv.DictReader]:
    """A reader of the lines of a CSV, to be used within the context; file names in it may hold any bytes.

    The names of its columns are in lower case, without spaces around them.

    Raises:
        UserError: the file can't be read, is not a CSV, or has a column twice; the message ends with `wanted`.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            rows = csv.DictReader(file, strict=True)
            rows.fieldnames = _column_names(path, rows.fieldnames or (), wanted)
            yield rows
    except OSError as error:
        raise UserError(f"Can't read {printable(path)}: {error.strerror}.\n{wanted}") from None
    except csv.Error as error:
        raise UserError(f"{printable(path)} is not a CSV: {error}.\n{wanted}") from None


def _column_names(path: Path, given: Iterable[str], wanted: str) -> list[str]:
    """The names of columns in lower case, without spaces around them."""
    names = [name.strip().lower() for name in given]
    if twice := [name for name, count in Counter(names).items() if name and count > 1]:
        raise UserError(f"{printable(path)} has two columns {printable(twice[0])!r}; rename one.\n{wanted}")
    return names


def _csv(path: Path) -> tuple[list[str], Lines]:
    """The columns of a CSV, and its lines by number."""
    with open_csv(path, _WANTED) as rows:
        columns = list(rows.fieldnames or ())
        lines = [(rows.line_num, row) for row in rows]
    return columns, iter(lines)


def _parquet(path: Path) -> tuple[list[str], Lines]:
    """The columns of a Parquet file, and its rows, numbered from 1."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UserError(
            f"{printable(path)} can't be read without pyarrow.\nFrom the repository: pip install '.[parquet]'"
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            there = file.schema_arrow.names
            columns = _column_names(path, there, _WANTED)
            known = {name: column for name, column in zip(there, columns, strict=True) if column in _COLUMNS}
            rows = file.read(list(known)).rename_columns(known).to_pylist()
    except (OSError, ArrowException, ValueError) as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(f"{printable(path)} is not a readable Parquet file: {reason}\n{_WANTED}") from None
    return columns, ((number, row) for number, row in enumerate(rows, 1))


def _row(cells: Mapping[str, Any], several: bool) -> Row:
    path, split, group = (_text(cells.get(column)) for column in ("path", "split", "group"))
    parts = cells.get("labels") if several else [cells.get("label")]
    if not isinstance(parts, list):
        parts = _SEPARATOR.split(_text(parts))
    labels = tuple(dict.fromkeys(label for label in map(_text, parts) if label))
    weight = _text(cells.get("weight"))
    try:
        return Row(path, labels, split, group, float(weight or 1))
    except ValueError:
        return Row(path, labels, split, group, math.nan)


def _text(cell: Any) -> str:
    return "" if cell is None else str(cell).strip()

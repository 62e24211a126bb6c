"""Data sets of Hugging Face `datasets`: `hf:FOLDER` as `save_to_disk` wrote it, or `hf:NAME` from the hub.

A data set has a column of images and one of labels: a class, a list of classes (an image then has any number of
labels), or text. Splits are called train, validation (or val) and test; a val or test split without any known labels
is left out, and without a val, some of train is held out. No code of a data set is run and no pickle is read; the bytes
of photos go to the common reader.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.collection import Collection, Record
from datamodules.reading import Photo, UnreadableImage, printable, read_photo, read_photo_bytes
from vit.foundation import UserError
from vit.network import refuse_without_network

log = logging.getLogger("vit.data")

_SPLITS = {"train": ("train",), "val": ("validation", "val", "valid"), "test": ("test",)}
_LABELS = ("label", "labels", "fine_label", "class", "target")
_UNKNOWN = (None, -1)  # these stand for an unknown label
_MAX_PHOTO = 1 << 28  # bytes


@dataclass(frozen=True)
class ImageRow:
    """The image in a row of a table."""

    table: Any
    column: str
    index: int
    name: str

    def photo(self, min_size: tuple[int, int] | None) -> Photo:
        stored = self.table[self.index][self.column] or {}
        data, path = stored.get("bytes"), stored.get("path")
        if data is None and path:
            return read_photo(path, min_size=min_size)
        if data is None or len(data) > _MAX_PHOTO:
            raise UnreadableImage(self.name, "no image in this row" if data is None else "too large")
        return read_photo_bytes(data, self.name, min_size=min_size)

    def state(self) -> bytes:
        return f"{self.table._fingerprint}/{self.column}/{self.index}".encode()


def collect_hf(name: str) -> Collection:
    """The images of a data set, which is downloaded unless it exists locally.

    Raises:
        UserError: `datasets` is not installed, there is no such data set, or it has no images or labels.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"hf:{name} can't be read without the package datasets.\nFrom the repository: pip install '.[datasets]'"
        ) from None
    found = _load(datasets, name)
    tables = found if isinstance(found, dict) else {"train": found}
    splits = {}
    several: set[bool] = set()
    for split, names in _SPLITS.items():
        there = [tables[each] for each in names if each in tables]
        if there and split != "train" and _is_unlabelled(there[0]):
            log.warning("Left out of hf:%s: %s has no labels.", printable(name), split)
        elif there:
            splits[split], multilabel = _records(datasets, there[0], name, split)
            several.add(multilabel)
    if not splits:
        raise UserError(f"hf:{name} has the splits {', '.join(tables)}; it needs train, or validation or test.")
    return Collection(_base(name), splits, multilabel=several == {True})


def _is_unlabelled(table: Any) -> bool:
    """Whether none of the images has a label, as in the test splits of contests."""
    labels = [column for column in _LABELS if column in table.features]
    return bool(labels) and len(table) > 0 and all(value in _UNKNOWN for value in table[labels[0]])


def _base(name: str) -> Path:
    return Path(name).absolute()


def _load(datasets: Any, name: str) -> Any:
    folder = Path(name)
    try:
        if folder.is_dir():
            saved = (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()
            return datasets.load_from_disk(str(folder)) if saved else datasets.load_dataset(str(folder))
        if folder.exists() or folder.is_absolute() or name.startswith("."):
            raise UserError(f"There is no folder {printable(folder)}.\nGive one, or a name on the Hugging Face hub.")
        return _from_hub(datasets, name)
    except UserError:
        raise
    except Exception as error:  # the library and its dependencies raise errors of many kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"hf:{printable(name)} can't be loaded: {reason}") from None


def _from_hub(datasets: Any, name: str) -> Any:
    try:
        if not datasets.config.HF_HUB_OFFLINE:
            refuse_without_network(f"hf:{name}", datasets.config.HF_ENDPOINT, "give a folder that you have: hf:FOLDER")
    except UserError as refusal:
        with _offline(datasets):
            try:
                return datasets.load_dataset(name)
            except Exception:  # not in the cache either, which is reported in many ways
                raise refusal from None
    return datasets.load_dataset(name)


@contextmanager
def _offline(datasets: Any) -> Iterator[None]:
    """Within, `datasets` and the hub's client look into their caches alone."""
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


def _records(datasets: Any, table: Any, name: str, split: str) -> tuple[list[Record], bool]:
    """The records of a split, and whether they have any number of labels."""
    columns = table.features
    images = [column for column, kind in columns.items() if isinstance(kind, datasets.Image)]
    labels = [column for column in _LABELS if column in columns]
    if not images or not labels:
        what = f"no image column in {', '.join(columns)}" if not images else f"no column {' or '.join(_LABELS[:2])}"
        raise UserError(f"hf:{printable(name)} has {what}.\nRename or cast its columns with `datasets` first.")
    kind = columns[labels[0]]
    inner = getattr(kind, "feature", None)
    names = getattr(inner if inner is not None else kind, "names", None)
    table = table.cast_column(images[0], datasets.Image(decode=False))
    records = []
    for index, value in enumerate(table[labels[0]]):
        values = list(value or ()) if inner is not None else [value]
        if any(one in _UNKNOWN for one in values):
            raise UserError(f"hf:{printable(name)}, row {index} of {split} has no label.")
        known = tuple(names[int(one)] if names else str(one) for one in values)
        row = ImageRow(table, images[0], index, f"hf:{printable(name)}/{split}/{index:06}")
        records.append(Record(str(_base(name) / split / f"{index:06}"), known, source=row))
    return records, inner is not None

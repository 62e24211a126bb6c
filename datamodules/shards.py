"""WebDataset shards: tar files in which the files of a sample have the same name up to its first dot.

    FOLDER/train/*.tar, FOLDER/val/*.tar      or FOLDER/train-*.tar, FOLDER/val-*.tar; or FOLDER/*.tar, split here

    0001.jpg    the photo, in any format that is read
    0001.cls    its label, or the number of its line in FOLDER/classnames.txt, counted from 0; or
    0001.json   {"label": "robin"} or {"labels": ["robin", "wren"]}, and optionally "group" and "weight"

The shards are indexed once and read in place. Samples can be read in any order, so shuffling, resumed runs and workers
behave as with files. Nothing is unpacked, no name in an archive is used as a path, and only photos, labels and JSON are
read, up to a maximum size; the bytes of photos go to the common reader.
"""

import json
import logging
import math
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.collection import SPLIT_NAMES, Collection, Record
from datamodules.image_files import has_image_suffix
from datamodules.reading import Photo, UnreadableImage, printable, read_photo_bytes
from vit.foundation import UserError

log = logging.getLogger("vit.data")

_LAYOUT = "Expected FOLDER/train/*.tar and FOLDER/val/*.tar, FOLDER/train-*.tar and FOLDER/val-*.tar, or FOLDER/*.tar."
_MAX_PHOTO = 1 << 28  # bytes of a member
_MAX_LABEL = 1 << 16


class Member(NamedTuple):
    """The bytes of a file in an archive."""

    archive: str
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        with Path(self.archive).open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)

    def photo(self, min_size: tuple[int, int] | None) -> Photo:
        name = f"{printable(self.archive)}/{printable(self.name)}"
        if self.size > _MAX_PHOTO:
            raise UnreadableImage(name, f"{self.size:,} bytes, more than the {_MAX_PHOTO:,} allowed")
        try:
            data = self.read()
        except OSError as error:
            raise UnreadableImage(name, error.strerror or "can't be read") from None
        return read_photo_bytes(data, name, min_size=min_size)

    def state(self) -> bytes:
        status = Path(self.archive).stat()
        return b"\0".join(
            [os.fsencode(self.archive), b"%d %d %d" % (self.offset, status.st_size, status.st_mtime_ns)]
        )  # fmt: skip


def collect_shards(name: str) -> Collection:
    """The photos in the shards of a folder.

    Raises:
        UserError: there are no shards or photos, a shard can't be read, or a sample has no valid label.
    """
    folder = Path(name).absolute()
    if not folder.is_dir():
        raise UserError(f"There is no folder {printable(folder)} of shards.\n{_LAYOUT}")
    names = _class_names(folder)
    splits: dict[str, list[Record]] = {}
    several: set[bool] = set()
    unlabelled: list[str] = []
    weighted = False
    for split, shards in _shards(folder).items():
        records = splits[split] = []
        for shard in shards:
            for key, parts in _samples(shard):
                photos = [part for part in parts.values() if has_image_suffix(part.name)]
                if not photos:
                    continue
                told = _told(parts, names, f"{printable(shard)}/{printable(key)}")
                if told is None:
                    unlabelled.append(f"{printable(shard)}/{printable(key)}")
                    continue
                labels, group, weight, multilabel = told
                several.add(multilabel)
                weighted |= weight != 1
                path = str(shard / photos[0].name.replace("..", "__").lstrip("/"))
                records.append(Record(path, labels, group, weight, photos[0]))
    _tell_unlabelled(unlabelled, sum(map(len, splits.values())), folder)
    if not any(splits.values()):
        raise UserError(f"The shards of {printable(folder)} hold no photos.\n{_LAYOUT}")
    if len(several) > 1:
        raise UserError(
            f"Some samples of {printable(folder)} have `label`, others `labels`.\nGive all of them `labels`."
        )
    return Collection(folder, {split: found for split, found in splits.items() if found}, several == {True}, weighted)


def _tell_unlabelled(unlabelled: Sequence[str], labelled: int, folder: Path) -> None:
    """Logs how many photos have no label. Raises UserError if none has one."""
    if not unlabelled:
        return
    if not labelled:
        raise UserError(
            f"None of the {len(unlabelled)} photos in the shards of {printable(folder)} has a label, "
            f"such as {unlabelled[0]}.\nA sample needs a .cls, or a label in a .json."
        )
    log.warning("Left out of %s: %d photos without a label, such as %s.", folder, len(unlabelled), unlabelled[0])


def _shards(folder: Path) -> dict[str, list[Path]]:
    found = {
        split: sorted(path for name in names for way in (f"{name}/*.tar", f"{name}-*.tar") for path in folder.glob(way))
        for split, names in SPLIT_NAMES.items()
    }
    if not found["train"]:
        held = {path for paths in found.values() for path in paths}
        found["train"] = sorted(path for path in folder.glob("*.tar") if path not in held)
    if not found["train"] and not found["test"] and not found["val"]:
        raise UserError(f"{printable(folder)} has no *.tar files.\n{_LAYOUT}")
    return found


def _samples(shard: Path) -> Iterator[tuple[str, dict[str, Member]]]:
    """The samples of a shard: their key, and their files by what follows the key's dot, in lower case."""
    try:
        if not shard.is_file():  # opening a FIFO would block
            raise UserError(f"{printable(shard)} is not a regular file.\n{_LAYOUT}")
        size = shard.stat().st_size
        samples: dict[str, dict[str, Member]] = {}
        with tarfile.open(shard, "r:") as archive:
            for info in archive:
                archive.members = []  # type: ignore[attr-defined]  # otherwise all members stay in memory
                if not info.isreg() or info.issparse() or info.offset_data + info.size > size:
                    continue
                stem, _, extension = info.name.rpartition("/")[2].partition(".")
                key = info.name[: len(info.name) - len(extension) - 1] if stem else ""
                if key:
                    member = Member(str(shard), info.name, info.offset_data, info.size)
                    samples.setdefault(key, {})[extension.lower()] = member
    except (tarfile.TarError, OSError, ValueError) as error:
        raise UserError(
            f"{printable(shard)} can't be read as a tar file: {' '.join(str(error).split())[:150]}.\n"
            "Download it again; compressed archives are not supported."
        ) from None
    yield from samples.items()


def _told(parts: dict[str, Member], names: list[str], where: str) -> tuple[tuple[str, ...], str, float, bool] | None:
    """(labels, group, weight, whether it may have several labels) of a sample; None if it has no label."""
    try:
        facts: dict[str, Any] = {}
        if "json" in parts:
            facts = json.loads(_text(parts["json"]))
            if not isinstance(facts, dict):
                raise ValueError("its JSON is not an object")
            facts = {name: value for name, value in facts.items() if value is not None}
        if "cls" in parts:
            label = _text(parts["cls"]).strip()
            facts = {**facts, "label": names[int(label)] if names and label.isdecimal() else label}
        if facts.keys().isdisjoint({"label", "labels"}):
            return None
        multilabel = "labels" in facts
        labels = facts["labels"] if multilabel else [facts["label"]]
        found = tuple(dict.fromkeys(str(label).strip() for label in labels))
        weight = float(facts.get("weight", 1))
        if not all(found) or (not found and not multilabel) or not 0 < weight < math.inf:
            raise ValueError("an empty label, or a weight that is not above 0")
        return found, str(facts.get("group", "")), weight, multilabel
    except (ValueError, TypeError, IndexError, RecursionError, OSError) as error:
        raise UserError(f"The label of {where} can't be read: {' '.join(str(error).split())[:150]}.") from None


def _text(member: Member) -> str:
    if member.size > _MAX_LABEL:
        raise ValueError(f"{member.size:,} bytes are too many for a label")
    return member.read().decode("utf-8")


def _class_names(folder: Path) -> list[str]:
    path = folder / "classnames.txt"
    try:
        return path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    except (OSError, ValueError) as error:
        raise UserError(f"Can't read {printable(path)}: {error}.") from None

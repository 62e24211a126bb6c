"""Data sets that torchvision knows by name: `torchvision:NAME`, or `torchvision:NAME:FOLDER` with their folder.

The default folder, also for downloads, is ~/.cache/torch/datasets ($TORCH_HOME/datasets). Photos that are files are
read by the common reader; arrays, such as those of CIFAR, need no reader. torchvision unpickles CIFAR's files, after
comparing their checksums with the published ones.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.collection import SPLITS, Collection, Record
from datamodules.reading import Photo, printable
from vit.foundation import UserError, nearest
from vit.network import refuse_without_network

_TRAIN_TEST: dict[str, dict[str, Any]] = {"train": {"split": "train"}, "test": {"split": "test"}}
_TRAIN_VAL_TEST = {**_TRAIN_TEST, "val": {"split": "val"}}
_BY_FLAG: dict[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
# The keywords of each split. Without a val, some of train is held out, as with folders.
_FILES: dict[str, dict[str, dict[str, Any]]] = {
    "Country211": {**_TRAIN_TEST, "val": {"split": "valid"}},
    "DTD": _TRAIN_VAL_TEST,
    "EuroSAT": {"train": {}},
    "FGVCAircraft": _TRAIN_VAL_TEST,
    "Flowers102": _TRAIN_VAL_TEST,
    "Food101": _TRAIN_TEST,
    "Imagenette": {"train": {"split": "train"}, "val": {"split": "val"}},
    "RenderedSST2": _TRAIN_VAL_TEST,
    "StanfordCars": _TRAIN_TEST,
}
_ARRAYS = {
    "CIFAR10": _BY_FLAG,
    "CIFAR100": _BY_FLAG,
    "FashionMNIST": _BY_FLAG,
    "KMNIST": _BY_FLAG,
    "MNIST": _BY_FLAG,
    "STL10": _TRAIN_TEST,
    "SVHN": _TRAIN_TEST,
}


@dataclass(frozen=True)
class ArrayItem:
    """An image that torchvision keeps in an array."""

    dataset: Any
    index: int
    name: str

    def photo(self, min_size: tuple[int, int] | None) -> Photo:
        image = np.array(self.dataset[self.index][0].convert("RGB"))
        return Photo(image, image.shape[:2], "", "array RGB")

    def state(self) -> bytes:
        return self.name.encode()


def collect_torchvision(name: str) -> Collection:
    """The images of a data set, which is downloaded unless it exists locally.

    Raises:
        UserError: torchvision has no such data set of labelled photographs, or it can't be read or downloaded.
    """
    known = {**_FILES, **_ARRAYS}
    name, _, place = name.partition(":")
    if name not in known:
        raise UserError(
            f"torchvision:{name} is not one of the supported data sets{nearest(name, known)}.\n"
            f"These are: {', '.join(sorted(known))}."
        )
    folder = Path(place).absolute() if place else _home()
    splits: dict[str, list[Record]] = {}
    for split in SPLITS:
        if split in known[name]:
            dataset = _load(name, folder, known[name][split])
            splits[split] = _records(dataset, folder, f"{name}/{split}", arrays=name in _ARRAYS)
    return Collection(folder, splits)


def _home() -> Path:
    cache = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch").expanduser()
    return Path(cache, "datasets").absolute()


def _load(name: str, folder: Path, keywords: dict[str, Any]) -> Any:
    from torchvision import datasets

    kind = getattr(datasets, name)
    if name in _FILES:
        keywords = {**keywords, "loader": str}  # so that an item is the photo's path
    advice = f"give the folder where it is: torchvision:{name}:FOLDER"
    try:
        try:
            return kind(folder, download=False, **keywords)
        except (RuntimeError, FileNotFoundError):  # missing or incomplete
            refuse_without_network(f"torchvision's {name}", _address(kind), advice)
            return kind(folder, download=True, **keywords)
    except (RuntimeError, OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"torchvision can't give {name} in {printable(folder)}: {reason}\nOr {advice}.") from None


def _address(kind: Any) -> str:
    """A URL from which the data set is downloaded."""
    for attribute in ("url", "_URL", "_url", "_download_url_prefix", "mirrors"):
        value = getattr(kind, attribute, None)
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, str) and value.startswith("http"):
            return value
    return "https://download.pytorch.org"


def _records(dataset: Any, folder: Path, name: str, *, arrays: bool) -> list[Record]:
    classes = [one if isinstance(one, str) else one[0] for one in getattr(dataset, "classes", ())]
    targets = next((getattr(dataset, key) for key in ("targets", "labels") if arrays and hasattr(dataset, key)), None)
    records = []
    for index in range(len(dataset)):
        path, target = ("", int(targets[index])) if targets is not None else dataset[index]
        label = classes[target] if target < len(classes) else str(target)
        if arrays:
            item = ArrayItem(dataset, index, f"{name}/{index:06}")
            records.append(Record(str(folder / item.name), (label,), source=item))
        else:
            records.append(Record(os.path.abspath(path), (label,)))  # noqa: PTH100
    return records

"""One folder per class, as people sort photographs into folders.

    root/train/robin/*.jpg, root/val/robin/*.jpg, and optionally root/test/; or
    root/robin/*.jpg, split into train and val here

Or a manifest, see `datamodules.manifest`. The labels are the names of the folders, sorted. Class folders may have
subfolders.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.collection import SPLIT_NAMES, Collection, Record, deal, straddling
from datamodules.image_files import find_images, has_image_suffix, is_ignored, refuse_heic
from datamodules.manifest import collect_manifest, is_manifest
from datamodules.named import named_collection
from datamodules.photographs import PhotoDataset, Photographs
from datamodules.reading import printable
from datamodules.sampling import Draw, Skipped, evenly, labelled_batch
from datamodules.splits import of_split
from datamodules.transforms import Pipeline
from vit.foundation import UserError, nearest

log = logging.getLogger("vit.data")

_LAYOUT = "Expected ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg, or ROOT/CLASS/*.jpg."


class LabelledImages(PhotoDataset):
    """Photos of one split, each with its target: the index of its label; or 0 or 1 for every label, float32 (C,).

    An item is that of `PhotoDataset`, with `target` and, if there are weights, `weight`.

    Args:
        paths: the photos.
        targets: the target of each photo.
        transform: from the photo to the model's input.
        seed: seed of what is random in the transform.
        weights: weight of each photo in the loss; empty for none.
    """

    def __init__(
        self,
        paths: Sequence[str],
        targets: Sequence[int] | Sequence[np.ndarray],
        transform: Pipeline,
        seed: int = 0,
        weights: Sequence[float] = (),
    ) -> None:
        super().__init__(paths, transform, seed)
        self.targets = list(targets)
        self.weights = list(weights)

    def __getitem__(self, draw: Draw | int) -> dict[str, Any] | Skipped:
        item = super().__getitem__(draw)
        if isinstance(item, Skipped):
            return item
        index = item["index"]
        item |= {"target": self.targets[index]}
        return item | {"weight": self.weights[index]} if self.weights else item


class ImageFolder(Photographs):
    """Photographs in class folders or a manifest, for training and evaluation.

    `multilabel` says whether images have any number of labels; targets are then float32 (B, C) of 0 and 1.

    Args:
        root: the folder or manifest, see above.
        val_fraction: share of each class kept for validation, if the root has no val/.
        balanced: an epoch of training has equally many images of each class, see `balanced_order`.
        labels: a checkpoint's labels, in its order; targets then index these, by name. The data may lack some.
        options: the rest, as `Photographs` takes them.

    Raises:
        UserError: there is no such root, it is not laid out as above, or its classes don't fit.
    """

    def __init__(
        self,
        root: str,
        *,
        val_fraction: float = 0.2,
        balanced: bool = False,
        labels: Sequence[str] | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(root, seed=seed, **options)
        self.balanced = balanced
        found = find_splits(Path(root), val_fraction=val_fraction, seed=seed)
        self.labels = tuple(labels) if labels is not None else tuple(sorted(found.labels("train")))
        _check_classes(found, self.labels, trained=labels is not None)
        self.multilabel, self.weighted, self.base = found.multilabel, found.weighted, found.base
        self.records = {split: _ordered(records, self.labels) for split, records in found.splits.items()}

    def fold(self, number: int, count: int) -> None:
        """Divides the photos of train and val into `count` parts, and validates on part `number`, counted from 1.

        Raises:
            UserError: when there are too few photos, or too few of one label.
        """
        pool = _ordered(self.records["train"] + self.records["val"], self.labels)
        parts = deal(pool, self.base, count, self.seed)
        if len(set(parts)) < count:
            raise UserError(f"There are too few images for {count} folds.\nTry fewer.")
        self.records["val"] = [record for record, part in zip(pool, parts, strict=True) if part == number - 1]
        self.records["train"] = [record for record, part in zip(pool, parts, strict=True) if part != number - 1]

    def limit(self, count: int) -> None:
        """Keeps at most this many photos per split, spread evenly over its classes. The labels stay the same."""
        self.records = {
            split: [records[place] for place in evenly(len(records), count)] for split, records in self.records.items()
        }

    def paths(self, split: str) -> list[str]:
        """The photos of a split, absolute, by index."""
        return [record.path for record in of_split(self.records, split)]

    def dataset(self, split: str, *, augment: bool = False) -> LabelledImages:
        """The photos of `train`, `val` or `test`, with the transform of evaluation unless `augment`."""
        records = of_split(self.records, split)
        weights = [record.weight for record in records] if self.weighted else ()
        transform = self.train_transform if augment else self.eval_transform
        photos = LabelledImages(self.paths(split), self._targets(split), transform, self.seed, weights)
        if any(one.source for one in records):
            photos.sources = [one.source for one in records]
        return photos

    def counts(self) -> dict[str, dict[str, int]]:
        """Number of images: split -> {label: count}, in the order of the labels."""
        count = {
            split: Counter(one for record in found for one in record.labels) for split, found in self.records.items()
        }
        return {split: {label: found[label] for label in self.labels} for split, found in count.items()}

    def learned(self, split: str) -> list[tuple[str, ...]]:
        """The labels of each image of a split, by index, and its weight if there are weights."""
        return [
            (*record.labels, f"{record.weight:g}") if self.weighted else record.labels for record in self.records[split]
        ]

    def _targets(self, split: str) -> list[int] | list[np.ndarray]:
        number = {label: index for index, label in enumerate(self.labels)}
        if not self.multilabel:
            return [number[record.labels[0]] for record in self.records[split]]
        targets = np.zeros((len(self.records[split]), len(self.labels)), np.float32)
        for row, record in zip(targets, self.records[split], strict=True):
            row[[number[label] for label in record.labels]] = 1
        return list(targets)

    def sampled_classes(self) -> list[int] | None:
        """The class of each training image for balanced training (the rarest of several labels, -1 for none); None if
        training is not balanced."""
        if not self.balanced:
            return None
        count = self.counts()["train"]
        number = {label: index for index, label in enumerate(self.labels)}
        return [number[min(one.labels, key=lambda label: count[label])] if one.labels else -1
                for one in self.records["train"]]  # fmt: skip

    def empty_batch(self) -> dict[str, torch.Tensor]:
        """A batch without images."""
        empty = labelled_batch(self.image_size, len(self.labels) if self.multilabel else None)
        return empty | {"weight": torch.empty(0)} if self.weighted else empty


def find_splits(root: Path, *, val_fraction: float, seed: int, notices: list[str] | None = None) -> Collection:
    """The photos of each split of `root`: a folder, a manifest, or a name as `named_collection` takes it.

    Without a val of its own, some images of train become val. What is ignored is logged, or added to `notices`.

    Raises:
        UserError: there is no such root, it is not laid out as above, or it has a group in several splits.
    """
    found = named_collection(str(root))
    if found is None:
        root = root.absolute()
        found = collect_manifest(root) if is_manifest(root) else _find_folders(root, notices)
    refuse_heic(record.path for records in found.splits.values() for record in records)
    if apart := straddling(found.splits):
        group, splits = next(iter(apart.items()))
        raise UserError(
            f"{len(apart)} groups of {printable(root)} are in more than one split, such as {group!r} in "
            f"{' and '.join(splits)}.\nGive all images of a group the same split, so that val and test are new images."
        )
    return found.with_val(val_fraction, seed)


def _find_folders(root: Path, notices: list[str] | None) -> Collection:
    """The photos of the splits that `root` has folders for; if it has none, all photos are train."""
    if not root.is_dir():
        raise UserError(no_folder(root))
    ignored: list[str] = []
    given = _split_folders(root)
    found = {split: _read_classes(folder, ignored) for split, folder in (given or {"train": root}).items()}
    if not given and set(found["train"]) <= {name for names in SPLIT_NAMES.values() for name in names}:
        names = ", ".join(found["train"])
        raise UserError(f"The folders {names} in {printable(root)} contain no class folders.\n{_LAYOUT}")
    if notices is not None:
        notices.extend(printable(name) for name in ignored)
    elif ignored:
        log.warning("Ignored in %s: %s.", printable(root), _few([printable(name) for name in ignored]))
    splits = {
        split: [Record(path, (label,)) for label, paths in classes.items() for path in paths]
        for split, classes in found.items()
    }
    return Collection(root, splits)


def _split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split; empty if the folders in the root are the classes."""
    folders: dict[str, Path] = {}
    for split, names in SPLIT_NAMES.items():
        there = [root / name for name in names if (root / name).is_dir() and any((root / name).iterdir())]
        if there:
            folders[split] = there[0]
    return folders if any(_class_folders(folder, []) for folder in folders.values()) else {}


def _class_folders(folder: Path, ignored: list[str]) -> list[Path]:
    """The folders in `folder` that may be classes, sorted; the names of the others are added to `ignored`."""
    if not folder.is_dir():
        return []
    folders = sorted(place for place in folder.iterdir() if place.is_dir())
    ignored.extend(place.name for place in folders if is_ignored(place.name))
    return [place for place in folders if not is_ignored(place.name)]


def _read_classes(folder: Path, ignored: list[str]) -> dict[str, list[str]]:
    """The photos in each class folder of `folder`, without the folders that have none."""
    places = _class_folders(folder, ignored)
    # A link from one class into another, or to a parent folder, must not bring in photos of another class.
    classes = {
        printable(place.name): find_images(place, [folder, *(other for other in places if other != place)])
        for place in places
    }
    ignored.extend(f"{label} (no images)" for label, paths in classes.items() if not paths)
    classes = {label: paths for label, paths in classes.items() if paths}
    stray = [place.name for place in folder.iterdir() if place.is_file() and has_image_suffix(place.name)]
    if stray and not classes:
        raise UserError(
            f"{printable(folder)} has no class folders, but {len(stray)} images directly in it.\n"
            f"Sort them into one folder per class. {_LAYOUT}"
        )
    if stray:
        ignored.append(f"{len(stray)} images outside the class folders")
    if not classes:
        raise UserError(f"{printable(folder)} has no class folders with images.\n{_LAYOUT}")
    return classes


def _check_classes(found: Collection, labels: tuple[str, ...], *, trained: bool) -> None:
    """Raises UserError when a split has classes that are not in `labels`, or there are too few labels."""
    if not labels and "train" in found.splits:
        raise UserError(
            "No training image has a label.\n"
            "Give some of them labels; --task pretrain learns from a folder without any."
        )
    if not labels:
        there = ", ".join(f"{split}/" for split in found.splits)
        raise UserError(f"There is no train/ to get the labels from, only {there}.\n{_LAYOUT}")
    if len(labels) < 2 and found.multilabel:
        raise UserError(
            f"There is only one label, {labels[0]!r}; a classifier needs two or more.\n"
            f"Give each image one of two classes instead, in the column `label`: {labels[0]}, and one for the others."
        )
    if len(labels) < 2:
        raise UserError(f"There is only one class, {labels[0]!r}; a classifier needs two or more.\n{_LAYOUT}")
    for split in found.splits:
        classes = found.labels(split)
        extra = sorted(classes - set(labels))
        if not extra:
            continue
        if not trained:
            hint = nearest(extra[0], labels)
            raise UserError(
                f"{split}/ has classes that train/ lacks: {_few(extra)}{hint}.\nAdd them to train/, or remove them."
            )
        lacking = sorted(set(labels) - classes)
        raise UserError(
            f"The classes of {split} are not the checkpoint's ({len(classes)} and {len(labels)}).\n"
            f"Only in the data: {_few(extra)}\n"
            f"Only in the checkpoint: {_few(lacking) or 'none'}\n"
            "Rename the folders to the checkpoint's labels, or remove the others."
        )


def _ordered(records: list[Record], labels: tuple[str, ...]) -> list[Record]:
    """The records sorted by label, in the order of `labels`, then by path."""
    number = {label: index for index, label in enumerate(labels)}
    return sorted(records, key=lambda record: ([number[label] for label in record.labels], record.path))


def no_folder(root: Path, layout: str = _LAYOUT) -> str:
    """The message for a root that is not a folder."""
    if root.exists():
        return f"{printable(root)} is a file, not a folder of photographs.\n{layout}"
    beside = [place.name for place in root.parent.iterdir()] if root.parent.is_dir() else []
    return f"There is no folder {printable(root)}{nearest(root.name, beside)}.\n{layout}"


def _few(names: Sequence[str], limit: int = 6) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more

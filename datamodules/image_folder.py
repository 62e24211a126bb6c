"""A folder a class: what a person has who sorted photographs into folders.

    root/train/robin/*.jpg, root/val/robin/*.jpg, and root/test/ where there is one; or
    root/robin/*.jpg, split into train and val here

Or a manifest, see `datamodules.manifest`. The labels are the folders' names, sorted. Folders may nest below a class.
"""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch.utils.data import Dataset

from datamodules.image_files import find_images, has_image_suffix, is_ignored, refuse_heic
from datamodules.manifest import is_manifest, manifest_classes
from datamodules.reading import UnreadableImage, printable, read_photo
from datamodules.sampling import Draw, SampleLoader, Skipped, labelled_batch, sample_loader
from datamodules.transforms import Interpolation, Pipeline, ResizeMode, eval_transform, train_transform
from vit.foundation import UserError, nearest

log = logging.getLogger("vit.data")

# The folder names of each split; val has had others in well-known data sets.
_SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_LAYOUT = "Expected ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg, or ROOT/CLASS/*.jpg."


class LabelledImages(Dataset):
    """Photos of one split, each with the index of its label.

    An item is a dict of `image` float32 (3, h, w), `target` and `index`, or Skipped for a file that can't be
    read. What is random in the transform is a pure function of (seed, epoch, index).
    """

    def __init__(self, paths: Sequence[str], targets: Sequence[int], transform: Pipeline, seed: int = 0) -> None:
        self.paths = [Path(path) for path in paths]
        self.targets = list(targets)
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, draw: Draw | int) -> dict[str, Any] | Skipped:
        epoch, index = draw if isinstance(draw, Draw) else Draw(0, draw)
        try:
            photo = read_photo(self.paths[index], min_size=self.transform.min_size)
        except UnreadableImage as error:
            return Skipped(error.path, error.reason)
        image = self.transform(photo.image, (self.seed, epoch, index))
        return {"image": image, "target": self.targets[index], "index": index, "note": photo.note}


class ImageFolder(pl.LightningDataModule):
    """Photographs in class folders, for training and evaluation.

    Args:
        root: the folder or manifest, see above.
        image_size: (h, w) of the model.
        mean, std: of the three channels, of values 0 to 1.
        val_fraction: share of each class kept for validation, when the root has no val/.
        batch_size: images a step; the last batch of an epoch may have fewer.
        num_workers: processes that read images; -1 picks the number of cores less one, at most 8.
        crop_scale, hflip, color_jitter, erase: see `train_transform`.
        interpolation, resize_mode, crop_pct: see `eval_transform`.
        strict: stop at the first unreadable image, rather than list it in its batch.
        labels: a checkpoint's labels in its order. Targets then index these, by name; the data may lack some.
        seed: what the split, the order and the augmentations follow from.

    Raises:
        UserError: there is no such folder, or it is not laid out as above, or its classes do not fit.
    """

    def __init__(
        self,
        root: str,
        *,
        image_size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        val_fraction: float = 0.2,
        batch_size: int = 32,
        num_workers: int = -1,
        crop_scale: float = 0.35,
        hflip: float = 0.5,
        color_jitter: float = 0.2,
        erase: float = 0.0,
        interpolation: Interpolation = "bicubic",
        resize_mode: ResizeMode = "squash",
        crop_pct: float = 1.0,
        strict: bool = False,
        labels: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.root = Path(root).absolute()
        self.image_size = image_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.strict = strict
        self.seed = seed
        self.train_transform = train_transform(
            image_size, mean, std, crop_scale=crop_scale, hflip=hflip, color_jitter=color_jitter, erase=erase,
            interpolation=interpolation,
        )  # fmt: skip
        self.eval_transform = eval_transform(
            image_size, mean, std, crop_pct=crop_pct, resize_mode=resize_mode, interpolation=interpolation
        )
        found = find_splits(self.root, val_fraction=val_fraction, seed=seed)
        self.labels = tuple(labels) if labels is not None else tuple(sorted(found.get("train", {})))
        _check_classes(found, self.labels, trained=labels is not None)
        self.files = {split: _flatten(classes, self.labels) for split, classes in found.items()}

    def dataset(self, split: str, *, augment: bool = False) -> LabelledImages:
        """The photos of `train`, `val` or `test`, with the transform of evaluation unless `augment`."""
        if split not in self.files:
            raise UserError(f"The data has no split {split!r}; it has: {', '.join(self.files)}.")
        paths, targets = self.files[split]
        return LabelledImages(paths, targets, self.train_transform if augment else self.eval_transform, self.seed)

    def names(self, split: str) -> list[str]:
        """The photos of a split below the root, by index."""
        base = self.root.parent if is_manifest(self.root) else self.root
        return [printable(os.path.relpath(path, base)) for path in self.dataset(split).paths]

    def dataloader(self, split: str) -> SampleLoader:
        """Batches of a split in order, with the transform of evaluation."""
        return self._loader(split)

    def train_dataloader(self) -> SampleLoader:
        """Augmented batches in random order."""
        return self._loader("train", augment=True)

    def val_dataloader(self) -> SampleLoader:
        return self._loader("val")

    def test_dataloader(self) -> SampleLoader:
        return self._loader("test")

    def counts(self) -> dict[str, dict[str, int]]:
        """Images a class, for each split; in the order of the labels."""
        return {
            split: {label: count[number] for number, label in enumerate(self.labels)}
            for split, count in ((split, Counter(targets)) for split, (_, targets) in self.files.items())
        }

    def _loader(self, split: str, *, augment: bool = False) -> SampleLoader:
        return sample_loader(
            self.dataset(split, augment=augment), labelled_batch(self.image_size), batch_size=self.batch_size,
            num_workers=self.num_workers, shuffle=augment, seed=self.seed, strict=self.strict,
        )  # fmt: skip


Classes = dict[str, list[str]]  # label -> absolute paths, sorted


def find_splits(root: Path, *, val_fraction: float, seed: int, notices: list[str] | None = None) -> dict[str, Classes]:
    """The photos of each split of `root`, an absolute path of a folder or a manifest, by class.

    Without a val of its own, val is taken out of train. What is passed over is logged, or added to `notices`.
    """
    found = manifest_classes(root) if is_manifest(root) else _find_folders(root, notices)
    refuse_heic(path for classes in found.values() for paths in classes.values() for path in paths)
    if "train" in found and "val" not in found:
        base = root.parent if is_manifest(root) else _split_folders(root).get("train", root)
        parts = {label: split_class(paths, base, val_fraction, seed) for label, paths in found["train"].items()}
        val = {label: held for label, (_, held) in parts.items() if held}
        found = {"train": {label: kept for label, (kept, _) in parts.items()}, "val": val} | {
            split: classes for split, classes in found.items() if split != "train"
        }
    return found


def _find_folders(root: Path, notices: list[str] | None) -> dict[str, Classes]:
    """The photos of the splits that `root` has folders of, or of train alone."""
    if not root.is_dir():
        raise UserError(_no_root(root))
    ignored: list[str] = []
    given = _split_folders(root)
    found = {split: _read_classes(folder, ignored) for split, folder in (given or {"train": root}).items()}
    if not given and set(found["train"]) <= {name for names in _SPLITS.values() for name in names}:
        names = ", ".join(found["train"])
        raise UserError(f"The folders {names} in {printable(root)} have no class folders in them.\n{_LAYOUT}")
    if notices is not None:
        notices.extend(printable(name) for name in ignored)
    elif ignored:
        log.warning("Ignored in %s: %s.", printable(root), _few([printable(name) for name in ignored]))
    return found


def _split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split, or nothing when the root's own folders are the classes."""
    folders: dict[str, Path] = {}
    for split, names in _SPLITS.items():
        there = [root / name for name in names if (root / name).is_dir() and any((root / name).iterdir())]
        if there:
            folders[split] = there[0]
    return folders if any(_class_folders(folder, []) for folder in folders.values()) else {}


def split_class(paths: list[str], base: Path, fraction: float, seed: int) -> tuple[list[str], list[str]]:
    """The photos of one class -> (kept for training, held for validation), both sorted.

    Of two or more, one at least is in each part. Which are held follows from the seed and each file's own
    name, not
    from where the root lies nor in what order files are listed, and hardly changes when photos are added.
    """
    if not 0 < fraction < 1:
        raise UserError(f"val_fraction is {fraction}; it must lie between 0 and 1, such as 0.2.")
    held = min(max(round(len(paths) * fraction), 1), len(paths) - 1)
    drawn = sorted(paths, key=lambda path: _lot(os.path.relpath(path, base), seed))
    return sorted(drawn[held:]), sorted(drawn[:held])


def _lot(relative: str, seed: int) -> bytes:
    return blake2b(os.fsencode(relative), key=str(seed).encode()).digest()


def _class_folders(folder: Path, ignored: list[str]) -> list[Path]:
    """The folders in `folder` that may be classes, sorted; the others' names are added to `ignored`."""
    if not folder.is_dir():
        return []
    folders = sorted(place for place in folder.iterdir() if place.is_dir())
    ignored.extend(place.name for place in folders if is_ignored(place.name))
    return [place for place in folders if not is_ignored(place.name)]


def _read_classes(folder: Path, ignored: list[str]) -> Classes:
    """The photos in each class folder of `folder`, without the folders that have none."""
    places = _class_folders(folder, ignored)
    # A link from one class into another, or back up, must not bring another class's photos in.
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
            f"Sort them into one folder a class. {_LAYOUT}"
        )
    if stray:
        ignored.append(f"{len(stray)} images outside the class folders")
    if not classes:
        raise UserError(f"{printable(folder)} has no class folders with images.\n{_LAYOUT}")
    return classes


def _check_classes(found: dict[str, Classes], labels: tuple[str, ...], *, trained: bool) -> None:
    """Raises UserError when a split has classes beyond `labels`, or there is but one label to tell apart."""
    if not labels:
        there = ", ".join(f"{split}/" for split in found)
        raise UserError(f"There is no train/ to take the labels from, only {there}.\n{_LAYOUT}")
    if len(labels) < 2:
        raise UserError(f"There is only one class, {labels[0]!r}; a classifier needs two or more.\n{_LAYOUT}")
    for split, classes in found.items():
        extra = sorted(set(classes) - set(labels))
        if not extra:
            continue
        if not trained:
            hint = nearest(extra[0], labels)
            raise UserError(
                f"{split}/ has classes that train/ lacks: {_few(extra)}{hint}.\nAdd them to train/, or remove them."
            )
        lacking = sorted(set(labels) - set(classes))
        raise UserError(
            f"The classes of {split} are not the checkpoint's ({len(classes)} and {len(labels)}).\n"
            f"Only in the data: {_few(extra)}\n"
            f"Only in the checkpoint: {_few(lacking) or 'none'}\n"
            "Rename the folders to the checkpoint's labels, or remove those it does not know."
        )


def _flatten(classes: Classes, labels: tuple[str, ...]) -> tuple[list[str], list[int]]:
    """Paths with their targets, class by class in the order of the labels."""
    pairs = [(path, target) for target, label in enumerate(labels) for path in classes.get(label, [])]
    return [path for path, _ in pairs], [target for _, target in pairs]


def _no_root(root: Path) -> str:
    if root.exists():
        return f"{printable(root)} is a file, not a folder of photographs.\n{_LAYOUT}"
    beside = [place.name for place in root.parent.iterdir()] if root.parent.is_dir() else []
    return f"There is no folder {printable(root)}{nearest(root.name, beside)}.\n{_LAYOUT}"


def _few(names: Sequence[str], limit: int = 6) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more

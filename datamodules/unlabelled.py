"""Photographs without labels: everything below a folder, however it is organised.

    root/**/*.jpg                      split into train and val here
    root/train/**, root/val/**         for training and validation; root/test is ignored

Other folders, such as those of classes, have no meaning.
"""

from pathlib import Path
from typing import Any

from datamodules.collection import SPLIT_NAMES, split_class
from datamodules.image_files import find_images, refuse_heic
from datamodules.image_folder import no_folder
from datamodules.named import is_named
from datamodules.photographs import PhotoDataset, Photographs
from datamodules.reading import printable
from datamodules.sampling import evenly
from vit.foundation import UserError

_LAYOUT = "Expected a folder with images in it, at any depth."


class UnlabelledFolder(Photographs):
    """All photographs below a folder, for pretraining.

    Args:
        root: the folder, see above.
        val_fraction: share kept for validation, if the root has no val/.
        options: the rest, as `Photographs` takes them.

    Raises:
        UserError: there is no such folder, it has fewer than two images, or the root names a data set.
    """

    def __init__(self, root: str, *, val_fraction: float = 0.2, seed: int = 0, **options: Any) -> None:
        if is_named(root):
            raise UserError(
                f"Pretraining reads a folder of photographs or birdscenes:pretrain, and {printable(root)} is neither.\n"
                "Save its images as files in a folder, and give that."
            )
        super().__init__(root, seed=seed, **options)
        self.files = find_unlabelled(self.root, val_fraction=val_fraction, seed=seed)

    def limit(self, count: int) -> None:
        """Keeps at most this many photos per split, spread evenly over it."""
        for split, paths in self.files.items():
            self.files[split] = [paths[place] for place in evenly(len(paths), count)]

    def paths(self, split: str) -> list[str]:
        """The photos of a split, absolute, by index."""
        return self.files[split]

    def dataset(self, split: str, *, augment: bool = False) -> PhotoDataset:
        """The photos of `train` or `val`, with the transform of evaluation unless `augment`."""
        return PhotoDataset(self.files[split], self.train_transform if augment else self.eval_transform, self.seed)


def find_unlabelled(root: Path, *, val_fraction: float, seed: int) -> dict[str, list[str]]:
    """The photos of train and val below `root`, an absolute path.

    Raises:
        UserError: there is no such folder, or it has fewer than two images.
    """
    if not root.is_dir():
        raise UserError(no_folder(root, _LAYOUT))
    found = {split: _images(root, names) for split, names in SPLIT_NAMES.items()}
    kept_apart = [root / name for name in SPLIT_NAMES["val"] + SPLIT_NAMES["test"] if (root / name).is_dir()]
    train = found["train"] or find_images(root, kept_apart)
    refuse_heic([*train, *found["val"]])
    if len(train) + len(found["val"]) < 2 or not train:
        raise UserError(f"{printable(root)} has {len(train)} images to train on; it needs two or more.\n{_LAYOUT}")
    if found["val"]:
        return {"train": train, "val": found["val"]}
    kept, held = split_class(train, root, val_fraction, seed)
    return {"train": kept, "val": held}


def _images(root: Path, names: tuple[str, ...]) -> list[str]:
    """The photos of a split, in the first folder of these names that has any."""
    for name in names:
        if (root / name).is_dir() and (images := find_images(root / name)):
            return images
    return []

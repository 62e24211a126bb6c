"""Photographs with captions, listed in a CSV.

    image,caption,split
    photos/1.jpg,a robin on a branch,train

Paths are relative to the folder of the CSV, or absolute. An image may have several captions, one per line. Images
without a split are training images; if none is in val, a share of them is held out for it. All captions of an image
stay together.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.collection import SPLITS, split_class
from datamodules.image_files import refuse_heic
from datamodules.manifest import open_csv
from datamodules.photographs import PhotoDataset, Photographs
from datamodules.reading import printable
from datamodules.sampling import Draw, Skipped, evenly
from datamodules.splits import of_split
from datamodules.transforms import Pipeline
from datamodules.vocabulary import Vocabulary
from vit.foundation import UserError, nearest

COLUMNS = ("image", "caption", "split")
_WANTED = "Captions are a CSV with the columns image,caption and optionally split."

Captions = dict[str, list[str]]  # absolute path -> its captions, in the order of the CSV


class CaptionedImages(PhotoDataset):
    """Photos of one split, each with the ids of its captions.

    An item is a dict of `image` float32 (3, h, w), `ids` of one caption, `references` (the ids of all its captions) and
    `index`, or Skipped for a file that can't be read. The choice of the caption, like the transform, is a pure function
    of (seed, epoch, index); without `augment` it is the first one.
    """

    def __init__(
        self,
        captions: Captions,
        vocabulary: Vocabulary,
        transform: Pipeline,
        *,
        augment: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(list(captions), transform, seed)
        self.references = [[vocabulary.encode(text) for text in texts] for texts in captions.values()]
        self.augment = augment

    def __getitem__(self, draw: Draw | int) -> dict[str, Any] | Skipped:
        draw = draw if isinstance(draw, Draw) else Draw(0, draw)
        item = super().__getitem__(draw)
        if isinstance(item, Skipped):
            return item
        references, chosen = self.references[draw.index], 0
        if self.augment:
            random = np.random.default_rng(np.random.SeedSequence(draw.key(self.seed)))
            chosen = int(random.integers(len(references)))
        return {**item, "ids": references[chosen], "references": references}


class CaptionsCsv(Photographs):
    """Photographs with captions, for training and evaluation.

    Args:
        root: the CSV, see above.
        vocabulary: a checkpoint's; None trains one on the captions of train.
        max_words: maximum number of tokens in a vocabulary trained here.
        val_fraction: share of the images kept for validation, if the CSV has no val.
        crop_scale, hflip: see `train_transform`; mirroring a photo makes captions with "left" or "right" wrong, and a
            small crop may lack what the caption names.
        options: the rest, as `Photographs` takes them.

    Raises:
        UserError: the CSV can't be read, a line of it is invalid, or there are no captions to train a vocabulary on.
    """

    def __init__(
        self,
        root: str,
        *,
        vocabulary: Vocabulary | None = None,
        max_words: int = 8192,
        val_fraction: float = 0.2,
        crop_scale: float = 0.7,
        hflip: float = 0.0,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(root, crop_scale=crop_scale, hflip=hflip, seed=seed, **options)
        self.base = self.root.parent
        self.captions = find_captions(self.root, val_fraction=val_fraction, seed=seed)
        if vocabulary is None:
            if "train" not in self.captions:
                raise UserError(f"{printable(root)} has no training captions to build a vocabulary from.\n{_WANTED}")
            texts = (text for captions in self.captions["train"].values() for text in captions)
            vocabulary = Vocabulary.train(texts, size=max_words)
        self.vocabulary = vocabulary

    @property
    def longest(self) -> int:
        """Tokens of the longest caption, its start and end counted."""
        texts = (text for captions in self.captions.values() for several in captions.values() for text in several)
        return max(len(self.vocabulary.encode(text)) for text in texts)

    def limit(self, count: int) -> None:
        """Keeps at most this many photos per split, spread evenly over it."""
        for split, captions in self.captions.items():
            paths = list(captions)
            self.captions[split] = {paths[place]: captions[paths[place]] for place in evenly(len(paths), count)}

    def paths(self, split: str) -> list[str]:
        """The photos of a split, absolute, by index."""
        return list(of_split(self.captions, split))

    def learned(self, split: str) -> list[tuple[str, ...]]:
        """The captions of each image of a split, by index."""
        return [tuple(texts) for texts in of_split(self.captions, split).values()]

    def dataset(self, split: str, *, augment: bool = False) -> CaptionedImages:
        """The photos of `train`, `val` or `test`, with the transform of evaluation unless `augment`."""
        transform = self.train_transform if augment else self.eval_transform
        captions = of_split(self.captions, split)
        return CaptionedImages(captions, self.vocabulary, transform, augment=augment, seed=self.seed)

    def empty_batch(self) -> dict[str, Any]:
        """A batch without images."""
        return {**super().empty_batch(), "ids": [], "references": []}


def find_captions(root: Path, *, val_fraction: float, seed: int) -> dict[str, Captions]:
    """The captions of each split of a CSV; without a val of its own, some images of train become val.

    Args:
        root: absolute path of the CSV.

    Raises:
        UserError: the CSV can't be read, or a line of it is invalid.
    """
    found: dict[str, Captions] = {}
    split_of: dict[str, str] = {}
    for line, (image, caption, split) in enumerate(_read_rows(root), 2):
        where = f"{printable(root)}, line {line}"
        if not image or not caption:
            raise UserError(f"{where}: no {'image' if not image else 'caption'}.\n{_WANTED}")
        if split and split not in SPLITS:
            raise UserError(f"{where}: split {printable(split)!r} is not one of {', '.join(SPLITS)}.")
        path = os.path.normpath(os.path.join(root.parent, image))  # noqa: PTH118
        split = split or split_of.get(path, "train")
        if split_of.setdefault(path, split) != split:
            raise UserError(f"{where}: {printable(image)} is in {split} and in {split_of[path]}.\nPut it in one split.")
        text = os.fsencode(caption).decode("utf-8", errors="replace")  # file names may hold any bytes, captions not
        found.setdefault(split, {}).setdefault(path, []).append(text)
    refuse_heic(split_of)
    if "train" in found and "val" not in found and len(found["train"]) > 1:
        train = found["train"]
        kept, held = split_class(list(train), root.parent, val_fraction, seed)
        found |= {"train": {path: train[path] for path in kept}, "val": {path: train[path] for path in held}}
    return {split: found[split] for split in SPLITS if split in found}


def _read_rows(path: Path) -> list[tuple[str, str, str]]:
    name = printable(path)
    with open_csv(path, _WANTED) as rows:
        columns = rows.fieldnames or ()
        if missing := [column for column in COLUMNS[:2] if column not in columns]:
            there = ",".join(columns)[:80]
            hint = nearest(missing[0], columns)
            raise UserError(f"{name} has no column {missing[0]!r}{hint}; its first line is {there!r}.\n{_WANTED}")
        found = [tuple((row.get(column) or "").strip() for column in COLUMNS) for row in rows]
    if not found:
        raise UserError(f"{name} lists no images.\n{_WANTED}")
    return found  # type: ignore[return-value]

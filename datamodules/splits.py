"""The loaders of a data set with splits, as Lightning asks for them."""

from collections.abc import Iterable, Mapping
from hashlib import sha256
from itertools import repeat
from typing import TypeVar

import lightning.pytorch as pl

from datamodules.sampling import SampleLoader
from vit.foundation import UserError

Part = TypeVar("Part")


class SplitLoaders(pl.LightningDataModule):
    """Batches of train, val and test; `_loader` makes them. What every data set offers to those who train on it.

    Attributes:
        labels: the classes, in order; empty where there are none.
        multilabel: whether an image has any number of them, rather than one.
        batch_size: images per batch.
        seed: seed of the order and of the augmentation.
    """

    labels: tuple[str, ...] = ()
    multilabel = False
    batch_size: int
    seed: int

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

    def names(self, split: str) -> list[str]:
        """The images of a split, by index."""
        raise NotImplementedError

    def length(self, split: str) -> int:
        """How many images a split has."""
        raise NotImplementedError

    def limit(self, count: int) -> None:
        """Limits each split to at most this many images."""
        raise NotImplementedError

    def fold(self, number: int, count: int) -> None:
        """Validates on part `number`, from 1, of `count` parts of the train and val images; trains on the others."""
        raise NotImplementedError

    def counts(self) -> dict[str, dict[str, int]]:
        """Images of each label in each split; empty where that is not known, or where all have as many."""
        return {}

    def sampled_classes(self) -> list[int] | None:
        """The class of each training image for balanced sampling; None for ordinary sampling."""
        return None

    def learned(self, split: str) -> Iterable[tuple[str, ...]]:
        """What is to be learned about each image of a split, by index: its labels or captions."""
        return repeat(())

    def fingerprint(self) -> str:
        """A digest of the images of train and val, and of what is to be learned about them.

        Images are told apart by their names without folders, because folders may be moved.
        """
        digest = sha256(repr(self.labels).encode(errors="surrogateescape"))
        for split in ("train", "val"):
            names = self.names(split)
            digest.update(f"\n{split} {len(names)}\n".encode())
            for name, learned in zip(names, self.learned(split), strict=False):
                parts = (name.rpartition("/")[2], *learned)
                digest.update("\0".join(parts).encode(errors="surrogateescape") + b"\n")
        return digest.hexdigest()

    def _loader(self, split: str, *, augment: bool = False) -> SampleLoader:
        raise NotImplementedError


def of_split(parts: Mapping[str, Part], split: str) -> Part:
    """The part that belongs to a split.

    Raises:
        UserError: the data has no such split.
    """
    if split not in parts:
        raise UserError(f"The data has no split {split!r}; it has: {', '.join(parts)}.")
    return parts[split]

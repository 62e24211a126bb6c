"""The loaders of a data set with splits, as Lightning asks for them."""

from collections.abc import Mapping
from typing import TypeVar

import lightning.pytorch as pl

from datamodules.sampling import SampleLoader
from vit.foundation import UserError

Part = TypeVar("Part")


class SplitLoaders(pl.LightningDataModule):
    """Batches of train, val and test; `_loader` makes them."""

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

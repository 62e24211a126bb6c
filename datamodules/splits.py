"""The loaders of a data set in splits, as Lightning asks for them."""

import lightning.pytorch as pl

from datamodules.sampling import SampleLoader


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

"""Features of images, computed once, in place of the images: for training on top of a frozen encoder."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.sampling import Draw, SampleLoader, sample_loader

Columns = dict[str, Tensor]  # the columns of concatenated batches: image (N, F), target, index, and weight


class FeatureTable(Dataset):
    """The images of a split that could be read. An item is a row of the columns."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["index"])

    def __getitem__(self, draw: Draw | int) -> dict[str, Any]:
        row = draw.index if isinstance(draw, Draw) else draw
        # As the image data sets return them: Python numbers and NumPy arrays, except for the image.
        values = {name: column[row] for name, column in self.columns.items()}
        return {
            name: value if name == "image" else value.item() if value.ndim == 0 else value.numpy()
            for name, value in values.items()
        }


class CachedFeatures(pl.LightningDataModule):
    """Batches of features, in the same order as the images' batches, but never augmented.

    Args:
        tables: the columns of "train" and "val".
        batch_size: images per batch.
        classes: class of each training image, by index, for balanced training; None otherwise.
        seed: seed of the order.
    """

    def __init__(
        self, tables: dict[str, Columns], *, batch_size: int, classes: Sequence[int] | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        self.tables = tables
        self.batch_size = batch_size
        self.seed = seed
        read = tables["train"]["index"].tolist()
        self.classes = None if classes is None else [classes[index] for index in read]

    def train_dataloader(self) -> SampleLoader:
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> SampleLoader:
        return self._loader("val")

    def _loader(self, split: str, *, shuffle: bool = False) -> SampleLoader:
        columns = self.tables[split]
        return sample_loader(
            FeatureTable(columns), {name: column[:0] for name, column in columns.items()}, batch_size=self.batch_size,
            num_workers=0, shuffle=shuffle, classes=self.classes if shuffle else None, seed=self.seed,
        )  # fmt: skip


def gather_columns(batches: Sequence[dict[str, Any]]) -> Columns:
    """The columns needed for training, concatenated over batches."""
    names = [name for name in ("image", "target", "index", "weight") if name in batches[0]]
    return {name: torch.cat([batch[name] for batch in batches]) for name in names}

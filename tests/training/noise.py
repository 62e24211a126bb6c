"""Pictures of noise in two classes, and a tiny classifier of them: a whole training run in a part of a second."""

from typing import Any

import lightning as L
import torch
from torch.utils.data import Dataset

from datamodules.sampling import Draw, SampleLoader, labelled_batch, sample_loader
from vit.models.classifier import Classifier
from vit.models.encoder import image_encoder
from vit.training.classification import ClassificationTask


class NoiseImages(Dataset):
    def __init__(self, length: int, seed: int) -> None:
        self.images = torch.randn(length, 3, 8, 8, generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        return {"image": self.images[draw.index], "target": draw.index % 2, "index": draw.index}


class Noise(L.LightningDataModule):
    def __init__(self, train: int = 20, val: int = 6, batch_size: int = 4) -> None:
        super().__init__()
        self.train, self.val = NoiseImages(train, 1), NoiseImages(val, 2)
        self.batch_size = batch_size

    def train_dataloader(self) -> SampleLoader:
        return self._loader(self.train, shuffle=True)

    def val_dataloader(self) -> SampleLoader:
        return self._loader(self.val)

    def _loader(self, images: NoiseImages, **options: Any) -> SampleLoader:
        return sample_loader(images, labelled_batch((8, 8)), batch_size=self.batch_size, num_workers=0, **options)


def noise_task(kind: type[ClassificationTask] = ClassificationTask, **options: Any) -> ClassificationTask:
    torch.manual_seed(7)
    encoder = image_encoder(image_size=(8, 8), patch_size=(4, 4), embed_dim=10, depth=2, num_heads=2)
    settings: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1, "warmup_epochs": 0.0} | options
    return kind(Classifier(encoder, 2, labels=["odd", "even"]), **settings)

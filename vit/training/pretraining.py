"""Masked pretraining as a LightningModule: which patches are hidden, and the loss of the guess."""

from typing import Any

import torch
from torch import Tensor

from vit.models.masked import MaskedImageModel
from vit.training.task import TrainingTask


class PretrainingTask(TrainingTask):
    """Trains a MaskedImageModel on images without labels. A batch is {"image": (B, C, h, w), "skipped": [...]}.

    What is hidden in training follows from (seed, rank, micro-batch); in validation from (seed, batch), the same in
    every epoch, so that its losses can be compared.

    Args:
        model: what learns.
        options: the rest, as `TrainingTask` takes them.
    """

    model: MaskedImageModel

    def __init__(self, model: MaskedImageModel, **options: Any):
        super().__init__(model, **options)

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, int]:
        images = batch["image"]
        return self.model(images, self.model.hide(images)).loss, len(images)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.skipped.update(batch["skipped"])
        images = batch["image"]
        if len(images) == 0:
            return
        generator = torch.Generator().manual_seed(hash((self.seed, batch_idx)))
        self.update_val_loss(self.model(images, self.model.hide(images, generator)).loss, len(images))

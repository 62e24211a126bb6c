"""Masked pretraining as a LightningModule: hidden patches, the loss of their reconstruction, and pictures of it."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from vit.checkpoints.card import Training
from vit.checkpoints.folder import write_folder
from vit.models.classifier import Classifier, Preprocessing
from vit.models.masked import MaskedImageModel
from vit.training.reconstructions import draw_reconstructions
from vit.training.task import TrainingTask


class PretrainingTask(TrainingTask):
    """Trains a MaskedImageModel on images without labels. A batch is {"image": (B, C, h, w), "skipped": [...]}.

    The choice of hidden patches in training is a function of (seed, rank, micro-batch); in validation of (seed, batch),
    the same in every epoch, so that losses can be compared.

    Args:
        model: the model to train.
        pool, preprocessing: for the model folder, which has the encoder without a head; see `Classifier`.
        pictures: folder for reconstructions of validation images, epoch_0005.png and so on; None for none.
        every: draw a picture every this many epochs, and in the last of `max_epochs`.
        options: the rest, as `TrainingTask` takes them.
    """

    model: MaskedImageModel
    told: ClassVar = {"loss of the hidden patches": "val_loss"}

    def __init__(
        self,
        model: MaskedImageModel,
        *,
        pool: str = "class",
        preprocessing: Preprocessing | None = None,
        pictures: Path | None = None,
        every: int = 5,
        **options: Any,
    ):
        super().__init__(model, **options)
        self.pool = pool
        self.preprocessing = preprocessing
        self.pictures = pictures
        self.every = every

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, int]:
        images = batch["image"]
        return self.model(images, self.model.hide(images)).loss, len(images)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.skipped.update(batch["skipped"])
        images = batch["image"]
        if len(images) == 0:
            return
        generator = torch.Generator().manual_seed(hash((self.seed, batch_idx)))
        hidden = self.model.hide(images, generator)
        self.update_val_loss(self.evaluated(images, hidden).loss, len(images))
        if batch_idx == 0:
            self._draw(images, hidden)

    def _draw(self, images: Tensor, hidden: Tensor) -> None:
        """Draws the first validation images, if this epoch is due for a picture."""
        epoch = self.current_epoch + 1
        if self.pictures is None or (epoch % self.every and epoch != self.trainer.max_epochs):
            return
        name = f"epoch_{epoch:04}.png"
        prepared = self.encoded_alone(self.evaluated).preprocessing
        draw_reconstructions(self.evaluated, images, hidden, self.pictures / name, mean=prepared.mean, std=prepared.std)

    def encoded_alone(self, model: MaskedImageModel) -> Classifier:
        """The encoder as a model without a head, which is the result of pretraining."""
        return Classifier(model.encoder, 0, pool=self.pool, preprocessing=self.preprocessing)

    def write_model(self, model: Any, folder: Path, about: Training | None) -> None:
        write_folder(self.encoded_alone(model), folder, about)

"""Classification as a LightningModule: step, loss, metrics."""

from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from vit.checkpoints.card import Training
from vit.checkpoints.folder import OURS, describe, write_folder
from vit.models.classifier import Classifier
from vit.training.lora import merged
from vit.training.losses import single_label_loss, smoothed
from vit.training.mixing import Mixing
from vit.training.optim import choose_trained, keep_frozen_still
from vit.training.task import Judge, TrainingTask


class ClassificationTask(TrainingTask):
    """Fine-tunes or trains a Classifier. A batch is {"image": (B, C, h, w), "target": (B,), "skipped": [...]}, and
    may have a "weight" (B,) of each image in the loss.

    Args:
        model: the model to train.
        label_smoothing: see `smoothed`.
        trained, lora_rank, lora_alpha: see `choose_trained`.
        mixup, cutmix, mix_prob: see `Mixing`.
        class_weights: (C,) weight of each class in the loss; None for equal weights.
        focal_gamma: γ of the focal loss; 0 for cross-entropy.
        on_features: whether "image" is what the head reads, (B, num_features), computed beforehand.
        options: the rest, as `TrainingTask` takes them.
    """

    model: Classifier
    class_weights: Tensor
    judge = Judge("val_top1", "top-1")
    told: ClassVar = {"top-1": "val_top1", "top-5": "val_top5"}

    def __init__(
        self,
        model: Classifier,
        *,
        label_smoothing: float = 0.0,
        trained: str = "all",
        lora_rank: int = 8,
        lora_alpha: float = 16.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mix_prob: float = 1.0,
        class_weights: Tensor | None = None,
        focal_gamma: float = 0.0,
        on_features: bool = False,
        **options: Any,
    ):
        choose_trained(model, trained, lora_rank=lora_rank, lora_alpha=lora_alpha)
        super().__init__(model, **options)
        self.label_smoothing = label_smoothing
        self.mixing = Mixing(mixup=mixup, cutmix=cutmix, prob=mix_prob)
        weights = torch.ones(model.num_classes) if class_weights is None else class_weights
        self.register_buffer("class_weights", weights, persistent=False)
        self.focal_gamma = focal_gamma
        self.on_features = on_features
        self.adapters = {"lora_scale": lora_alpha / lora_rank} if trained == "lora" else {}
        self.add_metrics(model.num_classes)

    def add_metrics(self, classes: int) -> None:
        """Creates the metrics of an epoch."""
        self.train_top1 = MulticlassAccuracy(classes, average="micro")
        self.val_top1 = MulticlassAccuracy(classes, average="micro")
        self.val_top5 = MulticlassAccuracy(classes, average="micro", top_k=min(5, classes))

    def on_train_start(self) -> None:
        keep_frozen_still(self.model)

    def on_train_epoch_start(self) -> None:
        keep_frozen_still(self.model)

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, int]:
        shares = smoothed(self.shares(batch["target"]), self.label_smoothing, multilabel=self.model.multilabel)
        weight = batch.get("weight", shares.new_ones(len(shares)))[:, None]
        images, mass = self.mixing(batch["image"], torch.cat([weight * shares, weight], dim=1))
        positive, weight = mass[:, :-1], mass[:, -1:]
        logits = self.logits(self.model, images)
        loss = self.criterion(logits, positive, weight)
        if loss.isfinite():
            self.count_training(logits.detach(), positive, weight)
        return loss, len(images)

    def logits(self, model: Classifier, images: Tensor) -> Tensor:
        """(B, num_classes) float32."""
        logits: Tensor = model.logits(images) if self.on_features else model(images)
        return logits.float()

    def shares(self, targets: Tensor) -> Tensor:
        """(B, C) share of each class in what an image shows."""
        return F.one_hot(targets, self.model.num_classes).float()

    def criterion(self, logits: Tensor, positive: Tensor, weight: Tensor) -> Tensor:
        """The loss of (B, C) logits, for (B, C) masses of the classes and (B, 1) weights of the images."""
        return single_label_loss(logits, positive, self.class_weights, focal_gamma=self.focal_gamma)

    def count_training(self, logits: Tensor, positive: Tensor, weight: Tensor) -> None:
        """Adds a batch to the training metrics; for a mixed image, the class with the largest share is correct."""
        self.train_top1.update(logits, positive.argmax(dim=1))

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.skipped.update(batch["skipped"])
        images, targets = batch["image"], batch["target"]
        if len(images) == 0:
            return
        logits = self.logits(self.evaluated, images)
        self.update_val_loss(self.val_criterion(logits, targets), len(images))
        self.count_validation(logits, targets)

    def val_criterion(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The plain loss, in which all images and classes have the same weight."""
        return F.cross_entropy(logits, targets)

    def count_validation(self, logits: Tensor, targets: Tensor) -> None:
        """Adds a batch to the validation metrics."""
        self.val_top1.update(logits, targets)
        self.val_top5.update(logits, targets)

    def write_model(self, model: Any, folder: Path, about: Training | None) -> None:
        write_folder(merged(model), folder, about)

    def running_metrics(self) -> dict[str, Metric]:
        return {**super().running_metrics(), "train_top1": self.train_top1}

    def epoch_metrics(self) -> dict[str, Metric]:
        tops = {"train_top1": self.train_top1, "val_top1": self.val_top1, "val_top5": self.val_top5}
        return {**super().epoch_metrics(), **tops}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint[OURS] = describe(self.model) | self.adapters  # so that a model can be loaded from this file alone

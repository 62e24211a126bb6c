"""Classification as a LightningModule: step, loss, metrics."""

from pathlib import Path
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from vit.checkpoints.card import Training
from vit.checkpoints.folder import OURS, describe, write_folder
from vit.models.classifier import Classifier
from vit.training.mixing import Mixing
from vit.training.optim import choose_trained
from vit.training.task import Judge, TrainingTask


class ClassificationTask(TrainingTask):
    """Fine-tunes or trains a Classifier. A batch is {"image": (B, C, h, w), "target": (B,), "skipped": [...]}.

    Args:
        model: what learns.
        label_smoothing: share of the target spread over all classes (Szegedy et al. 2016).
        trained: "all" or "head".
        mixup, cutmix, mix_prob: see `Mixing`.
        options: the rest, as `TrainingTask` takes them.
    """

    model: Classifier
    judge = Judge("val_top1", "top-1")
    told: ClassVar = {"top-1": "val_top1", "top-5": "val_top5"}

    def __init__(
        self,
        model: Classifier,
        *,
        label_smoothing: float = 0.0,
        trained: str = "all",
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mix_prob: float = 1.0,
        **options: Any,
    ):
        choose_trained(model, trained)
        super().__init__(model, **options)
        self.label_smoothing = label_smoothing
        self.trained = trained
        self.mixing = Mixing(mixup=mixup, cutmix=cutmix, prob=mix_prob)
        classes = model.num_classes
        self.train_top1 = MulticlassAccuracy(classes, average="micro")
        self.val_top1 = MulticlassAccuracy(classes, average="micro")
        self.val_top5 = MulticlassAccuracy(classes, average="micro", top_k=min(5, classes))

    def on_train_start(self) -> None:
        self._keep_frozen_still()

    def on_train_epoch_start(self) -> None:
        self._keep_frozen_still()

    def _keep_frozen_still(self) -> None:
        if self.trained == "head":
            self.model.encoder.eval()  # a frozen encoder gives the same features in every epoch

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, int]:
        shares = F.one_hot(batch["target"], self.model.num_classes).float()
        images, shares = self.mixing(batch["image"], shares)
        logits = self.model(images).float()
        loss = F.cross_entropy(logits, shares, label_smoothing=self.label_smoothing)
        if loss.isfinite():
            self.train_top1.update(logits.detach(), shares.argmax(dim=1))
        return loss, len(images)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.skipped.update(batch["skipped"])
        images, targets = batch["image"], batch["target"]
        if len(images) == 0:
            return
        logits = self.evaluated(images).float()
        self.update_val_loss(F.cross_entropy(logits, targets), len(images))
        self.val_top1.update(logits, targets)
        self.val_top5.update(logits, targets)

    def write_model(self, folder: Path, about: Training | None) -> None:
        write_folder(self.evaluated, folder, about)

    def running_metrics(self) -> dict[str, Metric]:
        return {**super().running_metrics(), "train_top1": self.train_top1}

    def epoch_metrics(self) -> dict[str, Metric]:
        tops = {"train_top1": self.train_top1, "val_top1": self.val_top1, "val_top5": self.val_top5}
        return {**super().epoch_metrics(), **tops}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint[OURS] = describe(self.model)  # so that the file alone is a model that can be loaded

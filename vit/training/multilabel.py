"""Multi-label classification as a LightningModule: an image shows any number of the classes."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MultilabelF1Score
from torchmetrics.functional.classification import binary_average_precision
from torchmetrics.utilities import dim_zero_cat

from vit.training.classification import ClassificationTask
from vit.training.losses import multi_label_loss
from vit.training.task import Judge


class MultiLabelTask(ClassificationTask):
    """Trains a multi-label Classifier by binary cross-entropy. A batch's "target" is (B, C) float, 0 or 1.

    Arguments are those of `ClassificationTask`.
    """

    judge = Judge("val_map", "mAP")
    told: ClassVar = {"mAP": "val_map", "macro F1": "val_f1"}

    def add_metrics(self, classes: int) -> None:
        self.train_f1 = MultilabelF1Score(classes, average="micro")
        self.val_f1 = MultilabelF1Score(classes, average="macro")
        self.val_map = MeanAveragePrecision()

    def shares(self, targets: Tensor) -> Tensor:
        return targets

    def criterion(self, logits: Tensor, positive: Tensor, weight: Tensor) -> Tensor:
        return multi_label_loss(logits, positive, weight, self.class_weights, focal_gamma=self.focal_gamma)

    def count_training(self, logits: Tensor, positive: Tensor, weight: Tensor) -> None:
        self.train_f1.update(logits.sigmoid(), (positive > weight / 2).long())

    def val_criterion(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, targets)

    def count_validation(self, logits: Tensor, targets: Tensor) -> None:
        self.val_f1.update(logits.sigmoid(), targets.long())
        self.val_map.update(logits.sigmoid(), targets)

    def running_metrics(self) -> dict[str, Metric]:
        return {"train_loss": self.train_loss, "train_f1": self.train_f1}

    def epoch_metrics(self) -> dict[str, Metric]:
        losses = {"train_loss_epoch": self.train_loss, "val_loss": self.val_loss}
        return {**losses, "train_f1": self.train_f1, "val_map": self.val_map, "val_f1": self.val_f1}


class MeanAveragePrecision(Metric):
    """The mean of the average precisions of the classes that any image shows; of the others there is none."""

    scores: list[Tensor]
    targets: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("scores", "targets"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, scores: Tensor, targets: Tensor) -> None:
        """(B, C) each: scores from 0 to 1, targets 0 or 1."""
        self.scores.append(scores)
        self.targets.append(targets)

    def compute(self) -> Tensor:
        return average_precisions(dim_zero_cat(self.scores), dim_zero_cat(self.targets)).nanmean()


def average_precisions(scores: Tensor, targets: Tensor) -> Tensor:
    """(N, C) each -> (C,), NaN for a class that no image shows."""
    of_class = [
        binary_average_precision(score, target.long()) if target.any() else score.new_tensor(torch.nan)
        for score, target in zip(scores.T, targets.T, strict=True)
    ]
    return torch.stack(of_class)

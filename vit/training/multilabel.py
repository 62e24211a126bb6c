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

THRESHOLD = 0.5  # a class is predicted if its probability is at least this


class MultiLabelTask(ClassificationTask):
    """Trains a multi-label Classifier by binary cross-entropy. A batch's "target" is (B, C) float, 0 or 1.

    Arguments are those of `ClassificationTask`.
    """

    judge = Judge("val_map", "mAP")
    told: ClassVar = {"mAP": "val_map", "macro F1": "val_f1"}

    def add_metrics(self, classes: int) -> None:
        self.train_f1 = MultilabelF1Score(classes, average="micro")
        self.val_f1 = MacroF1(classes)
        self.val_map = MeanAveragePrecision(classes)

    def shares(self, targets: Tensor) -> Tensor:
        return targets

    def criterion(self, logits: Tensor, positive: Tensor, weight: Tensor) -> Tensor:
        return multi_label_loss(logits, positive, weight, self.class_weights, focal_gamma=self.focal_gamma)

    def count_training(self, logits: Tensor, positive: Tensor, weight: Tensor) -> None:
        self.train_f1.update(said(logits.sigmoid()), (positive > weight / 2).long())

    def val_criterion(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, targets)

    def count_validation(self, logits: Tensor, targets: Tensor) -> None:
        probabilities = logits.sigmoid()
        self.val_f1.update(said(probabilities), targets.long())
        self.val_map.update(probabilities, targets)

    def running_metrics(self) -> dict[str, Metric]:
        return {"train_loss": self.train_loss, "train_f1": self.train_f1}

    def epoch_metrics(self) -> dict[str, Metric]:
        losses = {"train_loss_epoch": self.train_loss, "val_loss": self.val_loss}
        return {**losses, "train_f1": self.train_f1, "val_map": self.val_map, "val_f1": self.val_f1}


def said(probabilities: Tensor) -> Tensor:
    """(B, C) -> (B, C) int64, 1 for each class that is predicted."""
    return (probabilities >= THRESHOLD).long()


def macro_f1(of_class: Tensor, images: Tensor) -> Tensor:
    """The mean of (C,) F1 scores over the classes that any image shows, given (C,) numbers of images; NaN if there are
    none."""
    return of_class[images > 0].mean()


class MacroF1(MultilabelF1Score):
    """See `macro_f1`. Takes the result of `said` and the targets, (B, C) int64 each."""

    tp: Tensor
    fn: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__(classes, average="none")

    def compute(self) -> Tensor:
        return macro_f1(super().compute(), self.tp + self.fn)


class MeanAveragePrecision(Metric):
    """The mean of the average precisions of the classes that any image shows; NaN if there are none.

    Its state is flat, because for a process without images the others expect one dimension.
    """

    scores: list[Tensor]
    targets: list[Tensor]

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        for name in ("scores", "targets"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, scores: Tensor, targets: Tensor) -> None:
        """(B, C) each: scores from 0 to 1, targets 0 or 1."""
        self.scores.append(scores.flatten())
        self.targets.append(targets.flatten())

    def compute(self) -> Tensor:
        scores, targets = (dim_zero_cat(seen).view(-1, self.classes) for seen in (self.scores, self.targets))
        return average_precisions(scores, targets).nanmean()


def average_precisions(scores: Tensor, targets: Tensor) -> Tensor:
    """(N, C) each -> (C,), NaN for a class that no image shows."""
    of_class = [
        binary_average_precision(score, target.long()) if target.any() else score.new_tensor(torch.nan)
        for score, target in zip(scores.T, targets.T, strict=True)
    ]
    return torch.stack(of_class)

"""How good a classifier is on a split: accuracy, calibration, confusions, and every single prediction."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_precision,
    multiclass_recall,
)

from vit.training.calibration import Calibration, calibration


@dataclass
class Evaluation:
    """The predictions for a split.

    Args:
        probabilities: (images, num_classes).
        targets: (images,) index of the true class.
        names: names of the images, in the same order.
        labels: names of the classes.
        skipped: images that could not be read (path to reason); they count neither as correct nor as wrong.
    """

    probabilities: Tensor
    targets: Tensor
    names: list[str]
    labels: tuple[str, ...]
    skipped: dict[str, str] = field(default_factory=dict)

    def metrics(self) -> dict[str, Any]:
        """Fractions and counts: top1, top5, balanced_accuracy, ece, images, skipped, and per_class."""
        classes = len(self.labels)
        given = (self.probabilities, self.targets, classes)
        present = torch.bincount(self.targets, minlength=classes)
        recall = multiclass_recall(*given, average="none")
        precision = multiclass_precision(*given, average="none")
        seen = present > 0
        return {
            "top1": float(multiclass_accuracy(*given, average="micro")),
            "top5": float(multiclass_accuracy(*given, average="micro", top_k=min(5, classes))),
            "balanced_accuracy": float(recall[seen].mean()),
            "ece": self.calibration().error,
            "images": len(self.targets),
            "skipped": len(self.skipped),
            "per_class": {
                label: {"images": int(n), "precision": float(p), "recall": float(r)}
                for label, n, p, r in zip(self.labels, present, precision, recall, strict=True)
            },
        }

    def calibration(self) -> Calibration:
        """The calibration of the predicted class of each image."""
        confidence, predicted = self.probabilities.max(dim=1)
        return calibration(confidence, predicted == self.targets)

    def confusion(self) -> Tensor:
        """(num_classes, num_classes) counts; rows are the true classes."""
        return multiclass_confusion_matrix(self.probabilities, self.targets, len(self.labels))

    def table(self) -> list[list[Any]]:
        """A header, and a row for every prediction."""
        confidence, predicted = self.probabilities.max(dim=1)
        each = zip(self.names, self.targets.tolist(), predicted.tolist(), confidence.tolist(), strict=True)
        return [
            ["image", "label", "predicted", "probability", "correct"],
            *(
                [name, self.labels[target], self.labels[guess], f"{p:.6f}", int(target == guess)]
                for name, target, guess, p in each
            ),
        ]

    def draw(self, folder: Path) -> list[str]:
        """Draws confusion.png and reliability.png; returns these names."""
        from vit.training.pictures import draw_confusion, draw_reliability

        draw_confusion(self.confusion().numpy(), self.labels, folder / "confusion.png")
        draw_reliability(self.calibration(), folder / "reliability.png")
        return ["confusion.png", "reliability.png"]

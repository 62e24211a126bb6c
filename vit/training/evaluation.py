"""How good a classifier is on a split: accuracy, calibration, confusions, and every single prediction."""

import csv
import json
from collections.abc import Iterable, Sequence
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

from vit import processes
from vit.foundation import atomic_write, none_read
from vit.inference import predict_batches
from vit.models.classifier import Classifier

CALIBRATION_BINS = 15  # as in Guo et al. 2017


@dataclass(frozen=True)
class Calibration:
    """How often predictions with a certain confidence are correct, in bins of equal width.

    Args:
        counts: (bins,) number of predictions in each bin.
        accuracy: (bins,) share of correct ones; NaN in an empty bin.
        confidence: (bins,) mean confidence; NaN in an empty bin.
    """

    counts: Tensor
    accuracy: Tensor
    confidence: Tensor

    @property
    def error(self) -> float:
        """The expected calibration error: Σ count / N · |accuracy - confidence| (Guo et al. 2017, equation 3)."""
        distance = (self.accuracy - self.confidence).abs().nan_to_num()
        return float((self.counts * distance).sum() / self.counts.sum())


def calibration(confidence: Tensor, correct: Tensor, *, bins: int = CALIBRATION_BINS) -> Calibration:
    """Sorts predictions into bins; a bin includes its upper edge, and the first one also 0.

    Args:
        confidence: (N,) probabilities.
        correct: (N,) bool, or 0 and 1.

    Raises:
        ValueError: when they are empty, not of one length, or a confidence is outside 0 to 1 or NaN.
    """
    if confidence.ndim != 1 or confidence.shape != correct.shape or len(confidence) == 0:
        raise ValueError(
            f"confidence and correct must both be (N,), got {(*confidence.shape,)} and {(*correct.shape,)}."
        )
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise ValueError("Confidences are probabilities from 0 to 1; some are outside.")
    place = ((confidence * bins).ceil().long() - 1).clamp(min=0)
    counts = place.bincount(minlength=bins)
    accuracy, mean = (place.bincount(each.double(), minlength=bins) / counts for each in (correct, confidence))
    return Calibration(counts, accuracy, mean)


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


def evaluate(
    model: Classifier,
    batches: Iterable[dict[str, Any]],
    names: Sequence[str],
    *,
    device: torch.device,
    precision: str,
    tta: str = "none",
) -> Evaluation:
    """Runs the model over the batches of a split.

    Args:
        model: a Classifier with labels.
        batches: dicts of image, target, index and skipped.
        names: names of the images, by index.
        device, precision: the device and precision that the model runs in.
        tta: see `vit.inference.views`.

    Raises:
        UserError: when no image could be read.
    """
    probabilities, targets, places, skipped = [], [], [], {}
    for batch, probability in predict_batches(model, batches, device=device, precision=precision, tta=tta):
        skipped.update(batch["skipped"])
        probabilities.append(probability)
        targets.append(batch["target"])
        places.append(batch["index"])
    parts = processes.gathered((probabilities, targets, places))  # the shares of all processes
    skipped = processes.merged(skipped)
    columns = [[batch for part in column for batch in part] for column in zip(*parts, strict=True)]
    if not sum(map(len, columns[2])):
        raise none_read(f"{len(names)} images", skipped)
    from vit.training.multilabel_evaluation import MultiLabelEvaluation

    whole = [torch.cat(column) for column in columns]
    order = whole[2].argsort()
    found = [names[index] for index in whole[2][order].tolist()]
    kind = MultiLabelEvaluation if model.multilabel else Evaluation
    return kind(whole[0][order], whole[1][order], found, model.labels, skipped)


def write_evaluation(evaluation: Evaluation, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Writes metrics.json, predictions.csv and pictures; returns the metrics, and the names of the files."""
    metrics = evaluation.metrics()
    with atomic_write(folder / "metrics.json") as temporary:
        temporary.write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    with (
        atomic_write(folder / "predictions.csv") as path,
        path.open("w", newline="", encoding="utf-8") as file,
    ):
        csv.writer(file).writerows(evaluation.table())
    return metrics, ["metrics.json", "predictions.csv", *evaluation.draw(folder)]

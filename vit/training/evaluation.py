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
    multiclass_calibration_error,
    multiclass_confusion_matrix,
    multiclass_precision,
    multiclass_recall,
)

from vit import processes
from vit.foundation import atomic_write, none_read
from vit.inference import predict_batches
from vit.models.classifier import Classifier

CALIBRATION_BINS = 15  # as in Guo et al. 2017


@dataclass
class Evaluation:
    """What was found on a split.

    Args:
        probabilities: (images, num_classes).
        targets: (images,).
        names: of the images, in the same order.
        labels: of the classes.
        skipped: images that could not be read, path to reason; they count neither as right nor as wrong.
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
            "ece": float(multiclass_calibration_error(*given, n_bins=CALIBRATION_BINS)),
            "images": len(self.targets),
            "skipped": len(self.skipped),
            "per_class": {
                label: {"images": int(n), "precision": float(p), "recall": float(r)}
                for label, n, p, r in zip(self.labels, present, precision, recall, strict=True)
            },
        }

    def confusion(self) -> Tensor:
        """(num_classes, num_classes) counts; rows are the true classes."""
        return multiclass_confusion_matrix(self.probabilities, self.targets, len(self.labels))


def evaluate(
    model: Classifier,
    batches: Iterable[dict[str, Any]],
    names: Sequence[str],
    *,
    device: torch.device,
    precision: str,
) -> Evaluation:
    """Runs the model over the batches of a split.

    Args:
        batches: dicts of image, target, index and skipped.
        names: of the images, by index.

    Raises:
        UserError: when no image could be read.
    """
    probabilities, targets, places, skipped = [], [], [], {}
    for batch, probability in predict_batches(model, batches, device=device, precision=precision):
        skipped.update(batch["skipped"])
        probabilities.append(probability)
        targets.append(batch["target"])
        places.append(batch["index"])
    parts = processes.gathered((probabilities, targets, places))  # of each process its share
    skipped = processes.merged(skipped)
    columns = [[batch for part in column for batch in part] for column in zip(*parts, strict=True)]
    if not sum(map(len, columns[2])):
        raise none_read(f"{len(names)} images", skipped)
    whole = [torch.cat(column) for column in columns]
    order = whole[2].argsort()
    found = [names[index] for index in whole[2][order].tolist()]
    return Evaluation(whole[0][order], whole[1][order], found, model.labels, skipped)


def write_evaluation(evaluation: Evaluation, folder: Path) -> dict[str, Any]:
    """Writes metrics.json, predictions.csv, confusion.png and reliability.png; returns the metrics."""
    from vit.training.pictures import draw_confusion, draw_reliability

    metrics = evaluation.metrics()
    with atomic_write(folder / "metrics.json") as temporary:
        temporary.write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    confidence, predicted = evaluation.probabilities.max(dim=1)
    with (
        atomic_write(folder / "predictions.csv") as path,
        path.open("w", newline="", encoding="utf-8") as file,
    ):
        rows = csv.writer(file)
        rows.writerow(["image", "label", "predicted", "probability", "correct"])
        for name, target, guess, p in zip(
            evaluation.names,
            evaluation.targets.tolist(),
            predicted.tolist(),
            confidence.tolist(),
            strict=True,
        ):
            rows.writerow([name, evaluation.labels[target], evaluation.labels[guess], f"{p:.6f}", int(target == guess)])
    draw_confusion(evaluation.confusion().numpy(), evaluation.labels, folder / "confusion.png")
    correct = (predicted == evaluation.targets).numpy()
    draw_reliability(confidence.numpy(), correct, folder / "reliability.png", bins=CALIBRATION_BINS)
    return metrics

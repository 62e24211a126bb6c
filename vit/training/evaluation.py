"""Evaluates a classifier on a split, and writes what was found."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from vit import processes
from vit.foundation import atomic_write, none_read
from vit.inference import predict_batches
from vit.models.classifier import Classifier
from vit.training.multilabel_evaluation import MultiLabelEvaluation
from vit.training.single_label_evaluation import Evaluation


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

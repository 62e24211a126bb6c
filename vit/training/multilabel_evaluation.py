"""How good a multi-label classifier is on a split: average precision, F1, calibration, and every single prediction."""

from pathlib import Path
from typing import Any

from torchmetrics.functional.classification import (
    binary_calibration_error,
    binary_f1_score,
    multilabel_f1_score,
    multilabel_precision,
    multilabel_recall,
)

from vit.training.evaluation import CALIBRATION_BINS, Evaluation
from vit.training.multilabel import average_precisions

THRESHOLD = 0.5  # of the probability from which on a class is said to be there


class MultiLabelEvaluation(Evaluation):
    """As `Evaluation`, with targets (images, num_classes) of 0 and 1."""

    def metrics(self) -> dict[str, Any]:
        """Fractions and counts: map, f1_macro, f1_micro (of classes that some image shows, from THRESHOLD on),
        exact_match, ece (of the probabilities of all classes), images, skipped, and per_class."""
        classes, targets = len(self.labels), self.targets.long()
        given: dict[str, Any] = {"num_labels": classes, "threshold": THRESHOLD, "average": "none"}
        precisions = average_precisions(self.probabilities, targets)
        f1, precision, recall = (
            measure(self.probabilities, targets, **given)
            for measure in (multilabel_f1_score, multilabel_precision, multilabel_recall)
        )
        shown = targets.sum(dim=0)
        said = self.probabilities >= THRESHOLD
        each = (self.probabilities.flatten(), targets.flatten())
        return {
            "map": float(precisions.nanmean()),
            "f1_macro": float(f1[shown > 0].mean()),
            "f1_micro": float(binary_f1_score(*each, threshold=THRESHOLD)),
            "exact_match": float((said == targets.bool()).all(dim=1).float().mean()),
            "ece": float(binary_calibration_error(*each, n_bins=CALIBRATION_BINS)),
            "images": len(targets),
            "skipped": len(self.skipped),
            "per_class": {
                label: {
                    "images": int(n),
                    "precision": float(p),
                    "recall": float(r),
                    "average_precision": float(average),
                }
                for label, n, p, r, average in zip(
                    self.labels, shown, precision, recall, precisions.nan_to_num(), strict=True
                )
            },
        }

    def table(self) -> list[list[Any]]:
        """The labels that are there and those that are said, "|" between them, and the probability of each class."""
        header = ["image", "labels", "predicted", "correct", *self.labels]
        truths, said = self.targets.bool(), self.probabilities >= THRESHOLD
        rows = zip(self.names, truths.tolist(), said.tolist(), self.probabilities.tolist(), strict=True)
        return [
            header,
            *(
                [name, self._listed(truth), self._listed(guess), int(truth == guess), *(f"{p:.6f}" for p in row)]
                for name, truth, guess, row in rows
            ),
        ]

    def _listed(self, there: list[bool]) -> str:
        return "|".join(label for label, one in zip(self.labels, there, strict=True) if one)

    def draw(self, folder: Path) -> list[str]:
        """The probabilities of all classes against how often these are there."""
        from vit.training.pictures import draw_reliability

        probabilities, truths = self.probabilities.flatten().numpy(), self.targets.flatten().bool().numpy()
        draw_reliability(probabilities, truths, folder / "reliability.png", bins=CALIBRATION_BINS)
        return ["reliability.png"]

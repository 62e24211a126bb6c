"""How good a multi-label classifier is on a split: average precision, F1, calibration, and every single prediction."""

from pathlib import Path
from typing import Any

from torchmetrics.functional.classification import multilabel_f1_score, multilabel_precision, multilabel_recall

from vit.training.calibration import Calibration, calibration
from vit.training.multilabel import average_precisions, macro_f1, said
from vit.training.single_label_evaluation import Evaluation


class MultiLabelEvaluation(Evaluation):
    """As `Evaluation`, with targets (images, num_classes) of 0 and 1."""

    def metrics(self) -> dict[str, Any]:
        """Fractions and counts: map, f1_macro, f1_micro (from THRESHOLD on; macro of the classes that some
        image shows), exact_match, ece (of the probabilities of all classes), images, skipped, and per_class."""
        classes, targets = len(self.labels), self.targets.long()
        guesses = said(self.probabilities)
        given = (guesses, targets, classes)
        precisions = average_precisions(self.probabilities, targets)
        f1, precision, recall = (
            measure(*given, average="none")
            for measure in (multilabel_f1_score, multilabel_precision, multilabel_recall)
        )
        shown = targets.sum(dim=0)
        return {
            "map": float(precisions.nanmean()),
            "f1_macro": float(macro_f1(f1, shown)),
            "f1_micro": float(multilabel_f1_score(*given, average="micro")),
            "exact_match": float((guesses == targets).all(dim=1).float().mean()),
            "ece": self.calibration().error,
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
        """A header, and a row per image: its labels and the predicted ones, joined by "|", and all probabilities."""
        header = ["image", "labels", "predicted", "correct", *self.labels]
        truths, guesses = self.targets.bool(), said(self.probabilities).bool()
        rows = zip(self.names, truths.tolist(), guesses.tolist(), self.probabilities.tolist(), strict=True)
        return [
            header,
            *(
                [name, self._listed(truth), self._listed(guess), int(truth == guess), *(f"{p:.6f}" for p in row)]
                for name, truth, guess, row in rows
            ),
        ]

    def _listed(self, there: list[bool]) -> str:
        return "|".join(label for label, one in zip(self.labels, there, strict=True) if one)

    def calibration(self) -> Calibration:
        """The calibration of the probabilities of all classes."""
        return calibration(self.probabilities.flatten(), self.targets.flatten())

    def draw(self, folder: Path) -> list[str]:
        """Draws reliability.png; returns this name."""
        from vit.training.pictures import draw_reliability

        draw_reliability(self.calibration(), folder / "reliability.png")
        return ["reliability.png"]

"""How often predictions with a certain confidence are correct."""

from dataclasses import dataclass

from torch import Tensor

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

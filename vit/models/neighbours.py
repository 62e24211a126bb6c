"""A classifier's memory: the training photographs whose features are nearest to an image's."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Neighbours(nn.Module):
    """Training photographs, of which the nearest to an image have a share in its probabilities.

    A linear head gives each class one direction. A class of several kinds, such as a family of birds, may be many small
    groups of features instead: an image is then told by the few photographs that it resembles. These vote as in a
    weighted k-NN classifier (Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance
    Discrimination"; Caron et al. 2021, DINO), and their vote is mixed with the head's as in kNN-LM (Khandelwal et al.
    2020, equation 3):

        p = (1 - share) · p_head + share · Σ_i w_i · y_i,   w = softmax(cos(f, f_i) / temperature),

    where i runs over the `count` nearest photographs; f_i are their features, and y_i their targets.

    Its tensors are buffers that are no part of a state dict: without them, the classifier is what it was trained to be.

    Args:
        features: (N, F), what the head reads of each photograph, at any length of the vectors.
        targets: (N, num_classes), 1 for the classes of each photograph, 0 for the others.
        share: of the neighbours' vote, 0 to 1, without 1.
        count: number of nearest photographs that vote; all, if there are not as many.
        temperature: of the weights; the lower, the more the nearest ones count.

    Raises:
        ValueError: when the shapes don't fit, there is no photograph, a number is outside its range, or a feature is
            not finite.
    """

    features: Tensor
    targets: Tensor

    def __init__(
        self, features: Tensor, targets: Tensor, *, share: float = 0.5, count: int = 10, temperature: float = 0.03
    ):
        super().__init__()
        if features.ndim != 2 or targets.ndim != 2 or len(features) != len(targets) or not len(features):
            raise ValueError(
                f"features and targets must be (N, F) and (N, C), got {(*features.shape,)} and {(*targets.shape,)}"
            )
        if not 0 <= share < 1:
            raise ValueError(f"share is {share}; allowed are numbers from 0, below 1")
        if not isinstance(count, int) or count < 1 or not temperature > 0:
            raise ValueError(f"count is {count} and temperature {temperature}; both must be above 0, count an integer")
        if not features.isfinite().all():  # a single NaN would be nearest to every image
            raise ValueError("some features are not finite")
        self.share, self.count, self.temperature = share, count, temperature
        self.register_buffer("features", _of_length_1(features.float()), persistent=False)
        self.register_buffer("targets", targets.bool(), persistent=False)

    @property
    def voters(self) -> int:
        """How many photographs vote: `count`, or all, if there are not as many."""
        return min(self.count, len(self.features))

    def nearest(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, F) -> the cosine similarities (B, count) of the nearest photographs, nearest first, and their indices."""
        similarity = F.normalize(features, dim=1) @ self.features.to(features).T
        best = similarity.topk(self.voters, dim=1)
        return best.values, best.indices

    def forward(self, features: Tensor, logits: Tensor, *, multilabel: bool = False) -> Tensor:
        """(B, F) features and the head's (B, num_classes) logits -> (B, num_classes) logits of the mixture.

        They are as high as the head's, not just log p: where head and neighbours are sure of a class, p is 1 up to
        rounding, and maps made of its gradient would be noise. The gradient of these logits is then the head's.

        Args:
            multilabel: whether each logit has a probability of its own, its sigmoid.
        """
        similarity, index = self.nearest(features)
        weight = (similarity / self.temperature).softmax(dim=1)[:, :, None]
        targets = self.targets[index]  # (B, count, num_classes)
        if multilabel:
            logs = F.logsigmoid(logits), F.logsigmoid(-logits)
            return self._log_mixture(logs[0], weight, targets) - self._log_mixture(logs[1], weight, ~targets)
        height = logits.logsumexp(dim=1, keepdim=True)
        return height + self._log_mixture(logits - height, weight, targets)

    def _log_mixture(self, log_head: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """(B, num_classes) log p_head, (B, count, 1) and (B, count, num_classes) -> (B, num_classes) log p."""
        vote = self.share * (weight * targets.to(weight)).sum(dim=1)
        least = torch.finfo(vote.dtype).tiny  # log 0 has no gradient
        return torch.logaddexp(math.log(1 - self.share) + log_head, vote.clamp(min=least).log())

    def settings(self) -> dict[str, Any]:
        """The keywords besides the tensors."""
        return {"share": self.share, "count": self.count, "temperature": self.temperature}


def _of_length_1(vectors: Tensor) -> Tensor:
    """(N, F) normalised; those that are already stay the same to the bit, so that a saved model is the same model."""
    done = (vectors.norm(dim=1, keepdim=True) - 1).abs() < 1e-5
    return vectors.where(done, F.normalize(vectors, dim=1))

"""Losses for classification with weighted, smoothed and mixed targets.

Each image has a mass per class: its weight times the share of the class in what it shows. All losses are linear in it,
so the loss of a mixed image is the mix of two images' losses.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def single_label_loss(logits: Tensor, positive: Tensor, class_weights: Tensor, *, focal_gamma: float = 0.0) -> Tensor:
    """Cross-entropy, or its focal form: -Σ w (1 - p)^γ m log p over the classes, the mean over the batch.

    Lin et al. 2017, equation 5, with the softmax's p; without weights and γ it is `F.cross_entropy`.

    Args:
        logits: (B, C).
        positive: (B, C) mass of each class; each row sums to the image's weight.
        class_weights: (C,).
    """
    log_p = logits.log_softmax(dim=1)
    terms = class_weights * positive * log_p
    if focal_gamma:
        # For γ below 1 the power has no derivative at 0, where p rounds to 1.
        terms = terms * (1 - log_p.exp()).clamp(min=torch.finfo(log_p.dtype).eps) ** focal_gamma
    return -terms.sum(dim=1).mean()


def multi_label_loss(
    logits: Tensor, positive: Tensor, weight: Tensor, class_weights: Tensor, *, focal_gamma: float = 0.0
) -> Tensor:
    """Binary cross-entropy of each class, or its focal form, the mean over batch and classes.

    -[w m (1 - p)^γ log p + (m' - m) p^γ log(1 - p)], p the sigmoid (Lin et al. 2017, equation 5).

    Args:
        logits: (B, C).
        positive: (B, C) mass m of each class.
        weight: (B, 1) weight m' of each image.
        class_weights: (C,) weight of the images that show the class, relative to those that don't.
    """
    log_p, log_q = F.logsigmoid(logits), F.logsigmoid(-logits)
    shown, other = class_weights * positive * log_p, (weight - positive) * log_q
    if focal_gamma:
        # Not exp() ** γ, which for γ below 1 has no derivative where exp() rounds to 0.
        shown, other = shown * (focal_gamma * log_q).exp(), other * (focal_gamma * log_p).exp()
    return -(shown + other).mean()


def smoothed(targets: Tensor, amount: float, *, multilabel: bool) -> Tensor:
    """(B, C) targets with a share spread over all classes (Szegedy et al. 2016), or over yes and no of each class."""
    return targets * (1 - amount) + amount / (2 if multilabel else targets.shape[1])


def balanced_weights(counts: Sequence[int], images: int, *, multilabel: bool) -> Tensor:
    """(C,) weights that compensate for the numbers of training images per class.

    For single labels images / (C · count), as scikit-learn's "balanced"; for several, the number of images without the
    label divided by the number with it. Classes without images, and labels that all images have, get 1.
    """
    count = torch.tensor(counts, dtype=torch.float32)
    balanced = (images - count) / count if multilabel else images / (len(counts) * count)
    unequal = (count > 0) & (count < images) if multilabel else count > 0
    return torch.where(unequal, balanced, 1.0)

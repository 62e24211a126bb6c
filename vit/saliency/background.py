"""Does the model read the object, or its background? A test that needs a mask and a head, but no map.

The players are the object and the background of an image, and the game is the probability p of the class that is
predicted for the whole image. Each is worth its Shapley value (Shapley 1953), which for two players is

    background = 1/2 [ p(background alone) - p(neither) + p(whole) - p(object alone) ]
    object     = 1/2 [ p(object alone) - p(neither) + p(whole) - p(background alone) ]

Their sum is p(whole) - p(neither). What is left out is filled with a plain colour: around the object the mean colour of
the training data; in place of the object the mean colour of this image's own background, because a bird-shaped hole in
another colour still has the shape of a bird. p(neither) is the probability of the class for any background: the mean of
p(background alone) over the images that are predicted as other classes (1 / number of classes, if there are fewer than
5 of them). It is needed because a model has a favourite answer when it finds no object, and giving that answer does not
mean that it was read from this background.

The share of the background is the sum of its worth over images, divided by the sum of both. A model that reads the
object has a share near 0; one that has memorised the backgrounds, near 1.

The verdict for the images of one predicted class depends on the 95% interval of the share. If it is

    above 1/2    the model reads the background rather than the object
    above 1/5    it leans on the background
    below 1/5    it reads the object
    elsewhere    not clear from this many images; also if the bounds are unknown, or there are fewer than 5 images
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vit.inference import arithmetic
from vit.models.classifier import Classifier
from vit.saliency.intervals import Interval

MOSTLY, PARTLY = 1 / 2, 1 / 5  # shares of the background that decide the verdict
FEWEST = 5


class Alone(NamedTuple):
    """Probabilities of the class that is predicted for the whole image, from the object alone and from the background
    alone, each (B,); and of all classes from the background alone, (B, num_classes). All float64, on the CPU."""

    object: Tensor
    background: Tensor
    answers: Tensor


@dataclass(frozen=True)
class Verdict:
    """The conclusion about the images of one predicted class."""

    words: str
    reads_background: bool


@torch.inference_mode()
def alone(model: Classifier, images: Tensor, masks: Tensor, predicted: Tensor, *, precision: str = "fp32") -> Alone:
    """What the model predicts for the object alone and the background alone, in two forward passes.

    Args:
        model: a Classifier with a head, in evaluation mode.
        images: (B, C, img_h, img_w), normalised, on the model's device.
        masks: (B, any_h, any_w) bool, True on the object.
        predicted: (B,) classes that the model predicts for the whole images, on any device.
        precision: precision of the forward passes.
    """
    inside = functional.interpolate(masks[:, None].to(images), images.shape[-2:], mode="nearest-exact")
    outside = 1 - inside
    own = (images * outside).sum((2, 3), keepdim=True) / outside.sum((2, 3), keepdim=True).clamp(min=1)
    with arithmetic(precision, images.device):
        logits = (model(images * inside), model(images * outside + own * inside))
    answers = [model.probabilities(each.double()).cpu() for each in logits]
    of_object, of_background = (each.gather(1, predicted.cpu()[:, None])[:, 0] for each in answers)
    return Alone(of_object, of_background, answers[1])


class Neither:
    """The probability of each class for backgrounds alone, collected over batches.

    Args:
        classes: number of classes.
    """

    def __init__(self, classes: int) -> None:
        self._sums = torch.zeros(classes, classes, dtype=torch.double)  # predicted class of the image, answer
        self._counts = torch.zeros(classes, dtype=torch.double)

    def add(self, predicted: Tensor, answers: Tensor) -> None:
        """Adds a batch: the classes predicted for the whole images (B,), and `Alone.answers` (B, num_classes)."""
        self._sums.index_add_(0, predicted, answers)
        self._counts.index_add_(0, predicted, torch.ones(len(predicted), dtype=torch.double))

    def probability(self) -> Tensor:
        """(num_classes,) p(neither) of each class, from the images that are predicted as other classes."""
        others = self._counts.sum() - self._counts
        said = (self._sums.sum(dim=0) - self._sums.diagonal()) / others.clamp(min=1)
        return torch.where(others >= FEWEST, said, 1 / len(others))


def worth(whole: Tensor, of_object: Tensor, of_background: Tensor, neither: Tensor) -> tuple[Tensor, Tensor]:
    """The Shapley values of object and background, each (B,), from probabilities (B,)."""
    return (of_object - neither + whole - of_background) / 2, (of_background - neither + whole - of_object) / 2


def verdict(share: Interval, images: int) -> Verdict:
    """The rule above, in words. NaN bounds are neither above nor below anything."""
    if images < FEWEST:
        return Verdict("too few images to tell", False)
    if share.low > MOSTLY:
        return Verdict("READS THE BACKGROUND rather than the object", True)
    if share.low > PARTLY:
        return Verdict("LEANS ON THE BACKGROUND", True)
    if share.high < PARTLY:
        return Verdict("reads the object", False)
    return Verdict("not clear from this many images", False)

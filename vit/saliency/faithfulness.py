"""Does the prediction change when the pixels that a map calls important are removed? Needs a head, but no mask.

    insertion, deletion              Petsiuk, Das & Saenko 2018 (RISE): area under the probability of the class that was
                                     predicted for the whole image, while its most relevant pixels are put back into a
                                     blurred image, or replaced by the mean colour. 0 to 1.
    positive, negative perturbation  Chefer, Gur & Wolf 2021: area under top-1 accuracy, while 0, 10 ... 90% of the
                                     pixels become black, the most relevant first, or the least relevant. 0 to 0.9.

For insertion and negative perturbation, higher is better; for the other two, lower. Areas use the trapezoid rule.

Pixels are ranked by the bilinearly upsampled map. Ties are broken in a random order, the same for every image and
method. All four curves share their forward passes: an image with the same pixels replaced in the same way is only
computed once.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from vit.inference import arithmetic
from vit.models.classifier import Classifier
from vit.saliency.upsample import upsample_maps

Fill = Literal["paper", "zero", "mean", "blur"]

STEPS = 20  # equal parts of an image that are removed one after the other
_PERTURBED = range(0, 19, 2)  # 0 to 90% in steps of 10
_ALL = range(STEPS + 1)


class _Metric(NamedTuple):
    """The fill in its paper; which pixels are removed first; the numbers of removed parts; whether it measures accuracy
    or probability."""

    fill: str
    highest_first: bool
    parts: Sequence[int]
    accuracy: bool


METRICS = {
    "insertion": _Metric("blur", False, _ALL, False),  # what is inserted first is removed last
    "deletion": _Metric("mean", True, _ALL, False),
    "positive_perturbation": _Metric("zero", True, _PERTURBED, True),
    "negative_perturbation": _Metric("zero", False, _PERTURBED, True),
}


class Answer(NamedTuple):
    """The model's answer for each image: probability (B,) of the class that is explained, and predicted class (B,)."""

    probability: Tensor
    predicted: Tensor


class Perturbation:
    """A batch of images, and a model's answers when pixels are removed.

    Args:
        model: a Classifier with a head, in evaluation mode.
        images: (B, C, img_h, img_w), normalised, on the model's device.
        fill: what replaces removed pixels: "zero" (black), "mean" (the mean colour of the training data), "blur"
            (RISE's: a Gaussian of sigma 5 in a window of 11 pixels at 224), or "paper" (the fill of each metric's
            paper).
        logits: (B, num_classes) of the unchanged images, if known; None computes them.
        precision: precision of the forward passes.

    Raises:
        ValueError: for a model without a head.
    """

    def __init__(
        self,
        model: Classifier,
        images: Tensor,
        *,
        fill: Fill = "paper",
        logits: Tensor | None = None,
        precision: str = "fp32",
    ) -> None:
        if model.num_classes == 0:
            raise ValueError("faithfulness needs a prediction, but the model has no head; score only localization")
        self.model = model
        self.images = images
        self.fill = fill
        self.logits = logits
        self.precision = precision
        self._fills: dict[str, Tensor] = {}
        self._empty: dict[str, Answer] = {}

    @cached_property
    def whole(self) -> Answer:
        """The answer for the unchanged images; the class predicted here is the one that is explained."""
        return self._ask(self.images, None) if self.logits is None else self._answers(self.logits, None)

    def scores(self, maps: Tensor, truths: Tensor | None = None) -> dict[str, Tensor]:
        """The four metrics, each (B,) float64 on the CPU.

        Args:
            maps: (B, grid_h, grid_w), any device.
            truths: (B,) classes that count as correct; None for those that the model predicts for the whole images.
        """
        ranks = removal_ranks(maps.to(self.images.device), self._size)
        hit = self.whole.predicted.cpu() if truths is None else truths.cpu()
        seen: dict[tuple[str, bool, int], Answer] = {}
        found = {}
        for name, metric in METRICS.items():
            fill = metric.fill if self.fill == "paper" else self.fill
            curve = []
            for part in metric.parts:
                key = (fill, metric.highest_first, part)
                if key not in seen:
                    seen[key] = self._answer(ranks, *key)
                answer = seen[key]
                curve.append((answer.predicted.cpu() == hit) if metric.accuracy else answer.probability.cpu())
            heights = torch.stack(curve).double()
            found[name] = torch.trapezoid(heights, dx=(metric.parts[1] - metric.parts[0]) / STEPS, dim=0)
        return found

    def filled(self, fill: str) -> Tensor:
        """(B, C, img_h, img_w): images in which all pixels are replaced by the fill."""
        if fill not in self._fills:
            self._fills[fill] = _filled(self.images, fill, self.model)
        return self._fills[fill]

    @property
    def _size(self) -> tuple[int, int]:
        return self.images.shape[-2], self.images.shape[-1]

    def _answer(self, ranks: Tensor, fill: str, highest_first: bool, part: int) -> Answer:
        if part == 0:
            return self.whole
        if part == STEPS:  # the same for every map
            if fill not in self._empty:
                self._empty[fill] = self._ask(self.filled(fill), self.whole.predicted)
            return self._empty[fill]
        pixels = ranks[0].numel()
        count = pixels * part // STEPS
        removed = ranks < count if highest_first else ranks >= pixels - count
        return self._ask(torch.where(removed[:, None], self.filled(fill), self.images), self.whole.predicted)

    @torch.inference_mode()
    def _ask(self, images: Tensor, explained: Tensor | None) -> Answer:
        with arithmetic(self.precision, images.device):
            logits = self.model(images)
        return self._answers(logits, explained)

    @torch.inference_mode()
    def _answers(self, logits: Tensor, explained: Tensor | None) -> Answer:
        probabilities = self.model.probabilities(logits.float())
        predicted = probabilities.argmax(dim=1)
        explained = predicted if explained is None else explained
        return Answer(probabilities.gather(1, explained[:, None])[:, 0], predicted)


def removal_ranks(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, grid_h, grid_w) -> (B, *size) int64: 0 for the most relevant pixel, up to the number of pixels minus one.

    NaN is least relevant. Ties are broken by one random order, the same for all.
    """
    full = upsample_maps(maps.float(), size).flatten(1)
    full = torch.where(full.isnan(), -torch.inf, full)
    shuffled = torch.randperm(full.shape[1], generator=torch.Generator().manual_seed(0)).to(full.device)
    order = shuffled[full[:, shuffled].argsort(dim=1, descending=True, stable=True)]
    places = torch.arange(full.shape[1], device=full.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).unflatten(1, size)


def _filled(images: Tensor, fill: str, model: Classifier) -> Tensor:
    if fill == "mean":
        return torch.zeros_like(images)
    if fill == "zero":
        prepared = model.preprocessing
        mean, std = (images.new_tensor(each)[:, None, None] for each in (prepared.mean, prepared.std))
        return (-mean / std).expand_as(images)
    scale = max(images.shape[-2:]) / 224
    kernel = max(3, 2 * round(5 * scale) + 1)  # odd
    return gaussian_blur(images, [kernel, kernel], [5 * scale, 5 * scale])

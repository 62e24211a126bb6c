"""How good saliency maps are, image by image: methods next to baselines that don't look at the image."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vit.foundation import UserError, nearest
from vit.inference import arithmetic
from vit.models.classifier import Classifier
from vit.saliency.background import Neither, alone, worth
from vit.saliency.baselines import centre_gaussian, noise
from vit.saliency.explain import METHODS, explain_batch
from vit.saliency.faithfulness import METRICS as PERTURBATIONS
from vit.saliency.faithfulness import Fill, Perturbation
from vit.saliency.localization import evaluate_maps
from vit.saliency.segmentation import segment

BASELINES = ("centre", "random")
LOCALIZATION = (
    "pointing_game", "energy_inside", "iou_at_equal_area", "pixel_accuracy", "average_precision", "mean_iou",
)  # fmt: skip
FAITHFULNESS = tuple(PERTURBATIONS)
LOWER_IS_BETTER = frozenset({"deletion", "positive_perturbation"})
SHOWN = 3  # of the best and of the worst maps of each method

Numbers = NDArray[np.float64]


class Shown(NamedTuple):
    """A map to show: its score, the number of its image, the photo (h, w, 3) uint8, and the map in patches."""

    value: float
    number: int
    photo: NDArray[np.uint8]
    grid_map: NDArray[np.float32]


@dataclass(frozen=True)
class Scores:
    """The scores of each image, in the order in which they were added.

    Args:
        methods: the requested methods, then the baselines.
        labels: labels of the model's classes.
        index: (images,) positions in the list of images.
        predicted: (images,) index of the predicted class, -1 for a model without a head.
        truth: (images,) index of the true class, -1 if it is not known.
        probability: (images,) probability of the predicted class; NaN without a head.
        area: (images,) share of the image that is object; NaN without masks.
        object_worth, background_worth: (images,) see `background.worth`; NaN without masks or a head.
        values: method -> metric -> (images,).
        overlaps: method -> intersections and unions, (images, 2) each: background and object. Empty without masks.
        extremes: method -> its best maps, best first, and its worst, worst first.
        ranked_by: the metric that decides which maps are best and worst.
    """

    methods: tuple[str, ...]
    labels: tuple[str, ...]
    index: NDArray[np.int64]
    predicted: NDArray[np.int64]
    truth: NDArray[np.int64]
    probability: Numbers
    area: Numbers
    object_worth: Numbers
    background_worth: Numbers
    values: dict[str, dict[str, Numbers]]
    overlaps: dict[str, tuple[Numbers, Numbers]]
    extremes: dict[str, tuple[list[Shown], list[Shown]]] = field(default_factory=dict)
    ranked_by: str = ""

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(images,) whether the truth is known and was predicted."""
        return (self.truth >= 0) & (self.truth == self.predicted)

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """(images,) whether the truth is known and was not predicted."""
        return (self.truth >= 0) & (self.truth != self.predicted)

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that were measured."""
        return list(self.values[self.methods[0]])


def chosen_methods(names: str) -> list[str]:
    """The methods in "rollout,attribution".

    Raises:
        UserError: for an unknown method, or no name at all.
    """
    asked = [name.strip() for name in names.split(",") if name.strip()]
    if not asked:
        raise UserError(f"--methods is {names!r}, which names no method.\nThe methods are: {', '.join(METHODS)}")
    for name in asked:
        if name not in METHODS:
            raise UserError(f"--methods has {name!r}{nearest(name, METHODS)}.\nThe methods are: {', '.join(METHODS)}")
    return asked


class Scorer:
    """Takes batches of images and scores the maps of several methods, and the baselines.

    Everything about a whole image comes from one forward pass, that of its first map. Keeps a few numbers per image,
    and the best and worst maps; nothing else grows with the number of images.

    Args:
        model: a Classifier; it is put into evaluation mode on `device`.
        methods: names of methods, as `vit.explain` takes them. The class that is explained is the predicted one.
        device, precision: the device and precision that the model runs in.
        faithfulness: what replaces removed pixels, see `Perturbation`; None only measures localisation.
        truths_known: whether every batch has the true classes as `target`, which accuracy then refers to.
        method_options: method -> keywords for `vit.explain`.
    """

    def __init__(
        self,
        model: Classifier,
        methods: Sequence[str],
        *,
        device: torch.device,
        precision: str = "fp32",
        faithfulness: Fill | None = None,
        truths_known: bool = False,
        method_options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.model = model.to(device).eval()
        self.asked = tuple(dict.fromkeys(method for method in methods if method not in BASELINES))
        self.device = device
        self.precision = precision
        self.faithfulness = faithfulness
        self.truths_known = truths_known
        self.method_options = method_options or {}
        self._facts: list[dict[str, Tensor]] = []
        self._neither = Neither(max(model.num_classes, 1))
        self._values: dict[str, list[dict[str, Tensor]]] = {method: [] for method in (*self.asked, *BASELINES)}
        self._extremes: dict[str, tuple[list[Shown], list[Shown]]] = {method: ([], []) for method in self.asked}

    def add(self, batch: Mapping[str, Any]) -> None:
        """Scores the images of a batch.

        Args:
            batch: image (B, C, h, w) and index (B,); optionally mask (B, any_h, any_w) bool, True on the object (images
                without any object are left out); target (B,), the true classes, -1 if unknown; photo, B pictures, to
                show the best and worst maps.
        """
        number = torch.arange(len(batch["index"]))
        kept = number[batch["mask"].flatten(1).any(dim=1)] if "mask" in batch and len(number) else number
        if len(kept) == 0:
            return
        images = batch["image"][kept].to(self.device, non_blocking=True)
        masks = batch["mask"][kept] if "mask" in batch else None
        index = batch["index"][kept]
        truth = batch["target"][kept] if "target" in batch else torch.full_like(index, -1)
        maps, logits = self._maps(images, index)
        perturbation = None
        if self.faithfulness is not None:
            perturbation = Perturbation(
                self.model, images, fill=self.faithfulness, logits=logits, precision=self.precision
            )
        for method, each in maps.items():
            found = {} if masks is None else _localization(each, masks)
            if perturbation is not None:
                found |= perturbation.scores(each, truth if self.truths_known else None)
            self._values[method].append(found)
            if method in self.asked and "photo" in batch:
                photos = [batch["photo"][place] for place in kept.tolist()]
                self._show(method, found, index, photos, each)
        self._facts.append({"index": index, "truth": truth, **self._fact(images, masks, logits)})

    def scores(self) -> Scores:
        """The scores of all images so far.

        Raises:
            UserError: when there are no images, or none with an object.
        """
        if not self._facts:
            raise UserError("None of the masks has an object, so there is nothing to score maps against.")
        facts = {name: torch.cat([part[name] for part in self._facts]) for name in self._facts[0]}
        neither = self._neither.probability()[facts["predicted"].clamp(min=0)]
        of_object, of_background = facts.pop("probability_of_object"), facts.pop("probability_of_background")
        worths = worth(facts["probability"], of_object, of_background, neither)
        facts["object_worth"], facts["background_worth"] = worths
        joined = {
            method: {name: _joined(parts, name).astype(np.float64) for name in parts[0]}
            for method, parts in self._values.items()
        }
        overlaps = {
            method: (values.pop("intersection"), values.pop("union"))
            for method, values in joined.items()
            if "union" in values
        }
        return Scores(
            methods=tuple(joined),
            labels=self.model.labels,
            values=joined,
            overlaps=overlaps,
            extremes=self._extremes,
            ranked_by=ranking_metric(joined[self.methods[0]]),
            **{name: each.numpy() for name, each in facts.items()},
        )

    @property
    def accuracy_of(self) -> str | None:
        """What the perturbations count as correct; None if they are not scored."""
        if self.faithfulness is None:
            return None
        return "true classes" if self.truths_known else "predictions for the whole images"

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that are scored, with the baselines last."""
        return tuple(self._values)

    def _maps(self, images: Tensor, index: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Maps of each method (B, grid_h, grid_w) on the CPU, and the logits."""
        maps: dict[str, Tensor] = {}
        logits = None
        for method in self.asked:
            with arithmetic(self.precision, self.device):
                found = explain_batch(self.model, images, method=method, **self.method_options.get(method, {}))
            maps[method] = found.maps.float().cpu()
            logits = found.logits if logits is None else logits
        if logits is None:
            with torch.inference_mode(), arithmetic(self.precision, self.device):
                logits = self.model(images).float()
        grid = self.model.encoder.grid_of(images)
        maps["centre"] = centre_gaussian(*grid).expand(len(images), -1, -1)
        maps["random"] = noise(images, grid)
        return maps, logits

    def _fact(self, images: Tensor, masks: Tensor | None, logits: Tensor) -> dict[str, Tensor]:
        """Facts about each image besides its maps."""
        unknown = torch.full((len(images),), torch.nan, dtype=torch.double)
        fact = dict.fromkeys(("probability", "probability_of_object", "probability_of_background"), unknown)
        fact["predicted"] = torch.full((len(images),), -1)
        fact["area"] = unknown if masks is None else masks.double().mean(dim=(1, 2))
        if self.model.num_classes > 0:
            probability, predicted = self.model.probabilities(logits.double()).max(dim=1)
            fact |= {"probability": probability.cpu(), "predicted": predicted.cpu()}
            if masks is not None:
                parts = alone(self.model, images, masks.to(self.device), predicted, precision=self.precision)
                self._neither.add(fact["predicted"], parts.answers)
                fact |= {"probability_of_object": parts.object, "probability_of_background": parts.background}
        return fact

    def _show(self, method: str, found: dict[str, Tensor], index: Tensor, photos: list[Any], maps: Tensor) -> None:
        """Keeps the batch's maps that are among the best or the worst so far."""
        values = _ranking(found)
        best, worst = self._extremes[method]
        for place, value in enumerate(values.tolist()):
            for kept, sign in ((best, 1.0), (worst, -1.0)):
                if len(kept) < SHOWN or sign * value > sign * kept[-1].value:
                    kept.append(Shown(value, int(index[place]), np.asarray(photos[place]), maps[place].numpy().copy()))
                    kept.sort(key=_by_value(sign))
                    del kept[SHOWN:]


def ranking_metric(values: Mapping[str, Any]) -> str:
    """The metric that ranks maps: the overlap with the object, or insertion minus deletion."""
    return "iou_at_equal_area" if "iou_at_equal_area" in values else "insertion - deletion"


def _ranking(found: Mapping[str, Tensor]) -> Tensor:
    name = ranking_metric(found)
    return found[name] if name in found else found["insertion"] - found["deletion"]


def _by_value(sign: float) -> Callable[[Shown], float]:
    return lambda shown: -sign * shown.value


def _localization(maps: Tensor, masks: Tensor) -> dict[str, Tensor]:
    segmented = segment(maps, masks)
    return {
        **evaluate_maps(maps, masks),
        "pixel_accuracy": segmented.pixel_accuracy,
        "average_precision": segmented.average_precision,
        "mean_iou": segmented.mean_iou,
        "intersection": segmented.intersection,
        "union": segmented.union,
    }


def _joined(parts: list[dict[str, Tensor]], name: str) -> NDArray[Any]:
    return torch.cat([part[name] for part in parts]).numpy()

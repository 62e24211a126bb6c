"""All methods in one table: the command line, the docs and the errors are made from it."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vit.models.classifier import Classifier
from vit.saliency.attention_maps import (
    attribution_maps,
    default_maps,
    gradient_rollout_maps,
    last_attention_maps,
    legrad_maps,
    rollout_maps,
    value_norm_maps,
)
from vit.saliency.baselines import centre_maps, random_maps
from vit.saliency.explanation import Explanation
from vit.saliency.grad_cam import grad_cam_maps
from vit.saliency.perturbation import occlusion_maps, rise_maps
from vit.saliency.pixel_gradients import input_x_gradient_maps, integrated_gradients_maps, smoothgrad_maps


@dataclass(frozen=True)
class Method:
    """A way to make maps.

    Args:
        maps: (model in evaluation mode, images, target (B,) or None, **options) -> Explanation.
        family: "attention", "gradient", "perturbation" or "baseline".
        needs_class: whether it explains a class, so that the model must have a head.
        source: the paper.
        summary: what a map shows, in one line.
    """

    maps: Callable[..., Explanation]
    family: str
    needs_class: bool
    source: str
    summary: str


METHODS: Mapping[str, Method] = {
    "default": Method(
        default_maps, "attention", False, "measured here", "more like what the last block attends to than like the rest"
    ),
    "rollout": Method(
        rollout_maps, "attention", False, "Abnar & Zuidema 2020", "attention multiplied through all blocks"
    ),
    "last_attention": Method(
        last_attention_maps, "attention", False, "Caron et al. 2021", "what the last block attends to"
    ),
    "value_norms": Method(
        value_norm_maps, "attention", False, "Kobayashi et al. 2020", "how much each patch sends in the last block"
    ),
    "attribution": Method(
        attribution_maps, "attention", True, "Chefer et al. 2021 (ICCV)", "attention weighed by its gradient"
    ),
    "gradient_rollout": Method(
        gradient_rollout_maps, "attention", True, "Gildenblat 2020", "rollout of attention weighed by its gradient"
    ),
    "legrad": Method(
        legrad_maps, "attention", True, "Bousselham et al. 2024", "where more attention would raise the class's score"
    ),
    "grad_cam": Method(
        grad_cam_maps, "gradient", True, "Selvaraju et al. 2017", "tokens along the gradient, before the last attention"
    ),
    "input_x_gradient": Method(
        input_x_gradient_maps, "gradient", True, "Shrikumar et al. 2016", "pixels times their gradient"
    ),
    "integrated_gradients": Method(
        integrated_gradients_maps, "gradient", True, "Sundararajan et al. 2017", "the same, along the way from grey"
    ),
    "smoothgrad": Method(
        smoothgrad_maps, "gradient", True, "Smilkov et al. 2017", "gradient of the pixels, the mean over noisy copies"
    ),
    "occlusion": Method(
        occlusion_maps, "perturbation", True, "Zeiler & Fergus 2014", "probability lost when a square is hidden"
    ),
    "rise": Method(rise_maps, "perturbation", True, "Petsiuk et al. 2018", "probability that random masks leave"),
    "centre": Method(centre_maps, "baseline", False, "none", "a Gaussian in the middle, for every image"),
    "random": Method(random_maps, "baseline", False, "none", "noise"),
}


def options_of(name: str) -> list[str]:
    """The options that a method takes: the keywords of the function that makes its maps."""
    parameters = inspect.signature(METHODS[name].maps).parameters
    return [option for option, found in parameters.items() if found.kind is found.KEYWORD_ONLY]


def check_serves(name: str, model: Classifier) -> None:
    """Raises ValueError, with the reason, when the method can't explain the model."""
    method = METHODS[name]
    if method.needs_class and model.num_classes == 0:
        others = [other for other, found in METHODS.items() if not found.needs_class and found.family != "baseline"]
        raise ValueError(f"{name} explains a class, but the model has no head; try {', '.join(map(repr, others))}")
    if name == "legrad" and model.pool_blocks > 1:
        raise ValueError("legrad applies the head to each block, but this head reads several; try 'attribution'")

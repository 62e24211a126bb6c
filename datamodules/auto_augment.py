"""Policies of random operations: RandAugment, AutoAugment, AugMix and TrivialAugment, in the field's vocabulary.

    rand-m9-n2, rand-m9-mstd0.5-inc1 ...    RandAugment (Cubuk et al. 2020), as timm reads it: magnitude 0 to 10, layers
    auto, original, originalr, v0, v0r, 3a  AutoAugment (Cubuk et al. 2019) and its kin, with timm's -mstd0.5
    augmix-m5-w4-d2 ...                     AugMix (Hendrycks et al. 2020), as timm reads it
    trivial                                 TrivialAugment Wide (Mueller & Hutter 2021), torchvision's

timm and torchvision draw from the global generators of Python, numpy and torch. Here these are seeded for each image
from the pipeline's own generator and restored afterwards, so that the result is a function of the image's seed.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import albumentations as A
import numpy as np
import torch
from PIL import Image, ImageOps

from vit.foundation import UserError

_POLICIES = ("original", "originalr", "v0", "v0r", "3a")
_ALLOWED = f"rand-m9-n2 and the like, auto, {', '.join(_POLICIES)} (each with -mstd0.5), augmix-m5-w4-d2, or trivial"


class AutoAugment(A.ImageOnlyTransform):
    """Applies a policy to uint8 RGB; masks are not transformed along.

    Args:
        policy: see above.
        image_size: (h, w) of the image; translations are up to 0.45 of the shorter side, as in timm.
        mean: of the three channels, for values 0 to 1; it fills the areas that a moved image leaves empty.

    Raises:
        UserError: there is no such policy.
    """

    def __init__(self, policy: str, image_size: tuple[int, int], mean: Sequence[float]) -> None:
        super().__init__(p=1)
        self.policy = _policy(policy, image_size, tuple(min(255, round(255 * one)) for one in mean))
        _keep_a_bit(self.policy)

    def get_params(self) -> dict[str, Any]:
        return {"seed": self.py_random.getrandbits(32)}

    def apply(self, img: np.ndarray, seed: int, **params: Any) -> np.ndarray:
        with global_seed(seed):
            return np.asarray(self.policy(Image.fromarray(img)))


def _keep_a_bit(policy: Any) -> None:
    """Makes timm's posterize leave an image at least one bit, because newer versions of Pillow refuse zero."""
    from timm.data import auto_augment as timm_policies

    groups = policy.policy if hasattr(policy, "policy") else [getattr(policy, "ops", ())]  # torchvision's has none
    for operation in (each for group in groups for each in group):
        if operation.aug_fn is timm_policies.posterize:
            operation.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    return ImageOps.posterize(image, min(8, max(1, bits)))


@contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """Seeds the global generators of Python, numpy and torch with `seed` (32 bits), and restores them afterwards."""
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.default_generator.set_state(states[2])


def _policy(policy: str, size: tuple[int, int], fill: tuple[int, ...]) -> Callable[[Image.Image], Image.Image]:
    from timm.data import auto_augment as timm_policies
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import TrivialAugmentWide

    name, *sections = policy.split("-")
    settings = {"translate_const": int(min(size) * 0.45), "img_mean": fill, "interpolation": Image.Resampling.BILINEAR}
    try:
        for section in sections:  # timm silently ignores these
            if not section.startswith("t") and not any(character.isdigit() for character in section):
                raise ValueError(f"no number in {section!r}")
        if policy == "trivial":
            return TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR, fill=list(fill))
        if name == "rand":
            return timm_policies.rand_augment_transform(policy, settings)
        if name == "augmix":
            return timm_policies.augment_and_mix_transform(policy, settings | {"translate_pct": 0.3})
        if name in ("auto", *_POLICIES):
            named = policy.replace("auto", "original", 1) if name == "auto" else policy
            return timm_policies.auto_augment_transform(named, settings)
    except (AssertionError, ValueError, KeyError) as error:
        reason = f" ({error})" if str(error) else ""
        raise UserError(
            f"auto_augment is {policy!r}, which timm can't read{reason}.\nAllowed are {_ALLOWED}."
        ) from None
    raise UserError(f"auto_augment is {policy!r}.\nAllowed are {_ALLOWED}.")

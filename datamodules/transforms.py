"""Photos to normalised tensors: albumentations pipelines for training and for evaluation.

Random numbers come from a seed passed with each photo, because albumentations by itself gives every worker of a loader,
and every epoch, the same random stream. Images are resized by Pillow with antialiasing, as most published checkpoints
were trained and measured; OpenCV has no antialiasing. Random crops are resized by torch with the same filters, in a
quarter of the time; their pixels differ from Pillow's by at most 4 of 255 levels, and most are the same.

    img_h, img_w    pixels of the photo
    h, w            pixels of the model's input
"""

import math
import random
from collections.abc import Sequence
from typing import Any, Literal

import albumentations as A
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from albumentations.core.type_definitions import Targets
from PIL import Image
from torch import Tensor

from vit.foundation import UserError, nearest

Interpolation = Literal["bicubic", "bilinear"]
ResizeMode = Literal["squash", "crop"]
EraseMode = Literal["mean", "pixel"]

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_TORCH_MODES = {kernel: name for name, kernel in _FILTERS.items()}
_RATIO = (3 / 4, 4 / 3)


class Pipeline:
    """Steps of albumentations, then normalisation.

    Args:
        steps: the steps for the uint8 photo; the last one results in the model's size.
        mean, std: of the three channels, for values 0 to 1.
        min_size: smallest size (img_h, img_w) at which photos may be decoded, see `read_photo`; None for full size.
        fixed: a complete description of the steps, if nothing in them is random; otherwise empty.
    """

    def __init__(
        self,
        steps: Sequence[A.BasicTransform],
        mean: Sequence[float],
        std: Sequence[float],
        min_size: tuple[int, int] | None = None,
        fixed: str = "",
    ) -> None:
        self.steps = A.Compose(list(steps))
        self.min_size = min_size
        self.recipe = fixed or f"decoded for {min_size}"  # everything that `settle` and the reader do to a file
        self.fixed = bool(fixed)
        # (value / 255 - mean) / std, as one multiplication and one subtraction
        self._scale = np.array([1 / (255 * one) for one in std], np.float32)[:, None, None]
        self._shift = np.array([m / s for m, s in zip(mean, std, strict=True)], np.float32)[:, None, None]

    def __call__(self, image: np.ndarray, seed: Sequence[int] = ()) -> Tensor:
        """uint8 RGB (img_h, img_w, 3) -> float32 (3, h, w), normalised.

        The random numbers are a pure function of `seed`, non-negative integers such as (seed, epoch, index). Without a
        seed, a random pipeline returns something else each time; a pipeline for evaluation is not random.
        """
        return self.vary(self.settle(image), seed)

    def settle(self, image: np.ndarray) -> np.ndarray:
        """The fixed part, always the same for the same photo: all steps of a pipeline that is not random, or none."""
        return self.steps(image=image)["image"] if self.fixed else image

    def vary(self, image: np.ndarray, seed: Sequence[int] = ()) -> Tensor:
        """The rest: the result of `settle` -> float32 (3, h, w), normalised."""
        if not self.fixed:
            self._reseed(seed)
            image = self.steps(image=image)["image"]
        return self._normalise(image)

    def with_mask(self, image: np.ndarray, mask: np.ndarray, seed: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """The whole pipeline for a photo and its bool mask (img_h, img_w), which stay aligned; the mask becomes bool
        (h, w)."""
        self._reseed(seed)
        done = self.steps(image=image, mask=mask.astype(np.uint8))
        return self._normalise(done["image"]), torch.from_numpy(np.array(done["mask"], bool))

    def _reseed(self, seed: Sequence[int]) -> None:
        if not seed:
            return
        generator = np.random.default_rng(np.random.SeedSequence(tuple(seed)))
        # One pair of generators for all steps: Compose.set_random_seed would give each step its own generator with the
        # same seed, so that the size of a photo's crop would decide whether it is flipped.
        self.steps.set_random_state(generator, random.Random(int(generator.integers(2**63))))

    def _normalise(self, image: np.ndarray) -> Tensor:
        out = np.empty((3, *image.shape[:2]), np.float32)
        np.multiply(image.transpose(2, 0, 1), self._scale, out=out)
        np.subtract(out, self._shift, out=out)
        return torch.from_numpy(out)


def train_transform(
    image_size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    crop_scale: float = 0.35,
    hflip: float = 0.5,
    color_jitter: float = 0.2,
    auto_augment: str | None = None,
    erase: float = 0.0,
    erase_mode: EraseMode = "mean",
    interpolation: Interpolation = "bicubic",
) -> Pipeline:
    """The pipeline for training: random crop, flip, colour jitter or an augmentation policy, and erasing.

    Args:
        image_size: (h, w).
        mean, std: of the three channels, of values 0 to 1.
        crop_scale: smallest share of the photo's area that a crop keeps, with aspect ratios of 3:4 to 4:3; 1 keeps the
            whole photo.
        hflip: probability of a horizontal flip.
        color_jitter: brightness, contrast and saturation are multiplied by a factor in 1 +- this; 0 to 1.
        auto_augment: a policy, see `datamodules.auto_augment`; as in timm, it replaces the colour jitter.
        erase: probability of erasing a rectangle of 2 to 33% of the area with an aspect ratio of 3:10 to 10:3 (Zhong
            et al. 2020).
        erase_mode: what the rectangle is filled with: the mean colour, or random pixels.
        interpolation: the filter for resizing.

    Raises:
        UserError: for an unknown interpolation or policy.
    """
    kernel = _filter(interpolation)
    steps: list[A.BasicTransform]
    if crop_scale < 1:
        shrink = 1 / math.sqrt(crop_scale * _RATIO[0])  # of the smallest crop's shorter side
        steps = [_RandomResizedCrop(image_size, crop_scale, kernel)]
    else:
        shrink = 1.0
        steps = [_Squash(image_size, kernel)]
    if hflip > 0:
        steps.append(A.HorizontalFlip(p=hflip))
    if auto_augment:
        from datamodules.auto_augment import AutoAugment  # timm is slow to import

        steps.append(AutoAugment(auto_augment, image_size, mean))
    elif color_jitter > 0:
        steps.append(A.ColorJitter(color_jitter, color_jitter, color_jitter, hue=0, p=1))
    if erase > 0:
        fill = "random" if erase_mode == "pixel" else tuple(255.0 * one for one in mean)
        steps.append(_Erase((0.02, 1 / 3), (0.3, 10 / 3), fill=fill, p=erase))
    return Pipeline(steps, mean, std, (math.ceil(image_size[0] * shrink), math.ceil(image_size[1] * shrink)))


def eval_transform(
    image_size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    crop_pct: float = 1.0,
    resize_mode: ResizeMode = "squash",
    interpolation: Interpolation = "bicubic",
) -> Pipeline:
    """The pipeline for evaluation: always the same tensor for the same photo, and the same as in timm's evaluation.

    The photo is decoded at full size, so that a model's probabilities are the same wherever it is loaded: a JPEG that
    is decoded at a smaller size and then resized differs by a few grey levels.

    Args:
        image_size: (h, w).
        mean, std: of the three channels, for values 0 to 1.
        crop_pct: with `crop`, the share of the shorter side that is kept; no effect with `squash`.
        resize_mode: `squash` resizes the whole photo to `image_size`, so that a saliency map covers all of it; `crop`
            resizes the shorter side to image_size / crop_pct and takes the centre, as timm does.
        interpolation: the filter for resizing.

    Raises:
        UserError: for an unknown interpolation.
    """
    kernel = _filter(interpolation)
    step = _Squash(image_size, kernel) if resize_mode == "squash" else _CentreCrop(image_size, crop_pct, kernel)
    return Pipeline([step], mean, std, fixed=f"{resize_mode} {image_size} {crop_pct} {interpolation}")


class _Squash(A.DualTransform):
    """Resizes the whole photo to `size` (h, w)."""

    _targets = (Targets.IMAGE, Targets.MASK)

    def __init__(self, size: tuple[int, int], kernel: Image.Resampling) -> None:
        super().__init__(p=1)
        self.size = size
        self.kernel = kernel

    def apply(self, img: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
        return _resize(img, self.size, self.kernel)

    def apply_to_mask(self, mask: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
        return _resize(mask, self.size, Image.Resampling.NEAREST)


class _CentreCrop(A.DualTransform):
    """Resizes until the photo just covers `whole` = size / crop_pct, and takes the centre.

    It rounds like torchvision and timm, so that published accuracies are reproduced.
    """

    _targets = (Targets.IMAGE, Targets.MASK)

    def __init__(self, size: tuple[int, int], crop_pct: float, kernel: Image.Resampling) -> None:
        super().__init__(p=1)
        self.size = size
        self.whole = (math.floor(size[0] / crop_pct), math.floor(size[1] / crop_pct))
        self.kernel = kernel

    def apply(self, img: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
        return self._crop(img, self.kernel)

    def apply_to_mask(self, mask: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
        return self._crop(mask, Image.Resampling.NEAREST)

    def _crop(self, image: np.ndarray, kernel: Image.Resampling) -> np.ndarray:
        img_h, img_w = image.shape[:2]
        ratio = min(img_h / self.whole[0], img_w / self.whole[1])
        if self.whole[0] == self.whole[1]:
            short = self.whole[0]
            height, width = int(short * img_h / min(img_h, img_w)), int(short * img_w / min(img_h, img_w))
        else:
            height, width = round(img_h / ratio), round(img_w / ratio)
        resized = _resize(image, (height, width), kernel)
        top, left = round((height - self.size[0]) / 2), round((width - self.size[1]) / 2)
        return resized[top : top + self.size[0], left : left + self.size[1]]


class _RandomResizedCrop(A.RandomResizedCrop):
    """A crop chosen by albumentations, resized with the antialiased filter of evaluation."""

    def __init__(self, size: tuple[int, int], crop_scale: float, kernel: Image.Resampling) -> None:
        super().__init__(size, scale=(crop_scale, 1.0), ratio=_RATIO, mask_interpolation=cv2.INTER_NEAREST_EXACT)
        self.kernel = kernel

    def apply(self, img: np.ndarray, crop_coords: tuple[int, int, int, int], *args: Any, **params: Any) -> np.ndarray:
        left, top, right, bottom = crop_coords
        return _resize_quickly(img[top:bottom, left:right], self.size, self.kernel)


class _Erase(A.Erasing):
    """Zhong et al. 2020, algorithm 1, with a uniform logarithm of the aspect ratio, as in timm and torchvision.

    Albumentations' own version never draws the larger areas, and fails on long, narrow images.
    """

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        img_h, img_w = params["shape"][:2]
        holes = np.empty((0, 4), np.int32)
        for _ in range(10):
            area = self.py_random.uniform(*self.scale) * img_h * img_w
            ratio = math.exp(self.py_random.uniform(*map(math.log, self.ratio)))
            height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if height < img_h and width < img_w:
                top, left = self.py_random.randint(0, img_h - height), self.py_random.randint(0, img_w - width)
                holes = np.array([[left, top, left + width, top + height]], np.int32)
                break
        return {"holes": holes, "seed": self.py_random.getrandbits(32)}


def _filter(interpolation: str) -> Image.Resampling:
    if interpolation not in _FILTERS:
        hint = nearest(interpolation, _FILTERS)
        raise UserError(f"interpolation is {interpolation!r}; it must be one of: {', '.join(_FILTERS)}{hint}.")
    return _FILTERS[interpolation]


def _resize_quickly(image: np.ndarray, size: tuple[int, int], kernel: Image.Resampling) -> np.ndarray:
    """Like `_resize`, for (img_h, img_w, 3): faster, but not bit for bit the same."""
    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"]))[None].permute(0, 3, 1, 2)  # colours together
    resized = F.interpolate(pixels, size, mode=_TORCH_MODES[kernel], antialias=True)
    return resized.permute(0, 2, 3, 1)[0].numpy()


def _resize(image: np.ndarray, size: tuple[int, int], kernel: Image.Resampling) -> np.ndarray:
    """uint8 (img_h, img_w, 3) or (img_h, img_w) -> the same with `size` (h, w)."""
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), kernel))

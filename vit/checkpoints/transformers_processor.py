"""The preprocessing of transformers, preprocessor_config.json, as keywords of `Preprocessing`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isclose, nextafter
from typing import Any

from vit.models.classifier import IMAGENET_MEAN, IMAGENET_STD

HALF = (0.5, 0.5, 0.5)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # Pillow's numbers

ANY_BY_PILLOW = "PilBackend"  # a processor that does what its config says, and no more: that of our own export


class Misfit(Exception):
    """What is wrong with a config, as the end of a sentence."""


@dataclass(frozen=True)
class Processor:
    """An image processor, and what it does where its config does not say.

    Args:
        square: whether a size of one number means both sides, and not the shorter one.
        crop_pct: share that the crop keeps of what was resized; None for no crop.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int
    square: bool
    crop_pct: float | None


PROCESSORS = {
    "ViT": Processor(HALF, HALF, 2, square=True, crop_pct=None),
    "DeiT": Processor(HALF, HALF, 3, square=True, crop_pct=224 / 256),
    "Bit": Processor(CLIP_MEAN, CLIP_STD, 3, square=False, crop_pct=1.0),
    "CLIP": Processor(CLIP_MEAN, CLIP_STD, 3, square=False, crop_pct=1.0),
    "DINOv3ViT": Processor(IMAGENET_MEAN, IMAGENET_STD, 2, square=True, crop_pct=None),
    "Siglip": Processor(HALF, HALF, 3, square=False, crop_pct=None),
}


def preprocessing(
    config: Mapping[str, Any] | None,
    usual: str,
    image_size: tuple[int, int],
    patch_size: tuple[int, int],
    channels: int,
) -> tuple[dict[str, Any], list[str]]:
    """Keywords of `Preprocessing`, and what can't be said by these.

    Args:
        config: of the image processor, None where there is none.
        usual: the processor of the model's type, a name in PROCESSORS.
        image_size, patch_size, channels: of the model.

    Raises:
        Misfit: when the config is malformed.
    """
    notes = []
    if config is None:
        config = {}
        notes.append(f"it has no preprocessor_config.json; images are prepared as {usual}ImageProcessor does")
    name = config.get("image_processor_type") or config.get("feature_extractor_type") or usual
    kind = re.sub("(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", str(name))[:60]
    if kind not in PROCESSORS and kind != ANY_BY_PILLOW:
        notes.append(f"its image processor, {kind}, is not known here: what its config does not say is as {usual}'s")
    processor = PROCESSORS.get(kind, PROCESSORS[usual])
    prepared, told = _geometry(config, processor, image_size)
    notes += told
    if any(size % patch for size, patch in zip(prepared["image_size"], patch_size, strict=True)):
        notes.append("its images are of {} x {}, which the patches don't divide".format(*prepared["image_size"]))
        prepared["image_size"] = image_size
    resample = _number(config, "resample", processor.resample)
    if FILTERS.get(int(resample)) in ("bilinear", "bicubic"):
        prepared["interpolation"] = FILTERS[int(resample)]
    else:
        notes.append(f"its filter, {FILTERS.get(int(resample), resample)}, is not known here; bicubic takes its place")
    return prepared | _colours(config, processor, channels), notes


def _geometry(
    config: Mapping[str, Any], processor: Processor, image_size: tuple[int, int]
) -> tuple[dict[str, Any], list[str]]:
    """The size of the image, and the part of the photo that it shows."""
    crops = config.get("do_center_crop", processor.crop_pct is not None)
    if "size" not in config or not config.get("do_resize", True):
        notes = [] if config.get("do_resize", True) else ["its images are not resized; here they are"]
        if not crops:
            return {"image_size": image_size, "resize_mode": "squash"}, notes
        return {"image_size": image_size, "resize_mode": "crop", "crop_pct": processor.crop_pct or 1.0}, notes
    shorter, resized = _size(config, "size", square=processor.square)
    cropped = _size(config, "crop_size", square=True)[1] if crops and "crop_size" in config else resized
    if not shorter and cropped == resized:
        return {"image_size": resized, "resize_mode": "squash"}, []
    pct = max(_share(crop, side) for crop, side in zip(cropped, resized, strict=True))
    notes = []
    if pct > 1.0:
        notes.append("its crop is larger than the photo, and adds a black edge; here there is none")
    elif not shorter:
        notes.append("it squashes photos to {} x {} before it crops; here they keep their shape".format(*resized))
    elif not crops:
        notes.append("its images keep the photo's shape; here their centre is taken")
    elif cropped[0] != cropped[1]:
        notes.append("its crop of {} x {} is of the photo's middle; here it is as much as fits".format(*cropped))
    return {"image_size": cropped, "resize_mode": "crop", "crop_pct": min(pct, 1.0)}, notes


def _share(crop: int, side: int) -> float:
    """crop / side, such that crop / share is not below side by a rounding error."""
    share = crop / side
    return share if crop / share >= side else nextafter(share, 0.0)


def _size(config: Mapping[str, Any], name: str, *, square: bool) -> tuple[bool, tuple[int, int]]:
    """Whether a size is of the shorter side, and (height, width)."""
    value = config[name]
    sides = value if isinstance(value, Mapping) else {"height": value, "width": value}
    shorter = sides.keys() == {"shortest_edge"} or (sides is not value and not square)
    numbers: list[Any] = [sides.get(side, sides.get("shortest_edge")) for side in ("height", "width")]
    known = sides.keys() in ({"shortest_edge"}, {"height", "width"})
    if not known or not all(type(number) is int and number >= 1 for number in numbers):
        raise Misfit(
            f"the {name} of its images is {shown(value)}; known are a number, "
            '{"height": ..., "width": ...} and {"shortest_edge": ...}'
        )
    return shorter, (numbers[0], numbers[1])


def _colours(config: Mapping[str, Any], processor: Processor, channels: int) -> dict[str, Any]:
    """Mean and std for pixels from 0 to 1, which the library may have otherwise."""
    mean = _channels(config, "image_mean", processor.mean, channels)
    std = _channels(config, "image_std", processor.std, channels)
    if not config.get("do_normalize", True):
        mean, std = (0.0,) * channels, (1.0,) * channels
    if min(std) <= 0:
        raise Misfit(f"its image_std is {list(std)}; allowed are numbers above 0")
    factor = _number(config, "rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
    if not 1e-9 < factor < 1e9:
        raise Misfit(f"its rescale_factor is {factor}; usual is 1/255")
    top = 1.0 if isclose(factor * 255, 1.0, rel_tol=1e-6) else factor * 255  # what white becomes
    return {"mean": tuple(value / top for value in mean), "std": tuple(value / top for value in std)}


def _channels(config: Mapping[str, Any], name: str, usual: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if len(usual) != channels:
        usual = (0.5,) * channels
    values = config.get(name, usual)
    numbers = tuple(values) if isinstance(values, list | tuple) else (values,) * channels
    if len(numbers) != channels or not all(_is_number(number) for number in numbers):
        raise Misfit(f"its {name} is {shown(values)}; allowed are {channels} numbers")
    return tuple(float(number) for number in numbers)


def _number(config: Mapping[str, Any], name: str, usual: float) -> float:
    value = config.get(name, usual)
    if not _is_number(value):
        raise Misfit(f"its {name} is {shown(value)}, not a number")
    return float(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


def shown(value: object) -> str:
    """A value for a message, which may be of any length."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

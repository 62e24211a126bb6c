"""Raw maps as files: numbers for programs to read, in several formats."""

import os
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from vit.foundation import atomic_write

MapFormat = Literal["npy", "npz", "tiff", "png16"]

# The overlay is NAME.png, so png16 needs another name.
SUFFIXES = {"npy": ".npy", "npz": ".npz", "tiff": ".tiff", "png16": ".map.png"}
LEVELS = 65534  # levels of png16 above the one for the lowest value


def map_path(stem: str | os.PathLike[str], form: MapFormat, *, full: bool = False) -> Path:
    """The path of a stem's map: STEM.npy, or STEM.full.npy for the map at the photo's own resolution."""
    stem = Path(stem)
    return stem.with_name(stem.name + ".full" * full + SUFFIXES[form])


def finite_range(saliency: NDArray[Any]) -> tuple[float, float] | None:
    """The minimum and maximum of the finite values; None if there are none."""
    values = saliency[np.isfinite(saliency)]
    return (float(values.min()), float(values.max())) if values.size else None


def save_map(
    path: str | os.PathLike[str],
    saliency: NDArray[Any],
    form: MapFormat = "npy",
    *,
    limits: tuple[float, float] | None = None,
) -> None:
    """Writes a map of any shape (height, width) atomically; it is on the disk when this returns.

        npy     float32, np.load(path)
        npz     float32 under the name "map", compressed, np.load(path)["map"]
        tiff    float32, one channel, compressed without loss
        png16   uint16: 0 where the map is not finite, else 1 + 65534 (map - low) / (high - low), rounded

    Args:
        limits: (low, high) for png16; None for the map's own minimum and maximum. Values outside are clipped.

    Raises:
        ValueError: for another form, or a map that can't be encoded.
    """
    if form not in get_args(MapFormat):
        raise ValueError(f"The format of a map is {form!r}; allowed are {', '.join(get_args(MapFormat))}.")
    values = np.ascontiguousarray(saliency, dtype=np.float32)
    with atomic_write(path) as temporary:
        if form == "tiff":
            temporary.write_bytes(_encoded(".tiff", values))
        elif form == "png16":
            temporary.write_bytes(_encoded(".png", _levels(saliency, *(limits or finite_range(saliency) or (0, 0)))))
        else:
            with temporary.open("wb") as file:
                if form == "npy":
                    np.save(file, values, allow_pickle=False)
                else:
                    np.savez_compressed(file, map=values)


def _levels(saliency: NDArray[Any], low: float, high: float) -> NDArray[np.uint16]:
    """The levels of png16, computed in float64: float32 has too few digits for 65,535 levels with an offset."""
    finite = np.isfinite(saliency)
    values = np.where(finite, saliency, low).astype(np.float64)
    shares = ((values - low) / (high - low)).clip(0, 1) if high > low else np.zeros_like(values)
    return np.where(finite, 1 + np.rint(shares * LEVELS), 0).astype(np.uint16)


def _encoded(suffix: str, values: NDArray[Any]) -> bytes:
    """The encoded image, in memory, because OpenCV can't write to a path that is not UTF-8."""
    done, data = cv2.imencode(suffix, values)
    if not done:
        raise ValueError(f"A map of the shape {values.shape} can't be encoded as {suffix}.")
    return data.tobytes()

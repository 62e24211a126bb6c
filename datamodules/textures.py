"""A small bank of tileable noise textures, made once from fixed seeds, and ways to take pieces of it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

TILE = 512
_BANK_SEED = 20240607

# name: (slope of the amplitude over frequency, squeeze along x, squeeze along y, lowest frequency in cycles per
# tile). A squeeze above 1 makes the texture vary slowly along that axis, so it forms streaks there.
_SPECTRA: dict[str, tuple[float, float, float, float]] = {
    "cloud": (1.7, 0.75, 1.25, 2.0),
    "foliage": (1.15, 1.0, 1.0, 6.0),
    "soil": (0.9, 1.0, 0.8, 4.0),
    "ripple": (1.5, 4.5, 0.8, 12.0),
    "blades": (1.1, 0.7, 5.0, 10.0),
    "bark": (1.1, 0.6, 6.0, 6.0),
    "feathers": (0.8, 2.5, 1.0, 24.0),
    "grain": (0.0, 1.0, 1.0, 1.0),
}


def _noise(seed: int, slope: float, squeeze_x: float, squeeze_y: float, lowest: float) -> NDArray[np.uint8]:
    """Gaussian noise with a power-law spectrum, periodic in both axes; mean 128, standard deviation 50."""
    white = np.random.Generator(np.random.PCG64(seed)).standard_normal((TILE, TILE))
    fy = np.fft.fftfreq(TILE, 1 / TILE)[:, None] * squeeze_y
    fx = np.fft.rfftfreq(TILE, 1 / TILE)[None, :] * squeeze_x
    frequency = np.maximum(np.hypot(fx, fy), 1e-6)
    amplitude = frequency**-slope / (1 + (lowest / frequency) ** 4)
    amplitude[0, 0] = 0
    field = np.fft.irfft2(np.fft.rfft2(white) * amplitude, s=(TILE, TILE))
    return np.clip(np.rint(128 + 50 * field / field.std()), 0, 255).astype(np.uint8)


@lru_cache(maxsize=1)
def _bank() -> dict[str, NDArray[np.uint8]]:
    """Every texture, repeated twice along each axis so that any crop up to TILE wide is one slice."""
    return {
        name: np.tile(_noise(_BANK_SEED + number, *spectrum), (2, 2))
        for number, (name, spectrum) in enumerate(_SPECTRA.items())
    }


def noise(
    name: str, rng: np.random.Generator, shape: tuple[int, int], side: int, side_y: int | None = None
) -> NDArray[np.float32]:
    """A random piece of a texture, (height, width) = shape, about 0 to 1 with mean 0.5.

    `side` (and `side_y`, if the piece is to be squeezed) is its width (height) in texels, at most TILE: the
    larger, the finer the pattern. It does not depend on the image size, so neither does what is seen.
    """
    x, y = (int(value) for value in rng.integers(0, TILE, 2))
    mirror = rng.random() < 0.5
    piece = _bank()[name][y : y + (side_y or side), x : x + side]
    shrinks = piece.shape[0] >= shape[0] and piece.shape[1] >= shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = cv2.resize(piece, (shape[1], shape[0]), interpolation=how)
    if mirror:
        resized = resized[:, ::-1]
    return resized * np.float32(1 / 255)


@lru_cache(maxsize=8)
def grid(size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Pixel centres in unit coordinates: x as a row (1, size), y as a column (size, 1)."""
    centers = ((np.arange(size) + 0.5) / size).astype(np.float32)
    return centers[None, :], centers[:, None]


def ground_noise(
    name: str, rng: np.random.Generator, size: int, horizon: float, density: float
) -> NDArray[np.float32]:
    """A texture that lies on the ground and recedes to a horizon (unit coordinates), (size, size), 0 to 1.

    Above the horizon the values mean nothing. `density` is the number of texels across the near edge.
    """
    x, y = grid(size)
    offset_x, offset_y = rng.integers(0, TILE, 2)
    near = np.maximum((y - np.float32(horizon)) / np.float32(1 - horizon), 0)
    distance = 1 / (near + np.float32(0.16))
    map_x = ((x - 0.5) * distance * np.float32(density) + np.float32(offset_x + 4 * TILE)) % TILE
    map_y = np.broadcast_to((distance * np.float32(density) + np.float32(offset_y)) % TILE, (size, size))
    sampled: NDArray[Any] = cv2.remap(_bank()[name], map_x, np.ascontiguousarray(map_y), cv2.INTER_LINEAR)
    return sampled * np.float32(1 / 255)

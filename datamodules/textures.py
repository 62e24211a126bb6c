"""A small bank of tileable noise textures, made once from fixed seeds, and ways to take pieces of it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

TILE = 512
_BANK_SEED = 20240607

# name: (slope of the amplitude over frequency, squeeze along x, squeeze along y, lowest frequency in cycles
# per tile). A squeeze above 1 makes the texture vary slowly along that axis, so it forms streaks there.
_SPECTRA: dict[str, tuple[float, float, float, float]] = {
    "cloud": (1.7, 0.75, 1.25, 2.0),
    "foliage": (1.15, 1.0, 1.0, 6.0),
    "soil": (0.9, 1.0, 0.8, 4.0),
    "ripple": (1.5, 4.5, 0.8, 12.0),
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


def _repeats(place: int, reach: int) -> list[int]:
    """Where along one axis something must be drawn for its parts beyond the tile to come in again."""
    return [x for x in (place - TILE, place, place + TILE) if -reach < x < TILE + reach]


def _strokes(seed: int, count: int, length: float, width: float, upright: bool) -> NDArray[np.uint8]:
    """Overlapping leaves (or blades of grass, if upright) from dark ones at the back to light ones in
    front."""
    rng = np.random.Generator(np.random.PCG64(seed))
    tile = np.full((TILE, TILE), 60, np.uint8)
    middles = rng.integers(0, TILE, (count, 2))
    turns = rng.normal(90, 14, count) if upright else rng.uniform(0, 360, count)
    sizes = rng.uniform(0.6, 1.4, count)
    tones = np.clip(np.linspace(20, 205, count) + rng.normal(0, 30, count), 0, 255)
    for middle, turn, size, tone in zip(middles, turns, sizes, tones, strict=True):
        axes = (round(length * size), max(1, round(width * size)))
        # A stroke over the border comes back on the other side, for the tile to repeat without a seam.
        for x in _repeats(int(middle[0]), axes[0]):
            for y in _repeats(int(middle[1]), axes[0]):
                cv2.ellipse(tile, (x, y), axes, float(turn), 0, 360, float(tone), -1)
    return tile


def _levels(tile: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], ...]:
    """The tile and its halvings, each repeated twice along each axis so that a crop up to its width is a
    slice."""
    tiles: list[NDArray[Any]] = [tile]
    for _ in range(3):
        half = tiles[-1].shape[0] // 2
        tiles.append(cv2.resize(tiles[-1], (half, half), interpolation=cv2.INTER_AREA))
    return tuple(np.tile(each, (2, 2)) for each in tiles)


@lru_cache(maxsize=1)
def _bank() -> dict[str, tuple[NDArray[np.uint8], ...]]:
    """Every texture, at full size and halved up to three times."""
    tiles = {name: _noise(_BANK_SEED + number, *spectrum) for number, (name, spectrum) in enumerate(_SPECTRA.items())}
    tiles["leaves"] = _strokes(_BANK_SEED + 100, 5200, 9, 4, upright=False)
    tiles["grass"] = _strokes(_BANK_SEED + 101, 6000, 17, 1.6, upright=True)
    return {name: _levels(tile) for name, tile in tiles.items()}


def noise(
    name: str, rng: np.random.Generator, shape: tuple[int, int], side: int, side_y: int | None = None
) -> NDArray[np.float32]:
    """A random piece of a texture, (height, width) = shape, about 0 to 1 with mean 0.5.

    `side` (and `side_y`, if the piece is to be squeezed) is its width (height) in texels, at most TILE: the
    larger, the finer the pattern. It does not depend on the image size, so neither does what is seen.
    """
    side_y = side_y or side
    x, y = rng.integers(0, TILE, 2).tolist()
    mirror = rng.random() < 0.5
    # From the halving that is just finer than what is asked for, a bilinear look-up is enough.
    levels = _bank()[name]
    fineness = min(side // shape[1], side_y // shape[0])
    level = min(max(fineness, 1).bit_length() - 1, len(levels) - 1)
    x, y, width, height = x >> level, y >> level, side >> level, max(1, side_y >> level)
    piece = cv2.resize(levels[level][y : y + height, x : x + width], (shape[1], shape[0]))
    if mirror:
        piece = piece[:, ::-1]
    return piece * np.float32(1 / 255)


@lru_cache(maxsize=8)
def grid(size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Pixel centres in unit coordinates: x as a row (1, size), y as a column (size, 1)."""
    centers = ((np.arange(size) + 0.5) / size).astype(np.float32)
    return centers[None, :], centers[:, None]


def ground_noise(name: str, rng: np.random.Generator, size: int, horizon: float, density: float) -> NDArray[np.float32]:
    """A texture that lies on the ground and recedes to a horizon (unit coordinates), (size, size), 0 to 1.

    Above the horizon the values mean nothing. `density` is the number of texels across the near edge.
    """
    x, y = grid(size)
    offset_x, offset_y = rng.integers(0, TILE, 2)
    near = np.maximum((y - np.float32(horizon)) / np.float32(1 - horizon), 0)
    distance = 1 / (near + np.float32(0.16))
    map_x = (x - 0.5) * distance * np.float32(density) + np.float32(offset_x)
    map_y = np.repeat(distance * np.float32(density) + np.float32(offset_y), size, axis=1)
    tile = _bank()[name][0][:TILE, :TILE]
    sampled: NDArray[Any] = cv2.remap(tile, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return sampled * np.float32(1 / 255)

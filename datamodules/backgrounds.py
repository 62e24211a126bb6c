"""Natural-looking textured backgrounds: water, forest, field and sky.

Each is a function (rng, size) -> (size, size, 3) float32 RGB, 0 to 255. The random numbers drawn do not
depend on the size, so a background is the same picture at every size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from datamodules.shapes import Colour, tinted
from datamodules.textures import grid, ground_noise, noise

Image = NDArray[np.float32]
Painter = Callable[[np.random.Generator, int], Image]

_WATER: tuple[tuple[Colour, ...], ...] = (
    ((8, 40, 82), (30, 92, 148), (126, 176, 208), (226, 238, 244)),
    ((4, 56, 66), (28, 116, 122), (112, 184, 178), (222, 242, 236)),
    ((52, 62, 72), (98, 112, 124), (156, 168, 178), (226, 230, 234)),
    ((40, 52, 28), (82, 98, 58), (140, 150, 104), (212, 214, 178)),
    ((42, 30, 62), (122, 76, 96), (214, 140, 104), (252, 220, 164)),
    ((6, 20, 44), (18, 54, 92), (54, 104, 146), (150, 190, 214)),
)
_FOLIAGE: tuple[tuple[Colour, ...], ...] = (
    ((8, 22, 12), (30, 66, 28), (78, 122, 48), (186, 206, 118)),
    ((14, 26, 24), (34, 70, 58), (86, 128, 92), (192, 214, 170)),
    ((32, 22, 10), (98, 64, 22), (178, 122, 40), (240, 204, 118)),
    ((22, 32, 34), (58, 78, 72), (118, 138, 124), (206, 218, 200)),
    ((36, 16, 12), (112, 40, 24), (186, 86, 40), (236, 178, 104)),
    ((18, 30, 6), (64, 96, 18), (132, 166, 44), (224, 232, 140)),
)
_GROUND: tuple[tuple[Colour, ...], ...] = (
    ((34, 62, 18), (78, 122, 40), (128, 170, 68), (200, 222, 124)),
    ((90, 74, 26), (160, 136, 58), (206, 184, 98), (244, 230, 164)),
    ((54, 36, 22), (106, 76, 50), (150, 116, 80), (202, 174, 134)),
    ((28, 54, 34), (62, 104, 68), (112, 150, 104), (186, 210, 160)),
    ((66, 68, 22), (120, 126, 48), (172, 172, 84), (226, 220, 150)),
    ((74, 52, 70), (122, 92, 128), (168, 140, 176), (222, 204, 222)),
)
_SKY: tuple[tuple[Colour, ...], ...] = (
    ((46, 104, 186), (98, 154, 218), (176, 208, 236)),
    ((92, 130, 176), (158, 186, 212), (224, 232, 238)),
    ((44, 50, 104), (190, 104, 120), (252, 190, 120)),
    ((120, 130, 142), (164, 172, 180), (206, 210, 214)),
    ((22, 34, 78), (58, 84, 140), (132, 150, 184)),
    ((64, 150, 186), (140, 202, 214), (228, 240, 224)),
    ((150, 120, 140), (226, 178, 160), (250, 226, 186)),
)
_FLOWERS: tuple[Colour, ...] = (
    (236, 70, 60),
    (250, 214, 60),
    (248, 246, 240),
    (150, 90, 200),
    (240, 140, 180),
)
_WOOD: tuple[Colour, ...] = ((74, 56, 42), (96, 92, 84), (58, 44, 38), (176, 172, 160))


@lru_cache(maxsize=64)
def _ramp(stops: tuple[Colour, ...]) -> NDArray[np.float32]:
    """Colours (256, 3) running evenly through the stops."""
    table = np.asarray(stops, dtype=np.float64)
    places = np.linspace(0, 255, len(stops))
    columns = [np.interp(np.arange(256), places, table[:, channel]) for channel in range(3)]
    return np.stack(columns, axis=1).astype(np.float32)


def _pick(rng: np.random.Generator, palettes: Sequence[tuple[Colour, ...]]) -> NDArray[np.float32]:
    """The ramp of one palette, each channel brightened or dimmed a little."""
    ramp = _ramp(palettes[int(rng.integers(len(palettes)))])
    gains = rng.uniform(0.9, 1.1, 3) * rng.uniform(0.85, 1.15)
    return np.minimum(ramp * gains.astype(np.float32), 255)


def _tint(ramp: NDArray[np.float32], field: NDArray[np.float32]) -> Image:
    """Look a field (h, w) with values 0 to 1 up in a ramp."""
    return ramp.take((field * 255).astype(np.intp), axis=0, mode="clip")


def _step(field: NDArray[np.float32], start: float, stop: float) -> NDArray[np.float32]:
    """A soft threshold: 0 up to start, 1 from stop on."""
    t = np.clip((field - np.float32(start)) * np.float32(1 / (stop - start)), 0, 1)
    return t * t * (3 - 2 * t)


def _mix(image: Image, over: Image | Colour, alpha: NDArray[np.float32]) -> Image:
    """The image with another, or a colour, laid over it by alpha (h, w)."""
    if isinstance(over, tuple):
        return image * tinted(1 - alpha) + tinted(alpha, over)
    return image + (over - image) * tinted(alpha)


def sky(rng: np.random.Generator, size: int) -> Image:
    """A gradient from zenith to horizon with clouds, or none."""
    _, y = grid(size)
    ramp = _pick(rng, _SKY)
    low, high = sorted(rng.uniform(0, 1, 2))
    cloud = noise("cloud", rng, (size, size), int(rng.integers(200, 420)), int(rng.integers(240, 500)))
    field = np.float32(low * 0.4) + y * np.float32(0.45 + 0.5 * high) + (cloud - 0.5) * np.float32(0.12)
    image = _tint(ramp, field)
    cover = rng.uniform(0.38, 0.85)
    if rng.random() < 0.8:
        detail = noise("foliage", rng, (size, size), 300)
        alpha = _step(cloud + (detail - 0.5) * np.float32(0.16), cover, cover + 0.3) * np.float32(0.9)
        bright = np.float32(0.78) + np.float32(0.3) * (detail - cloud + 0.4)
        lit = np.minimum(ramp[-1] * 0.35 + 165, 255)
        image = _mix(image, np.minimum(tinted(bright, lit), 255), alpha)
    return image


def water(rng: np.random.Generator, size: int) -> Image:
    """Ripples that recede to a far shore, or seen from above, with glitter under the sun."""
    x, y = grid(size)
    ramp = _pick(rng, _WATER)
    has_shore = rng.random() < 0.6
    horizon = float(rng.uniform(0.08, 0.36)) if has_shore else float(rng.uniform(-0.9, -0.3))
    ripple = ground_noise("ripple", rng, size, horizon, rng.uniform(40, 110))
    swell = noise("cloud", rng, (size, size), 260, 500)
    near = np.clip((y - np.float32(horizon)) / np.float32(1 - horizon), 0, 1)
    contrast = np.float32(rng.uniform(0.45, 0.85)) * (np.float32(0.35) + 0.65 * near)
    field = np.float32(0.52) - np.float32(0.26) * near + contrast * (ripple - 0.5) + 0.3 * (swell - 0.5)
    image = _tint(ramp, field)
    if rng.random() < 0.6:
        sun = np.float32(rng.uniform(0, 1))
        spread = np.exp(-(((x - sun) / np.float32(rng.uniform(0.1, 0.3))) ** 2))
        image = _mix(image, (255, 250, 226), _step(ripple, 0.6, 0.78) * spread * np.float32(rng.uniform(0.5, 0.95)))
    if has_shore:
        image = _far_shore(rng, size, image, horizon)
    return image


def _far_shore(rng: np.random.Generator, size: int, image: Image, horizon: float) -> Image:
    """Put sky above the horizon and a hazy line of hills or trees on it."""
    rows = min(size, int(horizon * size) + 2)
    _, y = grid(size)
    y = y[:rows]
    cloud = noise("cloud", rng, (rows, size), 300, round(500 * rows / size))
    above = _tint(_pick(rng, _SKY), y * np.float32(0.8 / max(horizon, 0.05)) + 0.35 * (cloud - 0.4))
    profile = noise("cloud", rng, (1, size), int(rng.integers(120, 360)), 1)
    height = np.float32(rng.uniform(0.0, 0.16)) * (0.35 + profile)
    leaves = noise("leaves", rng, (rows, size), 400, round(400 * rows / size))
    trees = _tint(_pick(rng, _FOLIAGE), 0.2 + 0.5 * leaves)
    haze = np.float32(rng.uniform(0.1, 0.6))
    hills = np.clip((y - np.float32(horizon) + height) * size, 0, 1) * (1 - haze)
    far = _mix(above, trees, hills)
    edge = np.broadcast_to(np.clip((np.float32(horizon) - y) * size + 0.5, 0, 1), (rows, size))
    image[:rows] = _mix(image[:rows], far, edge)
    return image


def forest(rng: np.random.Generator, size: int) -> Image:
    """Mottled leaves with lit gaps, trunks from far to near, sometimes a forest floor and shafts of light."""
    x, y = grid(size)
    ramp = _pick(rng, _FOLIAGE)
    coarse = noise("cloud", rng, (size, size), int(rng.integers(260, 480)))
    leaves = noise("leaves", rng, (size, size), int(rng.integers(90, 280)))
    lightness = np.float32(rng.uniform(0.25, 0.45))
    field = lightness + 0.75 * (leaves - 0.5) + 0.6 * (coarse - 0.5) - np.float32(rng.uniform(0, 0.2)) * y
    image = _tint(ramp, field)
    if rng.random() < 0.55:
        floor = _tint(_pick(rng, _FOLIAGE), 0.35 + 0.7 * (noise("leaves", rng, (size, size), 200, 360) - 0.4))
        edge = np.float32(rng.uniform(0.62, 0.9)) + 0.16 * (coarse - 0.5)
        image = _mix(image, floor, np.clip((y - edge) * 14, 0, 1))
    bark = noise("bark", rng, (size, size), int(rng.integers(160, 320)))
    count = int(rng.integers(1, 7))
    for width in np.sort(rng.uniform(0.02, 0.09, count) ** 1.2 * 1.6):
        image = _trunk(rng, image, x, y, bark, float(width))
    if rng.random() < 0.4:
        slope = rng.uniform(-0.7, 0.7)
        wave = np.sin((x - np.float32(slope) * y) * np.float32(rng.uniform(9, 20)) + np.float32(rng.uniform(0, 6)))
        shafts = np.clip(wave, 0, 1) * np.clip(1.15 - y, 0, 1) * np.float32(rng.uniform(0.12, 0.35))
        image = _mix(image, (255, 246, 200), shafts)
    return image


def _trunk(
    rng: np.random.Generator,
    image: Image,
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    bark: NDArray[np.float32],
    width: float,
) -> Image:
    """A tree trunk with bark, round by its shading; thin ones are far away and pale."""
    center, lean, tone = rng.uniform(-0.05, 1.05), rng.normal(0, 0.06), rng.uniform(0.25, 0.8)
    wood = _WOOD[int(rng.integers(len(_WOOD)))]
    radius = np.float32(width) * (np.float32(0.85) + np.float32(0.3) * y)
    across = (x - np.float32(center) - np.float32(lean) * (y - 0.5)) / radius
    alpha = np.clip((1 - np.abs(across)) * radius * image.shape[0], 0, 1)
    light = (np.float32(0.5 + 0.7 * tone) - 0.35 * across) * (0.5 + bark)
    haze = np.float32(max(0.0, 0.55 - 6 * width))
    return _mix(image, tinted(light, wood), alpha * (1 - haze))


def field(rng: np.random.Generator, size: int) -> Image:
    """Grass, stubble, ploughed or flowering ground that recedes to a horizon, or seen from above."""
    x, y = grid(size)
    has_sky = rng.random() < 0.7
    horizon = float(rng.uniform(0.1, 0.42)) if has_sky else float(rng.uniform(-0.9, -0.4))
    ramp = _pick(rng, _GROUND)
    near = np.clip((y - np.float32(horizon)) / np.float32(1 - horizon), 0, 1)
    blades = noise("grass", rng, (size, size), int(rng.integers(130, 380)), int(rng.integers(110, 300)))
    soil = ground_noise("soil", rng, size, horizon, rng.uniform(40, 90))
    patches = ground_noise("cloud", rng, size, horizon, rng.uniform(40, 90))
    value = 0.5 + 0.5 * near * (blades - 0.5) + 0.35 * (soil - 0.5) + 0.3 * (patches - 0.5)
    if rng.random() < 0.35:
        vanishing = np.float32(rng.uniform(0, 1))
        rows = np.sin((x - vanishing) / (near + np.float32(0.12)) * np.float32(rng.uniform(10, 24)))
        value += np.float32(0.16) * rows * np.minimum(near * 3, 1)
    image = _tint(ramp, value - np.float32(rng.uniform(0, 0.25)) * (near - 0.4))
    if rng.random() < 0.5:
        colour = _FLOWERS[int(rng.integers(len(_FLOWERS)))]
        dots = ground_noise("grain", rng, size, horizon, rng.uniform(14, 30))
        image = _mix(image, colour, _step(dots * 0.7 + patches * 0.5, 0.82, 0.92) * np.minimum(near * 4, 1))
    if has_sky:
        image = _far_shore(rng, size, image, horizon)
    return image


PAINTERS: dict[str, Painter] = {"water": water, "forest": forest, "field": field, "sky": sky}

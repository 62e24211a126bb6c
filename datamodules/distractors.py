"""Other things in a scene, such as rocks, flowers and balloons. Each is drawn in its own units (about 1 across)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from datamodules.birds import COLOURS
from datamodules.shapes import Colour, Drawing, FloatArray, Tube, direction, ellipse, shade

_LEAF_GREEN: Colour = (70, 128, 52)
_WOOD: Colour = (104, 76, 52)


@dataclass(frozen=True)
class Kind:
    """A kind of thing: how it is drawn, the colours it comes in, its size as a fraction of the frame's side.

    grounded: it is on the ground or the water, so it belongs in the lower part of the frame.
    """

    draw: Callable[[np.random.Generator, Colour], Drawing]
    colours: tuple[str, ...]
    smallest: float
    largest: float
    grounded: bool = True


def _turn(drawing: Drawing, degrees: float) -> Drawing:
    along = direction(degrees)
    return drawing.moved(np.array([[along[0], -along[1]], [along[1], along[0]]]), (0.0, 0.0))


def _blob(rng: np.random.Generator, rx: float, ry: float, roughness: float, count: int = 11) -> FloatArray:
    """An irregular convex-looking outline around (0, 0)."""
    angles = (np.arange(count) + rng.uniform(-0.25, 0.25, count)) * (2 * np.pi / count)
    radii = 1 + roughness * rng.uniform(-1, 1, count)
    return np.stack([rx * radii * np.cos(angles), ry * radii * np.sin(angles)], axis=1)


def _rock(rng: np.random.Generator, colour: Colour) -> Drawing:
    drawing = Drawing()
    flat = rng.uniform(0.28, 0.42)
    drawing.add(_blob(rng, 0.5, flat, 0.16), shade(colour, 0.8))
    drawing.add(_blob(rng, 0.34, flat * 0.6, 0.2) + np.array((-0.04, -0.09)), shade(colour, 1.08))
    drawing.add(_blob(rng, 0.12, 0.06, 0.3, 7) + np.array((0.16, 0.1)), shade(colour, 0.6))
    return drawing


def _log(rng: np.random.Generator, colour: Colour) -> Drawing:
    drawing = Drawing()
    half = rng.uniform(0.1, 0.15)
    body = Tube(np.array([(-0.5, 0.0), (0.0, 0.02), (0.46, 0.0)]), np.full(3, half))
    drawing.add(body.outline(), colour)
    for s in (-0.55, 0.1, 0.6):
        drawing.add(body.patch(0.05, 0.9, s, s + 0.12), shade(colour, 0.66))
    drawing.add(ellipse((0.46, 0.0), half * 0.55, half), COLOURS["tan"])
    drawing.add(ellipse((0.46, 0.0), half * 0.25, half * 0.5), shade(COLOURS["tan"], 0.75))
    return _turn(drawing, rng.uniform(-14, 14))


def _leaf(rng: np.random.Generator, colour: Colour) -> Drawing:
    drawing = Drawing()
    t = np.linspace(0, 1, 9)
    centers = np.stack([t - 0.5, 0.08 * np.sin(np.pi * t)], axis=1)
    blade = Tube(centers, 0.24 * np.sin(np.pi * t**0.8) + 0.004)
    drawing.add(blade.outline(), colour)
    drawing.add(blade.patch(0.0, 1.0, 0.0, 1.0), shade(colour, 0.8))
    stalk = Tube(np.array([(-0.66, 0.05), (-0.3, 0.05), (0.45, 0.0)]), np.array([0.025, 0.025, 0.01]))
    drawing.add(stalk.outline(), shade(colour, 0.6))
    return _turn(drawing, rng.uniform(0, 360))


def _flower(rng: np.random.Generator, colour: Colour) -> Drawing:
    drawing = Drawing()
    stem = Tube(np.array([(0.0, -0.15), (0.05, 0.2), (0.0, 0.6)]), np.full(3, 0.035))
    drawing.add(stem.outline(), _LEAF_GREEN)
    drawing.add(ellipse((0.14, 0.34), 0.17, 0.06, 35), _LEAF_GREEN)
    count = int(rng.integers(5, 8))
    for petal in range(count):
        turn = 360 * petal / count + rng.uniform(-6, 6)
        center = np.array([0.0, -0.2]) + 0.2 * direction(turn)
        drawing.add(ellipse(center, 0.17, 0.1, turn), shade(colour, 0.88 + 0.2 * (petal % 2)))
    middle = COLOURS["brown"] if colour == COLOURS["yellow"] else COLOURS["golden"]
    drawing.add(ellipse((0.0, -0.2), 0.1, 0.1), middle)
    return drawing


def _berries(rng: np.random.Generator, colour: Colour) -> Drawing:
    drawing = Drawing()
    twig = Tube(np.array([(-0.45, -0.3), (0.0, -0.2), (0.45, -0.34)]), np.array([0.03, 0.03, 0.015]))
    drawing.add(twig.outline(), _WOOD)
    drawing.add(ellipse((0.3, -0.42), 0.2, 0.08, 25), _LEAF_GREEN)
    drawing.add(ellipse((-0.3, -0.4), 0.2, 0.08, 155), shade(_LEAF_GREEN, 0.85))
    for x, y in ((-0.2, -0.02), (0.22, 0.0), (0.0, 0.14))[: int(rng.integers(2, 4))]:
        drawing.add(ellipse((x, y), 0.19, 0.19), colour)
        drawing.add(ellipse((x - 0.06, y - 0.07), 0.05, 0.05), shade(colour, 1.7))
    return drawing


def _mushroom(rng: np.random.Generator, colour: Colour) -> Drawing:
    drawing = Drawing()
    stem = Tube(np.array([(0.0, -0.1), (0.0, 0.42)]), np.array([0.1, 0.14]))
    drawing.add(stem.outline(), COLOURS["cream"])
    angles = np.linspace(np.pi, 2 * np.pi, 13)
    dome = np.stack([0.46 * np.cos(angles), 0.46 * np.sin(angles)], axis=1)
    drawing.add(dome, colour)
    for x, y in ((-0.22, -0.14), (0.05, -0.3), (0.25, -0.12)):
        drawing.add(ellipse((x, y), 0.06, 0.05), shade(COLOURS["cream"], rng.uniform(0.9, 1.05)))
    return drawing


def _stump(rng: np.random.Generator, colour: Colour) -> Drawing:
    drawing = Drawing()
    side = np.array([(-0.32, -0.25), (0.32, -0.25), (0.36, 0.2), (0.5, 0.36), (-0.5, 0.36), (-0.36, 0.2)])
    drawing.add(side, shade(colour, 0.8))
    for x in rng.uniform(-0.28, 0.28, 3):
        drawing.add(np.array([(x, -0.2), (x + 0.05, -0.2), (x + 0.05, 0.32), (x, 0.32)]), shade(colour, 0.55))
    drawing.add(ellipse((0.0, -0.25), 0.32, 0.13), COLOURS["tan"])
    drawing.add(ellipse((0.0, -0.25), 0.18, 0.07), shade(COLOURS["tan"], 0.8))
    return drawing


def _reeds(rng: np.random.Generator, colour: Colour) -> Drawing:
    drawing = Drawing()
    for number in range(int(rng.integers(5, 8))):
        foot, lean, height = rng.uniform(-0.2, 0.2), rng.uniform(-0.25, 0.25), rng.uniform(0.7, 1.0)
        points = np.array([(foot, 0.5), (foot + 0.3 * lean, 0.1), (foot + lean, 0.5 - height)])
        drawing.add(Tube(points, np.array([0.035, 0.03, 0.008])).outline(), shade(colour, rng.uniform(0.75, 1.1)))
        if number % 3 == 0:
            top = points[-1] + (0.0, 0.1)
            drawing.add(ellipse(top, 0.045, 0.12), shade(COLOURS["brown"], 0.85))
    return drawing


def _bush(rng: np.random.Generator, colour: Colour) -> Drawing:
    drawing = Drawing()
    for gain in (0.65, 0.8, 0.95, 1.1):
        for _ in range(3):
            center = (rng.uniform(-0.3, 0.3), 0.34 - 0.42 * gain * rng.uniform(0.6, 1.3))
            drawing.add(_blob(rng, rng.uniform(0.12, 0.24), rng.uniform(0.1, 0.2), 0.25) + center, shade(colour, gain))
    return drawing


def _lily_pad(rng: np.random.Generator, colour: Colour) -> Drawing:
    drawing = Drawing()
    gap = rng.uniform(0, 2 * np.pi)
    angles = np.linspace(gap + 0.25, gap + 2 * np.pi - 0.25, 15)
    rim = np.stack([0.5 * np.cos(angles), 0.24 * np.sin(angles)], axis=1)
    drawing.add(np.concatenate([rim, [(0.0, 0.0)]]), colour)
    drawing.add(np.concatenate([0.7 * rim[2:-2], [(0.0, 0.0)]]), shade(colour, 1.15))
    return drawing


def _butterfly(rng: np.random.Generator, colour: Colour) -> Drawing:
    drawing = Drawing()
    for side in (-1, 1):
        drawing.add(ellipse((0.24 * side, -0.14), 0.28, 0.19, 38 * side), colour)
        drawing.add(ellipse((0.18 * side, 0.17), 0.2, 0.15, -35 * side), shade(colour, 0.82))
        drawing.add(ellipse((0.32 * side, -0.2), 0.08, 0.06), COLOURS["black"])
    drawing.add(ellipse((0.0, 0.0), 0.045, 0.27), COLOURS["black"])
    return _turn(drawing, rng.uniform(-40, 40))


def _balloon(rng: np.random.Generator, colour: Colour) -> Drawing:
    drawing = Drawing()
    sway = rng.uniform(-0.1, 0.1)
    string = Tube(np.array([(0.0, 0.3), (sway, 0.55), (-sway, 0.8)]), np.full(3, 0.014))
    drawing.add(string.outline(), COLOURS["silver"])
    drawing.add(np.array([(-0.08, 0.34), (0.08, 0.34), (0.0, 0.2)]), shade(colour, 0.7))
    drawing.add(ellipse((0.0, -0.1), 0.33, 0.39), colour)
    drawing.add(ellipse((-0.12, -0.24), 0.07, 0.11, 60), shade(colour, 1.5))
    return drawing


def _kite(rng: np.random.Generator, colour: Colour) -> Drawing:
    drawing = Drawing()
    tail = Tube(np.array([(0.0, 0.3), (0.1, 0.5), (-0.06, 0.7), (0.06, 0.9)]), np.full(4, 0.018))
    drawing.add(tail.outline(), COLOURS["cream"])
    corners = np.array([(0.0, -0.5), (0.34, -0.1), (0.0, 0.4), (-0.34, -0.1)])
    drawing.add(corners, colour)
    drawing.add(np.stack([corners[0], corners[1], (0.0, -0.1)]), shade(colour, 0.72))
    drawing.add(np.stack([corners[2], corners[3], (0.0, -0.1)]), shade(colour, 0.72))
    return _turn(drawing, rng.uniform(-35, 35))


def _post(rng: np.random.Generator, colour: Colour) -> Drawing:
    drawing = Drawing()
    half = rng.uniform(0.1, 0.14)
    drawing.add(np.array([(-half, -0.44), (half, -0.5), (half, 0.5), (-half, 0.5)]), colour)
    drawing.add(np.array([(0.3 * half, -0.46), (half, -0.5), (half, 0.5), (0.3 * half, 0.5)]), shade(colour, 0.7))
    return _turn(drawing, rng.uniform(-7, 7))


def _buoy(rng: np.random.Generator, colour: Colour) -> Drawing:
    drawing = Drawing()
    drawing.add(np.array([(-0.04, -0.55), (0.04, -0.55), (0.04, 0.0), (-0.04, 0.0)]), COLOURS["slate"])
    drawing.add(ellipse((0.0, 0.08), 0.34, 0.32), colour)
    drawing.add(np.array([(-0.33, 0.03), (0.33, 0.03), (0.33, 0.14), (-0.33, 0.14)]), COLOURS["white"])
    return _turn(drawing, rng.uniform(-12, 12))


KINDS: dict[str, Kind] = {
    "rock": Kind(_rock, ("grey", "slate", "brown", "tan", "rust"), 0.14, 0.3),
    "log": Kind(_log, ("brown", "grey", "rust"), 0.24, 0.4),
    "leaf": Kind(_leaf, ("green", "red", "orange", "golden", "brown", "yellow"), 0.1, 0.2, grounded=False),
    "flower": Kind(_flower, ("red", "yellow", "white", "blue", "pink", "violet", "orange"), 0.14, 0.26),
    "berry twig": Kind(_berries, ("red", "blue", "black", "orange", "coral"), 0.13, 0.22, grounded=False),
    "mushroom": Kind(_mushroom, ("red", "brown", "orange", "golden"), 0.13, 0.22),
    "stump": Kind(_stump, ("brown", "grey", "slate"), 0.18, 0.3),
    "reed clump": Kind(_reeds, ("green", "olive", "tan"), 0.26, 0.44),
    "bush": Kind(_bush, ("green", "olive", "emerald", "rust"), 0.2, 0.36),
    "lily pad": Kind(_lily_pad, ("green", "emerald", "olive"), 0.16, 0.28),
    "butterfly": Kind(_butterfly, ("yellow", "blue", "orange", "white", "violet"), 0.1, 0.18, grounded=False),
    "balloon": Kind(_balloon, ("red", "blue", "yellow", "green", "pink", "orange"), 0.14, 0.24, grounded=False),
    "kite": Kind(_kite, ("red", "turquoise", "yellow", "violet", "orange", "green"), 0.15, 0.26, grounded=False),
    "post": Kind(_post, ("brown", "grey", "white", "tan"), 0.24, 0.42),
    "buoy": Kind(_buoy, ("red", "orange", "yellow", "white", "green"), 0.13, 0.24),
}

# What may stand in front of which background.
KINDS_OVER: dict[str, tuple[str, ...]] = {
    "water": ("rock", "log", "leaf", "reed clump", "lily pad", "buoy", "post", "butterfly", "balloon"),
    "forest": ("mushroom", "stump", "leaf", "berry twig", "bush", "rock", "log", "butterfly", "flower"),
    "field": ("flower", "rock", "bush", "post", "butterfly", "berry twig", "kite", "stump", "balloon"),
    "sky": ("balloon", "kite", "leaf", "butterfly", "berry twig"),
}


def branch(rng: np.random.Generator, foot: Sequence[float] | FloatArray, thickness: float) -> Drawing:
    """A perch through the point `foot` (frame coordinates), from beyond one side of the bird to the other."""
    drawing = Drawing()
    x, y = float(foot[0]), float(foot[1])
    slope, left, right = rng.normal(0, 0.07), rng.uniform(0.14, 0.6), rng.uniform(0.14, 0.6)
    if rng.random() < 0.5:
        left, right = (x + 0.1, right) if rng.random() < 0.5 else (left, 1.1 - x)
    t = np.linspace(-left, right, 7)
    bend = 0.012 * np.sin(t * 9 + rng.uniform(0, 6))
    bend -= np.interp(0.0, t, bend)
    colour = shade(_WOOD, rng.uniform(0.6, 1.35))
    centers = np.stack([x + t, y + thickness + slope * t + bend], axis=1)
    wood = Tube(centers, thickness * np.linspace(1.15, 0.75, 7))
    for place in rng.uniform(0.08, 0.92, 3):
        start = wood.centers[round(place * 6)]
        turn = rng.choice((-1, 1)) * rng.uniform(25, 70)
        end = start + rng.uniform(0.06, 0.14) * direction(turn)
        drawing.add(Tube(np.stack([start, end]), np.array([0.5, 0.25]) * thickness).outline(), shade(colour, 0.9))
        drawing.add(ellipse(end, 0.035, 0.015, turn + 20), shade(_LEAF_GREEN, rng.uniform(0.7, 1.3)))
    drawing.add(wood.outline(), colour)
    drawing.add(wood.patch(0.0, 1.0, 0.3, 1.0), shade(colour, 0.7))
    return drawing


def foreground(rng: np.random.Generator, background: str, x: float) -> Drawing:
    """Blades of grass or reed from below, or in the sky a twig from above, across the frame near x."""
    drawing = Drawing()
    from_above = background == "sky"
    tone = shade((96, 132, 56) if rng.random() < 0.6 else (150, 130, 74), rng.uniform(0.6, 1.2))
    for _ in range(int(rng.integers(2, 5))):
        foot, lean = x + rng.normal(0, 0.12), rng.normal(0, 0.1)
        height = rng.uniform(0.3, 0.75)
        points = np.array([(foot, 1.05), (foot + 0.3 * lean, 1.05 - 0.5 * height), (foot + lean, 1.05 - height)])
        if from_above:
            points[:, 1] = 1 - points[:, 1]
        blade = Tube(points, np.array([0.014, 0.012, 0.004]))
        drawing.add(blade.outline(), shade(_WOOD, rng.uniform(0.6, 1.2)) if from_above else tone)
        if from_above:
            for place in (0.5, 0.75, 1.0):
                center = points[0] + place * (points[2] - points[0]) + (rng.normal(0, 0.01), 0.0)
                drawing.add(ellipse(center, 0.034, 0.015, rng.uniform(0, 180)), tone)
    return drawing

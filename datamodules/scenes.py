"""Synthetic scenes of birds: images with exact object masks, labels and captions, drawn by code.

A scene is a pure function of (seed, index) and the options: it does not depend on the order of the calls, the
process, the number of threads or the state of any global generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datamodules.backgrounds import PAINTERS
from datamodules.scene_plans import (
    BACKGROUNDS,
    DEMO_SPECIES,
    PRETRAIN_SPECIES,
    SPECIES,
    ScenePlan,
    Stream,
    plan_scene,
    stream_rng,
)
from datamodules.shapes import Layer, blend, paint, tinted, without_faint_ends
from datamodules.textures import noise

__all__ = [
    "BACKGROUNDS",
    "DEMO_SPECIES",
    "MIN_SIZE",
    "PRETRAIN_SPECIES",
    "SPECIES",
    "BirdInScene",
    "Scene",
    "draw_scene",
    "plan_scene",
    "render_plan",
]

MIN_SIZE = 32


@dataclass(frozen=True)
class BirdInScene:
    """One bird as it is seen. mask: (size, size) bool, its visible pixels; center: (x, y) of its bounding box
    in unit coordinates, as drawn (before the frame's edge or a blade of grass hides a part of it)."""

    species: str
    mask: NDArray[np.bool_]
    center: tuple[float, float]
    pose: str


@dataclass(frozen=True)
class Scene:
    """An image and everything that is known about it.

    image: (size, size, 3) uint8 RGB; mask: (size, size) bool, every pixel that is more than half covered by the visible
    parts of birds; label: position of `species` in the requested list; birds: one or two.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    label: int
    species: str
    background: str
    caption: str
    birds: tuple[BirdInScene, ...]


def draw_scene(
    seed: int,
    index: int,
    *,
    size: int = 64,
    species: Sequence[str] = DEMO_SPECIES,
    confound: float = 0.0,
    two_birds: bool = False,
    clutter: bool = True,
) -> Scene:
    """Draws scene number `index` of the endless series that `seed` selects.

    Args:
        size: height and width in pixels, at least 32.
        species: names in `SPECIES`; the label counts them from 0, and each block of len(species) scenes contains each
            of them once.
        confound: probability that the background is the one that belongs to the species (BACKGROUNDS[i % 4] for species
            number i); otherwise it is drawn uniformly.
        two_birds: draw a bird of another species as well, the first in the left half of the frame, the second in the
            right half.
        clutter: whether there may be other things that the caption does not name.

    Raises:
        ValueError: for a negative seed or index, a size under 32, an empty list of species or an unknown one, two birds
            with fewer than two species, and a confound outside [0, 1].
    """
    _check_size(size)
    plan = plan_scene(seed, index, species=species, confound=confound, two_birds=two_birds, clutter=clutter)
    return render_plan(plan, size)


def render_plan(plan: ScenePlan, size: int, *, with_birds: bool = True) -> Scene:
    """Draws a plan at a size in pixels.

    Args:
        with_birds: False leaves the birds themselves out, but not their perches and shadows: what is the same in both
            pictures is the background of the masks. The masks are those of the full scene in either case.

    Raises:
        ValueError: for a size under 32.
    """
    _check_size(size)
    image = PAINTERS[plan.background](stream_rng(plan.seed, plan.index, Stream.TEXTURE), size)
    blend(image, paint(plan.behind, size, relief=0.5))
    front = paint(plan.front, size)
    light = stream_rng(plan.seed, plan.index, Stream.LIGHT)
    feathers = noise("feathers", light, (size, size), 300)
    shown = []
    for bird in plan.birds:
        layer = paint(bird.drawing, size, relief=0.75)
        assert layer is not None, "a bird is always placed in the frame"
        layer = without_faint_ends(layer)
        if with_birds:
            blend(image, _feathered(layer, feathers))
        alpha = layer.full_alpha(size)
        if front is not None:
            alpha[front.rows, front.columns] *= 1 - front.alpha
        shown.append(BirdInScene(bird.species, alpha > 0.5, bird.center, bird.pose.kind))
    blend(image, front)
    mask = shown[0].mask if len(shown) == 1 else shown[0].mask | shown[1].mask
    return Scene(
        image=_light(light, image),
        mask=mask,
        label=plan.label,
        species=plan.birds[0].species,
        background=plan.background,
        caption=plan.caption,
        birds=tuple(shown),
    )


def _feathered(layer: Layer, feathers: NDArray[np.float32]) -> Layer:
    """The layer with fine streaks, so that plumage is not smoother than what surrounds it."""
    gain = np.float32(0.84) + np.float32(0.32) * feathers[layer.rows, layer.columns]
    colour = np.minimum(layer.colour * tinted(gain), tinted(layer.alpha, (255, 255, 255)))
    return Layer(colour, layer.alpha, layer.rows, layer.columns)


def _light(rng: np.random.Generator, image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Brightness, contrast and tint of the whole picture, and the grain of a sensor."""
    size = image.shape[0]
    tint = rng.uniform(0.95, 1.05, 3) * rng.uniform(0.82, 1.12)
    lift = rng.uniform(-8, 14)
    grain = noise("grain", rng, (size, size), size) - np.float32(0.5)
    # A warm evening lights one side more than the other.
    first, last = (1 + rng.uniform(-0.1, 0.1, 2)).tolist()
    slope = np.linspace(first, last, size, dtype=np.float32)
    lit = image * tinted(np.broadcast_to(slope[:, None], (size, size)), tint)
    lit += tinted(grain * np.float32(rng.uniform(6, 22)) + np.float32(lift))
    return np.clip(lit, 0, 255).astype(np.uint8)


def _check_size(size: int) -> None:
    if size < MIN_SIZE:
        raise ValueError(f"size is {size} pixels; it must be at least {MIN_SIZE}")

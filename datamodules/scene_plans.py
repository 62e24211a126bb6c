"""The layout of a scene of birds: which birds are in it, where, in which pose, and the caption.

A plan is a pure function of (seed, index) and the options. Every aspect of it has its own random numbers, so that
changing one option (such as `confound`) leaves the rest unchanged; and everything is laid out in unit coordinates, so
that the same plan can be drawn at any size.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from itertools import product

import numpy as np

from datamodules.bird_bodies import bird_drawing, feet
from datamodules.birds import COLOURS, Pose, Species, draw_pose
from datamodules.captions import PHRASES, bird_wordings, bird_words, caption, sentence, with_article
from datamodules.distractors import KINDS, KINDS_OVER, branch, foreground
from datamodules.shapes import Drawing, ellipse, paint
from datamodules.species_demo import DEMO
from datamodules.species_pretrain import PRETRAIN

BACKGROUNDS: tuple[str, ...] = ("water", "forest", "field", "sky")
SPECIES: dict[str, Species] = {species.name: species for species in DEMO + PRETRAIN}
DEMO_SPECIES: tuple[str, ...] = tuple(species.name for species in DEMO)
PRETRAIN_SPECIES: tuple[str, ...] = tuple(species.name for species in PRETRAIN)

# Width of the thinnest parts of a bird (legs, bill) as a fraction of the frame: over one pixel of 64.
_THINNEST = 0.021
# Lower bounds of the size range of a thing in scenes without clutter: about two patches of 8 pixels in 64.
_LEGIBLE = (0.26, 0.38)


class Stream(IntEnum):
    """The independent sequences of random numbers of one scene."""

    LABELS = 0
    BACKGROUND = 1
    TEXTURE = 2
    FIRST_BIRD = 3
    SECOND_BIRD = 4
    THINGS = 5
    FRONT = 6
    LIGHT = 7
    WORDS = 8


@dataclass(frozen=True)
class PlannedBird:
    """A bird laid out in the frame's unit coordinates; bounds: (x0, y0, x1, y1)."""

    species: str
    word: str
    pose: Pose
    drawing: Drawing
    bounds: tuple[float, float, float, float]
    feet: tuple[float, float]

    @property
    def center(self) -> tuple[float, float]:
        """The middle of its bounds."""
        x0, y0, x1, y1 = self.bounds
        return (x0 + x1) / 2, (y0 + y1) / 2


@dataclass(frozen=True)
class PlannedThing:
    """A distractor that the caption names, and where the bird is with respect to it."""

    kind: str
    colour: str
    relation: str
    center: tuple[float, float]


@dataclass(frozen=True)
class ScenePlan:
    """A scene before it is drawn: what `render_plan` needs, at any size."""

    seed: int
    index: int
    label: int
    background: str
    caption: str
    birds: tuple[PlannedBird, ...]
    thing: PlannedThing | None
    behind: Drawing
    front: Drawing


def plan_scene(
    seed: int,
    index: int,
    *,
    species: Sequence[str] = DEMO_SPECIES,
    confound: float = 0.0,
    two_birds: bool = False,
    clutter: bool = True,
) -> ScenePlan:
    """Lays a scene out without drawing it; arguments and errors as in `scenes.draw_scene`."""
    _check_request(seed, index, species, confound, two_birds)
    label = _label(seed, index, len(species))
    background = _background(stream_rng(seed, index, Stream.BACKGROUND), label, confound)
    first = _place_bird(
        stream_rng(seed, index, Stream.FIRST_BIRD), SPECIES[species[label]], "left" if two_birds else ""
    )
    birds: tuple[PlannedBird, ...] = (first,)
    if two_birds:
        rng = stream_rng(seed, index, Stream.SECOND_BIRD)
        others = [name for name in species if name != first.species]
        birds = (first, _place_bird(rng, SPECIES[others[int(rng.integers(len(others)))]], "right"))
    behind, thing = _things(stream_rng(seed, index, Stream.THINGS), birds, background, clutter)
    front = Drawing()
    rng = stream_rng(seed, index, Stream.FRONT)
    if clutter and rng.random() < 0.22:
        front = foreground(rng, background, first.center[0])
    words = _caption(stream_rng(seed, index, Stream.WORDS), birds, thing, background)
    return ScenePlan(seed, index, label, background, words, birds, thing, behind, front)


def wordings(plan: ScenePlan) -> list[str]:
    """All captions that the plan of one bird may get, including its own; each is true of the scene."""
    (bird,), thing = plan.birds, plan.thing
    relations, others = [""], [""]
    if thing is not None:
        relations, others = [thing.relation], [with_article(f"{thing.colour} {thing.kind}"), with_article(thing.kind)]
        if thing.relation not in ("above", "below"):
            relations = ["left of" if thing.center[0] > bird.center[0] else "right of", "beside"]
    called = bird_wordings(bird.word, bird.species, bird.pose.kind, plan.background)
    parts = product(called, relations, others, PHRASES[plan.background])
    return [sentence(*each) for each in parts]


def stream_rng(seed: int, index: int, stream: Stream) -> np.random.Generator:
    """A generator for one aspect of one scene."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, index, int(stream)))))


def _label(seed: int, index: int, count: int) -> int:
    """A shuffled round-robin: every block of `count` indices holds each label once."""
    block, place = divmod(index, count)
    return _block(seed, block, count)[place]


@lru_cache(maxsize=1024)
def _block(seed: int, block: int, count: int) -> tuple[int, ...]:
    return tuple(stream_rng(seed, block, Stream.LABELS).permutation(count).tolist())


def _background(rng: np.random.Generator, label: int, confound: float) -> str:
    tied, anywhere = rng.random() < confound, int(rng.integers(len(BACKGROUNDS)))
    return BACKGROUNDS[label % len(BACKGROUNDS)] if tied else BACKGROUNDS[anywhere]


@lru_cache(maxsize=256)
def _nominal_area(species: str, kind: str) -> float:
    """Area of a bird in squared body lengths, measured on a raster in an average attitude."""
    pose = Pose(kind, near_wing=-90, far_wing=90) if kind == "soaring" else Pose(kind)
    drawing = bird_drawing(SPECIES[species], SPECIES[species].plumages[0], pose)
    x0, y0, x1, y1 = drawing.bounds()
    side = max(x1 - x0, y1 - y0)
    layer = paint(drawing.moved(np.eye(2) / side, (-x0 / side, -y0 / side)), 128)
    assert layer is not None
    return float(layer.alpha.mean() * layer.alpha.size / 128**2 * side**2)


def _place_bird(rng: np.random.Generator, species: Species, half: str) -> PlannedBird:
    """An individual of the species somewhere in the frame, or wholly in its left or right half."""
    plumage = species.plumages[int(rng.integers(len(species.plumages)))]
    pose = draw_pose(species.poses[int(rng.integers(len(species.poses)))], rng)
    area = rng.uniform(0.07, 0.12) if half else rng.uniform(0.11, 0.235)
    scale = float(np.sqrt(area / _nominal_area(species.name, pose.kind)))
    red, green, blue = rng.uniform(0.92, 1.08, 3) * rng.uniform(0.84, 1.12)
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    stretch = rng.uniform(0.95, 1.05)
    edge = -0.05 if rng.random() < 0.15 and not half else 0.015
    # Prefer the edges, because every large bird reaches the middle of the frame.
    places = 0.5 - 0.5 * np.cos(np.pi * rng.random((5, 2)))
    drawing = bird_drawing(species, plumage, pose, gain=(red, green, blue), thinnest=_THINNEST / scale)
    x0, y0, x1, y1 = drawing.bounds()
    widest = 0.45 if half else 0.94
    scale = min(scale, widest / (x1 - x0), 0.94 / (y1 - y0) / stretch)
    matrix = np.array([(mirror * scale, 0.0), (0.0, stretch * scale)])
    low, high = {"": (edge, 1 - edge), "left": (0.015, 0.485), "right": (0.515, 0.985)}[half]
    left, right = sorted((mirror * scale * x0, mirror * scale * x1))
    top, bottom = stretch * scale * y0, stretch * scale * y1
    corners = np.array([(low - left, edge - top), (high - right, 1 - edge - bottom)])
    # A bird that covers the centre of the frame is moved; otherwise a spot in the middle would be a good guess at where
    # the birds are.
    for place in places:
        offset = corners[0] + place * (corners[1] - corners[0])
        middle = (np.array([0.5, 0.5]) - offset) / (mirror * scale, stretch * scale)
        if half or not drawing.covers(float(middle[0]), float(middle[1])):
            break
    foot = matrix @ feet(species, pose) + offset
    return PlannedBird(
        species=species.name,
        word=plumage.word,
        pose=pose,
        drawing=drawing.moved(matrix, offset),
        bounds=(left + offset[0], top + offset[1], right + offset[0], bottom + offset[1]),
        feet=(float(foot[0]), float(foot[1])),
    )


def _things(
    rng: np.random.Generator, birds: Sequence[PlannedBird], background: str, clutter: bool
) -> tuple[Drawing, PlannedThing | None]:
    """Things behind the birds: their perches and shadows, clutter, and one thing for the caption to name."""
    behind = Drawing()
    for bird in birds:
        behind.extend(_support(rng, bird, background))
    kinds = rng.permutation(np.array(KINDS_OVER[background]))
    for kind in kinds[1 : 1 + int(rng.integers(0, 3))] if clutter else ():
        _, drawing, half_width, half_height = _thing(rng, str(kind))
        x = rng.uniform(0.6 * half_width, 1 - 0.6 * half_width)
        y = rng.uniform(0.45 if KINDS[str(kind)].grounded else 0.1, 1 - 0.8 * half_height)
        behind.extend(drawing.moved(np.eye(2), (x, y)))
    named = None
    if len(birds) == 1 and rng.random() < 0.75:
        # Last, so that no clutter hides what the caption names.
        named, drawing = _named_thing(rng, str(kinds[0]), birds[0], legible=not clutter)
        behind.extend(drawing)
    return behind, named


def _support(rng: np.random.Generator, bird: PlannedBird, background: str) -> Drawing:
    """The branch of a perched bird, the shadow of a standing one, the wake of a swimming one."""
    if bird.pose.kind == "perched":
        return branch(rng, bird.feet, float(rng.uniform(0.014, 0.03)))
    drawing = Drawing()
    x, y = bird.feet
    width = 0.5 * (bird.bounds[2] - bird.bounds[0])
    if bird.pose.kind == "standing" and background != "sky":
        drawing.add(ellipse((x, y), 0.8 * width, 0.16 * width), (20.0, 24.0, 20.0), 0.35)
    elif bird.pose.kind == "swimming" and background == "water":
        x, y = bird.center[0], bird.bounds[3]
        drawing.add(ellipse((x, y), 1.15 * width, 0.14 * width), (225.0, 236.0, 240.0), 0.4)
        drawing.add(ellipse((x, y), 0.95 * width, 0.1 * width), (30.0, 44.0, 52.0), 0.45)
    return drawing


def _thing(
    rng: np.random.Generator, kind: str, at_least: tuple[float, float] = (0.0, 0.0)
) -> tuple[str, Drawing, float, float]:
    """(Name of the colour, drawing around (0, 0), half width, half height) of a thing; `at_least` are lower bounds of
    the kind's smallest and largest size."""
    made = KINDS[kind]
    colour = made.colours[int(rng.integers(len(made.colours)))]
    red, green, blue = COLOURS[colour]
    gains = rng.uniform(0.85, 1.1, 3)
    drawing = made.draw(rng, (red * gains[0], green * gains[1], blue * gains[2]))
    x0, y0, x1, y1 = drawing.bounds()
    scale = rng.uniform(max(made.smallest, at_least[0]), max(made.largest, at_least[1]))
    middle = np.array([x0 + x1, y0 + y1]) / 2
    moved = drawing.moved(np.eye(2) * scale, -scale * middle)
    return colour, moved, scale * (x1 - x0) / 2, scale * (y1 - y0) / 2


def _named_thing(
    rng: np.random.Generator, kind: str, bird: PlannedBird, *, legible: bool
) -> tuple[PlannedThing | None, Drawing]:
    """A thing that does not overlap the bird, to one side of it, above or below; None if no free place is found."""
    colour, drawing, half_width, half_height = _thing(rng, kind, _LEGIBLE if legible else (0.0, 0.0))
    x0, y0, x1, y1 = bird.bounds
    relation = ""
    for x, y in rng.random((40 if legible else 14, 2)):  # a larger thing needs more attempts
        x = 0.8 * half_width + x * (1 - 1.6 * half_width)
        top = max(0.8 * half_height, 0.42 if KINDS[kind].grounded else 0.0)
        y = top + y * (1 - 0.8 * half_height - top)
        dx, dy = x - bird.center[0], y - bird.center[1]
        gap_x = max(x - half_width - x1, x0 - x - half_width)
        gap_y = max(y - half_height - y1, y0 - y - half_height)
        if abs(dx) > abs(dy) and gap_x > 0:
            relation = "left of" if dx > 0 else "right of"
        elif abs(dy) > abs(dx) and gap_y > 0:
            relation = "above" if dy > 0 else "below"
        if relation:
            break
    if not relation:
        return None, Drawing()
    if relation in ("left of", "right of") and rng.random() < 0.2:
        relation = "beside"
    return PlannedThing(kind, colour, relation, (float(x), float(y))), drawing.moved(np.eye(2), (x, y))


def _caption(
    rng: np.random.Generator, birds: Sequence[PlannedBird], thing: PlannedThing | None, background: str
) -> str:
    """The words for the plan."""
    first, *others = (bird_words(bird.word, bird.species, bird.pose.kind, background, rng) for bird in birds)
    if others:
        return caption(first, "left of", others[0], background, rng)
    if thing is None:
        return caption(first, "", "", background, rng)
    name = f"{thing.colour} {thing.kind}" if rng.random() < 0.7 else thing.kind
    return caption(first, thing.relation, with_article(name), background, rng)


def _check_request(seed: int, index: int, species: Sequence[str], confound: float, two_birds: bool) -> None:
    if seed < 0 or index < 0:
        raise ValueError(f"seed is {seed} and index {index}; both must be 0 or more")
    if isinstance(species, str) or not species:
        raise ValueError(f"species is {species!r}; it must be a list of one or more names of {sorted(SPECIES)}")
    for name in species:
        if name not in SPECIES:
            near = difflib.get_close_matches(name, SPECIES, n=1, cutoff=0.0)[0]
            raise ValueError(f"unknown species {name!r} (did you mean {near!r}?). Known are {sorted(SPECIES)}")
    if two_birds and len(set(species)) < 2:
        raise ValueError(f"two birds need two different species; species is {list(species)}")
    if not 0.0 <= confound <= 1.0:
        raise ValueError(f"confound is {confound}; it must be in [0, 1]")

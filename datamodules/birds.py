"""The model of a drawn bird: a species has a build, plumages and marks; an individual has a pose.

Lengths are in units of the body's length; the bird faces right, x runs right and y down, and the body's
centre is at (0, 0). A bird is made of tubes (see `shapes.Tube`), and marks of plumage are patches of these
tubes, so that a collar or a wing bar follows the body whatever the pose.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from datamodules.shapes import Colour, Drawing, FloatArray, Tube, direction, shade

# RGB, 0 to 255. A colour in a plumage is one of these names.
COLOURS: dict[str, Colour] = {
    "red": (205, 38, 36),
    "crimson": (165, 20, 50),
    "rust": (190, 92, 42),
    "orange": (238, 128, 30),
    "golden": (226, 172, 48),
    "yellow": (246, 212, 50),
    "cream": (238, 222, 186),
    "white": (244, 244, 240),
    "silver": (196, 202, 208),
    "grey": (134, 140, 148),
    "slate": (84, 94, 108),
    "black": (30, 30, 36),
    "brown": (116, 78, 48),
    "tan": (188, 150, 104),
    "olive": (124, 126, 58),
    "green": (52, 146, 62),
    "emerald": (20, 122, 92),
    "turquoise": (38, 172, 186),
    "blue": (36, 92, 200),
    "navy": (28, 44, 104),
    "violet": (116, 62, 164),
    "pink": (246, 150, 160),
    "coral": (240, 110, 98),
}


@dataclass(frozen=True)
class Build:
    """Proportions of a species. Angles in degrees above the horizontal, lengths in body lengths."""

    depth: float = 0.5
    tilt: float = 22.0
    neck: float = 0.05
    neck_width: float = 0.26
    neck_angle: float = 52.0
    neck_curve: float = 0.0
    head: float = 0.19
    front_face: bool = False
    bill: str = "cone"
    bill_length: float = 0.2
    bill_depth: float = 0.12
    bill_angle: float = -4.0
    tail: str = "square"
    tail_length: float = 0.4
    tail_width: float = 0.16
    tail_angle: float = 0.0
    leg: float = 0.2
    span: float = 0.95
    chord: float = 0.42
    wing_tip: str = "round"
    crest: str = ""


@dataclass(frozen=True)
class Plumage:
    """Colours (names in `COLOURS`) of one morph; `word` is the adjective a caption uses. "" copies the
    body's."""

    word: str
    body: str
    belly: str = ""
    head: str = ""
    wing: str = ""
    tail: str = ""
    accent: str = "white"
    bill: str = "black"
    legs: str = "black"
    eye: str = "black"


@dataclass(frozen=True)
class Mark:
    """A patch of plumage: a piece of a part with t in [t0, t1] along and s in [s0, s1] across it.

    part: "body" (t from rump to chest), "neck" (from shoulder to head), "head" (from nape to bill), "wing"
    (from shoulder to tip), "tail" (from rump to end) or "bill" (from base to tip); s = -1 is the upper edge
    (on a spread wing the front one), +1 the lower. colour: a field of the plumage or a name in `COLOURS`.
    """

    part: str
    t0: float
    t1: float
    s0: float
    s1: float
    colour: str


@dataclass(frozen=True)
class Species:
    """A kind of bird: its shape, its morphs, the marks all of them wear, and the poses it takes.

    poses: from "perched", "standing", "swimming", "flying" (seen from the side) and "soaring" (wings spread
    out to both sides).
    """

    name: str
    build: Build
    plumages: tuple[Plumage, ...]
    marks: tuple[Mark, ...] = ()
    poses: tuple[str, ...] = ("perched", "flying")


@dataclass(frozen=True)
class Pose:
    """One bird's attitude: the kind of pose, and angles in degrees added to those of the build."""

    kind: str
    tilt: float = 0.0
    neck: float = 0.0
    tail: float = 0.0
    near_wing: float = 60.0
    far_wing: float = 80.0
    stretch: float = 1.0

    @property
    def in_air(self) -> bool:
        """Whether the wings are spread."""
        return self.kind in ("flying", "soaring")


def draw_pose(kind: str, rng: np.random.Generator) -> Pose:
    """A random attitude of the given kind."""
    tilt, neck, tail, stretch = rng.normal(0, 1, 4).clip(-2, 2)
    stroke = rng.random()
    if kind == "soaring":
        near, far = -78 - 24 * stroke, 78 + 24 * stroke
        tilt = 9 * tilt
    else:
        # Either on the upstroke, with both wings raised, or on the downstroke.
        near = 50 + 50 * stroke if stroke < 0.66 else -100 + 40 * stroke
        far = near + 24 if stroke < 0.66 else near - 30
        tilt = 7 * tilt
    return Pose(kind, tilt, 7 * neck, 6 * tail, near, far, 1 + 0.04 * stretch)


_PLUMAGE_FIELDS = frozenset(("body", "belly", "head", "wing", "tail", "accent", "bill", "legs", "eye"))


@dataclass
class Canvas:
    """What the parts of one bird share while it is drawn."""

    species: Species
    plumage: Plumage
    pose: Pose
    gain: tuple[float, float, float]
    thinnest: float
    drawing: Drawing = field(default_factory=Drawing)
    along: FloatArray = field(default_factory=lambda: direction(0))
    down: FloatArray = field(default_factory=lambda: direction(-90))

    def colour(self, name: str) -> Colour:
        """A plumage field or colour name as this individual's RGB."""
        if name in _PLUMAGE_FIELDS:
            name = getattr(self.plumage, name) or self.plumage.body
        red, green, blue = COLOURS[name]
        return (
            min(255.0, red * self.gain[0]),
            min(255.0, green * self.gain[1]),
            min(255.0, blue * self.gain[2]),
        )

    def at(self, forward: float, below: float) -> FloatArray:
        """A place given along the body's axis and below it."""
        return forward * self.along + below * self.down

    def part(self, name: str, tube: Tube, colour: str, gain: float = 1.0, under: str = "") -> None:
        """Paint a tube, its lower side in the colour `under` if there is one, and the marks on that part."""
        self.drawing.add(tube.outline(), shade(self.colour(colour), gain))
        if under:
            self.drawing.add(tube.patch(0.02, 0.99, 0.1, 1.0), shade(self.colour(under), gain))
        for mark in self.species.marks:
            if mark.part == name:
                patch = tube.patch(mark.t0, mark.t1, mark.s0, mark.s1)
                self.drawing.add(patch, shade(self.colour(mark.colour), gain))

"""Bodies, wings, tails and legs of the drawn birds, and the order in which the parts are painted."""

from __future__ import annotations

import numpy as np

from datamodules.bird_heads import draw_head
from datamodules.birds import Build, Canvas, Plumage, Pose, Species
from datamodules.shapes import Drawing, FloatArray, Tube, direction, shade

# Radius profiles of the tubes, as fractions of the widest place.
_T = np.linspace(0, 1, 13)
_BODY = np.sqrt(np.maximum(0, 1 - (2 * _T - 1) ** 2)) * (0.68 + 0.36 * _T)
_FOLDED = np.sin(np.pi * _T**0.62) ** 0.8 * (1 - 0.25 * _T)
_WINGS = {
    "round": np.sqrt(np.maximum(0, 1 - _T**4)),
    "point": np.maximum(0, 1 - _T**1.6) ** 0.75,
    "finger": np.sqrt(np.maximum(0, 1 - 0.62 * _T**3)),
}
_TAILS = {
    "square": 0.65 + 0.45 * _T,
    "fan": np.where(_T < 0.85, 0.45 + 1.1 * _T, 1.35 - 2.4 * (_T - 0.85)),
    "long": np.sqrt(np.maximum(0.0, 1.05 - _T**2)) * (0.8 + 0.5 * _T),
    "wedge": np.maximum(0.06, 1.1 - _T),
}


def bird_drawing(
    species: Species,
    plumage: Plumage,
    pose: Pose,
    *,
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0),
    thinnest: float = 0.0,
) -> Drawing:
    """One bird, facing right, in body lengths around its body's centre.

    gain: factors on the red, green and blue of all its colours; thinnest: least width of legs and bill, in
    body lengths, so that they stay visible in a small image.
    """
    canvas = Canvas(species, plumage, pose, gain, thinnest)
    tilt = pose.tilt + (0.25 * species.build.tilt if pose.in_air else species.build.tilt)
    if pose.kind == "swimming":
        tilt = pose.tilt * 0.4 + 4
    canvas.along, canvas.down = direction(tilt), direction(tilt - 90)
    if pose.in_air:
        _spread_wing(canvas, pose.far_wing, 0.78)
        _trailing_legs(canvas)
    elif pose.kind != "swimming":
        _legs(canvas, tilt)
    _tail(canvas)
    if pose.kind == "soaring":
        # Seen from above: the wings lie over the body, the near one painted like the far one.
        _body(canvas)
        _spread_wing(canvas, pose.near_wing, 1.0)
    else:
        _body(canvas)
    draw_head(canvas)
    if pose.kind == "flying":
        _spread_wing(canvas, pose.near_wing, 1.0)
    elif not pose.in_air:
        _folded_wing(canvas)
    return canvas.drawing


def _body(canvas: Canvas) -> None:
    """The egg of the body with a lighter or darker belly."""
    build = canvas.species.build
    centers = (_T - 0.5)[:, None] * canvas.along
    normals = np.broadcast_to(canvas.down, centers.shape)
    body = Tube(centers, _BODY * build.depth / 2, normals)
    canvas.part("body", body, "body", under="belly" if canvas.plumage.belly else "")


def _tail(canvas: Canvas) -> None:
    """The tail, painted before the body; a forked one has two prongs."""
    build = canvas.species.build
    angle = build.tail_angle + canvas.pose.tail
    back = -canvas.along
    turn = np.deg2rad(angle)
    toward = np.cos(turn) * back - np.sin(turn) * canvas.down
    base = canvas.at(-0.34, 0.0)
    length, half = build.tail_length + 0.16, build.tail_width / 2
    if canvas.pose.kind == "soaring" and build.tail in ("square", "fan"):
        half *= 1.6
    if build.tail == "fork":
        aside = np.array([toward[1], -toward[0]])
        t = np.linspace(0, 1, 7)
        for sign in (-1.0, 1.0):
            centers = base + (t * length)[:, None] * toward + (sign * build.tail_width * t**1.4)[:, None] * aside
            prong = Tube(centers, np.maximum(half * (1 - 0.8 * t), canvas.thinnest / 2))
            canvas.part("tail", prong, "tail", 0.92 if sign < 0 else 1.0)
        return
    # The line runs to the back, so its right-hand side is the upper one: turn it, for s = -1 to be the upper
    # edge.
    upward = np.array([toward[1], -toward[0]])
    centers = base + (_T * length)[:, None] * toward
    profile = _TAILS[build.tail] * half
    tube = Tube(centers, np.maximum(profile, canvas.thinnest / 2), np.broadcast_to(upward, centers.shape))
    canvas.part("tail", tube, "tail")
    canvas.drawing.add(tube.patch(0.45, 1.0, 0.25, 0.4), shade(canvas.colour("tail"), 0.75))


def _folded_wing(canvas: Canvas) -> None:
    """The closed wing on the bird's flank, its tip over the rump."""
    build = canvas.species.build
    root = canvas.at(0.33, -0.1 * build.depth)
    tip = canvas.at(-0.5 - 0.1 * build.span, 0.02 * build.depth)
    t = _T[:, None]
    centers = root + t * (tip - root) + (np.sin(np.pi * t) * 0.06 * build.depth) * canvas.down
    radii = _FOLDED * build.depth * 0.33
    wing = Tube(centers, radii, np.broadcast_to(canvas.down, centers.shape))
    canvas.part("wing", wing, "wing")
    dark = shade(canvas.colour("wing"), 0.66)
    canvas.drawing.add(wing.patch(0.12, 0.97, 0.8, 1.0), dark)
    canvas.drawing.add(wing.patch(0.42, 0.95, 0.18, 0.32), dark)
    canvas.drawing.add(wing.patch(0.52, 0.95, -0.3, -0.18), dark)


def _spread_wing(canvas: Canvas, angle: float, gain: float) -> None:
    """One open wing, from the shoulder at an angle to the body's axis."""
    build = canvas.species.build
    turn = np.deg2rad(angle)
    toward = np.cos(turn) * canvas.along - np.sin(turn) * canvas.down
    root = canvas.at(0.1, -0.12 * build.depth * np.sign(angle) if canvas.pose.kind == "soaring" else -0.08)
    pointed = build.wing_tip == "point"
    bend, sweep = (0.16, 0.42) if pointed else (0.1, 0.16)
    # Forward of the wing at its wrist, swept back at its tip; forward is the side of the head.
    side = 1.0 if angle > 0 else -1.0
    forward = side * np.array([-toward[1], toward[0]])
    arc = bend * np.sin(np.pi * _T) - sweep * _T**2
    centers = root + (_T * build.span)[:, None] * toward + (arc * build.span)[:, None] * forward
    radii = _WINGS[build.wing_tip] * build.chord / 2
    wing = Tube(centers, radii)
    if float(wing.normals[0] @ forward) > 0:
        # s = -1 is the wing's front edge on either side of the bird, so that marks keep to their edge.
        wing = Tube(centers, radii, -wing.normals)
    if build.wing_tip == "finger":
        _fingers(canvas, wing, toward, forward, gain)
    canvas.part("wing", wing, "wing", gain)
    dark = shade(canvas.colour("wing"), 0.7 * gain)
    for t in (0.3, 0.46, 0.62, 0.78):
        canvas.drawing.add(wing.patch(t, t + 0.035, 0.15, 0.98), dark)


def _fingers(canvas: Canvas, wing: Tube, toward: FloatArray, forward: FloatArray, gain: float) -> None:
    """The spread primaries at the tip of a soaring wing."""
    build = canvas.species.build
    colour = shade(canvas.colour("wing"), 0.7 * gain)
    for place in (-0.75, -0.25, 0.25, 0.75):
        start = wing.centers[-2] + place * wing.offsets[-2]
        end = start + build.span * (0.3 * toward - (0.03 + 0.16 * (place + 0.75)) * forward)
        aside = forward * build.chord * 0.075
        canvas.drawing.add(np.stack([start - aside, end - 0.5 * aside, end + 0.5 * aside, start + aside]), colour)


def _hip(build: Build, tilt: float, place: float) -> FloatArray:
    """Where a leg leaves the body: under the belly of a level bird, under the rump of an upright one."""
    upright = np.sin(np.deg2rad(tilt))
    back = place * (1 - upright) - 0.36 * upright
    return back * direction(tilt) + (0.32 - 0.16 * upright) * build.depth * direction(tilt - 90)


def _legs(canvas: Canvas, tilt: float) -> None:
    """Two legs, upright whatever the body's tilt, with toes."""
    build = canvas.species.build
    width = max(0.045, canvas.thinnest) / 2
    colour = canvas.colour("legs")
    for place, shift, gain in ((-0.12, -0.03, 0.75), (0.06, 0.05, 1.0)):
        hip = _hip(build, tilt, place) + np.array((shift, 0.0))
        reach = build.leg + build.depth * 0.16
        knee = hip + np.array((-0.05 * min(1.0, build.leg), 0.5 * reach))
        foot = hip + np.array((0.0, reach))
        toe = foot + np.array((0.13, 0.02))
        points = np.stack([hip, knee, foot, toe])
        leg = Tube(points, np.full(4, width), np.array([(-1.0, 0.0), (-1.0, 0.0), (-0.8, 0.8), (0.0, 1.0)]))
        canvas.drawing.add(leg.outline(), shade(colour, gain))


def _trailing_legs(canvas: Canvas) -> None:
    """Long legs stretched out behind in flight; short ones are drawn in."""
    build = canvas.species.build
    if build.leg > 0.45:
        width = max(0.05, canvas.thinnest) / 2
        start, end = canvas.at(-0.3, 0.06), canvas.at(-0.45 - 0.75 * build.leg, 0.1)
        leg = Tube(np.stack([start, end]), np.full(2, width))
        canvas.drawing.add(leg.outline(), canvas.colour("legs"))


def feet(species: Species, pose: Pose) -> FloatArray:
    """Where a bird that perches or stands touches the ground, in body lengths from its body's centre."""
    build = species.build
    return _hip(build, build.tilt + pose.tilt, -0.03) + np.array([0.05, build.leg + build.depth * 0.16])

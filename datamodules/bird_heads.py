"""Necks, heads, bills, eyes and crests of the drawn birds."""

from __future__ import annotations

import numpy as np

from datamodules.birds import COLOURS, Canvas
from datamodules.shapes import FloatArray, Tube, direction, ellipse, shade

_T = np.linspace(0, 1, 13)
_ROUND = np.sqrt(np.maximum(0, 1 - (2 * _T - 1) ** 2))

# Outlines of closed bills: x from base 0 to tip 1, y from the upper (-1) to the lower (+1) edge of the base.
_BILLS: dict[str, FloatArray] = {
    "cone": np.array([(-0.2, -1), (0.4, -0.75), (1, 0.1), (0.4, 0.8), (-0.2, 1)]),
    "dagger": np.array([(-0.1, -1), (0.5, -0.62), (1, -0.05), (1, 0.12), (0.5, 0.62), (-0.1, 1)]),
    "needle": np.array([(-0.1, -1), (0.2, -0.6), (1, -0.5), (1, 0.5), (0.2, 0.6), (-0.1, 1)]),
    "hook": np.array(
        [
            (-0.2, -1),
            (0.4, -1.05),
            (0.85, -0.55),
            (1, 0.3),
            (0.92, 1.25),
            (0.72, 0.6),
            (0.4, 0.65),
            (-0.2, 0.8),
        ]
    ),
    "flat": np.array([(-0.2, -1.1), (0.3, -0.2), (0.75, -0.1), (1, 0.25), (0.95, 0.7), (0.6, 0.85), (-0.2, 0.9)]),
    "giant": np.array(
        [
            (-0.1, -0.9),
            (0.25, -1.15),
            (0.6, -0.95),
            (0.9, -0.3),
            (1, 0.6),
            (0.93, 1),
            (0.8, 0.65),
            (0.4, 0.8),
            (-0.1, 0.85),
        ]
    ),
    "bent": np.array(
        [
            (-0.1, -0.9),
            (0.45, -0.8),
            (0.75, -0.1),
            (0.95, 1.5),
            (0.85, 2.1),
            (0.62, 1.6),
            (0.4, 0.8),
            (-0.1, 0.9),
        ]
    ),
    "pouch": np.array([(-0.1, -0.6), (1, -0.25), (1.02, 0.15), (0.7, 0.9), (0.3, 1.5), (-0.15, 1.1)]),
    "down": np.array([(-0.1, -1), (0.4, -0.8), (0.8, -0.2), (1, 1), (0.95, 1.3), (0.75, 0.7), (0.4, 0.4), (-0.1, 0.9)]),
}


def draw_head(canvas: Canvas) -> None:
    """Neck, head, crest, bill and eye."""
    build, pose = canvas.species.build, canvas.pose
    angle = build.neck_angle + pose.neck
    if pose.in_air:
        # Birds fly with the neck stretched forward, or laid back if they are the ones with a curved neck.
        angle = 0.35 * angle
    toward = direction(angle)
    aside = np.array([-toward[1], toward[0]])
    base = canvas.at(0.26, -0.06 * build.depth)
    reach = (0.2 + build.neck) * pose.stretch
    t = _T
    swing = build.neck_curve * (0.45 if pose.in_air else 1.0) * reach * np.sin(2 * np.pi * t)
    centers = base + (t * reach)[:, None] * toward + swing[:, None] * aside
    thin = build.neck_width / 2
    start = max(build.depth * 0.4, thin)
    radii = thin + (start - thin) * np.maximum(0, 1 - t * (0.2 + reach) / 0.24) ** 1.5
    neck = Tube(centers, radii)
    long_neck = build.neck > 0.2
    # On a short neck the breast goes up to the throat.
    throat = "belly" if canvas.plumage.belly and not long_neck else ""
    canvas.part("neck", neck, "head" if long_neck else "body", under=throat)
    gaze = build.bill_angle + 0.35 * pose.neck + (0.3 * pose.tilt if pose.in_air else 0)
    facing, below = direction(gaze), direction(gaze - 90)
    center = centers[-1] + facing * build.head * 0.12
    _crest(canvas, center, facing, below)
    if not build.front_face:
        _bill(canvas, center + facing * build.head * 0.82, facing, below)
    head = Tube(
        center + ((2 * _T - 1) * build.head * 1.1)[:, None] * facing,
        _ROUND * build.head,
        np.broadcast_to(below, (len(_T), 2)),
    )
    canvas.part("head", head, "head")
    if build.front_face:
        _front_face(canvas, center, facing, below)
    else:
        _eye(canvas, center + facing * build.head * 0.35 - below * build.head * 0.22, build.head * 0.2)


def _eye(canvas: Canvas, center: FloatArray, radius: float) -> None:
    """An eye: a rim in the eye colour (white round a black eye), the pupil, and a glint."""
    rim = canvas.plumage.eye if canvas.plumage.eye != "black" else "white"
    canvas.drawing.add(ellipse(center, radius * 1.3, radius * 1.3), COLOURS[rim])
    canvas.drawing.add(ellipse(center, radius * 0.9, radius * 0.9), (12.0, 12.0, 14.0))
    canvas.drawing.add(ellipse(center + radius * np.array((0.3, -0.35)), radius * 0.3, radius * 0.3), (250.0,) * 3)


def _front_face(canvas: Canvas, center: FloatArray, facing: FloatArray, below: FloatArray) -> None:
    """An owl's face turned to the viewer: two discs, two large eyes, the bill between them."""
    head = canvas.species.build.head
    middle = center + facing * head * 0.1
    for side in (-0.46, 0.46):
        disc = middle + facing * head * side
        canvas.drawing.add(ellipse(disc, head * 0.5, head * 0.56), canvas.colour("accent"))
    for side in (-0.42, 0.42):
        _eye(canvas, middle + facing * head * side - below * head * 0.05, head * 0.24)
    bill = np.stack(
        [
            middle - facing * head * 0.13 + below * head * 0.05,
            middle + facing * head * 0.13 + below * head * 0.05,
            middle + below * head * 0.5,
        ]
    )
    canvas.drawing.add(bill, canvas.colour("bill"))


def _bill(canvas: Canvas, base: FloatArray, facing: FloatArray, below: FloatArray) -> None:
    """The bill, with its marks as slices along its length."""
    build = canvas.species.build
    half = max(build.bill_depth, canvas.thinnest) / 2
    template = _BILLS[build.bill]

    def place(corners: FloatArray) -> FloatArray:
        x, y = corners[:, :1], corners[:, 1:]
        return base + x * build.bill_length * facing + y * half * below

    canvas.drawing.add(place(template), canvas.colour("bill"))
    for mark in canvas.species.marks:
        if mark.part == "bill":
            # The corners outside the slice slide along their own edge on to its border.
            inside = template.copy()
            inside[:, 0] = np.clip(template[:, 0], mark.t0, mark.t1)
            canvas.drawing.add(place(inside), canvas.colour(mark.colour))
    # The line where the bill closes.
    gape = np.array([(0.0, 0.0), (0.75, 0.12), (0.75, 0.25), (0.0, 0.25)])
    canvas.drawing.add(place(gape), shade(canvas.colour("bill"), 0.72))


def _crest(canvas: Canvas, center: FloatArray, facing: FloatArray, below: FloatArray) -> None:
    """Feathers on the head, painted before it."""
    build = canvas.species.build
    head, add = build.head, canvas.drawing.add

    def corner(x: float, y: float) -> FloatArray:
        return center + facing * head * x + below * head * y

    if build.crest == "peak":
        points = [corner(0.7, -0.6), corner(-0.15, -1.95), corner(-0.55, -1.7), corner(-0.95, 0.0)]
        add(np.stack(points), canvas.colour("head"))
    elif build.crest == "fan":
        for x, y in ((0.55, -2.1), (-0.15, -2.3), (-0.85, -2.1), (-1.45, -1.6), (-1.8, -0.95)):
            side = 0.24
            add(
                np.stack([corner(0.1 - side, -0.5), corner(x - side, y), corner(x + side, y), corner(0.3, -0.3)]),
                canvas.colour("accent"),
            )
            tip = [corner(x - side, y), corner(x, y - 0.2), corner(x + side, y)]
            tip += [corner(x * 0.86 + side, y * 0.86), corner(x * 0.86 - side, y * 0.86)]
            add(np.stack(tip), canvas.colour("black"))
    elif build.crest == "tufts":
        for x in (-0.8, 0.8):
            points = [corner(x * 0.35, -0.8), corner(x * 1.12, -1.5), corner(x * 1.15, -0.2)]
            add(np.stack(points), canvas.colour("head"))
    elif build.crest == "plume":
        points = [
            corner(0.5, -0.95),
            corner(-0.6, -0.95),
            corner(-2.6, 0.3),
            corner(-2.5, 0.62),
            corner(-0.6, 0.0),
        ]
        add(np.stack(points), canvas.colour("accent"))
    elif build.crest == "shaggy":
        for x, y in ((-1.1, -1.4), (-1.65, -0.75), (-1.75, 0.0)):
            add(np.stack([corner(0.4, -0.9), corner(x, y), corner(-0.6, 0.4)]), canvas.colour("head"))

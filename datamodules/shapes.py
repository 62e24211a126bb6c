"""Flat coloured shapes in unit coordinates, and their antialiased painting.

Everything that is drawn on a scene (birds, rocks, reeds) is a `Drawing`: an ordered list of filled polygons.
Coordinates know nothing of pixels: x runs right, y runs down, and the frame is the square [0, 1] x [0, 1],
so that one drawing gives the same composition at every image size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]
Colour = tuple[float, float, float]

# Bits of the fixed-point fraction that cv2.fillPoly takes: polygon corners are exact to 1/16 of a pixel.
_FRACTION_BITS = 4
_CIRCLE_POINTS = 18


def direction(degrees: float) -> FloatArray:
    """Unit vector at an angle above the x axis (counter-clockwise on the screen; y runs down)."""
    radians = math.radians(degrees)
    return np.array([math.cos(radians), -math.sin(radians)])


def shade(colour: Colour, gain: float) -> Colour:
    """The colour made darker (gain < 1) or lighter (gain > 1); RGB, 0 to 255."""
    return (min(255.0, colour[0] * gain), min(255.0, colour[1] * gain), min(255.0, colour[2] * gain))


@lru_cache(maxsize=64)
def _unit_circle(count: int) -> FloatArray:
    angles = np.arange(count) * (2 * np.pi / count)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def ellipse(center: Sequence[float] | FloatArray, rx: float, ry: float, degrees: float = 0.0) -> FloatArray:
    """Corners (n, 2) of an ellipse turned by an angle above the x axis."""
    if degrees == 0:
        return _unit_circle(_CIRCLE_POINTS) * (rx, ry) + center
    radians = math.radians(degrees)
    cosine, sine = math.cos(radians), math.sin(radians)
    axes = np.array([(rx * cosine, -rx * sine), (ry * sine, ry * cosine)])
    return _unit_circle(_CIRCLE_POINTS) @ axes + center


class Tube:
    """A band around a curved centre line: bodies, necks, wings, tails and branches are all tubes.

    A place on it has two coordinates: t in [0, 1] along the line, and s in [-1, 1] across it; s = +1 is on
    the right-hand side when walking along the line (below it, for a line that runs to the right).
    """

    def __init__(self, centers: FloatArray, radii: FloatArray, normals: FloatArray | None = None) -> None:
        self.centers = np.asarray(centers, dtype=np.float64)
        self.radii = np.asarray(radii, dtype=np.float64)
        self.normals = _normals(self.centers) if normals is None else normals
        self.offsets = self.normals * self.radii[:, None]
        self._line = np.concatenate((self.centers, self.offsets), axis=1)

    def outline(self) -> FloatArray:
        """Corners (2n, 2) of the whole band."""
        return np.concatenate((self.centers - self.offsets, (self.centers + self.offsets)[::-1]))

    def patch(self, t0: float, t1: float, s0: float = -1.0, s1: float = 1.0) -> FloatArray:
        """Corners of the piece of the band with t in [t0, t1] and s in [s0, s1]; it never leaves the band."""
        piece = _weights(t0, t1, len(self.radii)) @ self._line
        centers, offsets = piece[:, :2], piece[:, 2:]
        return np.concatenate([centers + s0 * offsets, (centers + s1 * offsets)[::-1]])


@lru_cache(maxsize=1024)
def _weights(t0: float, t1: float, count: int) -> FloatArray:
    """The matrix (k, count) that interpolates a line of `count` points at k places between t0 and t1."""
    last = count - 1
    places = np.linspace(t0 * last, t1 * last, max(2, min(9, int((t1 - t0) * last) + 2)))
    low = np.clip(places.astype(np.intp), 0, last - 1)
    weights = np.zeros((len(places), count))
    rows = np.arange(len(places))
    weights[rows, low] = 1 - (places - low)
    weights[rows, low + 1] = places - low
    return weights


def _normals(centers: FloatArray) -> FloatArray:
    """Unit vectors (n, 2) to the right of the direction of travel along the centre line."""
    steps = np.empty_like(centers)
    np.subtract(centers[2:], centers[:-2], out=steps[1:-1])
    steps[0] = centers[1] - centers[0]
    steps[-1] = centers[-1] - centers[-2]
    normals = steps[:, ::-1] / np.sqrt(np.einsum("ij,ij->i", steps, steps) + 1e-24)[:, None]
    normals[:, 0] *= -1
    return normals


@dataclass
class Drawing:
    """Filled polygons in painting order: corners (n, 2), colour (RGB, 0 to 255) and opacity (0 to 1) of
    each."""

    polygons: list[FloatArray] = field(default_factory=list)
    colours: list[Colour] = field(default_factory=list)
    opacities: list[float] = field(default_factory=list)

    def add(self, polygon: FloatArray, colour: Colour, opacity: float = 1.0) -> None:
        """Put one polygon on top. A see-through one replaces what is under it: add it before its
        neighbours."""
        self.polygons.append(polygon)
        self.colours.append(colour)
        self.opacities.append(opacity)

    def extend(self, other: Drawing) -> None:
        """Put all polygons of another drawing on top."""
        self.polygons.extend(other.polygons)
        self.colours.extend(other.colours)
        self.opacities.extend(other.opacities)

    def moved(self, matrix: FloatArray, offset: Sequence[float] | FloatArray) -> Drawing:
        """A copy with every corner p mapped to matrix @ p + offset."""
        points = np.concatenate(self.polygons) @ np.asarray(matrix).T + np.asarray(offset)
        return Drawing(split(points, self.polygons), list(self.colours), list(self.opacities))

    def bounds(self) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1) of all corners."""
        return _bounds(np.concatenate(self.polygons))

    def covers(self, x: float, y: float) -> bool:
        """Whether some polygon contains the point."""
        return any(cv2.pointPolygonTest(polygon.astype(np.float32), (x, y), False) >= 0 for polygon in self.polygons)


def _bounds(points: FloatArray) -> tuple[float, float, float, float]:
    """(x0, y0, x1, y1) of corners (n, 2); cv2 reduces along the long axis several times as fast as numpy."""
    ((x0, y0),) = cv2.reduce(points, 0, cv2.REDUCE_MIN).tolist()
    ((x1, y1),) = cv2.reduce(points, 0, cv2.REDUCE_MAX).tolist()
    return x0, y0, x1, y1


def split(points: NDArray[Any], like: Sequence[FloatArray]) -> list[NDArray[Any]]:
    """Cut joined corners (sum of n, 2) back into polygons as long as those of `like`."""
    pieces, start = [], 0
    for polygon in like:
        pieces.append(points[start : start + len(polygon)])
        start += len(polygon)
    return pieces


@dataclass(frozen=True)
class Layer:
    """A painted drawing: the part of the image it touches, premultiplied by its alpha.

    colour: (h, w, 3) float32, 0 to 255, already times alpha; alpha: (h, w) float32 in [0, 1];
    rows and columns: where (h, w) lies in the image.
    """

    colour: NDArray[np.float32]
    alpha: NDArray[np.float32]
    rows: slice
    columns: slice

    def full_alpha(self, size: int) -> NDArray[np.float32]:
        """Alpha over the whole image, (size, size)."""
        alpha = np.zeros((size, size), np.float32)
        alpha[self.rows, self.columns] = self.alpha
        return alpha


def paint(drawing: Drawing, size: int, relief: float = 0.0) -> Layer | None:
    """Paint a drawing for an image of size x size pixels; None if it lies outside the frame.

    The polygons are filled at 4 (from 128 pixels on, 2) times the size and shrunk by area, so alpha is the
    fraction of the pixel that is covered. `relief` lights the upper edges and darkens the lower ones.
    """
    if not drawing.polygons:
        return None
    fine = 4 if size < 128 else 2
    points = np.concatenate(drawing.polygons)
    x0, y0, x1, y1 = _bounds(points)
    left, top = max(0, int(x0 * size) - 1), max(0, int(y0 * size) - 1)
    right, bottom = min(size, int(x1 * size) + 2), min(size, int(y1 * size) + 2)
    if right <= left or bottom <= top:
        return None
    canvas: NDArray[Any] = np.zeros(((bottom - top) * fine, (right - left) * fine, 4), np.uint8)
    unit = float(size * fine * 2**_FRACTION_BITS)
    # cv2 puts the centre of a pixel at whole coordinates, so the frame's corner is at (-1/2, -1/2).
    corner = np.array([left, top]) * (fine * 2.0**_FRACTION_BITS) + 2.0 ** (_FRACTION_BITS - 1)
    corners = np.rint(points * unit - corner).astype(np.int32)
    for polygon, colour, opacity in zip(
        split(corners, drawing.polygons), drawing.colours, drawing.opacities, strict=True
    ):
        red, green, blue = colour
        premultiplied = (red * opacity, green * opacity, blue * opacity, 255.0 * opacity)
        cv2.fillPoly(canvas, [polygon], premultiplied, cv2.LINE_8, _FRACTION_BITS)
    # Halving, and halving again, is several times as fast as one shrink by four.
    while canvas.shape[1] > right - left:
        half = (canvas.shape[1] // 2, canvas.shape[0] // 2)
        canvas = cv2.resize(canvas, half, interpolation=cv2.INTER_AREA)
    alpha = cv2.extractChannel(canvas, 3) * np.float32(1 / 255)
    colour_layer = cv2.cvtColor(canvas, cv2.COLOR_RGBA2RGB).astype(np.float32)
    if relief:
        colour_layer = _relief(colour_layer, alpha, size, relief)
    return Layer(colour_layer, alpha, slice(top, bottom), slice(left, right))


def _relief(colour: NDArray[np.float32], alpha: NDArray[np.float32], size: int, strength: float) -> NDArray[np.float32]:
    """Light from above on a flat cut-out: the blurred alpha stands for its thickness."""
    width = 2 * (size // 20) + 1
    thickness = cv2.copyMakeBorder(alpha, width, width, 0, 0, cv2.BORDER_CONSTANT, value=0)
    thickness = cv2.blur(cv2.blur(thickness, (width, width)), (width, width))
    step = width // 2 + 1
    height = alpha.shape[0]
    slope = thickness[width + step : width + step + height] - thickness[width - step : width - step + height]
    gain = np.float32(1) + np.float32(strength) * slope
    return np.minimum(colour * tinted(gain), tinted(alpha, (255, 255, 255)))


def tinted(field: NDArray[np.float32], colour: Iterable[float] = (1.0, 1.0, 1.0)) -> NDArray[np.float32]:
    """A field (h, w) times a colour, (h, w, 3); numpy broadcasts over so short an axis far slower."""
    merged: NDArray[Any] = cv2.merge([field * np.float32(channel) for channel in colour])
    return merged


def blend(image: NDArray[np.float32], layer: Layer | None) -> None:
    """Put a layer over the image (size, size, 3) float32 in place."""
    if layer is not None:
        region = image[layer.rows, layer.columns]
        region *= tinted(1 - layer.alpha)
        region += layer.colour


def without_faint_ends(layer: Layer) -> Layer:
    """The layer without pixels that are less than half covered and touch none that is: ends of bills and
    feathers finer than a pixel. What is left of it is its mask (alpha > 1/2) and the mask's antialiased
    edge."""
    solid = (layer.alpha > 0.5).astype(np.uint8)
    keep = cv2.dilate(solid, np.ones((3, 3), np.uint8)).astype(np.float32)
    return Layer(layer.colour * tinted(keep), layer.alpha * keep, layer.rows, layer.columns)

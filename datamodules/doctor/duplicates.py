"""Images that are the same, or nearly: by an exact hash of the file, and a perceptual hash of what it shows.

The perceptual hash is the usual `phash`: the signs of the 8 x 8 lowest frequencies of a 32 x 32 grey image relative to
their median (Zauner 2010, section 3.2.1). Copies that were resized, compressed or brightened differ in a few of the 64
bits; so do some images that have little in common, so small colour versions of a pair are compared as well. Copies that
are mirrored, rotated, or cropped by more than a few percent are not found.

Two hashes that differ in at most 7 bits are equal in at least one of their 8 bytes. So each image is compared only with
those that share a byte with it.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np

MAX_BITS = 7
_SIDE = 8
THUMB = _SIDE * _SIDE * 3
MIN_CORRELATION = 0.9  # between two small pictures, after subtracting each channel's mean
_CELLS = 1 << 21  # comparisons at a time


def perceptual_hash(grey: np.ndarray) -> int:
    """uint8 (img_h, img_w) -> 64 bits; the highest frequency is the lowest bit."""
    small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:8, :8]
    bits = np.packbits(low > np.median(low))
    return int.from_bytes(bits.tobytes(), "big")


def thumbnail(image: np.ndarray) -> np.ndarray:
    """uint8 (img_h, img_w, 3) -> uint8 (THUMB,): a small version, to compare two images with similar hashes."""
    return cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).reshape(-1)


class Pairs(NamedTuple):
    """A near duplicate of each image, or -1; each (images,) int64.

    Args:
        same: the first earlier image in the same split with the same label.
        leak: the first later image in another split.
        conflict: the first earlier image with another label.
    """

    same: np.ndarray
    leak: np.ndarray
    conflict: np.ndarray


def near_duplicates(looks: np.ndarray, thumbs: np.ndarray, splits: np.ndarray, targets: np.ndarray) -> Pairs:
    """The near duplicates among images.

    Args:
        looks: (images,) uint64, perceptual hashes.
        thumbs: (images, THUMB) uint8.
        splits: (images,) which split, ascending.
        targets: (images,) which label.
    """
    pictures = _normalised(thumbs)
    none = len(looks)  # larger than any index, so that the minimum is the first one found
    found = Pairs(*(np.full(none, none) for _ in Pairs._fields))
    for later, earlier in _like_hashes(looks):
        alike = _alike(pictures, later, earlier)
        later, earlier = later[alike], earlier[alike]
        leaks, conflicts = splits[later] != splits[earlier], targets[later] != targets[earlier]
        within = ~leaks & ~conflicts
        np.minimum.at(found.same, later[within], earlier[within])
        np.minimum.at(found.leak, earlier[leaks], later[leaks])
        np.minimum.at(found.conflict, later[conflicts], earlier[conflicts])
    return Pairs(*(np.where(first == none, -1, first) for first in found))


def _like_hashes(looks: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs (later, earlier) whose hashes differ in at most MAX_BITS bits, each once, in arrays of thousands."""
    for place in range(8):
        byte = _byte(looks, place)
        order = np.argsort(byte, kind="stable")
        for start, stop in pairwise(np.searchsorted(byte[order], np.arange(257)).tolist()):
            members = order[start:stop]  # ascending
            step = max(1, _CELLS // max(1, len(members)))
            for at in range(0, len(members), step):
                rows, columns = members[at : at + step], members[: at + step]
                bits = looks[rows, None] ^ looks[None, columns]
                row, column = np.nonzero((np.bitwise_count(bits) <= MAX_BITS) & (columns < rows[:, None]))
                apart = bits[row, column]
                # A pair that also shares an earlier byte was found there.
                new = np.ones(len(apart), bool)
                for before in range(place):
                    new &= _byte(apart, before) != 0
                yield rows[row[new]], columns[column[new]]


def _byte(hashes: np.ndarray, place: int) -> np.ndarray:
    return (hashes >> np.uint64(8 * place)).astype(np.uint8)


def _alike(pictures: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(pairs,) bool: which pairs of small pictures (see `_normalised`) correlate, regardless of brightness."""
    found = np.empty(len(one), bool)
    step = max(1, _CELLS // THUMB)
    for start in range(0, len(one), step):
        part = slice(start, start + step)
        found[part] = np.einsum("ij,ij->i", pictures[one[part]], pictures[other[part]]) >= MIN_CORRELATION
    return found


def _normalised(thumbs: np.ndarray) -> np.ndarray:
    """(images, THUMB) uint8 -> float32 of length 1 with each channel's mean subtracted: products are correlations."""
    channels = thumbs.reshape(len(thumbs), -1, 3).astype(np.float32)
    channels -= channels.mean(axis=1, keepdims=True)
    pictures = channels.reshape(len(thumbs), -1)
    pictures /= np.maximum(np.linalg.norm(pictures, axis=1, keepdims=True), 1e-6)
    return pictures


def same_content(content: np.ndarray, images: np.ndarray) -> list[np.ndarray]:
    """Groups of two or more of `images` (ascending) whose files have the same bytes; each group is ascending."""
    order = images[np.argsort(content[images], kind="stable")]
    edges = np.flatnonzero(np.diff(content[order])) + 1
    return [group for group in np.split(order, edges) if len(group) > 1]

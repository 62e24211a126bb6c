"""The words of a text in two columns, and lines from one word to those that it attends to."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from vit.saliency.render import PAPER, Picture, text_width, write_text

TEXT, STEP = 18, 30  # size of the letters and from line to line, in pixels
MARGIN, ACROSS = 12, 220  # around the picture, and between the two columns
THICKEST = 9
LINE, ASKING = (214, 93, 14), (198, 219, 239)  # RGB: the line with the largest weight; behind the word that attends


def draw_word(words: Sequence[str], asking: int, weights: NDArray[np.floating], note: str = "") -> Picture:
    """uint8 RGB (height, width, 3): the word number `asking` on the left, and what it attends to on the right.

    The more a word gets, the thicker and darker its line; its share is written after it.

    Args:
        words: W words.
        asking: index of the word that attends.
        weights: (W,) how much it attends to each word; only their proportions are drawn.
        note: a line of text at the bottom.

    Raises:
        ValueError: for weights that are not W numbers of 0 or more with a sum above 0.
    """
    if weights.shape != (len(words),) or not np.isfinite(weights).all() or weights.min() < 0 or weights.sum() <= 0:
        raise ValueError(f"{len(words)} words need {len(words)} weights of 0 or more, not all 0; got {weights}")
    shares = weights / weights.sum()
    strengths = shares / shares.max()
    column = max(text_width(word, TEXT) for word in words)
    left, right = MARGIN + column + 8, MARGIN + column + 8 + ACROSS  # where the lines begin and end
    percent = right + 16 + column
    width = max(percent + text_width("100%", TEXT), text_width(note, TEXT - 4) + MARGIN) + MARGIN
    height = 2 * MARGIN + STEP * len(words) + (STEP if note else 0)
    canvas = np.full((height, width, 3), PAPER, np.uint8)
    middles = [MARGIN + STEP * number + STEP // 2 for number in range(len(words))]
    for number in np.argsort(strengths):  # the strongest last, on top
        start, end = (left, middles[asking]), (right, middles[number])
        thickness = max(1, round(THICKEST * float(strengths[number])))
        cv2.line(canvas, start, end, _colour(strengths[number]), thickness, cv2.LINE_AA)
    _box(canvas, MARGIN - 4, left, middles[asking], ASKING)
    for number, word in enumerate(words):
        baseline = middles[number] + TEXT // 3
        write_text(canvas, word, left - 8 - text_width(word, TEXT), baseline, TEXT, column + 1)
        _box(canvas, right, right + 12 + column, middles[number], _colour(strengths[number]))
        write_text(canvas, word, right + 6, baseline, TEXT, column + 1)
        write_text(canvas, f"{shares[number]:.0%}", percent, baseline, TEXT, width)
    if note:
        write_text(canvas, note, MARGIN, height - MARGIN, TEXT - 4, width - 2 * MARGIN)
    return canvas


def _colour(strength: float) -> tuple[float, ...]:
    """From white to the colour of the largest weight."""
    return tuple(round(PAPER + float(strength) * (channel - PAPER)) for channel in LINE)


def _box(canvas: Picture, left: int, right: int, middle: int, colour: tuple[float, ...]) -> None:
    cv2.rectangle(canvas, (left, middle - STEP // 2 + 2), (right, middle + STEP // 2 - 2), colour, cv2.FILLED)

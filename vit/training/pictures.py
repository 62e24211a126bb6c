"""Pictures of a run: learning curves, the confusion matrix and the reliability diagram, as PNG files.

Matplotlib is only used through its objects, never through pyplot, whose global state outlives a call. Importing
matplotlib is slow, so import this file inside the function that draws.
"""

import csv
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray

from vit.foundation import atomic_write

if TYPE_CHECKING:
    from vit.training.calibration import Calibration

DPI = 120
MAX_CELLS, MAX_TICKS = 20, 60  # maximum number of classes with numbers in cells, and with labels for rows
PAIRS = 20  # most confused pairs listed beside a larger matrix

# Panels of the learning curves: title, label of the y axis, and parts of the names of their columns.
LEARNING_RATE = ("lr",)
PANELS = (
    ("Loss", "loss", ("loss",)),
    ("Accuracy", "accuracy", ("acc", "top1", "top5", "exact", "words", "map", "f1")),
    ("Learning rate", "learning rate", LEARNING_RATE),
)


def draw_curves(metrics_csv: str | os.PathLike[str], out: str | os.PathLike[str]) -> list[str]:
    """Draws loss, accuracy and learning rate against the step, from the metrics.csv of a run.

    Columns are recognised by their names (train_loss, val_top1, lr-AdamW); others are left out, and so are panels
    without columns. Empty cells are skipped. If a resumed run wrote a step again, its last value counts; of a last line
    that was cut off by a crash, the complete values count.

    Returns:
        The columns drawn.

    Raises:
        ValueError: when no column can be drawn.
    """
    curves = _read_curves(Path(metrics_csv))
    panels = [(title, label, words, _columns_of(curves, words)) for title, label, words in PANELS]
    panels = [panel for panel in panels if panel[-1]]
    if not panels:
        raise ValueError(f"{metrics_csv} has no column of losses, accuracies or learning rates with a number in it.")
    figure = Figure(figsize=(5.2 * len(panels), 4), layout="constrained")
    row = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, label, words, columns) in zip(row, panels, strict=True):
        for column in columns:
            _draw_curve(axes, column, curves[column], smooth=words != LEARNING_RATE)
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    _save(figure, out)
    return [column for *_, columns in panels for column in columns]


def draw_rates(rates: Sequence[float], losses: Sequence[float], chosen: float, out: str | os.PathLike[str]) -> None:
    """Draws the loss of a learning rate range test against the rate, with the one that is chosen."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses)
    axes.axvline(chosen, color="tab:orange", linestyle="--", label=f"suggested: {chosen:.1e}")
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss, smoothed")
    axes.legend()
    with atomic_write(out) as temporary:
        figure.savefig(temporary, dpi=DPI)


def draw_confusion(counts: NDArray[Any], labels: Sequence[str], out: str | os.PathLike[str]) -> None:
    """Draws a confusion matrix, each row divided by its sum: the share of a class's images with each prediction.

    With up to 20 classes, cells show their numbers; with more, the most confused pairs are listed beside the matrix.
    With up to 60, rows and columns have labels. A class without images is a grey row.

    Args:
        counts: (C, C) numbers of images, true class by row, predicted class by column.
        labels: C names; one with letters that matplotlib's own font lacks (Chinese, emoji) becomes "class 7", after its
            row.
        out: a PNG file.

    Raises:
        ValueError: for no labels, or counts that are not (C, C).
    """
    classes = len(labels)
    if classes == 0 or counts.shape != (classes, classes):
        raise ValueError(f"{classes} labels need counts of the shape ({classes}, {classes}), got {counts.shape}.")
    names = [_drawable(label, f"class {index}") for index, label in enumerate(labels)]
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
    side = 8 if classes > MAX_TICKS else float(np.clip(1.5 + 0.42 * classes, 4, 14))
    listed = classes > MAX_CELLS
    size = (side + 5.5, max(side, 6)) if listed else (side + 1.5, side)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, 2, width_ratios=(side, 4.5)) if listed else [figure.subplots()]
    _draw_matrix(axes[0], shares, names)
    if listed:
        _list_pairs(axes[1], counts, names)
    axes[0].set_title(f"{int(np.trace(counts))} of {int(counts.sum())} images right", fontsize=11)
    _save(figure, out)


def draw_reliability(calibration: "Calibration", out: str | os.PathLike[str]) -> None:
    """Draws accuracy against confidence in bins, and the share of images in each; the title has the calibration error.

    Args:
        out: a PNG file.
    """
    counts = calibration.counts.numpy()
    accuracy, confidence = calibration.accuracy.numpy(), calibration.confidence.numpy()
    filled, bins, total = counts > 0, len(counts), int(counts.sum())
    figure = Figure(figsize=(5, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    centres = (np.arange(bins) + 0.5) / bins
    upper.bar(centres[filled], accuracy[filled], 1 / bins, color="#4477aa", edgecolor="white", label="accuracy")
    upper.plot([0, 1], [0, 1], "--", color="0.4", label="perfectly calibrated")
    upper.plot(confidence[filled], accuracy[filled], "o", color="#ee6677", markersize=4, label="bin's mean confidence")
    upper.set(ylim=(0, 1), ylabel="accuracy", title=f"Reliability: ECE {calibration.error:.3f}, {total} images")
    upper.legend(frameon=False, loc="upper left")
    lower.bar(centres, counts / total, 1 / bins, color="0.6", edgecolor="white")
    lower.set(xlim=(0, 1), xlabel="confidence", ylabel="share of images")
    _save(figure, out)


def _read_curves(path: Path) -> dict[str, dict[float, float]]:
    """{column: {step: value}} for every number in the file, steps ascending; without steps, rows are numbered."""
    curves: dict[str, dict[float, float]] = defaultdict(dict)
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        for number, row in enumerate(csv.DictReader(file)):
            step = _number(row.get("step")) if "step" in row else float(number)
            if step is None:
                continue
            for column, cell in row.items():
                value = _number(cell)
                if column not in (None, "step", "epoch") and value is not None:
                    curves[column][step] = value
    return {column: dict(sorted(curve.items())) for column, curve in curves.items()}


def _number(cell: object) -> float | None:
    try:
        return float(cell) if isinstance(cell, str) else None
    except ValueError:
        return None


def _columns_of(curves: dict[str, dict[float, float]], words: tuple[str, ...]) -> list[str]:
    """The columns for one panel. Names must start with "lr"; the other words may be anywhere in them."""
    if words == LEARNING_RATE:
        return [column for column in curves if column.startswith("lr")]
    return [column for column in curves if any(word in column for word in words)]


def _draw_curve(axes: Axes, column: str, curve: dict[float, float], *, smooth: bool) -> None:
    steps, values = np.array(list(curve)), np.array(list(curve.values()))
    window = len(values) // 50
    label = _drawable(column, "unnamed", longest=40)
    if window < 4 or not smooth:
        # With markers, so that a run of one epoch shows its only value.
        axes.plot(steps, values, marker="o" if len(values) < 40 else "", markersize=3, label=label)
        return
    # A long noisy curve, such as the loss of every step, is drawn faint, with its running mean on top.
    mean = np.convolve(values, np.ones(window) / window, mode="valid")
    (line,) = axes.plot(steps[window - 1 :], mean, label=f"{label} (mean of {window})")
    axes.plot(steps, values, color=line.get_color(), alpha=0.25, linewidth=0.7)


def _draw_matrix(axes: Axes, shares: NDArray[np.float64], names: Sequence[str]) -> None:
    classes = len(names)
    colours = matplotlib.colormaps["Blues"].with_extremes(bad="0.85")
    # Coloured by the square root of the share, so that rare confusions are visible.
    image = axes.imshow(shares, cmap=colours, norm=PowerNorm(0.5, vmin=0, vmax=1), interpolation="auto")
    axes.figure.colorbar(image, ax=axes, label="share of the true class", fraction=0.046, pad=0.02)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if classes > MAX_TICKS:
        return
    size = 9 if classes <= MAX_CELLS else 6
    axes.set_xticks(range(classes), names, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(range(classes), names, fontsize=size, parse_math=False)
    if classes > MAX_CELLS:
        return
    for (row, column), share in np.ndenumerate(shares):
        if math.isfinite(share) and share > 0:
            colour = "white" if share > 0.35 else "black"
            axes.text(column, row, f"{share:.2f}", ha="center", va="center", fontsize=7, color=colour)


def _list_pairs(axes: Axes, counts: NDArray[Any], names: Sequence[str]) -> None:
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    axes.set_axis_off()
    axes.set_title("Most confused", loc="left", fontsize=10)
    if not wrong.any():
        axes.text(0, 0.97, "none", va="top", fontsize=8)
    for line, flat in enumerate(order):
        true, predicted = divmod(int(flat), len(names))
        if wrong[true, predicted]:
            share = f"{wrong[true, predicted]} of {counts[true].sum()}"
            text = f"{share}  {names[true]} \N{RIGHTWARDS ARROW} {names[predicted]}"
            axes.text(0, 0.97 - line * 0.98 / PAIRS, text, va="top", fontsize=8, parse_math=False)


def _drawable(label: str, otherwise: str, longest: int = 24) -> str:
    """The label on one line, shortened in its middle to `longest` letters; `otherwise` if the font lacks a letter."""
    line = " ".join(label.split())
    if not line or not {ord(letter) for letter in line} <= _letters():
        # Matplotlib would draw a row of equal boxes, and warn.
        return otherwise
    return line if len(line) <= longest else f"{line[: longest - 9]}…{line[-8:]}"


@cache
def _letters() -> frozenset[int]:
    """Code points of the font that comes with matplotlib."""
    return frozenset(FT2Font(str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"))).get_charmap())


def _save(figure: Figure, out: str | os.PathLike[str]) -> None:
    with atomic_write(out) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)

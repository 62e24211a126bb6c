"""Pictures of a run: what is drawn is checked on the figure before it becomes pixels."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from vit.training.calibration import Calibration
from vit.training.pictures import draw_confusion, draw_curves, draw_reliability

METRICS = """epoch,lr-AdamW,step,train_loss,val_loss,val_top1,speed
0,0.001,0,,,,
0,,4,2.5,,,17.0
0,,9,2.0,,,
0,,9,,1.75,0.25,
1,,14,nonsense,,,
1,,14,1.5,,,
"""


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is saved."""
    saved: list[Figure] = []
    save: Callable[..., None] = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kwargs: (saved.append(self), save(self, *args, **kwargs))
    )
    return saved


def curves(figure: Figure) -> dict[str, list[tuple[float, float]]]:
    return {
        str(line.get_label()): [(float(x), float(y)) for x, y in line.get_xydata()]
        for axes in figure.axes
        for line in axes.lines
        if not str(line.get_label()).startswith("_")
    }


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_curves(tmp_path: Path, figures: list[Figure]) -> None:
    (tmp_path / "metrics.csv").write_text(METRICS)
    drawn = draw_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    assert sorted(drawn) == ["lr-AdamW", "train_loss", "val_loss", "val_top1"]
    assert curves(figures[0]) == {
        "train_loss": [(4, 2.5), (9, 2.0), (14, 1.5)],
        "val_loss": [(9, 1.75)],
        "val_top1": [(9, 0.25)],
        "lr-AdamW": [(0, 0.001)],
    }
    titles = [(axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) for axes in figures[0].axes]
    assert titles == [
        ("Loss", "step", "loss"),
        ("Accuracy", "step", "accuracy"),
        ("Learning rate", "step", "learning rate"),
    ]
    assert cv2.imread(str(tmp_path / "curves.png")) is not None


def test_curves_of_a_resumed_run_and_a_torn_line(tmp_path: Path, figures: list[Figure]) -> None:
    rows = "step,train_loss\n10,5\n20,4\n10,3\n5,9\n30"
    (tmp_path / "metrics.csv").write_text(rows)
    draw_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    assert curves(figures[0]) == {"train_loss": [(5, 9), (10, 3), (20, 4)]}


def test_long_curve_has_a_running_mean(tmp_path: Path, figures: list[Figure]) -> None:
    rows = ["step,train_loss,lr-SGD", *(f"{step},{step % 2},{step}" for step in range(300))]
    (tmp_path / "metrics.csv").write_text("\n".join(rows))
    draw_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    drawn = curves(figures[0])
    # 300 values, windows of six: three ones among six.
    expected = [(step, 0.5) for step in range(5, 300)]
    np.testing.assert_allclose(drawn["train_loss (mean of 6)"], expected)
    assert drawn["lr-SGD"] == [(step, step) for step in range(300)], "the learning rate was smoothed"


@pytest.mark.parametrize("text", ["", "epoch,step\n0,1\n", "step,train_loss\n1,\n"])
def test_nothing_to_draw(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(ValueError, match="no column"):
        draw_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_confusion_rows_are_shares(tmp_path: Path, figures: list[Figure]) -> None:
    counts = np.array([[3, 1, 0], [0, 0, 0], [2, 4, 10]])
    before = counts.copy()
    draw_confusion(counts, ["wren", "$\\frac{$", "鹪鹩"], tmp_path / "confusion.png")
    axes = figures[0].axes[0]
    np.testing.assert_array_equal(counts, before)
    np.testing.assert_allclose(
        axes.images[0].get_array().filled(-1), [[0.75, 0.25, 0], [-1, -1, -1], [0.125, 0.25, 0.625]]
    )
    assert texts(figures[0]) == ["0.75", "0.25", "0.12", "0.25", "0.62"]
    # What would be taken for a formula stands as it is; what the font can't draw is named by its row.
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["wren", "$\\frac{$", "class 2"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert axes.get_title() == "13 of 20 images right"
    assert cv2.imread(str(tmp_path / "confusion.png")) is not None


def test_confusion_of_many_classes_lists_the_worst_pairs(tmp_path: Path, figures: list[Figure]) -> None:
    counts = 10 * np.eye(70, dtype=np.int64)
    counts[5, 9], counts[68, 0] = 7, 12
    draw_confusion(counts, [f"bird {index}" for index in range(70)], tmp_path / "confusion.png")
    assert texts(figures[0]) == ["12 of 22  bird 68 → bird 0", "7 of 17  bird 5 → bird 9"]
    assert "bird 1" not in [tick.get_text() for tick in figures[0].axes[0].get_yticklabels()]


def test_long_labels_keep_their_end(tmp_path: Path, figures: list[Figure]) -> None:
    labels = [f"a very long name of the class number {index}" for index in range(2)]
    draw_confusion(np.eye(2, dtype=np.int64), labels, tmp_path / "confusion.png")
    ticks = [tick.get_text() for tick in figures[0].axes[0].get_xticklabels()]
    assert ticks == ["a very long nam…number 0", "a very long nam…number 1"]


def test_confusion_needs_a_label_a_class(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"2 labels need counts of the shape \(2, 2\), got \(3, 3\)"):
        draw_confusion(np.eye(3), ["a", "b"], tmp_path / "confusion.png")


def test_reliability(tmp_path: Path, figures: list[Figure]) -> None:
    # Bins of 0.25, of which (0.5, 0.75] and (0.75, 1] have images: one of two right, and one of one.
    found = Calibration(
        counts=torch.tensor([0, 0, 2, 1]),
        accuracy=torch.tensor([torch.nan, torch.nan, 0.5, 1.0]),
        confidence=torch.tensor([torch.nan, torch.nan, 0.6, 0.9]),
    )
    draw_reliability(found, tmp_path / "reliability.png")
    upper, lower = figures[0].axes
    bars = [(bar.get_x(), bar.get_height()) for bar in upper.patches]
    np.testing.assert_allclose(bars, [(0.5, 0.5), (0.75, 1.0)])
    np.testing.assert_allclose([bar.get_height() for bar in lower.patches], [0, 0, 2 / 3, 1 / 3])
    np.testing.assert_allclose(upper.lines[1].get_xydata(), [(0.6, 0.5), (0.9, 1.0)])
    assert upper.get_title() == "Reliability: ECE 0.100, 3 images"
    assert cv2.imread(str(tmp_path / "reliability.png")) is not None


def test_pyplot_is_never_imported() -> None:
    code = "import sys, vit.training.pictures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0

"""`vit evaluate` from end to end, as it is typed: what it measures, writes and skips."""

import json
import shutil
from pathlib import Path

import pytest

from tests.verbs import Vit, all_bright, files, is_png, photo, rows


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """A data set whose test split has four photos in the wrong folder or unreadable among eight."""
    root = tmp_path / "data"
    for part in ("train", "val"):
        all_bright(root / part / "bright" / "0.png")
        photo(root / part / "dark" / "0.png")
    for number in range(3):
        all_bright(root / "test" / "bright" / f"{number}.png")
    photo(root / "test" / "bright" / "wrong.png")
    for number in range(2):
        photo(root / "test" / "dark" / f"{number}.png")
    (root / "test" / "dark" / "empty.png").touch()
    (root / "test" / "bright" / "page.png").write_text("<html>")
    return root


def test_evaluate(vit: Vit, model: Path, split: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = vit(f"evaluate {model} --data.root {split} --split test --data.batch_size 3 --data.num_workers 0 --out {out}")
    assert ran.code == 0, ran.err
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["top1"] == pytest.approx(5 / 6)
    assert metrics["top5"] == 1
    assert metrics["balanced_accuracy"] == pytest.approx((3 / 4 + 1) / 2)
    assert (metrics["images"], metrics["skipped"]) == (6, 2)
    found = [(row["image"], row["label"], row["predicted"], row["correct"]) for row in rows(out / "predictions.csv")]
    assert found == [
        ("test/bright/0.png", "bright", "bright", "1"),
        ("test/bright/1.png", "bright", "bright", "1"),
        ("test/bright/2.png", "bright", "bright", "1"),
        ("test/bright/wrong.png", "bright", "dark", "0"),
        ("test/dark/0.png", "dark", "dark", "1"),
        ("test/dark/1.png", "dark", "dark", "1"),
    ]
    assert [Path(row["path"]).name for row in rows(out / "skipped.csv")] == ["page.png", "empty.png"]
    assert is_png(out / "confusion.png")
    assert is_png(out / "reliability.png")
    assert "0.8333" in ran.out
    assert "6  (2 skipped)" in ran.out

    for name in ("dark/empty.png", "bright/page.png"):
        (split / "test" / name).unlink()
    line = f"evaluate {model} --data.root {split} --split test --data.num_workers 0 --out {out} --overwrite"
    assert vit(line).code == 0
    assert not (out / "skipped.csv").exists()  # what is there is of this evaluation


def test_evaluate_strictly_stops_and_writes_nothing(vit: Vit, model: Path, split: Path, tmp_path: Path) -> None:
    ran = vit(f"evaluate {model} --data.root {split} --split test --data.strict --out {tmp_path}/out")
    assert ran.code == 1
    assert "Can't read" in ran.err
    assert len(ran.err.splitlines()) <= 5
    assert files(tmp_path / "out") == set()


def test_evaluate_of_nothing_that_can_be_read(vit: Vit, model: Path, split: Path, tmp_path: Path) -> None:
    for path in (split / "test").rglob("*.png"):
        path.write_bytes(b"")
    ran = vit(f"evaluate {model} --data.root {split} --split test --data.num_workers 0 --out {tmp_path}/out")
    assert ran.code == 1
    assert "None of the 8 images could be read" in ran.err
    assert files(tmp_path / "out") == set()


def test_a_split_may_lack_some_of_the_checkpoints_classes(vit: Vit, model: Path, split: Path, tmp_path: Path) -> None:
    shutil.rmtree(split / "test" / "bright")
    ran = vit(f"evaluate {model} --data.root {split} --split test --data.num_workers 0 --out {tmp_path}/out")
    assert ran.code == 0, ran.err
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["per_class"]["dark"] == {"images": 2, "precision": 1, "recall": 1}
    assert metrics["balanced_accuracy"] == 1

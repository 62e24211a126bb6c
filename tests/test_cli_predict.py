"""`vit predict` from end to end, as it is typed: a table of labels, and what is not in it."""

from pathlib import Path

import pytest

from tests.verbs import TINY, Vit, all_bright, files, photo, rows


def test_predict_names_each_photo_in_the_order_given(vit: Vit, model: Path, tmp_path: Path) -> None:
    photo(tmp_path / "b" / "2.png")
    all_bright(tmp_path / "b" / "1.png")
    all_bright(tmp_path / "a" / "3.png")
    ran = vit(f"predict {model} {tmp_path}/b {tmp_path}/a/*.png --batch_size 2 --out {tmp_path}/labels.csv")
    assert ran.code == 0, ran.err
    found = rows(tmp_path / "labels.csv")
    assert [(row["image"], row["label"]) for row in found] == [
        ("b/1.png", "bright"), ("b/2.png", "dark"), ("a/3.png", "bright"),
    ]  # fmt: skip
    assert {row["label_2"] for row in found} == {"bright", "dark"}
    assert all(float(row["probability"]) + float(row["probability_2"]) == pytest.approx(1) for row in found)


def test_predict_sees_what_evaluation_sees(vit: Vit, classes: Path, tmp_path: Path) -> None:
    """Of a model that evaluates the middle of a photo, it reads the middle, too."""
    line = f"train {TINY} --data.root {classes} --model.crop_pct 0.5 --trainer.max_epochs 1 --run {tmp_path}/run"
    assert vit(line).code == 0
    path = photo(tmp_path / "new" / "val" / "bright" / "x.png", (40, 64), (0, 20, 0, 30))
    for part in ("train/bright/a", "train/dark/b", "val/dark/c"):
        photo(tmp_path / "new" / f"{part}.png")
    model = tmp_path / "run" / "model"
    data = f"--data.root {tmp_path}/new --data.num_workers 0"
    assert vit(f"evaluate {model} {data} --out {tmp_path}/val").code == 0
    assert vit(f"predict {model} {path} --num_workers 0 --out {tmp_path}/labels.csv").code == 0
    row, evaluated = rows(tmp_path / "labels.csv")[0], rows(tmp_path / "val" / "predictions.csv")[0]
    assert row["label"] == evaluated["predicted"]
    assert float(row["probability"]) == pytest.approx(float(evaluated["probability"]), abs=1e-5)


def test_predict_writes_as_many_labels_as_asked_for(vit: Vit, model: Path, tmp_path: Path) -> None:
    path = photo(tmp_path / "x.png")
    assert vit(f"predict {model} {path} --topk 1 --num_workers 0 --out {tmp_path}/one.csv").code == 0
    assert list(rows(tmp_path / "one.csv")[0]) == ["image", "label", "probability"]


def test_predict_writes_beside_links_to_data_elsewhere(vit: Vit, model: Path, tmp_path: Path) -> None:
    """The folder is the user's, and nothing else is written there."""
    photo(tmp_path / "disk" / "x.png")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "data").symlink_to(tmp_path / "disk")
    (tmp_path / "here" / "skipped.csv").write_text("of others")
    ran = vit(f"predict {model} {tmp_path}/here/data --num_workers 0 --out {tmp_path}/here/labels.csv")
    assert ran.code == 0, ran.err
    assert len(rows(tmp_path / "here" / "labels.csv")) == 1
    assert (tmp_path / "here" / "skipped.csv").read_text() == "of others"


def test_predict_skips_and_lists_what_it_can_not_read(vit: Vit, model: Path, tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "b.png")
    (tmp_path / "photos" / "a.jpg").write_bytes(b"")
    line = f"predict {model} {tmp_path}/photos --num_workers 0 --out {tmp_path}/out/labels.csv"
    ran = vit(line)
    assert ran.code == 0
    assert [row["image"] for row in rows(tmp_path / "out" / "labels.csv")] == ["b.png"]
    assert rows(tmp_path / "out" / "skipped.csv") == [
        {"path": str(tmp_path / "photos" / "a.jpg"), "reason": "the file is empty"}
    ]
    assert "1 images could not be read" in ran.err

    before = (tmp_path / "out" / "labels.csv").read_bytes()
    ran = vit(f"{line} --strict --overwrite")
    assert ran.code == 1
    assert len(ran.err.splitlines()) <= 5
    assert (tmp_path / "out" / "labels.csv").read_bytes() == before


@pytest.mark.parametrize("words", ["predict", "explain", "explain --resume"])
def test_photos_of_which_none_can_be_read_are_an_error_and_nothing_hinders_the_next_try(
    vit: Vit, model: Path, tmp_path: Path, words: str
) -> None:
    verb, _, resume = words.partition(" ")
    (tmp_path / "x.png").write_bytes(b"")
    line = f"{verb} {model} {tmp_path}/x.png --num_workers 0 {resume} --out {tmp_path}/out/{verb}"
    for _ in range(2):
        ran = vit(line)
        assert ran.code == 1
        assert "None of the 1 images could be read" in ran.err
        assert len(ran.err.splitlines()) <= 5
        assert files(tmp_path / "out") == (set() if verb == "predict" else {"explain/skipped.csv"})
    photo(tmp_path / "x.png")
    assert vit(line).code == 0
    assert "explain/skipped.csv" not in files(tmp_path / "out")


def test_a_failed_prediction_leaves_an_older_table_alone(vit: Vit, model: Path, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"")
    (tmp_path / "labels.csv").write_text("older")
    assert vit(f"predict {model} {tmp_path}/x.png --num_workers 0 --out {tmp_path}/labels.csv --overwrite").code == 1
    assert (tmp_path / "labels.csv").read_text() == "older"

"""`vit score` from end to end, as it is typed: what it leaves, and how it refuses."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cli
from vit.checkpoints.folder import write_folder
from vit.models.classifier import Classifier
from vit.models.encoder import image_encoder

METHODS = ["rollout", "attribution", "centre", "random"]
COMMON = ["--num_workers", "0", "--batch_size", "3"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model of random weights that knows two classes."""
    torch.manual_seed(0)
    encoder = image_encoder(image_size=(16, 16), patch_size=(4, 4), embed_dim=16, depth=2, num_heads=2)
    folder = tmp_path_factory.mktemp("score") / "model"
    write_folder(Classifier(encoder, 2, labels=["crow", "robin"]), folder)
    return folder


@pytest.fixture(scope="module")
def headless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    encoder = image_encoder(image_size=(16, 16), patch_size=(4, 4), embed_dim=16, depth=2, num_heads=2)
    folder = tmp_path_factory.mktemp("headless") / "model"
    write_folder(Classifier(encoder, 0), folder)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """photos/CLASS/N.png of a bright square each, and masks/CLASS/N.png of the squares."""
    rng = np.random.default_rng(0)
    for number in range(8):
        mask = np.zeros((32, 48), np.uint8)
        top, left = rng.integers(0, 16), rng.integers(0, 24)
        mask[top : top + 14, left : left + 20] = 255
        pixels = np.clip(rng.normal(90, 25, (32, 48, 3)) + mask[:, :, None] / 2, 0, 255).astype(np.uint8)
        for folder, values in (("photos", pixels), ("masks", mask)):
            path = tmp_path / folder / ("crow", "robin")[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path)
    return tmp_path


def run(*words: object) -> int:
    return cli.main(["score", *map(str, words)])


def read(folder: Path) -> tuple[dict, list[dict[str, str]]]:
    with (folder / "scores.csv").open(newline="", encoding="utf-8") as file:
        return json.loads((folder / "scores.json").read_text(encoding="utf-8")), list(csv.DictReader(file))


def test_it_scores_methods_beside_the_baselines(model: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = data / "out"
    words = [model, data / "photos", "--masks", data / "masks", "--methods", "rollout,attribution", "--out", out]
    assert run(*words, *COMMON) == 0
    told = capsys.readouterr()
    document, rows = read(out)
    assert [row["method"] for row in rows] == METHODS * 8
    for method in METHODS:
        for metric, found in document["scores"]["all"][method].items():
            values = [float(row[metric]) for row in rows if row["method"] == method]
            if metric != "mean_iou":
                assert found["mean"] == pytest.approx(np.mean(values), abs=2e-6)
            assert found["low"] <= found["mean"] <= found["high"]
    assert len(document["scores"]["all"]["rollout"]) == 10
    assert document["accuracy_of"] == "true classes"
    assert document["images"]["correct"] + document["images"]["wrong"] == document["images"]["all"] == 8
    assert {row["label"] for row in rows} == {"crow", "robin"}
    assert (out / "best_worst.png").read_bytes().startswith(b"\x89PNG")
    for line in ("localisation: means over 8 images", "faithfulness: means over 8 images", "\nall (8 images): "):
        assert line in told.out
    assert "best_worst.png in" in told.err
    assert not (out / "skipped.csv").exists()
    first = (out / "scores.json").read_bytes()
    assert run(*words, *COMMON, "--overwrite") == 0
    assert (out / "scores.json").read_bytes() == first, "not the same for the same seed"


def test_boxes_labels_and_groups_of_a_csv(model: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flat = data / "flat"
    flat.mkdir()
    lines = ["image,x0,y0,x1,y1,label,group"]
    for number, path in enumerate(sorted((data / "photos").rglob("*.png"))):
        path.rename(flat / path.name)
        lines.append(f"{path.name},4,4,40,20,{'crow' if number < 3 else ''},film {number // 4}")
    (flat / "boxes.csv").write_text("\n".join(lines))
    assert (
        run(model, flat, "--masks", flat / "boxes.csv", "--metrics", "localization", "--out", data / "o", *COMMON) == 0
    )
    document, rows = read(data / "o")
    assert document["groups"] == 2
    assert document["scores"]["all"]["default"]["energy_inside"]["over_groups"]["mean"] > 0
    assert "means over 2 groups" in capsys.readouterr().out
    assert sorted(row["label"] for row in rows[::3]) == [""] * 5 + ["crow"] * 3
    assert float(rows[0]["object_area"]) == pytest.approx(36 * 16 / (48 * 32), abs=0.01)
    assert "insertion" not in rows[0]


def test_paths_that_are_not_utf8_cost_no_scores(model: Path, data: Path) -> None:
    masks = (data / "masks").rename(data / os.fsdecode(b"m\xff"))
    network = shutil.copytree(model, data / os.fsdecode(b"model\xff"))
    words = ["--metrics", "localization", "--out", data / "o", *COMMON]
    assert run(network, data / "photos", "--masks", masks, *words) == 0
    document, _ = read(data / "o")
    assert document["masks"].endswith("/m\\xff")
    assert document["model"].endswith("/model\\xff")


def test_a_label_of_a_csv_is_one_of_the_model_or_its_index_and_others_are_told_of(
    model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = data / "boxes.csv"
    words = [model, data / "photos", "--masks", table, "--metrics", "localization", "--out", data / "o", *COMMON]
    lines = ["image,x0,y0,x1,y1,label", "0.png,4,4,40,20,1", "1.png,4,4,40,20,crwo"]
    table.write_text("\n".join(lines))
    assert run(*words) == 0
    told = capsys.readouterr().err
    assert "labels that the model does not have, such as 'crwo' (did you mean 'crow'?): their true class counts" in told
    assert [row["label"] for row in read(data / "o")[1][::3]][:2] == ["robin", ""]


def test_pictures_are_told_of_when_they_are_there(model: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [model, data / "photos", "--masks", data / "masks", "--metrics", "localization", "--out", data / "o"]
    assert run(*words, *COMMON) == 0
    assert (data / "o" / "best_worst.png").is_file()
    capsys.readouterr()
    assert run(*words, *COMMON, "--methods", "centre", "--overwrite") == 0
    told = capsys.readouterr().err
    assert "8 images: scores.json and scores.csv in" in told
    assert "best_worst" not in told
    assert not (data / "o" / "best_worst.png").exists()


def test_faithfulness_needs_no_masks(model: Path, data: Path) -> None:
    assert run(model, data / "photos" / "crow", "--fill", "blur", "--out", data / "o", *COMMON) == 0
    document, rows = read(data / "o")
    assert list(document["scores"]["all"]["default"])[:2] == ["insertion", "deletion"]
    assert document["fill"] == "blur"
    assert document["classes"] == {}
    assert rows[0]["object_area"] == ""


def test_a_model_without_a_head_is_scored_against_masks(headless: Path, data: Path) -> None:
    assert run(headless, data / "photos", "--masks", data / "masks", "--out", data / "o", *COMMON) == 0
    document, rows = read(data / "o")
    assert len(document["scores"]["all"]["default"]) == 6
    assert rows[0]["predicted"] == ""


def test_refined_maps_are_scored(model: Path, data: Path) -> None:
    words = [model, data / "photos", "--masks", data / "masks", "--metrics", "localization", "--methods", "rollout"]
    for name, more in (("plain", []), ("refined", ["--refine"])):
        assert run(*words, "--out", data / name, *more, *COMMON) == 0
    (plain, rows), (refined, refined_rows) = (read(data / name) for name in ("plain", "refined"))
    assert (plain["refine"], refined["refine"]) == (False, True)
    differ = {row["method"] for row, other in zip(rows, refined_rows, strict=True) if row != other}
    assert differ == {"rollout"}  # and no baseline


def test_what_can_not_be_read_is_skipped_and_listed(
    model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "photos" / "crow" / "0.png").write_bytes(b"")
    (data / "masks" / "crow" / "2.png").write_bytes(b"<html>")
    (data / "masks" / "robin" / "3.png").unlink()
    words = [
        model,
        data / "photos",
        "--masks",
        data / "masks",
        "--metrics",
        "localization",
        "--out",
        data / "o",
        *COMMON,
    ]
    assert run(*words) == 0
    document, rows = read(data / "o")
    assert len(rows) == 5 * 3
    assert document["skipped"] == 3
    with (data / "o" / "skipped.csv").open(newline="", encoding="utf-8") as file:
        skipped = {Path(row["path"]).name: row["reason"] for row in csv.DictReader(file)}
    assert skipped.keys() == {"0.png", "2.png", "3.png"}
    assert "empty" in skipped["0.png"]
    assert "web page" in skipped["2.png"]
    assert skipped["3.png"] == "it has no mask"
    assert f"3 images were left out; the reasons are listed in {data / 'o' / 'skipped.csv'}" in capsys.readouterr().err
    assert run(*words, "--strict", "--overwrite") == 1
    assert "0.png" in capsys.readouterr().err


def test_photos_of_which_none_has_a_mask_leave_nothing_in_the_way(
    model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (data / "masks").glob("*/*.png"):
        path.write_bytes(b"<html>")
    for _ in range(2):
        assert run(model, data / "photos", "--masks", data / "masks", "--out", data / "o", *COMMON) == 1
        assert "None of the 8 images could be scored" in capsys.readouterr().err
        assert [path.name for path in (data / "o").iterdir()] == ["skipped.csv"]


def test_settings_reach_the_methods_that_take_them(model: Path, data: Path) -> None:
    words = [model, data / "photos", "--masks", data / "masks", "--metrics", "localization"]
    words += ["--methods", "rollout,attribution,default", *COMMON]
    assert run(*words, "--out", data / "plain") == 0
    assert run(*words, "--out", data / "late", "--start_block", "1", "--rollout.head_fusion", "max") == 0
    assert run(*words, "--out", data / "one", "--start_block", "1") == 0
    plain, late, one = (
        {
            method: [row["energy_inside"] for row in read(data / out)[1] if row["method"] == method]
            for method in ("rollout", "attribution", "default")
        }
        for out in ("plain", "late", "one")
    )
    assert plain["default"] == late["default"]
    assert plain["attribution"] != late["attribution"] == one["attribution"]
    assert len({*map(tuple, (plain["rollout"], late["rollout"], one["rollout"]))}) == 3
    document, _ = read(data / "late")
    assert document["start_block"] == 1
    assert document["rollout"] == {"head_fusion": "max", "discard_ratio": 0.0, "residual": 0.5}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--start_block", "2"], "--start_block is 2; the model has blocks 0 to 1."),
        (["--start_block", "1"], "--start_block has no effect with --methods default; it applies to rollout, "),
        (["--methods", "default,legrad", "--rollout.residual", "1"], "with --methods default,legrad; they apply to"),
        (["--methods", "rollout,atribution"], "did you mean 'attribution'"),
        (["--methods", " , "], "names no method"),
        (["--metrics", "localization"], "needs --masks"),
        (["--masks", "{data}/maskes"], "did you mean 'masks'"),
        (["--masks", "{data}/photos/none"], "There are no masks"),
        (["--batch_size", "0"], "batch_size"),
        (["--fill", "red"], "paper"),
        (["--masks", "{data}/masks", "--metrics", "localization", "--fill", "blur"], "--fill only affects the"),
    ],
)
def test_refusals(model: Path, data: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = [word.format(data=data) for word in words]
    assert run(model, data / "photos", "--out", data / "o", *given) in (1, 2)
    told = capsys.readouterr().err
    assert message in told
    assert len(told.strip().splitlines()) <= 5
    assert not (data / "o").exists()


def test_several_processes_are_refused(
    model: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert cli.main(["score", str(model), str(data / "photos"), "--out", str(data / "several")]) == 1
    assert "vit score runs in one process, but 2 were started" in capsys.readouterr().err
    assert not (data / "several").exists()


def test_a_model_without_a_head_and_without_masks_is_refused(
    headless: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(headless, data / "photos", "--out", data / "o") == 1
    assert "Give --masks" in capsys.readouterr().err
    masks = ["--masks", data / "masks", "--methods", "rollout,attribution"]
    assert run(headless, data / "photos", "--out", data / "o", *masks) == 1
    assert "attribution explains a class, but the model has no head" in capsys.readouterr().err
    assert not (data / "o").exists()
    (data / "o").mkdir()
    (data / "o" / "kept").write_text("")
    assert run(headless, data / "photos", "--masks", data / "masks", "--out", data / "o") == 1
    assert "already holds files" in capsys.readouterr().err

"""The verbs from end to end, as they are typed: what they leave, and how they refuse."""

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps
from safetensors.torch import load_file

import cli
from vit.checkpoints.folder import write_folder
from vit.checkpoints.load import load
from vit.models.classifier import IMAGENET_MEAN, IMAGENET_STD, Classifier, Preprocessing
from vit.models.encoder import image_encoder
from vit.saliency.explain import explain_batch
from vit.training import finders

BRIGHT, DARK = 230, 25
TINY = "--model.variant pico --model.patch_size 8 --model.image_size 16 --data.batch_size 4 --data.num_workers 0"


@dataclass(frozen=True)
class Ran:
    """A command that ended."""

    code: int
    out: str
    err: str


Vit = Callable[..., Ran]


@pytest.fixture
def vit(capsys: pytest.CaptureFixture[str]) -> Vit:
    """Runs `vit` with words, given as one line or one by one."""

    def run(line: str, *words: object) -> Ran:
        capsys.readouterr()
        code = cli.main([*line.split(), *map(str, words)])
        out, err = capsys.readouterr()
        return Ran(code, out, err)

    return run


def photo(path: Path, size: tuple[int, int] = (32, 32), *bright: tuple[int, int, int, int]) -> Path:
    """Writes a dark photo of `size` (height, width) with bright rectangles (top, bottom, left, right)."""
    pixels = np.full((*size, 3), DARK, np.uint8)
    for top, bottom, left, right in bright:
        pixels[top:bottom, left:right] = BRIGHT
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def all_bright(path: Path) -> Path:
    return photo(path, (32, 32), (0, 32, 0, 32))


def sees_bright(num_classes: int = 2) -> Classifier:
    """A model made by hand: its class token looks at bright patches alone, and says whether there are any.

    Channel 0 of a patch's token is its brightness, from below 0 to above, and channel 1 marks the class token. The
    query reads channel 1 and the key channel 0; the value brings channel 0 to the head.
    """
    encoder = image_encoder(image_size=(32, 32), patch_size=(8, 8), embed_dim=4, depth=1, num_heads=1)
    block = encoder.blocks[0]
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if "norm" not in name:
                weight.zero_()
        encoder.embed.patch_embed.proj.weight[0] = 1 / (3 * 8 * 8)
        encoder.embed.cls_token[0, 0, 1] = 1
        block.attn.qkv.weight[0, 1] = 8  # query
        block.attn.qkv.weight[4, 0] = 1  # key
        block.attn.qkv.weight[8, 0] = 1  # value
        block.attn.proj.weight[0, 0] = 1
        labels = ["bright", "dark"][:num_classes]
        prepared = Preprocessing((32, 32), mean=(0.5,) * 3, std=(0.25,) * 3)
        model = Classifier(encoder, num_classes, labels=labels, preprocessing=prepared)
        if num_classes:
            model.head.weight.zero_()
            model.head.weight[:, 0] = torch.tensor([1.0, -1.0])
    return model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of `sees_bright`."""
    folder = tmp_path_factory.mktemp("seeing") / "model"
    write_folder(sees_bright(), folder)
    return folder


@pytest.fixture(scope="module")
def headless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("headless") / "model"
    write_folder(sees_bright(0), folder)
    return folder


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six bright and six dark photos, a folder each."""
    root = tmp_path_factory.mktemp("classes")
    for number in range(6):
        all_bright(root / "bright" / f"{number}.png")
        photo(root / "dark" / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def trained(classes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of two epochs."""
    run = tmp_path_factory.mktemp("runs") / "first"
    assert cli.main(["train", *TINY.split(), *f"--data.root {classes} --trainer.max_epochs 2 --run {run}".split()]) == 0
    return run


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def peak(path: Path) -> tuple[int, int]:
    """Where a saved map is highest: (row, column)."""
    saliency = np.load(path)
    row, column = np.unravel_index(np.nanargmax(saliency), saliency.shape)
    return int(row), int(column)


def is_png(path: Path) -> bool:
    with Image.open(path) as picture:
        picture.load()
        return picture.format == "PNG"


# Train


def test_train_leaves_a_run_folder(trained: Path) -> None:
    left = {name for name in files(trained) if not name.startswith("tensorboard/events")}
    assert left == {
        "config.yaml", "metrics.csv", "times.csv", "curves.png", "checkpoints/last.ckpt", "checkpoints/best.ckpt",
        "checkpoints/last.ckpt.sha256", "checkpoints/best.ckpt.sha256",
        "model/model.safetensors", "model/config.json", "model/README.md", "tensorboard/hparams.yaml",
    }  # fmt: skip
    assert any(name.startswith("tensorboard/events") for name in files(trained))
    assert is_png(trained / "curves.png")
    assert [row["epoch"] for row in rows(trained / "metrics.csv") if row["val_top1"]] == ["1", "2"]
    for name in ("last", "best"):
        assert "state_dict" in torch.load(trained / "checkpoints" / f"{name}.ckpt", weights_only=True)


def test_weights_that_are_random_at_first_are_told_of(vit: Vit, model: Path, classes: Path, tmp_path: Path) -> None:
    line = f"train {TINY} --data.root {classes} --trainer.max_epochs 1 --run {tmp_path}"
    assert "random weights" in vit(f"{line}/new").err
    assert "random weights" not in vit(f"{line}/started --model.pretrained {model}").err


def test_train_leaves_a_model_that_says_all_it_takes_to_use_it(trained: Path) -> None:
    config = json.loads((trained / "model" / "config.json").read_text())["vitscope"]
    assert config["labels"] == ["bright", "dark"]
    assert config["architecture"]["image_size"] == [16, 16]
    assert config["architecture"]["patch_size"] == [8, 8]
    assert config["preprocessing"]["image_size"] == [16, 16]
    assert {"mean", "std", "interpolation", "resize_mode", "crop_pct"} <= config["preprocessing"].keys()
    assert load_file(trained / "model" / "model.safetensors")["head.weight"].shape == (2, 128)


def test_the_config_of_a_run_makes_the_same_run(vit: Vit, trained: Path, tmp_path: Path) -> None:
    ran = vit("train --config", trained / "config.yaml", "--run", tmp_path / "again")
    assert ran.code == 0, ran.err
    assert (tmp_path / "again" / "metrics.csv").read_bytes() == (trained / "metrics.csv").read_bytes()
    weights = "model/model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (trained / weights).read_bytes()


def test_a_finished_run_can_be_resumed_by_its_config(vit: Vit, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(trained, run)
    ran = vit("train --resume --config", trained / "config.yaml", "--run", run)
    assert ran.code == 0, ran.err
    assert ran.err.splitlines()[-2].startswith("best top-1 ")
    assert "nan" not in ran.err
    assert (run / "metrics.csv").read_bytes() == (trained / "metrics.csv").read_bytes()


def test_a_run_that_was_begun_over_another_is_resumed_by_its_config(vit: Vit, trained: Path, tmp_path: Path) -> None:
    """Its options say overwrite."""
    run = shutil.copytree(trained, tmp_path / "run")
    assert vit(f"train --config {run}/config.yaml --overwrite --run {run}").code == 0
    ran = vit(f"train --config {run}/config.yaml --resume --run {run}")
    assert ran.code == 0, ran.err
    assert (run / "checkpoints" / "last.ckpt").is_file()


def test_overwriting_removes_what_is_of_the_run_and_nothing_else(vit: Vit, trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    shutil.copy(run / "checkpoints" / "last.ckpt", run / "checkpoints" / "dino.ckpt")
    line = f"train --config {run}/config.yaml --overwrite --run {run}"
    ran = vit(f"{line} --model.pretrained {run}/checkpoints/best.ckpt")
    assert ran.code == 1
    assert "is a checkpoint of the run that --overwrite would replace" in ran.err
    assert (run / "checkpoints" / "best.ckpt").is_file()
    assert vit(line).code == 0
    assert (run / "checkpoints" / "dino.ckpt").is_file()


@pytest.mark.parametrize("change", ["--optim.lr 0.5", "--trainer.max_epochs 3", "--seed 1", "--model.drop_path 0.1"])
def test_a_run_is_not_resumed_with_other_options(vit: Vit, trained: Path, tmp_path: Path, change: str) -> None:
    run = tmp_path / "copy"
    shutil.copytree(trained, run)
    ran = vit(f"train --resume --config {trained}/config.yaml --run {run} {change}")
    assert ran.code == 1
    name, value = change.removeprefix("--").split()
    assert name in ran.err
    assert value in ran.err
    assert len(ran.err.splitlines()) <= 5
    assert (run / "config.yaml").read_bytes() == (trained / "config.yaml").read_bytes()


def test_a_run_may_be_resumed_with_other_workers_and_from_where_the_photos_are_now(
    vit: Vit, trained: Path, classes: Path, tmp_path: Path
) -> None:
    run = tmp_path / "copy"
    shutil.copytree(trained, run)
    shutil.copytree(classes, tmp_path / "photos")
    changes = f"--data.num_workers 1 --data.root {tmp_path}/photos --device cpu"
    assert vit(f"train --resume --config {trained}/config.yaml --run {run} {changes}").code == 0


def test_train_on_generated_scenes(vit: Vit, tmp_path: Path) -> None:
    ran = vit(
        "train --data.root birdscenes:demo --data.train_scenes 16 --data.val_scenes 8 --data.num_workers 0"
        " --model.variant pico --model.patch_size 8 --model.image_size 32 --trainer.max_epochs 1"
        f" --trainer.accumulate 2 --data.batch_size 4 --run {tmp_path}/run"
    )
    assert ran.code == 0, ran.err
    assert "new head for 8 classes" in ran.err
    (row,) = rows(tmp_path / "run" / "metrics.csv")
    assert row["step"] == "2"  # sixteen scenes, four a batch, two batches a step
    assert len(json.loads((tmp_path / "run" / "model" / "config.json").read_text())["label_names"]) == 8


def test_a_checkpoint_of_the_same_classes_keeps_its_head(vit: Vit, model: Path, classes: Path, tmp_path: Path) -> None:
    keep = f"--model.pretrained {model} --optim.lr 0 --trainer.max_epochs 1 --data.num_workers 0"
    ran = vit(f"train --data.root {classes} {keep} --run {tmp_path}/same")
    assert ran.code == 0, ran.err
    assert "new head" not in ran.err
    assert "note" not in ran.err
    assert rows(tmp_path / "same" / "metrics.csv")[0]["val_top1"] == "1.0"
    before, after = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "same" / "model"))
    assert all(torch.equal(before[name], after[name]) for name in before)

    idle = "--optim.lora_rank 4 --data.cache_gb 3 --data.auto_augment trivial --data.color_jitter 0.9"
    ran = vit(f"train --data.root {classes} {keep} {idle} --run {tmp_path}/idle")
    assert [line for line in ran.err.splitlines() if line.startswith("note")] == [
        "note: --data.cache_gb 3.0 has no effect: there is no --data.cache",
        "note: --data.color_jitter 0.9 has no effect: --data.auto_augment replaces it",
        "note: --optim.lora_rank 4 has no effect: --optim.trained is not lora",
    ]
    idle = "--optim.trained head --model.drop_path 0.1 --data.erase 0.5 --trainer.compile true"
    ran = vit(f"train --data.root {classes} {keep} {idle} --run {tmp_path}/idle_head")
    assert [line for line in ran.err.splitlines() if line.startswith("note")] == [
        "note: --data.erase 0.5 has no effect: a linear probe reads each image once, as it is",
        "note: --model.drop_path 0.1 has no effect: only the head is trained",
        "note: --trainer.compile True has no effect: only the head is trained",
    ]

    more = "--optim.head_init probe --model.variant pico --model.patch_size 8"
    ran = vit(f"train --data.root {classes} {keep} {more} --run {tmp_path}/noted")
    assert "note: the head already has these classes and is kept" in ran.err
    assert "note: --model.variant pico is ignored" in ran.err.replace("\n", " ")

    shutil.copytree(classes, tmp_path / "other")
    (tmp_path / "other" / "bright").rename(tmp_path / "other" / "robin")
    ran = vit(f"train --data.root {tmp_path}/other {keep} --run {tmp_path}/new")
    assert "new head for 2 classes" in ran.err
    assert json.loads((tmp_path / "new" / "model" / "config.json").read_text())["label_names"] == ["dark", "robin"]


def test_a_linear_probe_leaves_the_encoder_as_it_was(vit: Vit, model: Path, classes: Path, tmp_path: Path) -> None:
    ran = vit(
        f"train --data.root {classes} --model.pretrained {model} --optim.trained head --optim.lr 0.1"
        f" --data.batch_size 4 --data.num_workers 0 --trainer.max_epochs 1 --run {tmp_path}/run"
    )
    assert ran.code == 0, ran.err
    before, after = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "run" / "model"))
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"head.weight", "head.bias"}


def test_train_leaves_unreadable_photos_out_and_lists_them(vit: Vit, classes: Path, tmp_path: Path) -> None:
    shutil.copytree(classes, tmp_path / "photos")
    broken = {f"{label}/{number}.png" for label in ("bright", "dark") for number in (1, 4)}
    for name in broken:
        (tmp_path / "photos" / name).write_bytes(b"<html>")
    options = f"--data.root {tmp_path}/photos --data.val_fraction 0.5 --trainer.max_epochs 1"
    line = f"train {TINY} {options} --run {tmp_path}/run"
    ran = vit(line)
    assert ran.code == 0, ran.err
    listed = rows(tmp_path / "run" / "skipped.csv")
    assert {row["path"] for row in listed} == {str(tmp_path / "photos" / name) for name in broken}
    assert {row["reason"] for row in listed} == {"a web page or XML text, not an image"}
    assert "4 images could not be read" in ran.err

    ran = vit(f"{line} --data.strict --overwrite")
    assert ran.code == 1
    assert len(ran.err.splitlines()) <= 5
    assert "Can't read" in ran.err


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_run_of_whose_photos_none_can_be_read_leaves_no_model(vit: Vit, tmp_path: Path, split: str) -> None:
    for part in ("train", "val"):
        for label in ("bright", "dark"):
            path = photo(tmp_path / "photos" / part / label / "0.png")
            if part == split:
                path.write_bytes(b"")
    ran = vit(f"train {TINY} --data.root {tmp_path}/photos --trainer.max_epochs 1 --run {tmp_path}/run")
    assert ran.code == 1
    assert f"None of the {'training' if split == 'train' else 'validation'} images could be read" in ran.err
    assert len(ran.err.splitlines()) <= 5
    assert not {name for name in files(tmp_path / "run") if name.startswith(("model", "checkpoints"))}


def test_processes_that_would_not_train_together_are_refused(
    vit: Vit, classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each would train the whole run, into one folder."""
    for name, value in (("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    ran = vit(f"train {TINY} --data.root {classes} --run {tmp_path}/run")
    assert ran.code == 1
    assert "There are 4 processes, but --trainer.devices times --trainer.num_nodes is 1." in ran.err
    assert "Give --trainer.devices 2 --trainer.num_nodes 2." in ran.err
    assert not (tmp_path / "run").exists()


def test_the_rate_that_tune_prints_is_what_the_run_is_given(
    vit: Vit, classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of steps of 4 images, with a rate that is scaled from 16, the run takes a quarter."""
    monkeypatch.setattr(finders, "find_rate", lambda *_, **__: finders.RateRange([1e-4, 2e-3, 1e-2], [3.0, 2.0, 0.0]))
    monkeypatch.setattr("vit.training.pictures.draw_rates", lambda *_: None)
    line = f"tune {TINY} --data.root {classes} --find lr"
    plain = vit(f"{line} --out {tmp_path}/plain").out
    scaled = vit(f"{line} --optim.scale_lr linear --optim.lr_base_size 16 --out {tmp_path}/scaled").out
    rates = [float(out.split("--optim.lr ")[1]) for out in (plain, scaled)]
    assert rates[1] == pytest.approx(4 * rates[0])


def test_tune_looks_for_the_batch_size_of_the_model_as_it_would_be_trained(
    vit: Vit, classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def find(network: Classifier, **_: object) -> list[finders.Speed]:
        seen.append(network.encoder.activation_checkpointing)
        return [finders.Speed(2, 10.0, 1e6)]

    monkeypatch.setattr(finders, "find_batch_size", find)
    for value in ("true", "false"):
        told = f"--trainer.activation_checkpointing {value} --out {tmp_path}/{value}"
        ran = vit(f"tune {TINY} --data.root {classes} --find batch_size {told}")
        assert "--data.batch_size 2" in ran.out
    assert seen == [True, False]
    assert (
        "--trainer.compile has no effect"
        in vit(
            f"tune {TINY} --data.root {classes} --find batch_size --trainer.compile true --out {tmp_path}/compiled"
        ).err
    )


# Evaluate


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


# Predict


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


# Explain

EXPORT = {"index.csv", "contact_sheet.png", "export.jsonl"}


def test_explain_mirrors_the_tree_of_the_photos(vit: Vit, model: Path, tmp_path: Path) -> None:
    """Three photos of one stem, each bright in another place: none overwrites another."""
    photo(tmp_path / "photos" / "a" / "x.jpg", (32, 32), (0, 8, 0, 8))
    photo(tmp_path / "photos" / "a" / "x.png", (32, 32), (8, 16, 16, 24))
    photo(tmp_path / "photos" / "b" / "deep" / "x.jpg", (32, 32), (24, 32, 8, 16))
    out = tmp_path / "maps"
    ran = vit(f"explain {model} {tmp_path}/photos --batch_size 2 --num_workers 0 --out {out}")
    assert ran.code == 0, ran.err
    stems = {"a/x.jpg": (0, 0), "a/x.png": (1, 2), "b/deep/x": (3, 1)}
    for stem, place in stems.items():
        saliency = np.load(out / f"{stem}.npy")
        assert saliency.shape == (4, 4)
        assert saliency.dtype == np.float32
        assert peak(out / f"{stem}.npy") == place
        assert is_png(out / f"{stem}.png")
    assert files(out) == {*EXPORT, *(f"{s}.{end}" for s in stems for end in ("npy", "png"))}
    assert is_png(out / "contact_sheet.png")


def test_the_index_of_the_maps(vit: Vit, model: Path, tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "x.png", (40, 60), (10, 20, 15, 30))
    out = tmp_path / "maps"
    assert vit(f"explain {model} {tmp_path}/photos --num_workers 0 --out {out}").code == 0
    (row,) = rows(out / "index.csv")
    saliency = np.load(out / "x.npy")
    assert float(row.pop("probability")) > 0.9
    assert row == {
        "image": "x.png", "img_h": "40", "img_w": "60", "truth": "", "predicted": "bright", "target": "",
        "method": "default", "map": "x.npy", "grid_h": "4", "grid_w": "4", "min": f"{saliency.min():.6g}",
        "max": f"{saliency.max():.6g}", "flag": "",
    }  # fmt: skip


def test_photos_called_like_files_of_the_export_keep_their_own_names(vit: Vit, model: Path, tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "contact_sheet.png")
    photo(tmp_path / "photos" / "x.full.png", (32, 32), (0, 8, 0, 8))
    photo(tmp_path / "photos" / "x.full.png.jpg")
    photo(tmp_path / "photos" / "x.top1.png")
    photo(tmp_path / "photos" / "x.png")
    out = tmp_path / "maps"
    assert vit(f"explain {model} {tmp_path}/photos --full --num_workers 0 --out {out}").code == 0
    ends = ("npy", "full.npy", "png")
    stems = ("contact_sheet.png", "x.full.png", "x.full.png.jpg", "x.top1.png", "x")
    assert files(out) == {*EXPORT, *(f"{stem}.{end}" for stem in stems for end in ends)}
    assert np.load(out / "x.full.npy").shape == (32, 32)
    assert peak(out / "x.full.png.npy") == (0, 0)


@pytest.mark.parametrize(
    "method", ["default", "rollout", "last_attention --refine", "attribution --target bright", "legrad --target 0"]
)
def test_every_method_finds_what_the_model_looks_at(vit: Vit, model: Path, tmp_path: Path, method: str) -> None:
    photo(tmp_path / "photos" / "x.png", (32, 32), (16, 24, 24, 32))
    ran = vit(f"explain {model} {tmp_path}/photos --method {method} --num_workers 0 --out {tmp_path}/maps")
    assert ran.code == 0, ran.err
    assert peak(tmp_path / "maps" / "x.npy") == (2, 3)
    (row,) = rows(tmp_path / "maps" / "index.csv")
    assert row["method"] == method.split()[0]
    assert row["target"] == ("bright" if "--target" in method else "")


def test_the_methods_of_the_command_line_are_all_there_are() -> None:
    from vit.options import Method
    from vit.saliency.methods import METHODS

    assert get_args(Method) == tuple(METHODS)


def test_targets_and_forms_of_maps(vit: Vit, model: Path, tmp_path: Path) -> None:
    for label in ("bright", "other"):
        photo(tmp_path / "photos" / label / "x.png", (32, 32), (16, 24, 24, 32))
    (tmp_path / "list.csv").write_text("image,class\nbright/x.png,dark\nother/x.png,0\n")
    line = f"explain {model} {tmp_path}/photos --method attribution --num_workers 0"
    ran = vit(f"{line} --target topk:2 --format npz --out {tmp_path}/both")
    assert ran.code == 0, ran.err
    assert "4 maps in" in ran.err
    found = [(row["map"], row["truth"], row["target"]) for row in rows(tmp_path / "both" / "index.csv")]
    assert found == [
        ("bright/x.top1.npz", "bright", "bright"), ("bright/x.top2.npz", "bright", "dark"),
        ("other/x.top1.npz", "", "bright"), ("other/x.top2.npz", "", "dark"),
    ]  # fmt: skip
    assert all((tmp_path / "both" / path).is_file() for path, *_ in found)

    options = "--format tiff --full --layout over --colormap cividis --opacity 1"
    ran = vit(f"{line} {options} --target {tmp_path}/list.csv:class --out {tmp_path}/list")
    assert ran.code == 0, ran.err
    assert [row["target"] for row in rows(tmp_path / "list" / "index.csv")] == ["dark", "bright"]
    with Image.open(tmp_path / "list" / "other" / "x.full.tiff") as picture:
        assert (picture.size, picture.mode) == ((32, 32), "F")
    with Image.open(tmp_path / "list" / "other" / "x.png") as wide:
        assert wide.width < 400  # no photo beside it

    (tmp_path / "list.csv").write_text("image,class\nbright/x.png,dark\n")
    ran = vit(f"{line} --target {tmp_path}/list.csv:class --out {tmp_path}/none")
    assert "no class for 'other/x.png'" in ran.err
    assert not (tmp_path / "none").exists()


def test_an_export_is_resumed_and_its_gallery_has_scores(vit: Vit, model: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        photo(tmp_path / "photos" / "bright" / f"{name}.png", (32, 32), (16, 24, 24, 32))
    out = tmp_path / "maps"
    line = f"explain {model} {tmp_path}/photos --num_workers 0 --method rollout --gallery --out {out}"
    assert vit(f"{line} --resume").code == 0  # where there is nothing yet, from the start
    (out / "bright" / "b.npy").unlink()
    (out / "bright" / ".a.0123456789abcdef.npy").touch()  # as a killed process leaves it
    (out / ".index.0123456789abcdef.csv").touch()
    untouched = (out / "bright" / "a.npy").stat().st_mtime_ns
    (tmp_path / "scores.csv").write_text(
        "image,method,iou_at_equal_area\nbright/a.png,rollout,0.25\nbright/a.png,random,0\n"
    )
    ran = vit(f"{line} --scores {tmp_path}/scores.csv --resume")
    assert ran.code == 0, ran.err
    assert "2 of 3 images already had their maps" in ran.err
    assert (out / "bright" / "a.npy").stat().st_mtime_ns == untouched
    assert not (out / "bright" / ".a.0123456789abcdef.npy").exists()
    assert not (out / ".index.0123456789abcdef.csv").exists()
    assert len(rows(out / "index.csv")) == 3
    page = (out / "gallery.html").read_text(encoding="utf-8")
    assert 'data-score="0.250000"' in page
    assert page.count("data-correct=") == 3
    assert is_png(out / "bright" / "b.png")
    assert (out / "thumbnails" / "bright" / "b.jpg").is_file()

    for words, said in (
        ("--method rollout --refine --resume", "--refine was False, is True"),
        ("--method legrad --resume", "--method was 'rollout', is 'legrad'"),
        ("--rollout.residual 0.25 --resume", "--rollout.residual was 0.5, is 0.25"),
        ("--resume --overwrite", "Give one of the two"),
    ):
        ran = vit(f"{line} {words}")
        assert (ran.code, said in ran.err) == (1, True), ran.err
        assert len(ran.err.splitlines()) <= 5
    other = sees_bright()
    torch.nn.init.constant_(other.head.bias, 1.0)
    write_folder(other, tmp_path / "other")
    assert "of another model" in vit(f"{line.replace(str(model), str(tmp_path / 'other'))} --resume").err


def test_a_photo_that_took_the_place_of_another_is_explained_again(vit: Vit, model: Path, tmp_path: Path) -> None:
    photos, maps = tmp_path / "photos", tmp_path / "maps"
    for name in ("a", "b", "c"):
        photo(photos / f"{name}.png", (32, 32), (16, 24, 24, 32))
    line = f"explain {model} {photos} --num_workers 0 --out {maps}"
    assert vit(line).code == 0
    untouched = (maps / "b.npy").stat().st_mtime_ns
    (photos / "a.png").unlink()
    photo(photos / "a.bmp", (32, 32), (0, 8, 0, 8))  # its map takes the same name
    photo(photos / "c.png", (32, 32), (8, 16, 0, 8))
    ran = vit(f"{line} --resume")
    assert ran.code == 0, ran.err
    assert "1 of 3 images already had their maps" in ran.err
    assert (peak(maps / "a.npy"), peak(maps / "c.npy")) == ((0, 0), (1, 0))
    assert (maps / "b.npy").stat().st_mtime_ns == untouched
    assert [row["image"] for row in rows(maps / "index.csv")] == ["a.bmp", "b.png", "c.png"]

    (photos / "c.png").write_bytes(b"<html>")  # nothing of what it was is told of what it is
    assert vit(f"{line} --resume").code == 0
    assert [row["image"] for row in rows(maps / "index.csv")] == ["a.bmp", "b.png"]
    assert "3 of 3" not in vit(f"{line} --resume").err
    assert [row["image"] for row in rows(maps / "index.csv")] == ["a.bmp", "b.png"]


def test_photos_in_the_output_folder_are_not_written_over(vit: Vit, model: Path, tmp_path: Path) -> None:
    before = photo(tmp_path / "photos" / "x.png").read_bytes()
    ran = vit(f"explain {model} {tmp_path}/photos --num_workers 0 --out {tmp_path}/photos --overwrite")
    assert ran.code == 1
    assert "holds 1 of the images to explain, such as x.png" in ran.err
    assert (tmp_path / "photos" / "x.png").read_bytes() == before
    assert files(tmp_path / "photos") == {"x.png"}


def test_settings_of_rollout_and_the_image_size_are_heard(vit: Vit, model: Path, tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "x.png", (32, 32), (16, 24, 24, 32))
    line = f"explain {model} {tmp_path}/photos --method rollout --num_workers 0 --out {tmp_path}"
    assert vit(f"{line}/plain").code == 0
    assert vit(f"{line}/more --rollout.residual 0.9").code == 0
    assert np.load(tmp_path / "more" / "x.npy")[2, 3] > 1.5 * np.load(tmp_path / "plain" / "x.npy")[2, 3]
    assert vit(f"{line}/wide --image_size [16,64]").code == 0
    assert np.load(tmp_path / "wide" / "x.npy").shape == (2, 8)


# Orientation in EXIF -> how the upright photo is stored.
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    3: lambda upright: np.rot90(upright, 2),
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("orientation", STORED)
def test_the_map_of_a_rotated_photo_lies_on_its_upright_pixels(
    vit: Vit, model: Path, tmp_path: Path, orientation: int, suffix: str
) -> None:
    upright = np.full((40, 72, 3), DARK, np.uint8)
    upright[0:10, 54:72] = BRIGHT  # the top right one of 4 x 4 patches
    path = tmp_path / "photos" / f"x{suffix}"
    path.parent.mkdir()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(np.ascontiguousarray(STORED[orientation](upright))).save(path, exif=exif, quality=95)
    with Image.open(path) as stored:
        assert np.abs(np.asarray(ImageOps.exif_transpose(stored)).astype(int) - upright).max() < 30
    ran = vit(f"explain {model} {tmp_path}/photos --full --num_workers 0 --out {tmp_path}/maps")
    assert ran.code == 0, ran.err
    full = np.load(tmp_path / "maps" / "x.full.npy")
    assert full.shape == (40, 72)
    assert peak(tmp_path / "maps" / "x.npy") == (0, 3)
    assert full[0:10, 54:72].min() > full[12:, :50].max()
    (row,) = rows(tmp_path / "maps" / "index.csv")
    assert (row["img_h"], row["img_w"]) == ("40", "72")


@pytest.mark.parametrize(
    ("trained_on", "rectangle"), [(("squash", 1.0), (0, 32, 32, 64)), (("crop", 0.5), (8, 24, 40, 56))]
)
def test_a_map_covers_the_whole_photo_unless_it_is_to_be_cropped(
    vit: Vit, tmp_path: Path, trained_on: tuple[str, float], rectangle: tuple[int, int, int, int]
) -> None:
    """Cropped as the checkpoint was trained where it says so, and to a square as high as the photo otherwise."""
    model = sees_bright()
    model.preprocessing = replace(model.preprocessing, resize_mode=trained_on[0], crop_pct=trained_on[1])
    write_folder(model, tmp_path / "model")
    photo(tmp_path / "photos" / "x.png", (32, 96), (8, 16, 48, 96))
    line = f"explain {tmp_path}/model {tmp_path}/photos --full --num_workers 0 --out {tmp_path}"
    assert vit(f"{line}/cropped --crop").code == 0
    full = np.load(tmp_path / "cropped" / "x.full.npy")
    top, bottom, left, right = rectangle
    covered = np.zeros((32, 96), bool)
    covered[top:bottom, left:right] = True
    np.testing.assert_array_equal(~np.isnan(full), covered)
    row, column = peak(tmp_path / "cropped" / "x.full.npy")
    assert 8 <= row < 16
    assert 48 <= column < right

    assert vit(f"{line}/whole").code == 0
    whole = np.load(tmp_path / "whole" / "x.full.npy")
    assert not np.isnan(whole).any()
    assert whole[12, 84] > 2 * whole[12, 20]  # beside the crop


NAMES = [
    "caf\u00e9 \u9ce5.png",
    "with 'quotes', and; more.png",
    "cafe\u0301.png",
    os.fsdecode(b"latin-\xe9.png"),
    "-dash.png",
]


def test_photos_of_any_name(vit: Vit, model: Path, tmp_path: Path) -> None:
    for number, name in enumerate(NAMES):
        photo(tmp_path / "photos" / name, (32, 32), (0, 8, 8 * (number % 4), 8 * (number % 4) + 8))
    out = tmp_path / "maps"
    ran = vit(f"explain {model} {tmp_path}/photos --num_workers 0 --out {out}")
    assert ran.code == 0, ran.err
    for number, name in enumerate(NAMES):
        stem = name.removesuffix(".png")
        assert peak(out / f"{stem}.npy") == (0, number % 4)
        assert (out / f"{stem}.png").is_file()
    listed = {row["image"] for row in rows(out / "index.csv")}
    assert listed == {*NAMES[:3], "latin-\\xe9.png", "-dash.png"}
    ran = vit(f"predict {model} {tmp_path}/photos --num_workers 0 --out {tmp_path}/labels.csv")
    assert ran.code == 0, ran.err
    assert {row["image"] for row in rows(tmp_path / "labels.csv")} == listed


def test_the_longest_names_leave_room_for_the_ends_of_their_files(vit: Vit, model: Path, tmp_path: Path) -> None:
    names = [
        "b" * 247 + ".jpg",
        "b" * 247 + ".png",
        "\u00e9" * 120 + ".png",
        os.fsdecode(b"\xe9" * 240 + b".png"),
        "x.png",
    ]
    for number, name in enumerate(names):
        photo(tmp_path / "photos" / name, (32, 32), (0, 8, 8 * (number % 4), 8 * (number % 4) + 8))
    line = f"explain {model} {tmp_path}/photos --num_workers 0 --method attribution --target topk:2 --full --gallery"
    line += f" --format png16 --out {tmp_path}/maps"
    ran = vit(line)
    assert ran.code == 0, ran.err
    written = rows(tmp_path / "maps" / "index.csv")
    assert len({row["map"] for row in written}) == 10
    made = [path.name for path in (tmp_path / "maps").rglob("*.full.map.png")]
    assert len(made) == 10
    assert {"x.top1.full.map.png", "x.top2.full.map.png"} <= set(made)
    kept, digest = (
        next(row["map"] for row in written if row["image"] == names[2]).removesuffix(".top1.map.png").split("~")
    )
    assert set(kept) == {"\u00e9"}  # cut between characters
    assert digest == hashlib.sha1(os.fsencode(names[2])).hexdigest()[:8]
    assert "5 of 5 images already had their maps" in vit(f"{line} --resume").err


def test_an_output_folder_among_the_photos_is_left_out(vit: Vit, model: Path, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for name in ("a.png", "b.png"):
        photo(root / name)
    line = f"explain {model} {root} --num_workers 0 --out {root}/maps"
    assert vit(line).code == 0
    ran = vit(f"{line} --resume")
    assert ran.code == 0, ran.err
    assert "2 of 2 images already had their maps" in ran.err
    assert [row["image"] for row in rows(root / "maps" / "index.csv")] == ["a.png", "b.png"]
    ran = vit(f"explain {model} {root}/a.png {root}/maps/b.png --num_workers 0 --out {root}/maps --overwrite")
    assert "holds 1 of the images to explain, such as maps/b.png" in ran.err


def test_a_new_export_begins_by_taking_away_what_told_of_the_older_one(vit: Vit, model: Path, tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "a.png")
    line = f"explain {model} {tmp_path}/photos --num_workers 0 --out {tmp_path}/maps"
    assert vit(f"{line} --gallery").code == 0
    assert vit(f"{line} --overwrite").code == 0
    assert files(tmp_path / "maps") == {*EXPORT, "a.npy", "a.png", "thumbnails/a.jpg"}
    (tmp_path / "photos" / "a.png").write_bytes(b"<html>")
    assert vit(f"{line} --overwrite --strict").code == 1  # it ended before there was anything to tell of
    assert not files(tmp_path / "maps") & {"index.csv", "contact_sheet.png"}


def test_scores_of_other_photos_are_refused(vit: Vit, model: Path, tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "bright" / "a.png")
    table = tmp_path / "scores.csv"
    table.write_text("image,method,iou_at_equal_area\nbrigth/a.png,rollout,0.25\n")
    line = f"explain {model} {tmp_path}/photos --num_workers 0 --method rollout --gallery --out {tmp_path}/maps"
    ran = vit(f"{line} --scores {table}")
    assert ran.code == 1
    assert "has no scores for any of the 1 images, such as 'bright/a.png' (did you mean 'brigth/a.png'?)" in ran.err
    assert len(ran.err.splitlines()) <= 5
    assert not (tmp_path / "maps").exists()


def test_explain_skips_and_lists_what_it_can_not_read(vit: Vit, model: Path, tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "b.png").write_bytes(b"<html>")
    photo(tmp_path / "photos" / "c.png")
    line = f"explain {model} {tmp_path}/photos --batch_size 1 --num_workers 0 --out {tmp_path}"
    ran = vit(f"{line}/maps")
    assert ran.code == 0
    assert [row["image"] for row in rows(tmp_path / "maps" / "index.csv")] == ["a.png", "c.png"]
    assert [Path(row["path"]).name for row in rows(tmp_path / "maps" / "skipped.csv")] == ["b.png"]
    assert "2 maps in" in ran.err

    ran = vit(f"{line}/strict --strict")
    assert ran.code == 1
    assert "b.png" in ran.err
    assert len(ran.err.splitlines()) <= 5
    assert files(tmp_path / "strict") <= {"a.npy", "a.png", "export.jsonl"}  # whole, and without an index


# Checkpoints that are not of our making, and info


@pytest.fixture
def weights(trained: Path, tmp_path: Path) -> list[Path]:
    """A model under timm's names in files without a word on its labels, heads or preprocessing."""
    tensors = load_file(trained / "model" / "model.safetensors")
    shutil.copy(trained / "model" / "model.safetensors", tmp_path / "vit.safetensors")
    torch.save({"state_dict": {f"module.{name}": value for name, value in tensors.items()}}, tmp_path / "vit.pth")
    return [tmp_path / "vit.safetensors", tmp_path / "vit.pth"]


def test_any_checkpoint_can_be_explained(vit: Vit, weights: Sequence[Path], trained: Path, tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "x.png", (32, 32), (16, 24, 24, 32))
    for source in [*weights, trained / "model"]:
        out = tmp_path / f"maps{source.suffix}"
        ran = vit(f"explain {source} {tmp_path}/photos --method attribution --num_workers 0 --out {out}")
        assert ran.code == 0, ran.err
        np.testing.assert_array_equal(np.load(out / "x.npy"), np.load(tmp_path / "maps.safetensors" / "x.npy"))
        assert rows(out / "index.csv")[0]["predicted"] in {"class 0", "class 1", "bright", "dark"}


def test_positions_are_resized_as_is_told(vit: Vit, weights: Sequence[Path], tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "x.png", (32, 32), (16, 24, 24, 32))
    found = {}
    for way in ("bicubic", "bilinear_corners"):
        line = f"{weights[0]} {tmp_path}/photos --image_size 32 --pos_interpolation {way} --num_workers 0"
        assert vit(f"explain {line} --method rollout --out {tmp_path}/{way}").code == 0
        found[way] = np.load(tmp_path / way / "x.npy")
        model = load(weights[0], image_size=(32, 32), pos_interpolation=way)
        pixels = np.asarray(Image.open(tmp_path / "photos" / "x.png"), np.float32) / 255
        image = torch.from_numpy((pixels - IMAGENET_MEAN) / IMAGENET_STD).float().permute(2, 0, 1)[None]
        expected = explain_batch(model, image, method="rollout").maps[0]
        np.testing.assert_allclose(found[way], expected, rtol=1e-5)
    assert np.abs(found["bicubic"] / found["bilinear_corners"] - 1).max() > 1e-4  # ten times what is allowed above


def test_info_tells_the_architecture_the_keys_and_what_was_assumed(
    vit: Vit, weights: Sequence[Path], trained: Path
) -> None:
    tensors = len(load_file(weights[0]))
    ran = vit("info", weights[0])
    assert ran.code == 0
    told = dict(line.split("  ", 1) for line in ran.out.splitlines())
    told = {subject.strip(): text.strip() for subject, text in told.items()}
    assert (told["checkpoint"], told["tensors"]) == (str(weights[0]), f"{tensors} in it, {tensors} of the model's")
    assert "num_heads=4" in next(line for line in ran.out.splitlines() if "assumed (" in line)
    assert (told["embed_dim"], told["depth"], told["patch_size"], told["pool"]) == ("128", "6", "(8, 8)", "class")
    assert told["parameters"] == f"{sum(value.numel() for value in load_file(weights[0]).values()) - 128:,}"

    ran = vit("info", trained / "model", "--image_size", "32", "--classes", "5")
    assert "assumed" not in ran.out
    assert "positions from 2 x 2 to 4 x 4" in ran.out
    assert "bright, dark" in ran.out
    assert "a new head has 5 x 128 random weights" in ran.out


def test_export_writes_what_a_library_reads(vit: Vit, trained: Path, tmp_path: Path) -> None:
    for target in ("timm", "transformers", "torchvision"):
        assert vit(f"export {trained}/model --to {target} --out {tmp_path / target}").code == 0
    assert files(tmp_path / "torchvision") == {"README.md", "labels.json", "model.pth"}
    again = vit(f"export {trained}/model --to timm --out {tmp_path}/timm")
    assert again.code == 1
    assert "already holds files" in again.err


def test_a_refused_export_leaves_nothing(vit: Vit, tmp_path: Path) -> None:
    shape = {"embed_dim": 16, "depth": 2, "num_heads": 2, "act": "quick_gelu"}
    encoder = image_encoder(image_size=(16, 16), patch_size=(8, 8), **shape)
    write_folder(Classifier(encoder, 2, labels=("a", "b")), tmp_path / "model")
    ran = vit(f"export {tmp_path}/model --to torchvision --out {tmp_path}/out")
    assert ran.code == 1
    assert "torchvision can't represent all of this model" in ran.err
    assert not (tmp_path / "out").exists()


def test_the_model_card_of_a_run(trained: Path, classes: Path) -> None:
    card = (trained / "model" / "README.md").read_text(encoding="utf-8")
    assert f"`{classes.name}`: images " in card
    assert "| top-1 | " in card
    assert "random weights" in card
    assert str(classes) not in card


# Refusals


@pytest.fixture
def places(
    model: Path, headless: Path, classes: Path, split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, object]:
    """What the words of REFUSED stand for."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    here = tmp_path / "here"
    (here / "empty").mkdir(parents=True)
    (here / "taken").mkdir()
    (here / "taken" / "mine.txt").write_text("mine")
    (here / "notes.pth").write_text("<html>no weights")
    (here / "notes.safetensors").write_bytes(b"")
    os.mkfifo(here / "pipe")
    for number in range(3):
        photo(here / "one_class" / "robin" / f"{number}.png")
        photo(here / "no_classes" / f"{number}.png")
        photo(here / "others" / "bright" / f"{number}.png")
        photo(here / "others" / "robin" / f"{number}.png")
    for label in ("bright", "dark"):
        photo(here / "single" / label / "0.png")
    return {
        "model": model, "headless": headless, "classes": classes, "data": split, "here": here,
        "photo": classes / "dark" / "0.png", "out": tmp_path / "refused",
        "train": f"train {TINY} --run {tmp_path}/refused",
    }  # fmt: skip


# The words -> what the answer says, and the exit code: 2 when nothing was run, 1 otherwise.
REFUSED: dict[str, tuple[str, int]] = {
    "{train}": ("--data.root is missing", 1),
    "{train} --data.root {classes} --data.balanced --optim.class_weights balanced": ("compensate for rare classes", 1),
    "{train} --data.root {here}/emty": ("did you mean 'empty'?", 1),
    "{train} --data.root {here}/empty": ("no class folders with images", 1),
    "{train} --data.root {here}/one_class": ("only one class, 'robin'", 1),
    "{train} --data.root {here}/no_classes": ("3 images directly in it", 1),
    "{train} --data.root {here}/single": ("none is left for validation", 1),
    "{train} --data.root {photo}": ("is a file", 1),
    "{train} --data.root birdscenes:dmo": ("did you mean 'demo'", 1),
    "{train} --data.root {classes} --model.image_size 17": ("16 or 24", 1),
    "{train} --data.root {classes} --model.image_size [16,16,16]": ("a number of pixels, 1 or more, or two of them", 1),
    "{train} --data.root {classes} --model.variant pcio": ("did you mean 'pico'?", 1),
    "{train} --data.root {classes} --model.pretrained {here}/notes.pth": ("can't be read as a checkpoint", 1),
    "{train} --data.root {classes} --model.pretrained {here}/notes.safetensors": ("The file is empty", 1),
    "{train} --data.root {classes} --model.pretrained {here}/none.pth": ("There is no checkpoint at", 1),
    "{train} --data.root {here}/empty --model.pretrained {model}": ("no class folders with images", 1),
    "{train} --data.root {classes} --resume": ("nothing to resume", 1),
    "{train} --data.root {classes} --device cuda": ("no cuda device", 1),
    "{train} --data.root {classes} --trainer.max_epochs 0": ("--trainer.max_epochs is 0; allowed are 1 or more", 1),
    "{train} --data.root {classes} --trainer.accumulate 0": ("--trainer.accumulate is 0", 1),
    "{train} --data.root {classes} --data.batch_size 0": ("--data.batch_size is 0", 1),
    "{train} --data.root {classes} --data.num_workers -2": ("--data.num_workers is -2", 1),
    "{train} --data.root {classes} --data.crop_scale 0": ("--data.crop_scale is 0.0; allowed are 0.01 to 1", 1),
    "{train} --data.root {classes} --data.hflip 2": ("--data.hflip is 2.0", 1),
    "{train} --data.root {classes} --model.patch_size 0": ("--model.patch_size is 0", 1),
    "{train} --data.root {classes} --seed -1": ("--seed is -1", 1),
    "{train} --data.root {classes} --data.val_fraction 1.5": ("val_fraction is 1.5", 1),
    "{train} --data.root {classes} --optim.lr -1": ("--optim.lr is -1.0", 1),
    "{train} --data.root {classes} --optim.label_smoothing 2": ("allowed are 0 to 1", 1),
    "{train} --data.root {classes} --model.drop_path 1": ("--model.drop_path is 1.0; allowed are 0 to 0.99", 1),
    "{train} --data.root {classes} --optim.lrr 1": ("did you mean '--optim.lr'?", 2),
    "{train} --data.root {classes} --lr 1": ("did you mean '--optim.lr'?", 2),
    "{train} --data.root {classes} --optim.l 1": ("unknown option", 2),
    "{train} --data.root {classes} --trainer.max_epochs many": ("takes INTEGER; got 'many'", 2),
    "{train} --data.root {classes} --model.pool maen": ("takes class|mean|class+mean", 2),
    "{train} --data.root {classes} --config classify/fintune": ("did you mean 'classify/finetune'?", 2),
    "evaluate {model} --data.root {here}/others --out {out}": ("Only in the data: robin", 1),
    "evaluate {headless} --data.root {classes} --out {out}": ("has no head, so it can't name classes", 1),
    "evaluate {here}/notes.pth --data.root {classes} --out {out}": ("can't be read as a checkpoint", 1),
    "evaluate {model} --data.root {here}/none --out {out}": ("There is no folder", 1),
    "evaluate {model} --data.root {classes} --split test --out {out}": ("no split 'test'", 1),
    "evaluate {model} --data.root {classes} --split tests --out {out}": ("takes train|val|test", 2),
    "evaluate {model} --data.root {classes} --device cuda --out {out}": ("no cuda device", 1),
    "evaluate {model} --data.root {classes}": ("--out must be given", 2),
    "predict {headless} {photo} --out {out}": ("has no head, so it can't name classes", 1),
    "predict {model} {here}/none.png --out {out}": ("There is no", 1),
    "predict {model} {here}/empty --out {out}": ("holds no images", 1),
    "predict {model} {here}/*.jpg --out {out}": ("holds no images", 1),
    "predict {model} {photo} --out {here}": ("is not a regular file, so it can't be overwritten", 1),
    "predict {model} {photo} --out {here}/pipe --overwrite": ("is not a regular file, so it can't be overwritten", 1),
    "predict {model} {photo} --out {photo}/x.csv": ("Can't create the output folder", 1),
    "predict {model} {photo} --batch_size 0 --out {out}": ("--batch_size is 0", 1),
    "predict {model} {photo} --topk 0 --out {out}": ("--topk is 0; allowed are 1 or more", 1),
    "predict {model} {photo} --num_workers -7 --out {out}": ("--num_workers is -7", 1),
    "predict {model} {photo} --seed -1 --out {out}": ("--seed is -1", 1),
    "predict {model} --out {out}": ("IMAGES must be given", 2),
    "predict {model} {photo} --device cuda --out {out}": ("no cuda device", 1),
    "explain {model} {photo} --method legrad --target brigth --out {out}": ("did you mean 'bright'?", 1),
    "explain {model} {photo} --method legrad --target 2 --out {out}": ("not a label of the model", 1),
    "explain {model} {photo} --target bright --out {out}": ("--method default are the same for all classes", 1),
    "explain {model} {photo} --method legrad --target topk:3 --out {out}": ("topk:1 to topk:2", 1),
    "explain {model} {photo} --rollout.residual 0.4 --out {out}": ("they apply to rollout", 1),
    "explain {model} {photo} --opacity 2 --out {out}": ("--opacity is 2.0", 1),
    "explain {model} {photo} --scores x.csv --out {out}": ("--scores needs --gallery", 1),
    "explain {model} {photo} --gallery --scores x.csv --out {out}": ("no such file", 1),
    "explain {headless} {photo} --method attribution --out {out}": ("has no head", 1),
    "explain {model} {photo} --image_size 33 --out {out}": ("32 or 40", 1),
    "explain {model} {photo} --image_size 40000 --out {out}": ("more than the 110,000,000 pixels", 1),
    "{train} --data.root {classes} --model.image_size 24000": ("--model.image_size is 24000", 1),
    "explain {model} {photo} --image_size [64,64,64] --out {out}": ("--image_size is [64, 64, 64]; allowed are", 1),
    "explain {model} {photo} --num_workers -7 --out {out}": ("--num_workers is -7", 1),
    "explain {model} {photo} --batch_size 0 --out {out}": ("--batch_size is 0", 1),
    "explain {model} {photo} --start_block 1 --out {out}": ("blocks 0 to 0", 1),
    "explain {model} {photo} --rollout.discard_ratio 1 --out {out}": ("--rollout.discard_ratio is 1.0", 1),
    "explain {model} {photo} --method rolout --out {out}": ("takes default|rollout|last_attention", 2),
    "explain {model} {here}/empty --out {out}": ("holds no images", 1),
    "explain {model} {photo} --device cuda --out {out}": ("no cuda device", 1),
    "explain {here} {photo} --out {out}": ("is not a model folder", 1),
    "info {here}/notes.pth": ("can't be read as a checkpoint", 1),
    "info {here}/none.safetensors": ("There is no checkpoint at", 1),
    "info {model} --image_size 30": ("24 or 32", 1),
    "info {model} --image_size -8": ("--image_size is -8; allowed are", 1),
    "inof {model}": ("did you mean 'info'?", 2),
}  # fmt: skip


@pytest.mark.parametrize("line", REFUSED)
def test_a_mistake_is_answered_in_five_lines_and_leaves_nothing(vit: Vit, places: dict[str, object], line: str) -> None:
    text, code = REFUSED[line]
    ran = vit(line.format(**places))
    assert text in ran.err
    assert ran.code == code
    assert ran.out == "" or line.startswith("info {model}")  # which tells what it found all the same
    assert 1 <= len(ran.err.splitlines()) <= 5
    assert "Traceback" not in ran.err
    assert "This is a bug" not in ran.err
    assert not Path(str(places["out"])).exists()


@pytest.mark.parametrize(
    "line",
    [
        "{train} --data.root {classes} --run {here}/taken",
        "evaluate {model} --data.root {classes} --out {here}/taken",
        "explain {model} {photo} --out {here}/taken",
        "predict {model} {photo} --out {here}/taken/mine.txt",
        "demo --out {here}/taken",
    ],
)
def test_what_is_there_is_not_overwritten_unasked(vit: Vit, places: dict[str, object], line: str) -> None:
    ran = vit(line.format(**places))
    taken = Path(str(places["here"])) / "taken"
    assert ran.code == 1
    assert "--overwrite" in ran.err
    assert len(ran.err.splitlines()) <= 5
    assert {path.name: path.read_text() for path in taken.iterdir()} == {"mine.txt": "mine"}


def test_what_is_there_is_overwritten_when_asked(vit: Vit, places: dict[str, object]) -> None:
    taken = Path(str(places["here"])) / "taken"
    assert (
        vit(
            "evaluate {model} --data.root {classes} --data.num_workers 0 --out {here}/taken --overwrite".format(
                **places
            )
        ).code
        == 0
    )
    assert vit("explain {model} {photo} --num_workers 0 --out {here}/taken --overwrite".format(**places)).code == 0
    assert (
        vit("predict {model} {photo} --num_workers 0 --out {here}/taken/mine.txt --overwrite".format(**places)).code
        == 0
    )
    assert (taken / "mine.txt").read_text().startswith("image,label,probability")
    assert {"metrics.json", "index.csv"} <= files(taken)


def test_debug_shows_the_traceback(vit: Vit, places: dict[str, object]) -> None:
    assert "Traceback" in vit("info {here}/notes.pth --debug".format(**places)).err

"""`vit train` of a classifier from end to end, as it is typed: what a run leaves, and what it tells of."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.verbs import TINY, Vit, files, is_png, photo, rows


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


def test_the_model_card_of_a_run(trained: Path, classes: Path) -> None:
    card = (trained / "model" / "README.md").read_text(encoding="utf-8")
    assert f"`{classes.name}`: images " in card
    assert "| top-1 | " in card
    assert "random weights" in card
    assert str(classes) not in card

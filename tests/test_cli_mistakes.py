"""Mistakes in what is typed: every verb answers them in a few lines and leaves all as it was."""

import os
from pathlib import Path

import pytest
import torch

from tests.verbs import TINY, Vit, files, photo


@pytest.fixture
def places(
    model: Path, headless: Path, classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        "model": model, "headless": headless, "classes": classes, "here": here,
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
    "{train} --data.root {classes} --trainer.strategy fsdp --optim.ema 0.9": ("fsdp does not work with --optim.ema", 1),
    "{train} --data.root {classes} --trainer.strategy fsdp --trainer.compile": ("not work with --trainer.compile", 1),
    "{train} --data.root {classes} --trainer.strategy fsdp --optim.trained head": ("with --optim.trained head", 1),
    "{train} --data.root {classes} --trainer.strategy fsdp --task pretrain": ("a task other than classify", 1),
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

"""Masked pretraining from end to end, as it is typed: any photographs to an encoder that can be fine-tuned."""

import csv
import os
import shlex
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import cli
import vit
from vit.models.masked import MaskedAutoencoder
from vit.training.pretraining import PretrainingTask

SMALL = shlex.split(
    "--model.variant pico --model.image_size 16 --model.patch_size 4 --data.batch_size 4 --data.num_workers 0"
    " --trainer.precision fp32 --device cpu"
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifteen photos in folders that mean nothing, and one that can't be read."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(15):
        place = root / ("" if number % 3 == 0 else f"trip {number % 3}/day {number % 2}")
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    (root / "trip 1" / "torn.png").write_bytes(b"\x89PNG")
    return root


def pretrain(photos: Path | str, run: Path, *words: object, recipe: str = "mae", epochs: int = 3) -> int:
    recipe_words = ["--config", f"pretrain/{recipe}", "--pretrain.pictures_every", "2", "--optim.warmup_epochs", "1"]
    options = [*SMALL, "--trainer.max_epochs", str(epochs), "--data.val_fraction", "0.2"]
    return cli.main(["train", *recipe_words, *options, "--data.root", str(photos), "--run", str(run), *map(str, words)])


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert pretrain(photos, run) == 0
    return run


def test_a_run_leaves_pictures_a_history_and_a_model(whole: Path) -> None:
    assert sorted(path.name for path in (whole / "reconstructions").iterdir()) == ["epoch_0002.png", "epoch_0003.png"]
    with Image.open(whole / "reconstructions" / "epoch_0002.png") as picture:
        assert picture.size[0] > 6 * 128
    with (whole / "metrics.csv").open(newline="") as file:
        losses = [float(row["val_loss"]) for row in csv.DictReader(file) if row["val_loss"]]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert "torn.png" in (whole / "skipped.csv").read_text()


def test_the_model_is_the_encoder_and_nothing_else(whole: Path) -> None:
    model = vit.load(whole / "model")
    assert model.num_classes == 0
    assert not any("decoder" in name or "mask" in name for name in load_file(whole / "model" / "model.safetensors"))
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 128)
    card = (whole / "model" / "README.md").read_text()
    assert "pretrained" in card
    assert "classes below" not in card
    assert "| loss of the hidden patches | 0." in card or "| loss of the hidden patches | 1." in card


def test_the_model_is_fine_tuned(whole: Path, photos: Path, tmp_path: Path) -> None:
    """Its weights arrive: with a learning rate of 0 they come out as they went in."""
    for number in range(8):
        place = tmp_path / "labelled" / ("a" if number % 2 else "b")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), 30 * number, np.uint8)).save(place / f"{number}.png")
    data = ["--data.root", str(tmp_path / "labelled"), "--model.pretrained", str(whole / "model")]
    words = [*SMALL, *data, "--optim.lr", "0", "--trainer.max_epochs", "1", "--run", str(tmp_path / "run")]
    assert cli.main(["train", *words]) == 0
    fine, learned = (load_file(run / "model" / "model.safetensors") for run in (tmp_path / "run", whole))
    assert set(fine) - set(learned) == {"head.weight", "head.bias"}
    assert all(torch.equal(fine[name], value) for name, value in learned.items())


@pytest.mark.parametrize("call", [2, 5])
def test_a_run_that_was_stopped_goes_on_to_the_bit(
    whole: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    step, calls = PretrainingTask.training_step, []

    def ended(task: PretrainingTask, batch: dict[str, Any], batch_idx: int) -> Any:
        calls.append(batch_idx)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(task, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(PretrainingTask, "training_step", ended)
        with pytest.raises(SystemExit) as stopped:
            pretrain(photos, tmp_path / "run")
        assert stopped.value.code == 143
    assert not (tmp_path / "run" / "reconstructions" / "epoch_0003.png").exists()
    assert pretrain(photos, tmp_path / "run", "--resume") == 0
    for name in ("metrics.csv", "model/model.safetensors", "reconstructions/epoch_0003.png"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes(), name
    first, second = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (whole, tmp_path / "run")
    )
    assert all(torch.equal(value, second["state_dict"][name]) for name, value in first["state_dict"].items())


def test_simmim_on_generated_scenes_from_a_checkpoint(whole: Path, tmp_path: Path) -> None:
    options = ["--data.train_scenes", "8", "--data.val_scenes", "4", "--model.pretrained", whole / "model"]
    assert pretrain("birdscenes:demo", tmp_path / "run", *options, recipe="simmim", epochs=1) == 0
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert [path.name for path in (tmp_path / "run" / "reconstructions").iterdir()] == ["epoch_0001.png"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pretrain.mask_ratio", "1.5"], "pretrain.mask_ratio is 1.5; it must lie between 0 and 1"),
        (["--pretrain.mask_ratio", "1.0"], "pretrain.mask_ratio is 1.0; it must lie between 0 and 1, such as 0.75"),
        (["--pretrain.mask_ratio", "0"], "pretrain.mask_ratio is 0.0; it must lie between 0 and 1"),
        (["--pretrain.mask_ratio", "0.99"], "a mask ratio of 0.99 leaves 0 of 16 visible"),
        (["--pretrain.mask_ratio", "0.99"], "Change --pretrain.mask_ratio, or give a larger --model.image_size"),
        (["--pretrain.recipe", "beit"], "takes mae|simmim"),
        (["--pretrain.cell", "2"], "MAE hides single patches"),
        (["--pretrain.recipe", "simmim", "--pretrain.cell", "3"], "3 x 3 patches don't divide a grid of 4 x 4"),
        (
            ["--pretrain.recipe", "simmim", "--pretrain.cell", "3"],
            "Give --pretrain.cell 1 or 2, or another --model.image",
        ),
        (
            ["--pretrain.recipe", "simmim", "--pretrain.cell", "4"],
            "Give --pretrain.cell 1 or 2, or another --model.image",
        ),
        (["--optim.trained", "head"], "--optim.trained is 'head', which this task does not use"),
        (["--optim.mixup", "0.8"], "--optim.mixup is 0.8, which this task does not use"),
        (["--optim.class_weights", "balanced"], "--optim.class_weights is 'balanced', which this task does not use"),
        (["--data.balanced"], "--data.balanced needs classes"),
        (["--data.confound", "0.5"], "--data.confound only works with generated scenes"),
        (["--task", "pretrian"], "classify|"),
        (["--task", "classify"], "The --pretrain.* options need --task pretrain"),
        (["--model.variant", "small", "--model.pretrained", "nowhere"], "nowhere"),
    ],
)
def test_what_makes_no_sense_is_refused(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert pretrain(photos, tmp_path / "run", *words) != 0
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) <= 5
    assert not (tmp_path / "run").exists()


def test_hidden_patches_are_grey_and_visible_ones_untouched(tmp_path: Path) -> None:
    from vit.models.encoder import image_encoder
    from vit.training.reconstructions import draw_reconstructions

    model = MaskedAutoencoder(image_encoder(image_size=(8, 8), patch_size=(4, 4), embed_dim=16, depth=1, num_heads=2))
    images = torch.full((1, 3, 8, 8), 1.0)
    hidden = torch.tensor([[False, True, True, True]])
    draw_reconstructions(model, images, hidden, tmp_path / "x.png", mean=(0.5,) * 3, std=(0.5,) * 3)
    pixels = np.asarray(Image.open(tmp_path / "x.png"))
    edge = 8  # of the sheet
    assert (pixels[edge : edge + 128, edge : edge + 128] == 255).all()
    second = pixels[edge : edge + 128, 2 * edge + 128 : 2 * edge + 256]
    assert (second[:64, :64] == 255).all()
    assert (second[64:] == 128).all()

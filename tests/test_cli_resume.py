"""vit train --resume: only with the options, images and labels that the run began with."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cli
from tests.verbs import Vit
from vit.training import fit as fit_module


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos and a run of one epoch on them."""
    folder = tmp_path_factory.mktemp("begun")
    for split, count in (("train", 8), ("val", 4)):
        for number in range(count):
            path = folder / "photos" / split / ("bright", "dark")[number % 2] / f"{split}{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((20, 24, 3), 200 - 150 * (number % 2) + number, np.uint8)).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_module, "draw_curves", lambda *paths: None)
        assert train(folder / "photos", folder / "run") == 0
    return folder


def train(photos: Path, run: Path, *words: str) -> int:
    options = ["--device", "cpu", "--data.batch_size", "4", "--data.num_workers", "0", "--trainer.max_epochs", "1"]
    return cli.main(["train", "--config", "debug", *options, "--data.root", str(photos), "--run", str(run), *words])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("val/bright/val0.png", "val/bright/other.png"),
        ("val/bright/val0.png", "val/dark/val0.png"),
        ("train/bright/train0.png", "train/dark/train0.png"),
        ("*/dark", "dusk"),
    ],
)
def test_other_images_or_labels_are_noticed(
    begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str
) -> None:
    shutil.copytree(begun, tmp_path / "copy")
    photos = tmp_path / "copy" / "photos"
    for path in list(photos.glob(old)):
        path.rename(path.with_name(new) if "*" in old else photos / new)
    assert train(photos, tmp_path / "copy" / "run", "--resume") == 1
    told = capsys.readouterr().err.strip()
    assert "The run started with other images or labels" in told
    assert len(told.splitlines()) <= 5


def test_the_same_photos_elsewhere_are_gone_on_with(begun: Path, tmp_path: Path) -> None:
    shutil.copytree(begun, tmp_path / "copy")
    assert train(tmp_path / "copy" / "photos", tmp_path / "copy" / "run", "--resume") == 0


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

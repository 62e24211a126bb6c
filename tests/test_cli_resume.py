"""vit train --resume: only with the images and labels that the run began with."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cli
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

"""The fingerprint of data: the same wherever it is, another for other images or other things to learn."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.birdscenes import BirdScenes
from datamodules.captions_csv import CaptionsCsv
from datamodules.image_folder import ImageFolder
from datamodules.unlabelled import UnlabelledFolder

OPTIONS = {"image_size": (8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3, "num_workers": 0}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for split, count in (("train", 6), ("val", 4)):
        for number in range(count):
            path = tmp_path / "photos" / split / "ab"[number % 2] / f"{split}{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((9, 9, 3), number, np.uint8)).save(path)
    return tmp_path / "photos"


def of(root: Path) -> str:
    return ImageFolder(str(root), **OPTIONS).fingerprint()


def test_it_stays_when_the_data_is_moved(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "elsewhere" / "deep")
    assert of(tmp_path / "elsewhere" / "deep") == of(photos)
    plain = UnlabelledFolder(str(photos), **OPTIONS).fingerprint()
    assert UnlabelledFolder(str(tmp_path / "elsewhere" / "deep"), **OPTIONS).fingerprint() == plain != of(photos)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("val/a/val0.png", "val/a/new.png"),
        ("val/a/val0.png", "val/b/val0.png"),
        ("val/a/val0.png", "train/a/val0.png"),
        ("train/a/train0.png", "train/b/train0.png"),
        ("train/a/train0.png", "gone.png"),
        ("train/a", "train/c"),
    ],
)
def test_it_changes_with_images_and_labels(photos: Path, old: str, new: str) -> None:
    before = of(photos)
    (photos / old).rename(photos / new)
    if new == "train/c":
        (photos / "val/a").rename(photos / "val/c")
    assert of(photos) != before


def test_it_changes_with_weights_and_captions(tmp_path: Path) -> None:
    def written(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    lines = "path,label,split,weight\n1.png,a,,{}\n2.png,b,,1\n3.png,a,val,1\n"
    ones, twos = (ImageFolder(written("m.csv", lines.format(n)), **OPTIONS).fingerprint() for n in (1, 2))
    assert ones != twos
    lines = "image,caption,split\n1.png,a {} bird,\n2.png,a bird,val\n"
    red, blue = (CaptionsCsv(written("c.csv", lines.format(n)), **OPTIONS).fingerprint() for n in ("red", "blue"))
    assert red != blue


def test_generated_scenes_have_one_too() -> None:
    few, more = (BirdScenes("demo", train_scenes=4, val_scenes=n, **OPTIONS).fingerprint() for n in (2, 3))
    assert few != more

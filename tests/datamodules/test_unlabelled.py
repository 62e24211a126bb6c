"""Photographs without labels: all below a folder are found, however it is sorted, and split by the seed."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.unlabelled import UnlabelledFolder, find_unlabelled
from vit.foundation import UserError


def photos(root: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 11, 3), 20 * number, np.uint8)).save(root / name)


def folder(root: Path, **options: object) -> UnlabelledFolder:
    keywords = {"image_size": (4, 6), "mean": (0.5,) * 3, "std": (0.2,) * 3, "num_workers": 0, "batch_size": 3}
    return UnlabelledFolder(str(root), **{**keywords, **options})


def test_every_photo_below_the_root_is_in_one_part(tmp_path: Path) -> None:
    names = ["a.png", "robin/b.png", "robin/young/c.png", "x/y/z/d.png", "x/e.png"]
    photos(tmp_path, *names, ".hidden/f.png")
    (tmp_path / "notes.txt").write_text("no photo")
    module = folder(tmp_path, val_fraction=0.4)
    assert sorted(module.names("train") + module.names("val")) == sorted(names)
    assert len(module.names("val")) == 2
    batches = list(module.train_dataloader())
    assert [len(batch["image"]) for batch in batches] == [3]
    assert set(batches[0]) == {"image", "index", "skipped"}
    assert batches[0]["image"].shape == (3, 3, 4, 6)


def test_parts_of_a_sorted_root_are_kept_apart(tmp_path: Path) -> None:
    photos(tmp_path, "train/robin/a.png", "train/b.png", "validation/c.png", "test/robin/d.png")
    module = folder(tmp_path)
    assert module.names("train") == ["train/b.png", "train/robin/a.png"]
    assert module.names("val") == ["validation/c.png"]


def test_held_out_photos_are_never_learned_from(tmp_path: Path) -> None:
    """A root with val/ or test/ alone, and photos beside it."""
    photos(tmp_path, "a.png", "b.png", "test/c.png")
    found = find_unlabelled(tmp_path, val_fraction=0.5, seed=0)
    assert sorted(Path(path).name for path in found["train"] + found["val"]) == ["a.png", "b.png"]


def test_the_split_follows_from_the_seed_alone(tmp_path: Path) -> None:
    photos(tmp_path, *(f"{number}.png" for number in range(12)))
    parts = [folder(tmp_path, seed=seed, val_fraction=0.25).names("val") for seed in (0, 0, 1)]
    assert parts[0] == parts[1]
    assert parts[0] != parts[2]
    assert [len(part) for part in parts] == [3, 3, 3]


def test_unreadable_photos_are_skipped(tmp_path: Path) -> None:
    photos(tmp_path, "a.png", "b.png")
    (tmp_path / "c.png").write_bytes(b"<html>")
    module = folder(tmp_path, val_fraction=0.3, seed=1)
    batches = [*module.train_dataloader(), *module.val_dataloader()]
    assert sum(len(batch["image"]) for batch in batches) == 2
    assert [Path(skip.path).name for batch in batches for skip in batch["skipped"]] == ["c.png"]
    assert torch.cat([batch["image"] for batch in batches]).isfinite().all()


@pytest.mark.parametrize(
    ("names", "root", "message"),
    [
        ([], "none", "There is no folder .*none"),
        (["here/a.png"], "her", r"There is no folder .* \(did you mean 'here'"),
        (["here/a.png"], "here", "here has 1 images to train on; it needs two or more"),
        (["here/a.png"], "here/a.png", "is a file, not a folder"),
        (["here/val/a.png", "here/val/b.png"], "here", "has 0 images to train on"),
    ],
)
def test_what_is_no_such_folder_is_refused(tmp_path: Path, names: list[str], root: str, message: str) -> None:
    photos(tmp_path, *names)
    with pytest.raises(UserError) as error:
        folder(tmp_path / root)
    assert re.search(message, str(error.value))
    assert "class" not in str(error.value).lower()
    assert len(str(error.value).splitlines()) <= 5


@pytest.mark.parametrize("root", ["hf:set", "torchvision:DTD", "webdataset:shards"])
def test_named_data_sets_are_refused(root: str) -> None:
    with pytest.raises(UserError, match=f"reads a folder of photographs.*{root} is neither") as error:
        folder(Path(root))
    assert len(str(error.value).splitlines()) <= 5

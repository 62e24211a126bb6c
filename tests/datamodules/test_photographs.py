"""What the photographs of a split are called, and how many there are: known without making them ready to read."""

import os

import pytest

from datamodules.birdscenes import BirdScenes
from datamodules.captions_csv import CaptionsCsv
from datamodules.image_folder import ImageFolder
from datamodules.reading import printable
from datamodules.unlabelled import UnlabelledFolder
from vit.foundation import UserError

OPTIONS = {"image_size": (16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3, "num_workers": 0}


def manifest(folder, paths, header="path,label", cell="{}"):
    lines = [header, *(f"{path},{cell.format('ab'[number % 2])}" for number, path in enumerate(paths))]
    (folder / "m.csv").write_bytes(b"\n".join(os.fsencode(line) for line in lines))
    return str(folder / "m.csv")


def labelled(folder):
    return ImageFolder(manifest(folder, [f"{number}.jpg" for number in range(20)]), **OPTIONS)


def captioned(folder):
    paths = [f"{number}.jpg" for number in range(20)]
    return CaptionsCsv(manifest(folder, paths, "image,caption", "a bird of kind {}"), **OPTIONS)


def unlabelled(folder):
    for number in range(20):
        (folder / f"{number}.jpg").touch()
    return UnlabelledFolder(str(folder), **OPTIONS)


@pytest.mark.parametrize("kind", [labelled, captioned, unlabelled])
def test_names_and_lengths_need_no_dataset(tmp_path, monkeypatch, kind):
    data = kind(tmp_path)
    paths = {split: data.dataset(split).paths for split in ("train", "val")}
    monkeypatch.setattr(type(data), "dataset", None)
    for split, count in (("train", 16), ("val", 4)):
        assert data.names(split) == [path.name for path in paths[split]]
        assert data.length(split) == count
    data.limit(3)
    assert (data.length("train"), data.length("val")) == (3, 3)


def test_scenes_have_lengths():
    data = BirdScenes("demo", train_scenes=7, val_scenes=3, **OPTIONS)
    assert [data.length(split) for split in ("train", "val", "test")] == [7, 3, 3]


@pytest.mark.parametrize("kind", [labelled, captioned])
def test_there_are_no_names_of_a_split_that_is_not_there(tmp_path, kind):
    for ask in (kind(tmp_path).names, kind(tmp_path).length):
        with pytest.raises(UserError, match="The data has no split 'test'; it has: train, val"):
            ask("test")


@pytest.mark.parametrize("root", ["data", "data/../data", "data/."])
def test_names_are_relative_paths_wherever_the_photos_lie(tmp_path, root):
    (tmp_path / "data").mkdir()
    paths = [
        "a/b.jpg", "a//c.jpg", "./d.jpg", "a/../e.jpg", "../f.jpg", "../data/g.jpg", "../data2/h.jpg", "/i.jpg", "x\\y",
        os.fsdecode(b"\xff.jpg"), f"{tmp_path}/data/k.jpg", f"{tmp_path}/data/../data/l.jpg", "..m.jpg", " n.jpg",
    ]  # fmt: skip
    manifest(tmp_path / "data", paths)
    data = ImageFolder(str(tmp_path / root / "m.csv"), **OPTIONS)
    for split, records in data.records.items():
        expected = [printable(os.path.relpath(record.path, data.base)) for record in records]
        assert data.names(split) == expected
    names = {*data.names("train"), *data.names("val")}
    assert names >= {"a/b.jpg", "a/c.jpg", "d.jpg", "e.jpg", "../f.jpg", "g.jpg", "../data2/h.jpg", "\\xff.jpg"}
    assert len(names) == len(paths)

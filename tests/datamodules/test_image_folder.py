"""Folders as people have them, right and wrong."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import image_files
from datamodules.image_folder import ImageFolder
from vit.foundation import UserError

OPTIONS = {"image_size": (13, 17), "mean": (0.5,) * 3, "std": (0.25,) * 3, "num_workers": 0}


def make(root, tree):
    """`tree`: folder -> number of photos."""
    for folder, count in tree.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = np.random.default_rng(number).integers(0, 256, (19, 23, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{number:03}.png")
    return root


def refused(root, **options):
    with pytest.raises(UserError) as error:
        ImageFolder(str(root), **(OPTIONS | options))
    assert 1 <= len(str(error.value).splitlines()) <= 5
    return str(error.value)


def names(dataset):
    return [f"{path.parent.name}/{path.name}" for path in dataset.paths]


def test_train_val_and_test_folders(tmp_path):
    make(tmp_path, {"train/robin": 3, "train/crow": 2, "val/robin": 2, "test/crow": 1})
    data = ImageFolder(str(tmp_path), **OPTIONS)
    assert data.labels == ("crow", "robin")
    assert data.image_size == (13, 17)
    assert data.counts() == {
        "train": {"crow": 2, "robin": 3}, "val": {"crow": 0, "robin": 2}, "test": {"crow": 1, "robin": 0}
    }  # fmt: skip
    train = data.dataset("train")
    assert list(zip(names(train), train.targets, strict=True)) == [
        ("crow/000.png", 0), ("crow/001.png", 0), ("robin/000.png", 1), ("robin/001.png", 1),
        ("robin/002.png", 1),
    ]  # fmt: skip
    (batch,) = data.dataloader("val")
    assert set(batch) == {"image", "target", "index", "skipped"}
    assert batch["image"].shape == (2, 3, 13, 17)
    assert batch["target"].tolist() == [1, 1]
    assert batch["index"].tolist() == [0, 1]
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    assert [len(next(iter(loader))["target"]) for loader in loaders] == [5, 2, 1]
    assert data.names("val") == ["val/robin/000.png", "val/robin/001.png"]


def test_only_training_is_augmented_and_shuffled(tmp_path):
    make(tmp_path, {"train/a": 9, "train/b": 9, "val/a": 1})
    data = ImageFolder(str(tmp_path), batch_size=50, **OPTIONS)
    plain, again = (next(iter(data.dataloader("train"))) for _ in range(2))
    assert plain["index"].tolist() == list(range(18))
    assert torch.equal(plain["image"], again["image"])
    loader = data.train_dataloader()
    augmented = next(iter(loader))
    assert augmented["index"].tolist() != list(range(18))
    assert sorted(augmented["index"].tolist()) == list(range(18))
    assert not torch.equal(augmented["image"], plain["image"][augmented["index"]])


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_other_names_of_val(tmp_path, name):
    make(tmp_path, {"train/a": 2, "train/b": 2, f"{name}/b": 3})
    assert ImageFolder(str(tmp_path), **OPTIONS).counts()["val"] == {"a": 0, "b": 3}


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_stratified_split(tmp_path, prefix):
    sizes = {"a": 1, "b": 2, "c": 3, "d": 10, "e": 101}
    make(tmp_path, {f"{prefix}{label}": size for label, size in sizes.items()})
    data = ImageFolder(str(tmp_path), val_fraction=0.2, **OPTIONS)
    assert data.counts() == {
        "train": {"a": 1, "b": 1, "c": 2, "d": 8, "e": 81}, "val": {"a": 0, "b": 1, "c": 1, "d": 2, "e": 20}
    }  # fmt: skip
    train, val = names(data.dataset("train")), names(data.dataset("val"))
    assert not set(train) & set(val)
    assert len(set(train) | set(val)) == 117
    assert names(ImageFolder(str(tmp_path), val_fraction=0.2, seed=1, **OPTIONS).dataset("val")) != val
    most = ImageFolder(str(tmp_path), val_fraction=0.995, **OPTIONS)
    assert most.counts()["train"] == dict.fromkeys("abcde", 1)


def test_the_split_follows_names_not_order_or_place(tmp_path, monkeypatch):
    tree = {"a": 20, "b": 20}
    val = names(ImageFolder(str(make(tmp_path / "one", tree)), **OPTIONS).dataset("val"))
    elsewhere = make(tmp_path / "deep/er/two", tree)
    assert names(ImageFolder(str(elsewhere), **OPTIONS).dataset("val")) == val
    monkeypatch.chdir(elsewhere.parent)
    assert names(ImageFolder("two", **OPTIONS).dataset("val")) == val
    entries, walk = image_files._entries, Path.iterdir
    monkeypatch.setattr(image_files, "_entries", lambda place: entries(place)[::-1])
    monkeypatch.setattr(Path, "iterdir", lambda self: iter([*walk(self)][::-1]))
    backwards = ImageFolder(str(elsewhere), **OPTIONS)
    monkeypatch.undo()
    forwards = ImageFolder(str(elsewhere), **OPTIONS)
    for split in ("train", "val"):
        assert names(backwards.dataset(split)) == names(forwards.dataset(split))
        assert backwards.dataset(split).targets == forwards.dataset(split).targets


def test_a_few_more_photos_hardly_change_the_split(tmp_path):
    root = make(tmp_path, {"a": 50, "b": 5})
    before = set(names(ImageFolder(str(root), **OPTIONS).dataset("val")))
    Image.new("RGB", (9, 9)).save(root / "a/zzz.png")
    after = set(names(ImageFolder(str(root), **OPTIONS).dataset("val")))
    assert len(before ^ after) <= 2


def test_ignored_folders_get_one_notice(tmp_path, caplog):
    make(tmp_path, {"train/a": 2, "train/b": 2, "val/a": 1, "train/.ipynb_checkpoints": 1,
                    "train/__MACOSX": 3, "train/empty": 0, "train/texts": 0, "val/.hidden": 1})  # fmt: skip
    (tmp_path / "train/texts/readme.txt").write_text("none")
    (tmp_path / "train/stray.jpg").touch()
    data = ImageFolder(str(tmp_path), **OPTIONS)
    assert data.labels == ("a", "b")
    assert len(caplog.records) == 1
    for name in (".ipynb_checkpoints", "__MACOSX", "empty", "texts", ".hidden", "1 images outside"):
        assert name in caplog.text


def test_a_class_named_as_a_split_is_a_class(tmp_path):
    make(tmp_path, {"train": 3, "plane": 3})
    assert ImageFolder(str(tmp_path), **OPTIONS).labels == ("plane", "train")


def test_nested_folders_and_links_stay_in_their_class(tmp_path):
    make(tmp_path, {"train/a/2019": 2, "train/a/2020/may": 1, "train/b": 2, "val/b": 1, "store/c": 4})
    (tmp_path / "train/a/up").symlink_to(tmp_path / "train")
    (tmp_path / "train/a/b").symlink_to(tmp_path / "train/b")
    (tmp_path / "train/a/top").symlink_to(tmp_path)
    (tmp_path / "train/c").symlink_to(tmp_path / "store/c")
    assert ImageFolder(str(tmp_path), **OPTIONS).counts()["train"] == {"a": 3, "b": 2, "c": 4}


def test_wrong_roots(tmp_path):
    make(tmp_path, {"photos/train/a": 1, "photos/train/b": 1, "one/only": 3, "flat": 3, "bare": 0,
                    "hollow/a": 0, "splits/train": 2, "splits/val": 2, "vals/val/a": 2, "vals/val/b": 2,
                    "half/train/a": 2, "half/train/b": 2, "half/val": 2})  # fmt: skip
    (tmp_path / "file").touch()
    assert "did you mean 'photos'" in refused(tmp_path / "fotos")
    assert "is a file" in refused(tmp_path / "file")
    assert "only one class, 'only'" in refused(tmp_path / "one")
    assert "3 images directly" in refused(tmp_path / "flat")
    assert "no class folders" in refused(tmp_path / "bare")
    assert "no class folders" in refused(tmp_path / "hollow")
    assert "train, val" in refused(tmp_path / "splits")
    assert "no train/" in refused(tmp_path / "vals")
    assert "images directly" in refused(tmp_path / "half")
    assert "val_fraction is 1.0" in refused(tmp_path / "photos", val_fraction=1.0)


def test_val_may_lack_classes_but_not_have_more(tmp_path):
    make(tmp_path, {"train/robin": 1, "train/crow": 1, "train/wren": 1, "val/wren": 1})
    assert ImageFolder(str(tmp_path), **OPTIONS).labels == ("crow", "robin", "wren")
    make(tmp_path, {"val/robbin": 1})
    message = refused(tmp_path)
    assert "robbin (did you mean 'robin'?)" in message


def test_targets_follow_the_checkpoints_labels_by_name(tmp_path):
    make(tmp_path, {"val/robin": 1, "val/crow": 2})
    data = ImageFolder(str(tmp_path), labels=["robin", "wren", "crow"], **OPTIONS)
    assert data.labels == ("robin", "wren", "crow")
    val = data.dataset("val")
    assert names(val) == ["robin/000.png", "crow/000.png", "crow/001.png"]
    assert val.targets == [0, 2, 2]
    assert data.counts()["val"] == {"robin": 1, "wren": 0, "crow": 2}
    with pytest.raises(UserError, match="it has: val"):
        data.dataloader("train")


def test_classes_that_the_checkpoint_does_not_know(tmp_path):
    make(tmp_path, {"val/robin": 1, "val/crow": 1, "val/emu": 1})
    message = refused(tmp_path, labels=["robin", "wren", "jay"])
    assert "Only in the data: crow, emu" in message
    assert "Only in the checkpoint: jay, wren" in message
    many = refused(tmp_path, labels=[f"class{number}" for number in range(900)])
    assert "and 894 more" in many


def test_unreadable_photos_are_skipped_and_listed(tmp_path):
    make(tmp_path, {"train/a": 4, "train/b": 4, "val/a": 1, "val/b": 1})
    bad = tmp_path / "train/a/001.png"
    bad.write_bytes(bad.read_bytes()[:100])
    (tmp_path / "val/b/000.png").write_bytes(b"")
    data = ImageFolder(str(tmp_path), batch_size=3, **OPTIONS)
    batches = list(data.train_dataloader())
    assert sum(len(batch["image"]) for batch in batches) == 7
    assert [path for batch in batches for path, _ in batch["skipped"]] == [str(bad)]
    for batch in batches:
        assert len(batch["image"]) == len(batch["target"]) == len(batch["index"])
    alone = ImageFolder(str(tmp_path), batch_size=1, **OPTIONS)
    assert [len(batch["image"]) for batch in alone.dataloader("val")] == [1, 0]
    strict = ImageFolder(str(tmp_path), strict=True, **OPTIONS)
    with pytest.raises(UserError, match=r"000\.png: the file is empty"):
        list(strict.val_dataloader())


def test_heic_is_refused_before_training(tmp_path):
    if image_files.formats() != image_files.FORMATS:
        pytest.skip("the plugin for HEIC is installed")
    make(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "b/x.heic").touch()
    assert "pillow-heif" in refused(tmp_path)


def test_a_balanced_epoch(tmp_path):
    make(tmp_path, {"train/a": 12, "train/b": 3, "val/a": 3, "val/b": 1})
    data = ImageFolder(str(tmp_path), batch_size=50, balanced=True, **OPTIONS)
    assert sorted(Counter(next(iter(data.train_dataloader()))["target"].tolist()).values()) == [7, 8]
    assert len(next(iter(data.dataloader("train")))["target"]) == 15
    assert next(iter(data.val_dataloader()))["target"].tolist() == [0, 0, 0, 1]


def test_balanced_by_the_rarest_label(tmp_path):
    make(tmp_path, {"p": 12})
    lines = [f"p/{number:03}.png,{'x|y' if number < 2 else 'x' if number < 10 else ''},train" for number in range(11)]
    (tmp_path / "m.csv").write_text("\n".join(["path,labels,split", *lines, "p/011.png,x,val"]))
    data = ImageFolder(str(tmp_path / "m.csv"), batch_size=50, balanced=True, **OPTIONS)
    targets = next(iter(data.train_dataloader()))["target"]
    assert sorted(Counter(tuple(row) for row in targets.tolist()).values()) == [3, 4, 4]


def test_a_limit_keeps_the_classes_in_proportion(tmp_path):
    make(tmp_path, {"train/robin": 6, "train/crow": 3, "val/robin": 2})
    data = ImageFolder(str(tmp_path), **OPTIONS)
    data.limit(3)
    assert names(data.dataset("train")) == ["crow/000.png", "robin/000.png", "robin/003.png"]
    assert data.counts()["train"] == {"crow": 1, "robin": 2}
    assert data.counts()["val"] == {"crow": 0, "robin": 2}
    with pytest.raises(UserError, match="--limit is 0; allowed are 1 or more"):
        data.limit(0)

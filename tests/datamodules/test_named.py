"""Data sets that are no folders: tar shards, Hugging Face `datasets`, torchvision's."""

import io
import json
import pickle
import socket
import tarfile
import time

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets as torchvision_datasets

from datamodules import torchvision_sets
from datamodules.image_folder import ImageFolder
from datamodules.sampling import Skipped
from vit import network
from vit.foundation import UserError

OPTIONS = {"image_size": (16, 16), "mean": (0.0,) * 3, "std": (1.0,) * 3, "num_workers": 0}


def encoded(value, form="PNG"):
    stream = io.BytesIO()
    Image.fromarray(np.full((20, 20, 3), value, np.uint8)).save(stream, form)
    return stream.getvalue()


def shard(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def refused(root, **options):
    with pytest.raises(UserError) as caught:
        ImageFolder(root, **(OPTIONS | options))
    assert len(str(caught.value).splitlines()) <= 5
    return str(caught.value)


def values(data, split):
    """What grey each image of a split is, and its label."""
    (batch,) = data.dataloader(split)
    labels = [data.labels[target] for target in batch["target"].tolist()]
    return dict(zip((batch["image"][:, 0, 0, 0] * 255).round().int().tolist(), labels, strict=True))


@pytest.fixture
def no_network(monkeypatch):
    def refuse(address, *_, **__):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(network.socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_shards(tmp_path):
    (tmp_path / "classnames.txt").write_text("robin\nwren\n")
    for split, first in (("train", 0), ("val", 100)):
        for number in range(2):
            files = {}
            for sample in range(3):
                value = first + 10 * number + sample
                files[f"pictures/{value:04}.jpg"] = encoded(value)  # a PNG by another name
                files[f"pictures/{value:04}.cls"] = str(value % 2).encode()
                files[f"pictures/{value:04}.note.txt"] = b"passed over"
            shard(tmp_path / f"{split}-{number:03}.tar", files)
    data = ImageFolder(f"webdataset:{tmp_path}", **OPTIONS)
    assert data.labels == ("robin", "wren")
    assert values(data, "train") == {v: ("robin", "wren")[v % 2] for v in (0, 1, 2, 10, 11, 12)}
    assert values(data, "val") == {v: ("robin", "wren")[v % 2] for v in (100, 101, 102, 110, 111, 112)}
    assert data.names("val")[0] == "val-000.tar/pictures/0100.jpg"
    cached = ImageFolder(f"webdataset:{tmp_path}", cache=str(tmp_path / "cache"), **OPTIONS)
    for _ in range(2):
        assert [len(batch["image"]) for batch in cached.val_dataloader()] == [6]
    assert len(list((tmp_path / "cache").glob("*/*.photo"))) == 6


def test_shards_of_several_labels_and_groups(tmp_path):
    files = {}
    for number in range(20):
        files[f"{number}.png"] = encoded(number)
        facts = {"labels": ["a", "b"][: number % 3], "group": number // 2, "weight": 1 + number % 2}
        files[f"{number}.json"] = json.dumps(facts).encode()
    shard(tmp_path / "all.tar", files)
    data = ImageFolder(f"webdataset:{tmp_path}", **OPTIONS)
    assert (data.multilabel, data.weighted, data.labels) == (True, True, ("a", "b"))
    groups = [{record.group for record in data.records[split]} for split in ("train", "val")]
    assert not groups[0] & groups[1]
    (batch,) = data.dataloader("val")
    assert batch["target"].shape[1] == 2
    assert sorted(batch["weight"].tolist())[0] == 1


def test_photos_without_a_label_in_shards_are_left_out(tmp_path, caplog):
    files = {
        name: data for n in range(8) for name, data in ((f"{n}.png", encoded(n)), (f"{n}.cls", b"ab"[n % 2 :][:1]))
    }
    files |= {"lone.png": encoded(20), "none.png": encoded(21), "none.json": b'{"label": null}'}
    shard(tmp_path / "0.tar", files)
    data = ImageFolder(f"webdataset:{tmp_path}", **OPTIONS)
    assert (data.labels, data.length("train") + data.length("val")) == (("a", "b"), 8)
    assert "2 photos without a label, such as" in caplog.text
    assert "0.tar/lone" in caplog.text


def test_hostile_shards(tmp_path):
    marker = tmp_path / "marker"

    class Bomb:
        def __reduce__(self):
            return (marker.write_text, ("ran",))

    bomb = pickle.dumps(Bomb())
    files = {"../../out.jpg": encoded(1), "../../out.cls": b"a", "/abs.jpg": encoded(2), "/abs.cls": b"b"}
    files |= {"x.pyd": bomb, "x.pkl": bomb, "x.jpg": b"no image", "x.cls": b"a", "empty.jpg": b"", "empty.cls": b"b"}
    place = tmp_path / "data" / "shards"
    shard(place / "train-0.tar", files)
    with tarfile.open(place / "train-1.tar", "w") as archive:
        for kind, name in (
            (tarfile.SYMTYPE, "link.jpg"),
            (tarfile.LNKTYPE, "hard.jpg"),
            (tarfile.FIFOTYPE, "fifo.jpg"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    shard(place / "val-0.tar", {"v.jpg": encoded(3), "v.cls": b"a"})
    before = set(tmp_path.rglob("*"))
    data = ImageFolder(f"webdataset:{place}", **OPTIONS)
    items = [data.dataset("train")[index] for index in range(4)]
    skipped = [item.reason for item in items if isinstance(item, Skipped)]
    assert sorted(skipped)[1] == "the file is empty"
    assert "not a JPEG" in sorted(skipped)[0]
    assert all(not name.startswith(("..", "/")) for name in data.names("train"))
    assert set(tmp_path.rglob("*")) == before
    assert not marker.exists()


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"1.jpg": b"x"}, "None of the 1 photos in the shards of"),
        ({"1.jpg": b"x", "1.cls": b""}, "can't be read"),
        ({"1.jpg": b"x", "1.cls": b"x" * 70_000}, "70,000 bytes are too many for a label"),
        ({"1.jpg": b"x", "1.json": b"{"}, "can't be read"),
        ({"1.jpg": b"x", "1.json": b"[" * 60_000}, "can't be read"),
        ({"1.jpg": b"x", "1.json": b'{"label": "a", "weight": -1}'}, "above 0"),
        ({"1.jpg": b"x", "1.cls": b"a", "2.jpg": b"x", "2.json": b'{"labels": []}'}, "Give all of them `labels`"),
        ({"1.cls": b"a"}, "hold no photos"),
    ],
)
def test_shards_that_make_no_sense(tmp_path, files, told):
    shard(tmp_path / "a.tar", files)
    assert told in refused(f"webdataset:{tmp_path}")


def test_what_are_no_shards(tmp_path):
    assert "no folder" in refused(f"webdataset:{tmp_path / 'none'}")
    assert "no *.tar files" in refused(f"webdataset:{tmp_path}")
    (tmp_path / "a.tar").write_bytes(b"no tar file" * 100)
    assert "can't be read as a tar file" in refused(f"webdataset:{tmp_path}")
    shard(tmp_path / "a.tar", {"1.jpg": encoded(1) * 50, "1.cls": b"a"})
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:900])  # the photo is cut
    refused(f"webdataset:{tmp_path}")


def test_hugging_face_data_sets(tmp_path, no_network):
    datasets = pytest.importorskip("datasets", reason="datasets is an extra")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["wren", "robin"])})
    images = [{"bytes": encoded(value, "JPEG" if value % 3 else "PNG"), "path": None} for value in range(10)]
    images[3] = {"bytes": b"no image", "path": None}
    table = datasets.Dataset.from_dict({"image": images, "label": [n % 2 for n in range(10)]}, features=features)
    datasets.DatasetDict({"train": table, "validation": table.select([0, 1])}).save_to_disk(str(tmp_path / "saved"))
    data = ImageFolder(f"hf:{tmp_path / 'saved'}", cache=str(tmp_path / "cache"), **OPTIONS)
    assert data.labels == ("robin", "wren")
    found = values(data, "train")
    assert found == {v: ("wren", "robin")[v % 2] for v in range(10) if v != 3}
    assert values(data, "val") == {0: "wren", 1: "robin"}
    assert isinstance(data.dataset("train")[1], Skipped)
    for _ in range(2):
        assert [len(batch["image"]) for batch in data.val_dataloader()] == [2]

    many = {"image": images, "labels": [[0, 1][: n % 3] for n in range(10)]}
    features = datasets.Features(
        {"image": datasets.Image(), "labels": datasets.Sequence(datasets.ClassLabel(names=["x", "y"]))}
    )
    datasets.Dataset.from_dict(many, features=features).save_to_disk(str(tmp_path / "several"))
    data = ImageFolder(f"hf:{tmp_path / 'several'}", **OPTIONS)
    assert (data.multilabel, data.labels, data.counts()["train"]["x"] > 0) == (True, ("x", "y"), True)
    unknown = many | {"labels": [[0, 1], [0, -1], *many["labels"][2:]]}
    datasets.Dataset.from_dict(unknown, features=features).save_to_disk(str(tmp_path / "unknown"))
    assert "row 1 of train has no label" in refused(f"hf:{tmp_path / 'unknown'}")
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(str(tmp_path / "texts"))
    assert "no image column" in refused(f"hf:{tmp_path / 'texts'}")


def test_a_hugging_face_split_without_labels_is_left_out(tmp_path, no_network, caplog):
    datasets = pytest.importorskip("datasets", reason="datasets is an extra")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["wren", "robin"])})

    def saved(name, **splits):
        images = [{"bytes": encoded(value), "path": None} for value in range(4)]
        tables = {
            split: datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
            for split, labels in splits.items()
        }
        datasets.DatasetDict(tables).save_to_disk(str(tmp_path / name))
        return f"hf:{tmp_path / name}"

    known = [0, 1, 0, 1]
    data = ImageFolder(saved("hub", train=known, validation=[None] * 4, test=[-1] * 4), val_fraction=0.5, **OPTIONS)
    assert data.labels == ("robin", "wren")
    assert sum(data.counts()["val"].values()) == 2  # held out of train
    assert [record.message.rpartition(": ")[2] for record in caplog.records] == [
        "val has no labels.",
        "test has no labels.",
    ]
    assert "row 1 of test has no label" in refused(saved("one", train=known, test=[0, -1, 1, 0]))
    assert "row 0 of train has no label" in refused(saved("none", train=[-1] * 4, test=known))


def test_hugging_face_without_a_network(tmp_path, no_network, monkeypatch):
    pytest.importorskip("datasets", reason="datasets is an extra")
    began = time.perf_counter()
    assert "Network is unreachable" in refused("hf:nobody/nothing-here")
    assert time.perf_counter() - began < 2
    assert "There is no folder" in refused(f"hf:{tmp_path / 'none'}")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    assert "pip install '.[datasets]'" in refused("hf:any/thing")


def lay_out_dtd(root):
    """Describable Textures as torchvision has it on disk, with one photo a class and split."""
    for label, split, value in (
        ("dotted", "train", 1),
        ("woven", "train", 2),
        ("dotted", "val", 3),
        ("woven", "test", 4),
    ):
        photo = root / "dtd/dtd/images" / label / f"{split}.jpg"
        photo.parent.mkdir(parents=True, exist_ok=True)
        photo.write_bytes(encoded(value))
        listed = root / "dtd/dtd/labels" / f"{split}1.txt"
        listed.parent.mkdir(parents=True, exist_ok=True)
        with listed.open("a") as file:
            file.write(f"{label}/{split}.jpg\n")


def test_torchvision_files(tmp_path, no_network):
    lay_out_dtd(tmp_path)
    data = ImageFolder(f"torchvision:DTD:{tmp_path}", **OPTIONS)
    assert values(data, "train") == {1: "dotted", 2: "woven"}
    assert values(data, "val") == {3: "dotted"}
    assert values(data, "test") == {4: "woven"}
    theirs = torchvision_datasets.DTD(str(tmp_path), split="train")
    assert [theirs.classes[theirs[n][1]] for n in range(2)] == ["dotted", "woven"]


def test_torchvision_arrays(tmp_path, monkeypatch, no_network):
    class Few(torchvision_datasets.FakeData):
        classes = ("ship", "frog", "cat")

        def __init__(self, root, train, download):
            super().__init__(size=12 if train else 4, image_size=(3, 20, 20), num_classes=3)

    monkeypatch.setattr(torchvision_datasets, "FakeData", Few)
    monkeypatch.setitem(torchvision_sets._ARRAYS, "FakeData", torchvision_sets._BY_FLAG)
    data = ImageFolder(f"torchvision:FakeData:{tmp_path}", val_fraction=0.5, **OPTIONS)
    theirs = Few(None, False, False)
    test = data.dataset("test")
    names = data.names("test")
    for index in range(4):
        image, target = theirs[int(names[index].rpartition("/")[2])]
        assert data.labels[test[index]["target"]] == Few.classes[target]
        whole = test.sources[index].photo(None)
        assert np.array_equal(whole.image, np.asarray(image))
    assert sum(data.counts()["train"].values()) + sum(data.counts()["val"].values()) == 12


@pytest.mark.parametrize("name", ["Flowers102", "CIFAR10", "Food101", "MNIST", "EuroSAT", "SVHN"])
def test_torchvision_without_a_network(tmp_path, no_network, name):
    began = time.perf_counter()
    told = refused(f"torchvision:{name}:{tmp_path}")
    assert "Network is unreachable" in told
    assert f"torchvision:{name}:FOLDER" in told
    assert time.perf_counter() - began < 2


def test_names_that_torchvision_does_not_have():
    assert "did you mean 'Flowers102'?" in refused("torchvision:Flowers")


def test_all_that_are_offered_are_there():
    for name in {**torchvision_sets._FILES, **torchvision_sets._ARRAYS}:
        assert isinstance(getattr(torchvision_datasets, name), type)

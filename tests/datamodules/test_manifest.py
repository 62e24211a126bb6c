"""Manifests: what is read, what is refused, and training from one."""

import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.image_folder import ImageFolder
from datamodules.manifest import Row, read_manifest, write_manifest
from vit.foundation import UserError

OPTIONS = {"image_size": (16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3, "num_workers": 0}


def refused(path, read=read_manifest):
    with pytest.raises(UserError) as caught:
        read(path)
    assert len(str(caught.value).splitlines()) <= 5
    return str(caught.value)


def photo(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((20, 20, 3), value, np.uint8)).save(path)


def rows(path):
    return [row for _, row in read_manifest(path).rows]


def test_what_was_written_is_read(tmp_path):
    some = [
        Row('a, "b".jpg', ("öç",), "train", "g", 0.25), Row(os.fsdecode(b"\xff.jpg"), ("x|y",)),
        Row("new\nline.jpg", ("x",), "val"),
    ]  # fmt: skip
    write_manifest(tmp_path / "m.csv", some)
    assert rows(tmp_path / "m.csv") == some
    several = [Row("a.jpg", ("x", "y"), "train"), Row("b.jpg", ())]
    write_manifest(tmp_path / "m.csv", several, multilabel=True)
    assert (tmp_path / "m.csv").read_text().splitlines() == ["path,labels,split", "a.jpg,x|y,train", "b.jpg,,"]
    assert rows(tmp_path / "m.csv") == several


def test_other_columns_and_a_byte_order_mark(tmp_path):
    (tmp_path / "m.csv").write_bytes(b"\xef\xbb\xbflabel,note,path\nrobin,x, 1.jpg \nwren\n")
    assert rows(tmp_path / "m.csv") == [Row("1.jpg", ("robin",)), Row("", ("wren",))]


def test_several_labels_and_weights(tmp_path):
    for number in range(6):
        photo(tmp_path / f"{number}.png", number)
    file = tmp_path / "m.csv"
    file.write_text(
        "path,labels,split,weight\n0.png,wing|beak,,2\n1.png,beak ; tail;beak,,\n2.png,,,0.5\n3.png,wing,val,1\n"
    )
    data = ImageFolder(str(file), **OPTIONS)
    assert (data.multilabel, data.labels) == (True, ("beak", "tail", "wing"))
    assert data.names("train") == ["2.png", "1.png", "0.png"]
    (batch,) = data.dataloader("train")
    assert batch["target"].tolist() == [[0, 0, 0], [1, 1, 0], [1, 0, 1]]
    assert batch["weight"].tolist() == [0.5, 1, 2]
    assert batch["target"].dtype == batch["weight"].dtype == torch.float32
    assert data.counts() == {"train": {"beak": 2, "tail": 1, "wing": 1}, "val": {"beak": 0, "tail": 0, "wing": 1}}
    (tmp_path / "3.png").write_bytes(b"")
    (nothing,) = data.dataloader("val")
    assert (nothing["target"].shape, nothing["weight"].shape) == ((0, 3), (0,))
    known = ImageFolder(str(file), labels=("wing", "beak", "x", "tail"), **OPTIONS)
    assert known.dataset("train")[2]["target"].tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("1.png,a,,nan", "line 2: a weight that is not a number above 0"),
        ("1.png,a,,0", "line 2: a weight that is not a number above 0"),
        ("1.png,a,,much", "line 2: a weight that is not a number above 0"),
        ("1.png,a,,\n1.png,b,,", "line 3: 1.png is also on line 2"),
    ],
)
def test_rows_that_make_no_sense(tmp_path, line, told):
    file = tmp_path / "m.csv"
    file.write_text(f"path,labels,split,weight\n{line}\n")
    assert told in refused(str(file), lambda path: ImageFolder(path, **OPTIONS))
    file.write_text("path,label,labels\n1.png,a,b\n")
    assert "both a column label and a column labels" in refused(file)


def test_a_group_never_straddles_splits(tmp_path):
    lines = [f"{number}.png,{'ab'[number % 2]},,animal {number // 5}" for number in range(100)]
    file = tmp_path / "m.csv"
    file.write_text("\n".join(["path,label,split,group", *lines]))
    data = ImageFolder(str(file), **OPTIONS)
    animals = {split: {record.group for record in records} for split, records in data.records.items()}
    assert not animals["train"] & animals["val"]
    assert [sum(count.values()) for count in data.counts().values()] == [80, 20]
    assert all(min(count.values()) > 0 for count in data.counts().values())
    file.write_text("\n".join(["path,label,split,group", *lines, "x.png,a,test,animal 3", "y.png,b,val,animal 4"]))
    said = refused(str(file), lambda path: ImageFolder(path, **OPTIONS))
    assert "2 groups" in said
    assert "'animal 3' in train and test" in said


def test_no_class_is_held_out_whole(tmp_path):
    # The rarer label decides where a group goes; the others of its images must not vanish from train with it.
    groups = {"g1": "aab", "g2": "b", "g3": "cb", "g4": "c"}
    lines = [f"{group}{n}.png,{label},{group}" for group, labels in groups.items() for n, label in enumerate(labels)]
    file = tmp_path / "m.csv"
    file.write_text("\n".join(["path,label,group", *lines]))
    for seed in range(20):
        data = ImageFolder(str(file), val_fraction=0.6, seed=seed, **OPTIONS)
        assert min(data.counts()["train"].values()) > 0


def test_parquet_says_the_same(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is an extra")
    from pyarrow import parquet

    columns = {"path": ["1.png", "2.png"], "labels": [["a", "b"], None], "split": ["val", None], "weight": [2.0, None]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "m.parquet")
    manifest = read_manifest(tmp_path / "m.parquet")
    assert [row for _, row in manifest.rows] == [Row("1.png", ("a", "b"), "val", "", 2), Row("2.png", ())]
    assert (manifest.multilabel, manifest.weighted) == (True, True)
    parquet.write_table(pyarrow.table({"path": ["1.png"], "label": [7], "group": [3]}), tmp_path / "m.parquet")
    assert rows(tmp_path / "m.parquet") == [Row("1.png", ("7",), "", "3")]
    whole = (tmp_path / "m.parquet").read_bytes()
    (tmp_path / "m.parquet").write_bytes(whole[: len(whole) // 2])
    assert "is not a readable Parquet file" in refused(tmp_path / "m.parquet")


def test_parquet_without_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install '.[parquet]'" in refused(tmp_path / "m.parquet")


def test_what_is_no_manifest(tmp_path):
    file = tmp_path / "m.csv"
    assert "No such file" in refused(file)
    file.write_text("path,lable\na.jpg,b\n")
    assert "did you mean 'lable'?" in refused(file)
    file.write_text("")
    assert "no column 'path'" in refused(file)
    file.write_text("path,label\n")
    assert "lists no images" in refused(file)
    file.write_bytes(b"path,label\na\0b,c\n" + b"x" * 200_000)
    refused(file)


def test_training_from_a_manifest(tmp_path):
    for number in range(8):
        photo(tmp_path / "photos" / f"{number}.png", number)
    lines = [f"photos/{number}.png,{'even' if number % 2 == 0 else 'odd'}" for number in range(8)]
    file = tmp_path / "lists" / "m.csv"
    file.parent.mkdir()
    file.write_text("path,label\n" + "\n".join(f"../{line}" for line in lines))
    data = ImageFolder(str(file), **OPTIONS)
    assert data.labels == ("even", "odd")
    assert data.counts() == {"train": {"even": 3, "odd": 3}, "val": {"even": 1, "odd": 1}}
    assert all(name.startswith("../photos/") for name in data.names("train"))
    assert len(data.dataset("train")[0]["image"]) == 3
    lines[3] = "photos/3.png,third"
    file.write_text("path,label,split\n" + "\n".join(f"../{line},{'val' if 'even' in line else ''}" for line in lines))
    assert "val/ has classes that train/ lacks: even" in refused(str(file), lambda path: ImageFolder(path, **OPTIONS))
    file.write_text("path,label,split\n../photos/1.png,odd,tarin\n")
    assert "line 2: split 'tarin' is not one of" in refused(str(file), lambda path: ImageFolder(path, **OPTIONS))


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["1.png,a,train", "2.png,b,", "1.png,a,val"], ["line 4: 1.png is also on line 2, in train", "one split"]),
        (["1.png,a,", "./1.png,b,"], ["line 3: ./1.png is also on line 2, with the label a", "column labels"]),
        (["1.png,a,val", "", "1.png,b,train"], ["line 4: 1.png is also on line 2", "in val", "one split"]),
    ],
)
def test_an_image_has_one_split_and_one_label(tmp_path, lines, told):
    file = tmp_path / "m.csv"
    file.write_text("\n".join(["path,label,split", *lines, "3.png,a,", "4.png,b,"]))
    said = refused(str(file), lambda path: ImageFolder(path, **OPTIONS))
    assert all(part in said for part in told), said


def test_the_same_line_twice_is_one_image(tmp_path):
    file = tmp_path / "m.csv"
    file.write_text("path,label,split\n1.png,a,\n1.png,a,train\n2.png,a,\n3.png,b,\n4.png,b,\n")
    data = ImageFolder(str(file), **OPTIONS)
    assert sorted(data.names("train") + data.names("val")) == ["1.png", "2.png", "3.png", "4.png"]


def test_names_of_columns_in_any_case(tmp_path):
    file = tmp_path / "m.csv"
    file.write_text(" Path , LABEL,Split,Note\n1.png,a,val,x\n")
    assert rows(file) == [Row("1.png", ("a",), "val")]
    file.write_text("path,label,Label\n1.png,a,b\n")
    assert "has two columns 'label'" in refused(file)


def test_names_of_columns_in_any_case_in_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is an extra")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({" Path": ["1.png"], "LABEL": ["a"], "x": [1]}), tmp_path / "m.parquet")
    assert rows(tmp_path / "m.parquet") == [Row("1.png", ("a",))]

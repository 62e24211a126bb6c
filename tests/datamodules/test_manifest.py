"""Manifests: what is read, what is refused, and training from one."""

import os

import numpy as np
import pytest
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


def test_what_was_written_is_read(tmp_path):
    rows = [Row('a, "b".jpg', "öç", "train"), Row(os.fsdecode(b"\xff.jpg"), "x", ""), Row("new\nline.jpg", "x", "val")]
    write_manifest(tmp_path / "m.csv", rows)
    assert read_manifest(tmp_path / "m.csv") == rows


def test_other_columns_and_a_byte_order_mark(tmp_path):
    (tmp_path / "m.csv").write_bytes(b"\xef\xbb\xbflabel,note,path\nrobin,x, 1.jpg \nwren\n")
    assert read_manifest(tmp_path / "m.csv") == [Row("1.jpg", "robin", ""), Row("", "wren", "")]


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
    assert "line 2: split 'tarin' is none of" in refused(str(file), lambda path: ImageFolder(path, **OPTIONS))

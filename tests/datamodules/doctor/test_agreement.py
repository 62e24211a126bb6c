"""What training refuses, `vit check` has an error for: bad manifests, one by one, given to both."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.doctor.diagnosis import Diagnosis, diagnose
from datamodules.doctor.listing import list_data, write_fix_list
from datamodules.doctor.scan import Scan, scan
from datamodules.image_folder import ImageFolder
from vit.foundation import UserError

IMAGES = 16
GOOD = [f"{number}.png,{'ab'[number % 2]}" for number in range(IMAGES)]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for number in range(IMAGES):
        Image.fromarray(random.integers(0, 255, (40, 40, 3), np.uint8)).save(tmp_path / f"{number}.png")
    return tmp_path


def manifest(folder: Path, header: str, lines: list[str]) -> Path:
    file = folder / "m.csv"
    file.write_text("\n".join([header, *lines, ""]))
    return file


def checked(file: Path) -> Diagnosis:
    listing = list_data(file, val_fraction=0.2, seed=0)
    found = Scan.empty(len(listing))
    for _ in scan(listing.paths, found, 0):
        pass
    return diagnose(listing, found)


def trained_on(file: Path) -> ImageFolder:
    """The data as training collects it, which refuses it without images for validation."""
    data = ImageFolder(str(file), image_size=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3, num_workers=0)
    if not data.length("val"):
        raise UserError("none is left for validation")
    return data


def spread(lines: list[str], val: range) -> list[str]:
    return [f"{line},{'val' if number in val else 'train'}" for number, line in enumerate(lines)]


BAD = {
    "a path twice, with several labels": ("path,labels", [*GOOD, "0.png,a"]),
    "a path with other labels, with several labels": ("path,labels", [*GOOD, "0.png,b"]),
    "a path in two splits, with several labels": ("path,labels,split", [*spread(GOOD, range(4)), "0.png,a,train"]),
    "a path in two splits": ("path,label,split", [*spread(GOOD, range(4)), "0.png,a,train"]),
    "a path under two labels": ("path,label", [*GOOD, "0.png,b"]),
    "one group": ("path,label,group", [f"{line},all" for line in GOOD]),
    "a group in two splits": ("path,label,split,group", [f"{line},g" for line in spread(GOOD, range(4))]),
    "one image per class": ("path,label", GOOD[:2]),
    "one class": ("path,label", GOOD[::2]),
    "one label, of several": ("path,labels", [GOOD[0], *(f"{number}.png," for number in range(1, IMAGES))]),
    "no train": ("path,label,split", [f"{line},val" for line in GOOD]),
    "no label at all": ("path,labels", [f"{number}.png," for number in range(IMAGES)]),
    "a class in val only": ("path,label,split", [*spread(GOOD, range(4))[:-1], "15.png,c,val"]),
    "no label": ("path,label", [*GOOD[1:], "0.png,"]),
    "no path": ("path,label", [*GOOD, ",a"]),
    "a split of another name": ("path,label,split", [*spread(GOOD, range(4)), "0.png,a,tarin"]),
    "a weight of zero": ("path,label,weight", [*(f"{line},1" for line in GOOD[1:]), "0.png,a,0"]),
    "no images": ("path,label", []),
    "no such column": ("path,lable", GOOD),
    "both columns": ("path,label,labels", [f"{line},a" for line in GOOD]),
    "HEIC": ("path,label", [*GOOD, "16.heic,a"]),
}


@pytest.mark.parametrize("case", BAD)
def test_what_training_refuses_is_an_error(photos: Path, case: str) -> None:
    (photos / "16.heic").write_bytes(b"\0\0\0\x18ftypheic")
    file = manifest(photos, *BAD[case])
    with pytest.raises(UserError):
        trained_on(file)
    try:
        found = checked(file)
    except UserError:
        return
    assert found.errors, found.table()


@pytest.mark.parametrize(
    ("header", "lines"),
    [
        ("path,label", GOOD),
        ("path,label", [*GOOD, GOOD[0]]),
        (" Path,LABEL ,Split", spread(GOOD, range(4))),
        ("path,labels", [*GOOD[1:], "0.png,"]),
        ("path,label,group", [f"{line},{number // 2}" for number, line in enumerate(GOOD)]),
    ],
)
def test_what_training_takes_is_no_error(photos: Path, header: str, lines: list[str]) -> None:
    file = manifest(photos, header, lines)
    assert trained_on(file).length("train")
    assert not checked(file).errors


def test_images_of_val_that_are_listed_in_train_too(photos: Path) -> None:
    lines = [f"{line},train" for line in GOOD]
    file = manifest(photos, "path,label,split", [*lines, *(f"{line},val" for line in GOOD[:6])])
    found = checked(file)
    assert not found.listing.held_out
    assert found.split_counts == {"train": IMAGES, "val": 6}
    assert found.by_kind["leak"] == 6
    good = photos / "good.csv"
    write_fix_list(good, found.listing, found.keep)
    data = trained_on(good)
    assert (data.length("train"), data.length("val")) == (IMAGES - 6, 6)
    assert sorted(data.names("val")) == sorted(line.partition(",")[0] for line in GOOD[:6])

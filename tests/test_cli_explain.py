"""The maps of `vit explain`, as it is typed: where they are high, for which class, on which pixels of the photo."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from tests.verbs import BRIGHT, DARK, Vit, peak, photo, rows, sees_bright
from vit.checkpoints.folder import write_folder


@pytest.mark.parametrize(
    "method", ["default", "rollout", "last_attention --refine", "attribution --target bright", "legrad --target 0"]
)
def test_every_method_finds_what_the_model_looks_at(vit: Vit, model: Path, tmp_path: Path, method: str) -> None:
    photo(tmp_path / "photos" / "x.png", (32, 32), (16, 24, 24, 32))
    ran = vit(f"explain {model} {tmp_path}/photos --method {method} --num_workers 0 --out {tmp_path}/maps")
    assert ran.code == 0, ran.err
    assert peak(tmp_path / "maps" / "x.npy") == (2, 3)
    (row,) = rows(tmp_path / "maps" / "index.csv")
    assert row["method"] == method.split()[0]
    assert row["target"] == ("bright" if "--target" in method else "")


def test_the_methods_of_the_command_line_are_all_there_are() -> None:
    from vit.options import Method
    from vit.saliency.methods import METHODS

    assert get_args(Method) == tuple(METHODS)


def test_targets_and_forms_of_maps(vit: Vit, model: Path, tmp_path: Path) -> None:
    for label in ("bright", "other"):
        photo(tmp_path / "photos" / label / "x.png", (32, 32), (16, 24, 24, 32))
    (tmp_path / "list.csv").write_text("image,class\nbright/x.png,dark\nother/x.png,0\n")
    line = f"explain {model} {tmp_path}/photos --method attribution --num_workers 0"
    ran = vit(f"{line} --target topk:2 --format npz --out {tmp_path}/both")
    assert ran.code == 0, ran.err
    assert "4 maps in" in ran.err
    found = [(row["map"], row["truth"], row["target"]) for row in rows(tmp_path / "both" / "index.csv")]
    assert found == [
        ("bright/x.top1.npz", "bright", "bright"), ("bright/x.top2.npz", "bright", "dark"),
        ("other/x.top1.npz", "", "bright"), ("other/x.top2.npz", "", "dark"),
    ]  # fmt: skip
    assert all((tmp_path / "both" / path).is_file() for path, *_ in found)

    options = "--format tiff --full --layout over --colormap cividis --opacity 1"
    ran = vit(f"{line} {options} --target {tmp_path}/list.csv:class --out {tmp_path}/list")
    assert ran.code == 0, ran.err
    assert [row["target"] for row in rows(tmp_path / "list" / "index.csv")] == ["dark", "bright"]
    with Image.open(tmp_path / "list" / "other" / "x.full.tiff") as picture:
        assert (picture.size, picture.mode) == ((32, 32), "F")
    with Image.open(tmp_path / "list" / "other" / "x.png") as wide:
        assert wide.width < 400  # no photo beside it

    (tmp_path / "list.csv").write_text("image,class\nbright/x.png,dark\n")
    ran = vit(f"{line} --target {tmp_path}/list.csv:class --out {tmp_path}/none")
    assert "no class for 'other/x.png'" in ran.err
    assert not (tmp_path / "none").exists()


def test_settings_of_rollout_and_the_image_size_are_heard(vit: Vit, model: Path, tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "x.png", (32, 32), (16, 24, 24, 32))
    line = f"explain {model} {tmp_path}/photos --method rollout --num_workers 0 --out {tmp_path}"
    assert vit(f"{line}/plain").code == 0
    assert vit(f"{line}/more --rollout.residual 0.9").code == 0
    assert np.load(tmp_path / "more" / "x.npy")[2, 3] > 1.5 * np.load(tmp_path / "plain" / "x.npy")[2, 3]
    assert vit(f"{line}/wide --image_size [16,64]").code == 0
    assert np.load(tmp_path / "wide" / "x.npy").shape == (2, 8)


# Orientation in EXIF -> how the upright photo is stored.
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    3: lambda upright: np.rot90(upright, 2),
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("orientation", STORED)
def test_the_map_of_a_rotated_photo_lies_on_its_upright_pixels(
    vit: Vit, model: Path, tmp_path: Path, orientation: int, suffix: str
) -> None:
    upright = np.full((40, 72, 3), DARK, np.uint8)
    upright[0:10, 54:72] = BRIGHT  # the top right one of 4 x 4 patches
    path = tmp_path / "photos" / f"x{suffix}"
    path.parent.mkdir()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(np.ascontiguousarray(STORED[orientation](upright))).save(path, exif=exif, quality=95)
    with Image.open(path) as stored:
        assert np.abs(np.asarray(ImageOps.exif_transpose(stored)).astype(int) - upright).max() < 30
    ran = vit(f"explain {model} {tmp_path}/photos --full --num_workers 0 --out {tmp_path}/maps")
    assert ran.code == 0, ran.err
    full = np.load(tmp_path / "maps" / "x.full.npy")
    assert full.shape == (40, 72)
    assert peak(tmp_path / "maps" / "x.npy") == (0, 3)
    assert full[0:10, 54:72].min() > full[12:, :50].max()
    (row,) = rows(tmp_path / "maps" / "index.csv")
    assert (row["img_h"], row["img_w"]) == ("40", "72")


@pytest.mark.parametrize(
    ("trained_on", "rectangle"), [(("squash", 1.0), (0, 32, 32, 64)), (("crop", 0.5), (8, 24, 40, 56))]
)
def test_a_map_covers_the_whole_photo_unless_it_is_to_be_cropped(
    vit: Vit, tmp_path: Path, trained_on: tuple[str, float], rectangle: tuple[int, int, int, int]
) -> None:
    """Cropped as the checkpoint was trained where it says so, and to a square as high as the photo otherwise."""
    model = sees_bright()
    model.preprocessing = replace(model.preprocessing, resize_mode=trained_on[0], crop_pct=trained_on[1])
    write_folder(model, tmp_path / "model")
    photo(tmp_path / "photos" / "x.png", (32, 96), (8, 16, 48, 96))
    line = f"explain {tmp_path}/model {tmp_path}/photos --full --num_workers 0 --out {tmp_path}"
    assert vit(f"{line}/cropped --crop").code == 0
    full = np.load(tmp_path / "cropped" / "x.full.npy")
    top, bottom, left, right = rectangle
    covered = np.zeros((32, 96), bool)
    covered[top:bottom, left:right] = True
    np.testing.assert_array_equal(~np.isnan(full), covered)
    row, column = peak(tmp_path / "cropped" / "x.full.npy")
    assert 8 <= row < 16
    assert 48 <= column < right

    assert vit(f"{line}/whole").code == 0
    whole = np.load(tmp_path / "whole" / "x.full.npy")
    assert not np.isnan(whole).any()
    assert whole[12, 84] > 2 * whole[12, 20]  # beside the crop

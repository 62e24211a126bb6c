"""Raw maps as files, read back by libraries that know nothing of us."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vit.saliency.map_files import finite_range, map_path, save_map

NAN, INF = float("nan"), float("inf")
VALUES = np.array([[0.25, -1.5, 3.0], [NAN, 1e-3, 2.5]], np.float64)


def test_float_forms_are_read_back_to_the_bit(tmp_path: Path) -> None:
    save_map(tmp_path / "deep" / "x.npy", VALUES)
    save_map(tmp_path / "x.npz", VALUES, "npz")
    save_map(tmp_path / "x.tiff", VALUES, "tiff")
    with np.load(tmp_path / "x.npz", allow_pickle=False) as stored:
        npz = stored["map"]
    with Image.open(tmp_path / "x.tiff") as picture:
        tiff = np.asarray(picture)
    for back in (np.load(tmp_path / "deep" / "x.npy", allow_pickle=False), npz, tiff):
        assert back.dtype == np.float32
        np.testing.assert_array_equal(back, VALUES.astype(np.float32))


def test_png16_holds_levels_from_the_least_to_the_largest_value(tmp_path: Path) -> None:
    save_map(tmp_path / "x.png", VALUES, "png16")
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.mode == "I;16"
        levels = np.asarray(picture)
    # By hand: 1 + 65534 · 1.75 / 4.5 = 25487.4; 1 + 65534 · 1.501 / 4.5 = 21860.2; 1 + 65534 · 4 / 4.5 = 58253.4
    assert levels.tolist() == [[25486, 1, 65535], [0, 21860, 58253]]
    low, high = -1.5, 3.0
    finite = ~np.isnan(VALUES)
    back = low + (levels[finite].astype(float) - 1) * (high - low) / 65534
    np.testing.assert_allclose(back, VALUES[finite], atol=(high - low) / 65534 / 1.9)

    save_map(tmp_path / "y.png", np.array([[0.0, 1.0, 9.0, INF]]), "png16", limits=(1, 2))
    save_map(tmp_path / "z.png", np.full((2, 2), 7.0), "png16")
    save_map(tmp_path / "nan.png", np.full((2, 2), NAN), "png16")
    assert np.asarray(Image.open(tmp_path / "y.png")).tolist() == [[1, 1, 65535, 0]]
    assert np.asarray(Image.open(tmp_path / "z.png")).tolist() == [[1, 1], [1, 1]]
    assert not np.asarray(Image.open(tmp_path / "nan.png")).any()


def test_names_and_other_forms(tmp_path: Path) -> None:
    assert map_path("a/x.y", "npy") == Path("a/x.y.npy")
    assert map_path("x", "png16", full=True) == Path("x.full.map.png")
    with pytest.raises(ValueError, match="npy, npz, tiff, png16"):
        save_map(tmp_path / "x", VALUES, "jpg")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_finite_range() -> None:
    assert finite_range(np.array([[NAN, 2.0], [-INF, 1.0]])) == (1, 2)
    assert finite_range(np.array([[NAN, INF]])) is None

"""What a picture shows is read back from its pixels."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from vit.saliency import render
from vit.saliency.render import contact_sheet, map_flag, overlay, save_overlay, upsample

NAN = float("nan")


def photo(height: int, width: int) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (height // 7 + 1, width // 7 + 1, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height))


def grid(height: int = 3, width: int = 5) -> np.ndarray:
    return np.arange(height * width, dtype=np.float32).reshape(height, width)


@pytest.mark.parametrize(("source", "size"), [((3, 5), (41, 67)), ((14, 14), (224, 224)), ((31, 37), (13, 11))])
def test_upsample_equals_torch(source: tuple[int, int], size: tuple[int, int]) -> None:
    values = np.random.default_rng(0).normal(size=source).astype(np.float32)
    theirs = torch.nn.functional.interpolate(torch.from_numpy(values)[None, None], size, mode="bilinear")
    np.testing.assert_allclose(upsample(values, size), theirs[0, 0].numpy(), atol=1e-5)


def test_upsample_keeps_nan_where_the_patch_is_nan() -> None:
    # Two patches of two pixels, the right one outside the crop. By plain bilinear weights the second pixel
    # would be NaN too.
    result = upsample(np.array([[4.0, NAN]]), (2, 4))
    np.testing.assert_array_equal(np.isnan(result), [[False, False, True, True]] * 2)
    np.testing.assert_allclose(result[:, :2], 4)
    assert np.isnan(upsample(np.full((2, 2), NAN), (5, 7))).all()


def test_upsample_refuses_other_shapes() -> None:
    for wrong, size in ((np.zeros((1, 2, 3)), (4, 4)), (np.zeros((0, 3)), (4, 4)), (grid(), (0, 4))):
        with pytest.raises(ValueError, match="takes a map"):
            upsample(wrong, size)


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ([[NAN, NAN]], "NaN"),
        ([[0.0, 0.0]], "all zero"),
        ([[0.25, 0.25]], "constant"),
        ([[0.25, NAN]], "constant"),
        ([[0.1, 0.1 + 2e-8]], "constant"),
        ([[1.0, np.inf]], "infinite"),
        ([[1.0, -np.inf, NAN]], "infinite"),
        ([[1.0, 2.0, NAN]], "partly NaN"),
        ([[0.0, 1e-30]], ""),
        ([[0.1, 0.101]], ""),
    ],
)
def test_map_flag(values: list[list[float]], flag: str) -> None:
    assert map_flag(np.array(values, dtype=np.float32)) == flag


def test_overlay_shows_photo_left_and_map_right() -> None:
    picture = photo(300, 240)
    values = np.zeros((3, 4), dtype=np.float32)
    values[0, 0] = 1
    drawn = overlay(picture, values, opacity=1.0, colormap="viridis")
    np.testing.assert_array_equal(drawn[:300, :240], picture)
    panel = drawn[:300, drawn.shape[1] - 240 :]
    # The two ends of viridis, #fde725 at the peak and #440154 far from it.
    np.testing.assert_allclose(panel[0, 0], [0xFD, 0xE7, 0x25], atol=1)
    np.testing.assert_allclose(panel[-1, -1], [0x44, 0x01, 0x54], atol=1)


def test_overlay_without_the_photo_beside_it() -> None:
    both, over = (overlay(photo(224, 230), grid(), label="a", layout=name) for name in ("side_by_side", "over"))
    top = both.shape[0] - over.shape[0]
    assert top == 0
    gap = both.shape[1] - 2 * 230
    np.testing.assert_array_equal(over[40:250, :230], both[40:250, 230 + gap :][:, :230])
    assert over.shape[1] < both.shape[1]
    with pytest.raises(ValueError, match="side_by_side, over"):
        overlay(photo(224, 230), grid(), layout="beside")  # type: ignore[arg-type]


def test_overlay_blends_over_the_grey_photo() -> None:
    picture = np.full((230, 230, 3), (200, 100, 50), np.uint8)
    values = np.array([[0.0, 1.0]])
    # Luma 0.299 * 200 + 0.587 * 100 + 0.114 * 50 = 124.2; the right end of inferno is #fcffa4.
    expected = 0.25 * 124.2 + 0.75 * np.array([0xFC, 0xFF, 0xA4])
    drawn = overlay(picture, values, opacity=0.75)
    np.testing.assert_allclose(drawn[100, -1], expected, atol=1.5)


def test_overlay_stretches_a_small_range_on_a_large_offset() -> None:
    picture = photo(224, 224)
    plain = overlay(picture, grid(), opacity=1.0)
    moved = overlay(picture, grid().astype(np.float64) * 1e-3 + 1e3, opacity=1.0)
    # The numbers at the colour bar differ, the colours don't.
    np.testing.assert_array_equal(plain[:224], moved[:224])


@pytest.mark.parametrize("bad", [NAN, 0.0, 3.0, np.inf])
def test_what_is_no_map_is_never_drawn_as_one(bad: float) -> None:
    drawn = overlay(photo(224, 224), np.full((5, 5), bad))
    panel = drawn[:224, -224:].astype(int)
    assert np.ptp(panel, axis=2).max() == 0, "the panel has colours"
    assert (panel == render.GREY).all(axis=2).mean() > 0.9
    assert (panel < 100).any(), "the panel says nothing"
    assert (drawn[224:] == 255).all(), "there is a colour bar"


def test_uncovered_part_has_no_colour() -> None:
    values = grid(4, 4)
    values[:, 2:] = NAN
    panel = overlay(photo(224, 224), values)[:224, -224:].astype(int)
    assert np.ptp(panel[:, 112:], axis=2).max() == 0
    assert (np.ptp(panel[:, :112], axis=2) > 0).mean() > 0.9


@pytest.mark.parametrize(
    ("size", "shown"),
    [((64, 48), (224, 168)), ((300, 400), (300, 400)), ((3000, 4000), (576, 768)), ((1, 2000), (1, 768))],
)
def test_drawn_size(size: tuple[int, int], shown: tuple[int, int]) -> None:
    drawn = overlay(np.full((*size, 3), 90, np.uint8), grid())
    np.testing.assert_array_equal(drawn[: shown[0], : shown[1]], 90)
    below = drawn[shown[0] :, : shown[1]]
    assert 28 <= len(below) <= 48
    assert drawn.shape[1] >= max(2 * shown[1], render.MIN_WIDTH)


def heading(label: str | None, probability: float | None = None) -> np.ndarray:
    plain = overlay(photo(224, 224), grid())
    drawn = overlay(photo(224, 224), grid(), label=label, probability=probability)
    return drawn[: len(drawn) - len(plain)]


def test_every_script_has_its_own_letters() -> None:
    drawn = [heading(text).tobytes() for text in ("????", "Łódź", "сова", "γλαύ", "鹪鹩鸟类", "みそさざ", "굴뚝새속")]
    assert len(set(drawn)) == len(drawn)
    # Composed and decomposed letters look the same.
    assert heading("é").tobytes() == heading("e\u0301").tobytes()


@pytest.mark.parametrize("label", ["two\nlines\there", "\u202eright to left", "bytes \udce9\udcff", "\0", "🐦"])
def test_hostile_labels_are_drawn(label: str) -> None:
    assert (heading(label) < 100).any()


def test_long_label_leaves_room_for_the_probability() -> None:
    short, long = heading("a", 0.8731), heading("a long label " * 30, 0.8731)
    assert short.shape == long.shape
    ink = np.flatnonzero((short < 128).any(axis=(0, 2)))
    number = short[:, ink[0] + 20 : ink[-1] + 1]
    width = number.shape[1]
    found = [x for x in range(long.shape[1] - width) if (long[:, x : x + width] == number).all()]
    assert len(found) == 1, "the probability is not whole at the end of the line"
    assert (long[:, found[0] + width :] == 255).all()


def test_no_text_no_heading() -> None:
    assert heading(None).size == 0
    assert heading("", None).size == 0
    assert heading(None, 0.0).size > 0


def test_colour_bar_is_labelled_with_the_range_of_the_grid() -> None:
    picture = photo(224, 224)
    bars = [overlay(picture, values)[224:].tobytes() for values in (grid(), grid() * 2, grid() + 1)]
    assert len(set(bars)) == 3
    whole = upsample(grid(), (224, 224))
    assert (overlay(picture, grid())[224:, 231:] == overlay(picture, whole)[224:, 231:]).all()


def test_overlay_refuses_what_it_cannot_draw() -> None:
    for wrong in (
        np.zeros((9, 9)),
        np.zeros((9, 9, 3)),
        np.zeros((9, 9, 4), np.uint8),
        np.zeros((0, 9, 3), np.uint8),
    ):
        with pytest.raises(ValueError, match="uint8 RGB"):
            overlay(wrong, grid())
    with pytest.raises(ValueError, match="saliency map is"):
        overlay(photo(9, 9), np.zeros((1, 9, 9)))
    with pytest.raises(ValueError, match="inferno, magma"):
        overlay(photo(9, 9), grid(), colormap="jet")  # type: ignore[arg-type]


def test_inputs_are_left_alone() -> None:
    picture, values = photo(224, 224), grid()
    values[0, 0] = NAN
    before = picture.copy(), values.copy()
    picture.setflags(write=False)
    values.setflags(write=False)
    overlay(picture, values, label="a")
    np.testing.assert_array_equal(picture, before[0])
    np.testing.assert_array_equal(values, before[1])


def test_contact_sheet_pages() -> None:
    taken = 0

    def overlays():
        nonlocal taken
        for index in range(8):
            taken += 1
            yield np.full((20, 40 + 60 * index, 3), 10 * index, np.uint8), f"photo {index}"

    pages = contact_sheet(overlays(), columns=2, tile=(50, 100), per_page=3)
    first = next(pages)
    assert taken == 4, "more than one page was read ahead"
    sheets = [first, *pages]
    # Three a page on two rows, and the last two on one row; a row is 50 + 30 for the caption + 8 between.
    assert [sheet.shape for sheet in sheets] == [(184, 224, 3), (184, 224, 3), (96, 224, 3)]
    # The second picture is 100 x 20: shown as it is, at the bottom of its tile.
    np.testing.assert_array_equal(first[38:58, 116:216], 10)
    assert (first[58:88, 116:216] < 100).any(), "no caption"
    # The eighth is 460 x 20: shrunk to 100 x 4.
    np.testing.assert_array_equal(sheets[2][54:58, 116:216], 70)
    assert (sheets[2][8:54, 116:216] == 255).all()


def test_contact_sheet_of_nothing() -> None:
    assert list(contact_sheet([])) == []
    with pytest.raises(ValueError, match="at least 1"):
        next(contact_sheet([], columns=0))


def test_png_is_read_back_as_drawn(tmp_path: Path) -> None:
    drawn = overlay(photo(224, 230), grid(), label="a")
    # A name that is no UTF-8, which OpenCV's own writer can't take.
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    save_overlay(path, drawn)
    back = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(back[:, :, ::-1], drawn)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_jpeg_is_smaller(tmp_path: Path) -> None:
    drawn = overlay(photo(224, 230), grid())
    for name in ("x.png", "x.JPG"):
        save_overlay(tmp_path / name, drawn)
    assert (tmp_path / "x.JPG").stat().st_size < (tmp_path / "x.png").stat().st_size / 2
    with pytest.raises(ValueError, match=r"\.png or \.jpg"):
        save_overlay(tmp_path / "x.gif", drawn)

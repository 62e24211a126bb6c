"""Real files of every kind, good and broken, through the one reader."""

import io
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.reading import UnreadableImage, printable, read_image, read_photo

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (37, 53, 3), dtype=np.uint8)


def encoded(form, **options):
    out = io.BytesIO()
    Image.fromarray(NOISE).save(out, form, **options)
    return out.getvalue()


def reason_of(path, **options):
    with pytest.raises(UnreadableImage) as caught:
        read_image(path, **options)
    assert caught.value.path == printable(path)
    assert "\n" not in caught.value.reason
    assert caught.value.reason
    return caught.value.reason


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_give_the_pixels(tmp_path, form):
    options = {"lossless": True} if form == "WEBP" else {}
    (tmp_path / "x.jpg").write_bytes(encoded(form, **options))  # the suffix does not matter
    image = read_image(tmp_path / "x.jpg")
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert image.flags.writeable
    np.testing.assert_array_equal(image, NOISE)


# What the camera stored for a scene whose upright pixels are
#     red    green  blue
#     black  white  grey
UPRIGHT = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[0, 0, 0], [255, 255, 255], [128, 128, 128]]], np.uint8)
STORED = {  # EXIF 2.32, tag 274: which edge of the scene row 0 and column 0 are
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),  # row 0 is the left edge, column 0 the top
    6: np.stack([UPRIGHT[:, 2], UPRIGHT[:, 1], UPRIGHT[:, 0]]),  # the right edge, the top
    7: UPRIGHT.transpose(1, 0, 2)[::-1, ::-1],  # the right edge, the bottom
    8: np.stack([UPRIGHT[::-1, 0], UPRIGHT[::-1, 1], UPRIGHT[::-1, 2]]),  # the left edge, the bottom
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_golden_pixels(tmp_path, orientation, form):
    exif = Image.Exif()
    exif[274] = orientation
    options = {"lossless": True} if form == "WEBP" else {}
    path = tmp_path / "x"
    Image.fromarray(np.ascontiguousarray(STORED[orientation])).save(path, form, exif=exif, **options)
    photo = read_photo(path)
    np.testing.assert_array_equal(photo.image, UPRIGHT)
    assert photo.size == (2, 3)


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_of_jpeg_also_when_decoded_smaller(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    large = np.ascontiguousarray(STORED[orientation]).repeat(80, 0).repeat(80, 1)
    Image.fromarray(large).save(tmp_path / "x.jpg", quality=95, exif=exif)
    for min_size, expected in ((None, (160, 240)), ((40, 60), (40, 60)), ((41, 1), (80, 120))):
        photo = read_photo(tmp_path / "x.jpg", min_size=min_size)
        assert photo.image.shape == (*expected, 3)
        assert photo.size == (160, 240)
        step = expected[0] // 4
        centres = photo.image[step :: 2 * step, step :: 2 * step]
        assert np.abs(centres.astype(int) - UPRIGHT).max() < 12


def test_damaged_exif_keeps_the_pixels(tmp_path):
    raw = encoded("JPEG", exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff")
    (tmp_path / "x.jpg").write_bytes(raw)
    assert read_image(tmp_path / "x.jpg").shape == NOISE.shape


def test_cmyk(tmp_path):
    ink = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 255, 0], [0, 0, 0, 255]]], np.uint8)
    Image.fromarray(ink.repeat(16, 0).repeat(16, 1), "CMYK").save(tmp_path / "x.jpg", quality=98)
    image = read_image(tmp_path / "x.jpg")[8, 8::16].astype(int)
    expected = [[255, 255, 255], [0, 255, 255], [255, 0, 0], [0, 0, 0]]  # paper, cyan, red, black
    assert np.abs(image - expected).max() < 6


def test_alpha_is_composited_on_white(tmp_path):
    rgba = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]], np.uint8)
    expected = [[[200, 100, 0], [255, 255, 255], [244, 224, 204]]]  # 255 + (colour - 255) * alpha / 255
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    assert np.abs(read_image(tmp_path / "rgba.png").astype(int) - expected).max() <= 1
    la = np.array([[[100, 255], [100, 0], [100, 51]]], np.uint8)
    Image.fromarray(la, "LA").save(tmp_path / "la.png")
    assert np.abs(read_image(tmp_path / "la.png")[0, :, 0].astype(int) - [100, 255, 224]).max() <= 1


def test_palette_with_alpha_and_transparent_colour(tmp_path):
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    palette.save(tmp_path / "plain.png")
    palette.save(tmp_path / "alpha.png", transparency=bytes([255, 0, 255]))
    palette.save(tmp_path / "one.gif", transparency=2)
    Image.fromarray(UPRIGHT).save(tmp_path / "key.png", transparency=(0, 255, 0))
    for name, expected in {
        "plain.png": [[10, 20, 30], [40, 50, 60], [70, 80, 90]],
        "alpha.png": [[10, 20, 30], [255, 255, 255], [70, 80, 90]],
        "one.gif": [[10, 20, 30], [40, 50, 60], [255, 255, 255]],
        "key.png": [[255, 0, 0], [255, 255, 255], [0, 0, 255]],
    }.items():
        np.testing.assert_array_equal(read_image(tmp_path / name)[0], expected)


def test_one_bit_and_grey(tmp_path):
    bits = np.array([[True, False, True]])
    Image.fromarray(bits).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_image(tmp_path / "x.png")[0, :, 1], [255, 0, 255])
    Image.fromarray(np.array([[7, 130]], np.uint8)).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png")[0], [[7] * 3, [130] * 3])


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_sixteen_bits_keep_their_greys(tmp_path, name):
    Image.fromarray(np.array([[0, 257, 32768, 65535]], np.uint16)).save(tmp_path / name)
    np.testing.assert_array_equal(read_image(tmp_path / name)[0, :, 0], [0, 1, 128, 255])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 100, 200]], np.float32), [0, 100, 200]),
        (np.array([[0, 257, 65535]], np.int32), [0, 1, 255]),
        (np.array([[-1000, 0, 1000]], np.int32), [0, 128, 255]),
        (np.array([[-3, -3, -3]], np.int32), [0, 0, 0]),
        (np.array([[0, 1e9]], np.float32), [0, 255]),
    ],
)
def test_float_and_long_images_are_scaled_never_saturated(tmp_path, values, expected):
    Image.fromarray(values).save(tmp_path / "x.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "x.tif")[0, :, 2], expected)


def test_sixteen_bits_where_zero_is_white(tmp_path):
    values = np.array([[0, 257, 32768, 65535]], "<u2").tobytes()
    tags = [(256, 3, 1, 4), (257, 3, 1, 1), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 0), (273, 4, 1, 8),
            (277, 3, 1, 1), (278, 3, 1, 1), (279, 4, 1, 8)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    (tmp_path / "x.tif").write_bytes(b"II*\0\x10\0\0\0" + values + struct.pack("<H", len(tags)) + entries + bytes(4))
    np.testing.assert_array_equal(read_image(tmp_path / "x.tif")[0, :, 0], [255, 254, 127, 0])


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "I;16", "F", "CMYK", "1"])
def test_conversion_in_bands_changes_nothing(tmp_path, monkeypatch, mode):
    if mode in ("I;16", "F"):
        kind = {"I;16": np.uint16, "F": np.float32}[mode]
        photo = Image.fromarray((RNG.random((37, 53)) * 60_000).astype(kind))
    else:
        photo = Image.fromarray(RNG.integers(0, 256, (37, 53, 4), dtype=np.uint8), "RGBA").convert(mode)
    photo.save(tmp_path / "x.tif")
    whole = read_image(tmp_path / "x.tif")
    monkeypatch.setattr("datamodules.reading._BAND", 53 * 5 + 1)
    np.testing.assert_array_equal(read_image(tmp_path / "x.tif"), whole)


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}, {"keep_rgb": True}]
)
def test_jpegs_have_the_pixels_that_pillow_gives(tmp_path, options):
    (tmp_path / "x.jpg").write_bytes(encoded("JPEG", **options))
    np.testing.assert_array_equal(read_image(tmp_path / "x.jpg"), np.asarray(Image.open(tmp_path / "x.jpg")))


def test_a_damaged_jpeg_is_what_pillow_makes_of_it(tmp_path, capfd):
    raw = encoded("JPEG")
    (tmp_path / "x.jpg").write_bytes(raw[: len(raw) // 2] + b"junk" + raw[-2:])  # half of it, but with its end mark
    with Image.open(tmp_path / "x.jpg") as photo:
        np.testing.assert_array_equal(read_image(tmp_path / "x.jpg"), np.asarray(photo))
    (tmp_path / "x.jpg").write_bytes(raw + b"a trailer")
    assert read_image(tmp_path / "x.jpg").shape == NOISE.shape
    assert capfd.readouterr().err == ""


def test_format_and_mode_are_told(tmp_path):
    for form, mode, expected in (("JPEG", "L", "JPEG L"), ("PNG", "RGBA", "PNG RGBA"), ("GIF", "P", "GIF P")):
        Image.fromarray(NOISE).convert(mode).save(tmp_path / "x", form)
        assert read_photo(tmp_path / "x").kind == expected


def test_nan_pixels_are_refused(tmp_path):
    Image.fromarray(np.array([[0, np.nan]], np.float32)).save(tmp_path / "x.tif")
    assert "NaN" in reason_of(tmp_path / "x.tif")


@pytest.mark.parametrize("name", ["x.gif", "x.webp", "x.tif", "x.png"])
def test_first_frame_of_several(tmp_path, name):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if name == "x.webp" else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
    photo = read_photo(tmp_path / name)
    assert (photo.image == [255, 0, 0]).all()
    assert "x." in photo.note
    assert "several frames" in photo.note
    frames[0].save(tmp_path / ("one" + name))
    assert not read_photo(tmp_path / ("one" + name)).note


def test_telephone_jpeg_with_a_second_picture_is_one_photo(tmp_path):
    first, second = Image.fromarray(NOISE), Image.new("RGB", (16, 16))
    first.save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[second])
    photo = read_photo(tmp_path / "x.jpg", min_size=(9, 9))
    assert photo.size == NOISE.shape[:2]
    assert photo.image.shape[0] < NOISE.shape[0]
    assert not photo.note


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_jpeg_is_decoded_no_smaller_than_asked(tmp_path, scale):
    Image.fromarray(NOISE.repeat(16, 0).repeat(16, 1)).save(tmp_path / "x.jpg")  # 592 x 848
    exact = read_image(tmp_path / "x.jpg", min_size=(592 // scale, 7))
    assert exact.shape[:2] == (592 // scale, 848 // scale)
    above = min(592 // scale + 1, 592)
    assert read_image(tmp_path / "x.jpg", min_size=(above, 7)).shape[0] >= above
    Image.fromarray(NOISE).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png", min_size=(3, 3)).shape == NOISE.shape


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_truncated(tmp_path, form, share):
    raw = encoded(form)
    (tmp_path / "x.jpg").write_bytes(raw[: int(len(raw) * share)])
    reason_of(tmp_path / "x.jpg")


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_png_with_a_bad_checksum(tmp_path):
    for kind in (b"IHDR", b"IDAT"):
        raw = bytearray(encoded("PNG"))
        at = raw.index(kind)
        length = struct.unpack(">I", raw[at - 4 : at])[0]
        raw[at + 4 + length] ^= 1  # the checksum only: the pixels would decode
        (tmp_path / "x.png").write_bytes(raw)
        reason_of(tmp_path / "x.png")


def test_png_with_a_huge_text(tmp_path):
    raw = encoded("PNG")
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 300_000_000, 9))
    (tmp_path / "x.png").write_bytes(raw[:33] + text + raw[33:])  # after the header
    tracemalloc.start()
    reason_of(tmp_path / "x.png")
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("side", [12_000, 40_000])
def test_bomb_is_refused_before_decoding(tmp_path, side):
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    row = zlib.compress(b"\0" * 1_000_000, 9)
    raw = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", row) + chunk(b"IEND", b"")
    (tmp_path / "x.png").write_bytes(raw)
    tracemalloc.start()
    assert "110,000,000" in reason_of(tmp_path / "x.png")
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_max_pixels_is_exact(tmp_path):
    Image.fromarray(NOISE).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png", max_pixels=37 * 53).shape == NOISE.shape
    assert "53 x 37" in reason_of(tmp_path / "x.png", max_pixels=37 * 53 - 1)


def test_files_that_are_no_images(tmp_path):
    contents = {
        b"": "empty",
        b"<!DOCTYPE html><html>": "web page",
        b"\x00" * 1000: "not a JPEG",
        RNG.bytes(1000): "not a JPEG",
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic": "pillow-heif",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n": "not a JPEG",  # no format that runs programs
    }
    for content, reason in contents.items():
        (tmp_path / "x.jpg").write_bytes(content)
        assert reason in reason_of(tmp_path / "x.jpg")


def test_special_files_never_hang(tmp_path):
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nothing")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    assert "pipe" in reason_of(tmp_path / "fifo.jpg")
    assert "folder" in reason_of(tmp_path / "folder.jpg")
    assert "link to nothing" in reason_of(tmp_path / "dangling.jpg")
    assert "device" in reason_of(tmp_path / "device.jpg")
    assert "no such file" in reason_of(tmp_path / "missing.jpg")
    reason_of(tmp_path / "loop.jpg")


@pytest.mark.parametrize("name", [b"a b'\"c.png", "öç 鳥 \N{BIRD}.png".encode(), b"\xff\xfe\x80.png", b"-x\n.png"])
def test_odd_names(tmp_path, name):
    path = os.path.join(os.fsencode(tmp_path), name)  # noqa: PTH118
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(encoded("PNG"))
    np.testing.assert_array_equal(read_image(os.fsdecode(path)), NOISE)
    np.testing.assert_array_equal(read_image(Path(os.fsdecode(path))), NOISE)
    with open(path, "wb"):  # noqa: PTH123
        pass
    with pytest.raises(UnreadableImage) as caught:
        read_image(os.fsdecode(path))
    caught.value.path.encode("utf-8")

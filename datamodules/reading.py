"""The common reader of image files: any photo becomes upright 8-bit RGB, or a one-line reason why it can't be used.

These decisions are made here, once, for training, evaluation and explanation alike:

    transparency    composited on white, as image viewers and browsers show it
    16-bit grey     the type's whole range, 0 to 65535, becomes 0 to 255
    32-bit, float   0 to 1, 0 to 255 or 0 to 65535, the smallest of these that contains all values; otherwise minimum
                    to maximum
    several frames  the first one
    CMYK and others Pillow's plain conversion, without a colour profile

Pillow opens and checks every file; an undamaged RGB JPEG is then decoded by libjpeg-turbo straight into the array, to
the same pixels in less time. Everything else is decoded by Pillow.

The cost of a file is limited before any work is done: its pixels by `max_pixels`, data besides pixels by `_Guarded`, a
PNG's chunks by `_check_png`, a progressive JPEG's scans by `_refuse_many_scans`.
"""

import io
import math
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, TiffImageFile

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".heic", ".heif"}
)
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
# Allows the 108-megapixel photos of phones. Decoding briefly takes up to ten bytes per pixel, a WebP sixteen.
MAX_PIXELS = 110_000_000
# Reads per file, and bytes read to open it. Pillow searches for the next marker or frame byte by byte, and loads all
# metadata, and a WebP as a whole, into memory; no real photo comes near either limit.
_MAX_READS = 2_000_000
_MAX_METADATA = 1 << 28
_MAX_PNG_CHUNK = 1 << 26  # bytes of a chunk without pixels
# Every scan of a progressive JPEG goes over all its pixels, but takes only a few bytes. Encoders write about ten.
_MAX_SCANS = 200
_BAND = 1 << 18  # pixels converted at a time: few enough to stay in the CPU's cache
_PNG = b"\x89PNG\r\n\x1a\n"


class UnreadableImage(Exception):
    """A file that is not a usable image. `path` is printable, `reason` is one line."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class Photo(NamedTuple):
    """A decoded photo.

    Args:
        image: uint8 RGB (h, w, 3), upright, possibly decoded at a smaller size.
        size: (img_h, img_w) of the whole upright photo.
        note: what was left out, such as further frames; empty for nothing.
        kind: the stored format and Pillow's mode, such as JPEG RGB.
    """

    image: np.ndarray
    size: tuple[int, int]
    note: str
    kind: str


def printable(path: str | os.PathLike[str]) -> str:
    """The path as text that can be printed and written as UTF-8, even if the bytes of the name are not UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def read_image(
    path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS, min_size: tuple[int, int] | None = None
) -> np.ndarray:
    """The photo at `path` as uint8 RGB (img_h, img_w, 3), upright. See `read_photo`."""
    return read_photo(path, max_pixels=max_pixels, min_size=min_size).image


def read_photo(
    path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS, min_size: tuple[int, int] | None = None
) -> Photo:
    """The photo at `path`, its full size, and facts about it.

    Args:
        path: a regular file in one of `FORMATS`; its suffix does not matter.
        max_pixels: larger images are refused before they are decoded.
        min_size: (img_h, img_w). A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, which is several times as fast,
            as long as both sides are at least this long. None decodes it at full size.

    Raises:
        UnreadableImage: for any problem with the file. Never hangs on a FIFO or a device.
    """
    return _read(printable(path), lambda: _open(path), max_pixels, min_size)


def read_photo_bytes(
    data: bytes, name: str, *, max_pixels: int = MAX_PIXELS, min_size: tuple[int, int] | None = None
) -> Photo:
    """Like `read_photo`, from the content of a file, such as a member of an archive; messages call it `name`."""
    return _read(name, lambda: _Guarded(io.BytesIO(data), len(data)), max_pixels, min_size)


def _read(name: str, opened: Callable[[], "_Guarded"], max_pixels: int, min_size: tuple[int, int] | None) -> Photo:
    start = b""
    try:
        with opened() as file, warnings.catch_warnings():
            if file.size == 0:
                raise _Refused("the file is empty")
            start = file.peek(64)[:64]
            # Pillow warns about sizes and damaged metadata; sizes are checked below, and damage either raises or is
            # harmless.
            warnings.simplefilter("ignore")
            photo = _decode(file, max_pixels, min_size)
            return photo._replace(note=f"{name} {photo.note}") if photo.note else photo
    except _Refused as refusal:
        reason = str(refusal)
    except UnidentifiedImageError:
        reason = _unidentified(start)
    except Image.DecompressionBombError:
        reason = f"more than the allowed {max_pixels:,} pixels"
    except MemoryError:
        reason = "not enough memory to decode it"
    except Exception as error:  # decoders raise SyntaxError, struct.error, zlib.error and others
        reason = " ".join(f"{_cause(error)}".split())[:200]
    raise UnreadableImage(name, reason)


class _Refused(Exception):
    pass


class _Guarded(io.BufferedReader):
    """A file that a decoder can't search forever, and, while `left` is finite, can't load into memory by gigabytes."""

    reads = 0
    left = math.inf  # bytes

    def __init__(self, raw: Any, size: int) -> None:
        super().__init__(raw)
        self.size = size

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > _MAX_READS:
            raise _Refused(f"no image found after {_MAX_READS:,} reads")
        if size is None or size < 0 or size > self.left:
            rest = self.size - self.tell()
            if min(rest, math.inf if size is None or size < 0 else size) > self.left:
                raise _Refused(f"more than {_MAX_METADATA:,} bytes of data before its pixels")
        block = super().read(size)
        self.left -= len(block)
        return block


def _open(path: str | os.PathLike[str]) -> _Guarded:
    """Opens the file; raises _Refused, without opening it, if it is not a regular file."""
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        raise _Refused("a link to nothing" if Path(path).is_symlink() else "no such file") from None
    if stat.S_ISDIR(status.st_mode):
        raise _Refused("a folder, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise _Refused("a pipe, socket or device, not a file")
    return _Guarded(io.FileIO(path), status.st_size)


def _decode(file: _Guarded, max_pixels: int, min_size: tuple[int, int] | None) -> Photo:
    """The photo, with a note that lacks the file's name."""
    _check_png(file)
    file.left = _MAX_METADATA
    photo = Image.open(file, formats=formats())
    file.left = math.inf
    width, height = photo.size
    if width * height > max_pixels:
        raise _Refused(f"{width} x {height} pixels, more than the allowed {max_pixels:,}")
    # An MPO is a JPEG followed by a preview or a depth map, as many phones write; not an animation.
    several = photo.format != "MPO" and getattr(photo, "is_animated", False)
    kind = f"{photo.format} {photo.mode}"
    image = None
    if isinstance(photo, JpegImageFile):
        orientation = orientation_of(photo)
        if "progressive" in photo.info:
            _refuse_many_scans(file)
        if min_size is not None:
            photo.draft(None, min_size if _turned(orientation) else min_size[::-1])
        if photo.size == (width, height) and photo.mode == "RGB":
            image = _turbo(file)
    if image is None:
        photo.load()
    if not isinstance(photo, JpegImageFile):
        width, height = photo.size  # Pillow rotates a TIFF upright when it loads it
        orientation = orientation_of(photo)
    size = (width, height) if _turned(orientation) else (height, width)
    image = upright(_to_rgb(photo) if image is None else image, orientation)
    return Photo(image, size, "has several frames; only the first is used" if several else "", kind)


def _turbo(file: _Guarded) -> np.ndarray | None:
    """The pixels (h, w, 3) of an RGB JPEG, or None if it is damaged, or too large to load the file into memory."""
    if file.size > _MAX_METADATA:
        return None
    place = file.tell()
    file.seek(0)
    try:
        # strict: raises where libjpeg only warns, such as at an early end, so that Pillow decides about the file
        return simplejpeg.decode_jpeg(file.read(), colorspace="RGB", strict=True)
    except ValueError:
        file.seek(place)
        return None


def _refuse_many_scans(file: _Guarded) -> None:
    """Raises _Refused for a JPEG with more scans than any encoder writes. Leaves the file's position unchanged."""
    place = file.tell()
    file.seek(0)
    scans = 0
    while block := file.read(1 << 20):
        scans += block.count(b"\xff\xda")  # in compressed pixels, only 0 or a marker follows 255
        if scans > _MAX_SCANS:
            raise _Refused(f"a JPEG with more than {_MAX_SCANS} scans, which would take very long to decode")
    file.seek(place)


def _check_png(file: _Guarded) -> None:
    """Raises _Refused for a PNG that is truncated, has a wrong checksum, or has a huge chunk without pixels.

    Pillow does not check the checksums of the pixels' chunks, and loads all other chunks whole into memory. Leaves the
    file at its start.
    """
    found = file.read(len(_PNG)) == _PNG
    kind = b""
    while found and kind != b"IEND":
        length, kind = struct.unpack(">I4s", _exactly(file, 8))
        if kind != b"IDAT" and length > _MAX_PNG_CHUNK:
            raise _Refused(f"a PNG with {length:,} bytes of metadata")
        checksum = zlib.crc32(kind)
        while length:
            block = _exactly(file, min(length, 1 << 16))
            checksum = zlib.crc32(block, checksum)
            length -= len(block)
        if _exactly(file, 4) != checksum.to_bytes(4, "big"):
            raise _Refused(f"wrong checksum in the PNG's chunk {kind!r}")
    file.seek(0)


def _exactly(file: _Guarded, size: int) -> bytes:
    block = file.read(size)
    if len(block) < size:
        raise _Refused("the PNG ends too early")
    return block


def orientation_of(photo: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 if it is missing or invalid."""
    if isinstance(photo, JpegImageFile) and not photo.info.keys() & {"exif", "xmp"}:
        return 1
    try:
        value = photo.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata is not a reason to lose the pixels
        return 1
    return value if value in range(1, 9) else 1


def _turned(orientation: int) -> bool:
    return orientation >= 5


def upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """(h, w, 3) as stored -> (img_h, img_w, 3) as seen, by the table of EXIF orientations."""
    if orientation == 1:
        return image
    if _turned(orientation):
        image = image.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def _to_rgb(photo: Image.Image) -> np.ndarray:
    """The loaded photo in any Pillow mode -> uint8 (h, w, 3)."""
    width, height = photo.size
    image = np.empty((height, width, 3), np.uint8)
    if photo.mode.startswith("I;16") or photo.mode in ("I", "F"):
        low, high = black_and_white(photo)
        for rows, band in _bands(photo):
            grey = (np.asarray(band).astype(np.float64) - low) * (255.0 / (high - low))
            image[rows] = np.rint(grey)[:, :, None]
    else:
        for rows, band in _bands(photo):
            image[rows] = np.asarray(_flat(band))
    return image


def _bands(photo: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """The photo in bands of rows, so that their conversion takes little memory."""
    width, height = photo.size
    step = max(1, _BAND // width)
    for start in range(0, height, step):
        stop = min(start + step, height)
        yield slice(start, stop), photo if step >= height else photo.crop((0, start, width, stop))


def black_and_white(photo: Image.Image) -> tuple[float, float]:
    """The values that become 0 and 255: for 16 bits the whole range; otherwise the first common range that contains all
    values, or else their minimum and maximum."""
    if photo.mode.startswith("I;16"):
        white_is_zero = isinstance(photo, TiffImageFile) and photo.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0
        return (65535.0, 0.0) if white_is_zero else (0.0, 65535.0)
    low, high = np.inf, -np.inf
    for _, band in _bands(photo):
        values = np.asarray(band)
        low, high = float(np.minimum(low, values.min())), float(np.maximum(high, values.max()))
        if not (np.isfinite(low) and np.isfinite(high)):
            raise _Refused("has pixels that are NaN or infinite")
    for top in (1.0, 255.0, 65535.0):
        if low >= 0 and high <= top:
            return 0.0, top
    return low, high if high > low else low + 1


def _flat(photo: Image.Image) -> Image.Image:
    """A photo of 8-bit channels, composited on white where it is transparent, in mode RGB."""
    if photo.has_transparency_data:
        colour = photo.convert("RGBA")
        photo = Image.alpha_composite(Image.new("RGBA", colour.size, "white"), colour)
    return photo if photo.mode == "RGB" else photo.convert("RGB")


def _cause(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _unidentified(start: bytes) -> str:
    """The reason for a file that no decoder recognises, from its first bytes."""
    if start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS:
        return "a HEIC photo; to read it: pip install pillow-heif"
    if start.lstrip()[:1] == b"<":
        return "a web page or XML text, not an image"
    return "not a JPEG, PNG, WebP, TIFF, BMP or GIF image, or damaged at its start"


@cache
def formats() -> tuple[str, ...]:
    """The formats that Pillow may decode: `FORMATS`, and HEIF if its plugin is installed."""
    try:
        import pillow_heif
    except ImportError:
        return FORMATS
    pillow_heif.register_heif_opener()
    return (*FORMATS, "HEIF")

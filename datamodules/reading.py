"""The one reader of image files: any photo a person may have becomes upright 8-bit RGB, or a one-line reason.

What is decided here, once, for training, evaluation and explanation alike:

    transparency    composited on white, as a viewer or a browser page shows it
    16-bit grey     the type's whole range, 0 to 65535, becomes 0 to 255
    32-bit, float   0 to 1, 0 to 255 or 0 to 65535, the smallest of these that holds all values; else minimum
                    to maximum
    many frames     the first
    CMYK and others Pillow's plain conversion, without a colour profile
"""

import os
import stat
import warnings
from functools import cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".heic", ".heif"}
)
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
# Admits the 108-megapixel photos of telephones. Decoding takes up to ten bytes a pixel for a moment.
MAX_PIXELS = 110_000_000


class UnreadableImage(Exception):
    """A file that is not a usable image. `path` is printable, `reason` is one line."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class Photo(NamedTuple):
    """`image` uint8 RGB (img_h, img_w, 3), upright, perhaps decoded smaller; `size` (img_h, img_w) of the
    whole upright photo; `note` says what was left out, such as further frames, or is empty."""

    image: np.ndarray
    size: tuple[int, int]
    note: str


def printable(path: str | os.PathLike[str]) -> str:
    """The path as text that can be printed and written as UTF-8, also when the name's bytes are not UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def read_image(
    path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS, min_size: tuple[int, int] | None = None
) -> np.ndarray:
    """The photo at `path` as uint8 RGB (img_h, img_w, 3), upright. See `read_photo`."""
    return read_photo(path, max_pixels=max_pixels, min_size=min_size).image


def read_photo(
    path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS, min_size: tuple[int, int] | None = None
) -> Photo:
    """The photo at `path`, its whole size, and what to know about it.

    Args:
        path: a regular file in one of `FORMATS`; its suffix does not matter.
        max_pixels: larger images are refused before they are decoded.
        min_size: (img_h, img_w). A JPEG may be decoded to 1/2, 1/4 or 1/8 of its size, which is several times
            as fast, as long as both sides stay at least this long. None decodes the whole.

    Raises:
        UnreadableImage: whatever is wrong with the file. Never hangs on a FIFO or a device.
    """
    try:
        _refuse_special(path)
        with Path(path).open("rb") as file, warnings.catch_warnings():
            # Pillow warns of sizes and damaged metadata; sizes are judged below, and damage is raised or
            # harmless.
            warnings.simplefilter("ignore")
            image, size, several = _decode(file, max_pixels, min_size)
            note = f"{printable(path)} has several frames; only the first is used" if several else ""
            return Photo(image, size, note)
    except _Refused as refusal:
        reason = str(refusal)
    except UnidentifiedImageError:
        reason = _unidentified(path)
    except Image.DecompressionBombError:
        reason = f"more than the {max_pixels:,} pixels allowed"
    except MemoryError:
        reason = "not enough memory to decode it"
    except Exception as error:  # decoders raise SyntaxError, struct.error, zlib.error and what not
        reason = " ".join(f"{_cause(error)}".split())[:200]
    raise UnreadableImage(printable(path), reason)


class _Refused(Exception):
    pass


def _refuse_special(path: str | os.PathLike[str]) -> None:
    """Raises _Refused for what is not a regular file with something in it, without opening it."""
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        raise _Refused("a link to nothing" if Path(path).is_symlink() else "no such file") from None
    if stat.S_ISDIR(status.st_mode):
        raise _Refused("a folder, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise _Refused("a pipe, socket or device, not a file")
    if status.st_size == 0:
        raise _Refused("the file is empty")


def _decode(
    file: BinaryIO, max_pixels: int, min_size: tuple[int, int] | None
) -> tuple[np.ndarray, tuple[int, int], bool]:
    """The upright image, the size of the whole, and whether there are further frames."""
    photo = Image.open(file, formats=formats())
    width, height = photo.size
    if width * height > max_pixels:
        raise _Refused(f"{width} x {height} pixels, more than the {max_pixels:,} allowed")
    if photo.format == "PNG":
        # The decoder skips the checksum of the pixels' chunks; verify() reads all of them and spends the
        # object.
        photo.verify()
        file.seek(0)
        photo = Image.open(file, formats=("PNG",))
    # An MPO is a JPEG with a preview or a depth map behind it, as many telephones write; not an animation.
    several = photo.format != "MPO" and getattr(photo, "is_animated", False)
    if min_size is not None and isinstance(photo, JpegImageFile):
        photo.draft(None, min_size if _turned(_orientation(photo)) else min_size[::-1])
        photo.load()
    else:
        photo.load()
        width, height = photo.size  # Pillow turns a TIFF upright while it loads
    orientation = _orientation(photo)
    size = (width, height) if _turned(orientation) else (height, width)
    return _upright(_to_rgb(photo), orientation), size, several


def _orientation(photo: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 when there is none, or none that can be understood."""
    try:
        value = photo.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata is no reason to lose the pixels
        return 1
    return value if value in range(1, 9) else 1


def _turned(orientation: int) -> bool:
    return orientation >= 5


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """(h, w, 3) as stored -> (img_h, img_w, 3) as seen. The standard's table says which way each is
    stored."""
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
    if photo.mode.startswith("I;16"):
        return _grey(np.asarray(photo).astype(np.float32) / 257.0)
    if photo.mode in ("I", "F"):
        return _grey(_spread(np.asarray(photo).astype(np.float64)))
    if photo.has_transparency_data:
        colour = photo.convert("RGBA")
        white = Image.new("RGBA", colour.size, "white")
        photo = Image.alpha_composite(white, colour)
    return np.array(photo if photo.mode == "RGB" else photo.convert("RGB"))


def _spread(values: np.ndarray) -> np.ndarray:
    """Values of unknown range -> 0 to 255, by the first usual range that holds them all."""
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise _Refused("holds pixels that are NaN or infinite")
    for top in (1.0, 255.0, 65535.0):
        if low >= 0 and high <= top:
            return values * (255.0 / top)
    return (values - low) * (255.0 / (high - low)) if high > low else np.zeros_like(values)


def _grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(np.rint(values).astype(np.uint8)[:, :, None], 3, axis=2)


def _cause(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _unidentified(path: str | os.PathLike[str]) -> str:
    """What a file is that no decoder knows, by its first bytes."""
    with Path(path).open("rb") as file:
        start = file.read(64)
    if start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS:
        return "a HEIC photo; pip install pillow-heif to read it"
    if start.lstrip()[:1] == b"<":
        return "a web page or XML text, not an image"
    return "not a JPEG, PNG, WebP, TIFF, BMP or GIF image, or damaged at its start"


@cache
def formats() -> tuple[str, ...]:
    """What Pillow may decode here: `FORMATS`, and HEIF where its plugin is installed."""
    try:
        import pillow_heif
    except ImportError:
        return FORMATS
    pillow_heif.register_heif_opener()
    return (*FORMATS, "HEIF")

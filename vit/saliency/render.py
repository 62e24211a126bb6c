"""Saliency maps as pictures for people: only numpy, OpenCV and ISA-L, so that a worker needs no torch.

Pictures are uint8 RGB (height, width, 3). Maps are float (grid_h, grid_w) or (img_h, img_w); NaN marks what the map
does not cover, such as the area outside a central crop. Text is drawn with the TrueType fonts of OpenCV 5, which have
Latin, Greek, Cyrillic, Arabic, Chinese, Japanese and Korean letters; OpenCV 4 draws a question mark for each letter
that is not ASCII.
"""

import os
import struct
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from vit.foundation import atomic_write

Picture = NDArray[np.uint8]
Colormap = Literal["inferno", "magma", "viridis", "cividis"]
Layout = Literal["side_by_side", "over"]
Flag = Literal["", "NaN", "infinite", "all zero", "constant", "partly NaN"]

SHORTEST, LONGEST = 224, 768  # limits of the drawn photo's long side, in pixels
STRIP_SIDE = 144  # the long side of the photo in a strip of words, in pixels
MIN_WIDTH, MIN_BAR = 384, 208  # of the whole overlay and of its colour bar, in pixels, so that the text fits
WEIGHT = 400  # font weight; 400 is regular
# Paper and grey as one number, because np.full takes five times as long for three.
INK, PAPER, GREY = (32, 32, 32), 255, 176

SUFFIXES = (".png", ".jpg")
JPEG_QUALITY = 92


def map_flag(saliency: NDArray[Any]) -> Flag:
    """What is wrong with a map of any shape, or an empty string.

    Maps that are "NaN" (in all pixels), "infinite", "all zero" or "constant" are never drawn; one that is "partly NaN"
    is drawn where it has values. A range below 1e-6 of the largest value is rounding: such a map is constant.
    """
    covered = saliency[~np.isnan(saliency)]
    if covered.size == 0:
        return "NaN"
    low, high = float(covered.min()), float(covered.max())
    if not np.isfinite([low, high]).all():
        return "infinite"
    if low == high == 0:
        return "all zero"
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        return "constant"
    return "partly NaN" if covered.size < saliency.size else ""


def upsample(grid_map: NDArray[Any], size: tuple[int, int]) -> NDArray[np.float32]:
    """(grid_h, grid_w) -> (img_h, img_w) = `size`, float32, bilinear between the centres of the patches.

    Equals torch.nn.functional.interpolate(mode="bilinear", align_corners=False). A pixel is NaN if the patch that it
    is in is NaN; otherwise NaN neighbours are left out of the mean, so that the edge of a crop keeps its values.

    Raises:
        ValueError: when the map is not two-dimensional, or either size is empty.
    """
    if grid_map.ndim != 2 or grid_map.size == 0 or min(size) < 1:
        raise ValueError(f"Upsampling takes a map (grid_h, grid_w) and a size, got {grid_map.shape} and {size}.")
    values = np.ascontiguousarray(grid_map, dtype=np.float32)
    dsize = (size[1], size[0])
    uncovered = np.isnan(values)
    if not uncovered.any():
        return np.asarray(cv2.resize(values, dsize, interpolation=cv2.INTER_LINEAR), np.float32)
    weight = cv2.resize((~uncovered).astype(np.float32), dsize, interpolation=cv2.INTER_LINEAR)
    total = cv2.resize(np.where(uncovered, np.float32(0), values), dsize, interpolation=cv2.INTER_LINEAR)
    outside = cv2.resize(uncovered.astype(np.uint8), dsize, interpolation=cv2.INTER_NEAREST_EXACT) > 0
    return np.where(outside, np.float32(np.nan), total / np.maximum(weight, np.float32(1e-6)))


def overlay(
    photo: Picture,
    saliency: NDArray[Any],
    *,
    label: str | None = None,
    probability: float | None = None,
    colormap: Colormap = "inferno",
    opacity: float = 0.6,
    layout: Layout = "side_by_side",
) -> Picture:
    """The photo, and beside it the map over the grey photo, with a colour bar and a line of text above.

    The photo is scaled so that its long side is 224 to 768 px. The colours span the map's own range, from its minimum
    to its maximum, which are written at the ends of the colour bar: colours can be compared within one picture, but not
    between pictures. The two values are those of the map as it is given, before upsampling. A map that `map_flag` says
    can't be drawn is replaced by a grey panel with the reason. Where the map is NaN, the grey photo is dimmed and has
    no colour.

    Args:
        photo: (img_h, img_w, 3) uint8 RGB, of any size.
        saliency: (grid_h, grid_w) or (img_h, img_w), stretched over the whole photo.
        label: the predicted class, in any script.
        probability: probability of that class, 0 to 1.
        colormap: a perceptually uniform colour map.
        opacity: share of the colour in the blend, 0 to 1.
        layout: "side_by_side", or "over" (without the photo beside it).

    Raises:
        ValueError: for a photo that is not uint8 RGB, a map that is not two-dimensional, or another layout or colormap.
    """
    _check_picture(photo)
    if saliency.ndim != 2 or saliency.size == 0:
        raise ValueError(f"A saliency map is (grid_h, grid_w) or (img_h, img_w), got {saliency.shape}.")
    if layout not in get_args(Layout):
        raise ValueError(f"layout is {layout!r}; allowed are {', '.join(get_args(Layout))}.")
    shown = _fit_photo(photo)
    height, width = shown.shape[:2]
    text = int(np.clip(round(max(height, width) / 24), 14, 24))
    flag = map_flag(saliency)
    is_map = flag in ("", "partly NaN")
    panel = _blend(shown, saliency, colormap, opacity) if is_map else _note_panel(shown, flag, text)

    name, chance = _printable(label or ""), "" if probability is None else f"{100 * probability:.1f}%"
    strip = 2 * text
    top, gap = strip if name or chance else 0, text // 2
    right, bar = width + gap if layout == "side_by_side" else 0, max(width, MIN_BAR)
    whole = max(right + bar, MIN_WIDTH)
    canvas = np.full((top + height + strip, whole, 3), PAPER, np.uint8)
    if right:
        canvas[top : top + height, :width] = shown
    canvas[top : top + height, right : right + width] = panel
    if top:
        room = whole - 8 - text - text_width(chance, text)
        end = write_text(canvas, name, 4, strip * 2 // 3, text, room)
        write_text(canvas, chance, end + (text if name else 0), strip * 2 // 3, text, whole)
    if is_map:
        low, high = float(np.nanmin(saliency)), float(np.nanmax(saliency))
        _colour_bar(canvas[top + height :, right : right + bar], low, high, colormap)
    return canvas


def word_strip(
    photo: Picture,
    words: Sequence[str],
    maps: NDArray[Any],
    *,
    colormap: Colormap = "inferno",
    opacity: float = 0.6,
    columns: int = 8,
) -> Picture:
    """The photo, then one copy of it per word of its caption, each under its word and with the word's map over it.

    The colours span each map's own range, as in `overlay`, so even a word that looked nowhere in particular has a
    brightest place.

    Args:
        photo: (img_h, img_w, 3) uint8 RGB, of any size.
        words: the words of the caption, in any script.
        maps: (words, grid_h, grid_w), each stretched over the whole photo.
        colormap: a perceptually uniform colour map.
        opacity: share of the colour in the blend, 0 to 1.
        columns: pictures per row.

    Returns:
        (height, width, 3) uint8 RGB.

    Raises:
        ValueError: for a photo that is not uint8 RGB, another number of maps than words, or another colormap.
    """
    _check_picture(photo)
    if maps.ndim != 3 or len(maps) != len(words):
        raise ValueError(f"{len(words)} words need maps ({len(words)}, grid_h, grid_w), got {maps.shape}.")
    shown = scaled(photo, STRIP_SIDE / max(photo.shape[:2]))
    height, width = shown.shape[:2]
    panels = [shown]
    for saliency in maps:
        flag = map_flag(saliency)
        is_map = flag in ("", "partly NaN")
        panels.append(_blend(shown, saliency, colormap, opacity) if is_map else _note_panel(shown, flag, 14))
    text, gap = 16, 8
    columns = min(columns, len(panels))
    step_y, step_x = height + 2 * text + gap, width + gap
    canvas = _blank_page(columns, len(panels), step_y, step_x, gap)
    for count, (panel, word) in enumerate(zip(panels, ["", *words], strict=True)):
        y, x = gap + count // columns * step_y, gap + count % columns * step_x
        write_text(canvas, _printable(word), x, y + text, text, width)
        canvas[y + 2 * text - gap : y + 2 * text - gap + height, x : x + width] = panel
    return canvas


def contact_sheet(
    overlays: Iterable[tuple[Picture, str]],
    *,
    columns: int = 3,
    tile: tuple[int, int] = (220, 400),
    per_page: int = 24,
) -> Iterator[Picture]:
    """Thumbnails with a caption under each, one page at a time, in the given order.

    Only one page and one overlay are in memory at a time. Pictures are shrunk to fit, never enlarged.

    Args:
        overlays: pairs of a picture (height, width, 3) uint8 RGB and its caption, such as a file name.
        columns: thumbnails per row.
        tile: (height, width) of the space for one thumbnail in pixels, without its caption.
        per_page: maximum number of thumbnails per page; the last page is only as tall as its rows.

    Yields:
        Pages, (height, width, 3) uint8 RGB; none without overlays.

    Raises:
        ValueError: for columns, a tile or per_page below 1, or a picture that is not uint8 RGB.
    """
    if min(columns, per_page, *tile) < 1:
        raise ValueError(f"columns, per_page and tile must be at least 1, got {columns}, {per_page}, {tile}.")
    text, gap = 15, 8
    step_y, step_x = tile[0] + 2 * text + gap, tile[1] + gap
    page, count = _blank_page(columns, per_page, step_y, step_x, gap), 0
    for picture, caption in overlays:
        if count == per_page:
            yield page
            page, count = _blank_page(columns, per_page, step_y, step_x, gap), 0
        y, x = gap + count // columns * step_y, gap + count % columns * step_x
        _place(page[y : y + tile[0], x : x + tile[1]], picture)
        write_text(page, _printable(caption), x, y + tile[0] + text + 4, text, tile[1])
        count += 1
    if count:
        yield page[: gap + -(-count // columns) * step_y]


def save_overlay(path: str | os.PathLike[str], picture: Picture) -> None:
    """Writes an overlay, or a page of a contact sheet, atomically, as PNG or JPEG according to the suffix.

    It does not wait until the file is on the disk: after a power cut it may be missing, and can be drawn again. JPEG
    takes half the time and a fifth of the size, and blurs the edges of the text a little.

    Raises:
        ValueError: for a suffix other than .png and .jpg, or an array that is not a picture.
    """
    _check_picture(picture)
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"Pictures are written as {' or '.join(SUFFIXES)}, got {str(path)!r}.")
    # Encoded in memory, because OpenCV can't write to a path that is not UTF-8.
    data = _png(picture) if suffix == ".png" else _jpeg(picture)
    with atomic_write(path, sync=False) as temporary:
        temporary.write_bytes(data)


def _png(picture: Picture) -> bytes:
    """The picture as a PNG file (W3C, Portable Network Graphics), each row as its difference from the one above.

    zlib, the only choice in OpenCV and Pillow, takes four times as long as ISA-L for a file of the same size.
    """
    height, width = picture.shape[:2]
    flat = picture.reshape(height, 3 * width)
    rows = np.empty((height, 1 + 3 * width), np.uint8)
    rows[:, 0] = 2  # the filter of the row: "up", modulo 256
    rows[0, 1:] = flat[0]
    np.subtract(flat[1:], flat[:-1], out=rows[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits a channel, RGB, not interlaced
    chunks = ((b"IHDR", header), (b"IDAT", isal_zlib.compress(rows, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", isal_zlib.crc32(data, isal_zlib.crc32(kind)))
        for kind, data in chunks
    )


def _jpeg(picture: Picture) -> bytes:
    done, data = cv2.imencode(
        ".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    )
    if not done:
        raise ValueError(f"A picture of the shape {picture.shape} can't be encoded as JPEG.")
    return data.tobytes()


def _check_picture(picture: NDArray[Any]) -> None:
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or picture.size == 0:
        raise ValueError(f"A picture is (height, width, 3) uint8 RGB, got {picture.shape} {picture.dtype}.")


def _fit_photo(photo: Picture) -> Picture:
    """(img_h, img_w, 3), scaled so that its long side is in [SHORTEST, LONGEST]."""
    long_side = max(photo.shape[:2])
    return scaled(photo, min(max(long_side, SHORTEST), LONGEST) / long_side)


def scaled(picture: Picture, scale: float) -> Picture:
    """(height, width, 3), each side `scale` times as long, in whole pixels, at least one."""
    if scale == 1:
        return picture
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(picture, (width, height), interpolation=method).astype(np.uint8, copy=False)


def _blend(photo: Picture, saliency: NDArray[Any], colormap: Colormap, opacity: float) -> Picture:
    """The map's colours over the grey photo, so that colour in the panel always means the map."""
    low, high = float(np.nanmin(saliency)), float(np.nanmax(saliency))
    # In float64, so that a small range with a large offset survives; before upsampling, because the grid is small.
    stretched = upsample((saliency.astype(np.float64) - low) * (255 / (high - low)), photo.shape[:2])
    uncovered = np.isnan(stretched)
    partial = uncovered.any()
    levels = np.rint(np.where(uncovered, 0, stretched) if partial else stretched).astype(np.uint8)
    grey = cv2.cvtColor(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    blended = cv2.addWeighted(grey, 1 - opacity, cv2.applyColorMap(levels, _palette(colormap)), opacity, 0)
    if partial:
        blended[uncovered] = grey[uncovered] // 2
    return blended.astype(np.uint8, copy=False)


def _note_panel(photo: Picture, flag: Flag, text: int) -> Picture:
    """A grey panel of the photo's size with the reason why there is no map."""
    panel = np.full_like(photo, GREY)
    height, width = panel.shape[:2]
    lines = [f"map is {flag}"]
    if text_width(lines[0], text) > width - 8:
        lines = lines[0].split()
    y = height // 2 - (len(lines) - 1) * text * 2 // 3
    for line in lines:
        write_text(panel, line, max(2, (width - text_width(line, text)) // 2), y + text // 3, text, width - 4)
        y += text * 4 // 3
    return panel


@cache
def _palette(colormap: Colormap) -> Picture:
    """(256, 1, 3) RGB; OpenCV's own tables are BGR."""
    codes = {
        "inferno": cv2.COLORMAP_INFERNO,
        "magma": cv2.COLORMAP_MAGMA,
        "viridis": cv2.COLORMAP_VIRIDIS,
        "cividis": cv2.COLORMAP_CIVIDIS,
    }
    if colormap not in codes:
        raise ValueError(f"colormap is {colormap!r}; allowed are {', '.join(codes)}.")
    ramp = np.arange(256, dtype=np.uint8)[:, None]
    return np.ascontiguousarray(cv2.applyColorMap(ramp, codes[colormap])[:, :, ::-1], dtype=np.uint8)


def _colour_bar(strip: Picture, low: float, high: float, colormap: Colormap) -> None:
    """Draws `low`, the colours and `high` from left to right into the strip (height, width, 3)."""
    height, width = strip.shape[:2]
    text = height * 7 // 16
    ends = [f"{value:.3g}" for value in (low, high)]
    widths = [text_width(end, text) for end in ends]
    baseline = height * 2 // 3
    write_text(strip, ends[0], 4, baseline, text, width)
    write_text(strip, ends[1], width - widths[1] - 4, baseline, text, width)
    start, stop = widths[0] + 12, width - widths[1] - 12
    ramp = np.linspace(0, 255, max(stop - start, 1)).astype(np.uint8)
    strip[height // 4 : height * 3 // 4, start:stop] = _palette(colormap)[ramp, 0]


def _printable(text: str) -> str:
    """The text on one line, with composed letters; bytes that are not UTF-8 and control codes become "?"."""
    line = unicodedata.normalize("NFC", " ".join(text.split()))
    return "".join(letter if letter.isprintable() else "?" for letter in line)


@cache
def _font() -> cv2.FontFace:
    return cv2.FontFace("sans")


def text_width(text: str, size: int) -> int:
    _, _, width, _ = cv2.getTextSize((0, 0), text, (0, 0), _font(), size, WEIGHT)
    return width


def write_text(canvas: Picture, text: str, x: int, baseline: int, size: int, room: int) -> int:
    """Draws one line of text, shortened with "…" to `room` pixels; returns the x where it ends."""
    width = text_width(text, size)
    if width > room:
        # Widths grow with the number of letters, so the longest text that fits is found by bisection.
        fits = bisect_right(range(len(text)), room, key=lambda n: text_width(text[:n] + "…", size))
        text = text[: max(fits - 1, 0)].rstrip() + "…"
        width = text_width(text, size)
    cv2.putText(canvas, text, (x, baseline), INK, _font(), size, WEIGHT)
    return x + width


def _blank_page(columns: int, per_page: int, step_y: int, step_x: int, gap: int) -> Picture:
    rows = -(-per_page // columns)
    return np.full((gap + rows * step_y, gap + columns * step_x, 3), PAPER, np.uint8)


def _place(room: Picture, picture: Picture) -> None:
    """Draws the picture, shrunk to fit, into `room` (height, width, 3), centred at its bottom."""
    _check_picture(picture)
    small = scaled(picture, min(1, room.shape[0] / picture.shape[0], room.shape[1] / picture.shape[1]))
    height, width = small.shape[:2]
    y, x = room.shape[0] - height, (room.shape[1] - width) // 2
    room[y:, x : x + width] = small

"""Photographs with the object marked: by mask images, or by boxes in a CSV; to score saliency maps against.

    a folder    mask images, each at the photo's place below it (MASKS/a/x.png for PHOTOS/a/x.jpg), or of the photo's
                name without its suffix, where just one mask and one photo have it
    a CSV       a row a photo with the columns image and mask, or a row a box with image, x0, y0, x1, y1: pixels of the
                upright photo, x1 and y1 just beyond the object. Also, where wanted: label, the true class, one of
                the model's labels or its index; group, what photos belong together, such as the frames of a video

Paths in a CSV are relative to its folder; a photo is also known by its place below the photos' folder, or by its
name alone where just one has it.

A mask is as large as its photo, or in its proportions. In a picture of two values, or with a palette, all that is not
black is the object, however dark; else what is at least half bright, so that soft edges are cut in the middle.
"""

import csv
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from datamodules.image_files import ImageFile, ImageFiles, find_images
from datamodules.reading import (
    UnreadableImage,
    black_and_white,
    formats,
    orientation_of,
    printable,
    read_photo,
    upright,
)
from datamodules.sampling import Draw, Skipped
from vit.foundation import UserError, nearest

MASK_SIDE = 224  # pixels of the squashed masks, as most published localisation scores have them
_BOX = ("x0", "y0", "x1", "y1")
_COLUMNS = ("image", "mask", *_BOX, "label", "group")

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Annotation:
    """What is known of a photo.

    Args:
        mask: file of its mask image.
        boxes: (x0, y0, x1, y1) around its objects, in pixels of the upright photo.
        label, group: its true class, and what it belongs to; empty when nothing is said.
    """

    mask: Path | None = None
    boxes: tuple[Box, ...] = ()
    label: str = ""
    group: str = ""


def find_annotations(source: str | os.PathLike[str], files: Sequence[ImageFile]) -> list[Annotation | None]:
    """What `source`, a folder of masks or a CSV, says of each photo; None where it says nothing.

    Raises:
        UserError: there is no such source, or it is not made as described above, or fits none of the photos.
    """
    path = Path(source)
    if path.is_dir():
        found = _in_folder(path, files)
    elif path.is_file():
        found = _in_csv(path, files)
    else:
        beside = [place.name for place in path.absolute().parent.iterdir()] if path.absolute().parent.is_dir() else []
        hint = nearest(path.name, beside)
        raise UserError(f"There are no masks {printable(path)}{hint}.\nGive a folder of mask images, or a CSV.")
    if not any(found):
        raise UserError(
            f"{printable(path)} fits none of the {len(files)} images, such as {printable(files[0].relative)}.\n"
            "Mask images have the photos' names, or their places below the folder; a CSV has them as `image`."
        )
    return found


def labels_and_groups(
    files: Sequence[ImageFile], annotations: Sequence[Annotation | None] | None
) -> tuple[list[str], list[str] | None]:
    """What each photo's class is said to be: by its annotation, else by the name of its folder; and the group of each,
    itself where its annotation has none. No groups at all when no annotation has one."""
    known = annotations or [None] * len(files)
    labels = [
        each.label if each and each.label else file.path.parent.name for file, each in zip(files, known, strict=True)
    ]
    if not any(each and each.group for each in known):
        return labels, None
    groups = [each.group if each and each.group else str(file.path) for file, each in zip(files, known, strict=True)]
    return labels, groups


class MarkedImages(ImageFiles):
    """Listed photos, squashed, with what is known of each.

    An item is that of `ImageFiles`, with `target` int, and, where there are annotations, `mask` bool (MASK_SIDE,
    MASK_SIDE), squashed as the photo is; or Skipped, when the photo or its mask can't be read.

    Args:
        files: the photos.
        annotations: of each, as `find_annotations` gives them; None when there are no masks.
        targets: index of the true class of each; -1 where it is not known.
        image_size, mean, std, keywords: as of `ImageFiles`.
    """

    def __init__(
        self,
        files: Sequence[ImageFile],
        annotations: Sequence[Annotation | None] | None,
        targets: Sequence[int],
        image_size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        **keywords: Any,
    ) -> None:
        super().__init__(files, image_size, mean, std, **keywords)
        self.annotations = annotations
        self.targets = list(targets)

    def __getitem__(self, draw: Draw | int) -> dict[str, Any] | Skipped:
        item = super().__getitem__(draw)
        if isinstance(item, Skipped):
            return item
        index = item["index"]
        item["target"] = self.targets[index]
        if self.annotations is None:
            return item
        try:
            item["mask"] = torch.from_numpy(read_mask(self.annotations[index], item["size"]))
        except UnreadableImage as error:
            return Skipped(printable(self.files[index].path), f"its mask can't be used: {error}")
        except _Unusable as error:
            return Skipped(printable(self.files[index].path), str(error))
        return item

    def empty_batch(self) -> dict[str, Any]:
        """A batch of no photos."""
        empty = super().empty_batch() | {"target": torch.empty(0, dtype=torch.int64)}
        if self.annotations is not None:
            empty["mask"] = torch.empty(0, MASK_SIDE, MASK_SIDE, dtype=torch.bool)
        return empty


class _Unusable(Exception):
    pass


def read_mask(annotation: Annotation | None, size: tuple[int, int]) -> np.ndarray:
    """bool (MASK_SIDE, MASK_SIDE), True on the object of a photo of `size` (img_h, img_w).

    Raises:
        UnreadableImage: the mask image is no image.
        _Unusable: there is no mask, or it is of other proportions, or has no object.
    """
    if annotation is None:
        raise _Unusable("no mask is given for it")
    mask = _from_boxes(annotation.boxes, size) if annotation.mask is None else _from_image(annotation.mask, size)
    if not mask.any():
        raise _Unusable(f"its mask has no object, or none that is left at {MASK_SIDE} x {MASK_SIDE} pixels")
    return mask


def _from_image(path: Path, size: tuple[int, int]) -> np.ndarray:
    photo = read_photo(path)
    (mask_h, mask_w), (img_h, img_w) = photo.size, size
    # A pixel more or less, at either of the two sizes, is rounding.
    if abs(mask_h * img_w - mask_w * img_h) > 2 * max(mask_h + mask_w, img_h + img_w):
        raise _Unusable(f"its mask is {mask_w} x {mask_h} pixels, and the photo {img_w} x {img_h}")
    bright = photo.image.max(axis=2)
    with Image.open(path, formats=formats()) as file:  # read_photo has found it to be a sound image
        palette = file.mode == "P"
        levels, black = _stored_levels(file) if file.mode[0] in "IF" else (bright, 0)
    two_values = np.all((levels == levels.min()) | (levels == levels.max()))
    inside = levels != black if palette or two_values else bright >= 128
    squashed = Image.fromarray(inside.astype(np.uint8)).resize((MASK_SIDE, MASK_SIDE), Image.Resampling.NEAREST)
    return np.asarray(squashed).astype(bool)


def _stored_levels(file: Image.Image) -> tuple[np.ndarray, float]:
    """The numbers (img_h, img_w) of a picture of 16 bits or more, and the one that is black. In the 8 bits that
    photos are read to, the 1 or 100 of a mask would be black, too."""
    levels = np.asarray(file)  # loads it; only then a TIFF's orientation is known
    return upright(levels, orientation_of(file)), black_and_white(file)[0]


def _from_boxes(boxes: Iterable[Box], size: tuple[int, int]) -> np.ndarray:
    """A pixel is inside when its middle is."""
    mask = np.zeros((MASK_SIDE, MASK_SIDE), bool)
    y = (np.arange(MASK_SIDE) + 0.5) * size[0] / MASK_SIDE
    x = (np.arange(MASK_SIDE) + 0.5) * size[1] / MASK_SIDE
    for x0, y0, x1, y1 in boxes:
        mask |= ((y >= y0) & (y < y1))[:, None] & ((x >= x0) & (x < x1))
    return mask


def _in_folder(folder: Path, files: Sequence[ImageFile]) -> list[Annotation | None]:
    masks = [Path(path) for path in find_images(folder)]
    base = folder.absolute()
    places = {_stem(path.relative_to(base)): path for path in masks}
    names = {path.stem: path for path in masks}
    masks_of, photos_of = Counter(path.stem for path in masks), Counter(file.path.stem for file in files)
    found: list[Annotation | None] = []
    for file in files:
        name = file.path.stem
        path = places.get(_stem(file.relative))
        if path is None and masks_of[name] == photos_of[name] == 1:
            path = names[name]
        found.append(None if path is None else Annotation(path))
    return found


def _stem(path: Path) -> str:
    return path.with_suffix("").as_posix()


def _in_csv(path: Path, files: Sequence[ImageFile]) -> list[Annotation | None]:
    rows = _read_csv(path)
    places: dict[str, int] = {}
    names = Counter(file.path.name for file in files)
    for number, file in enumerate(files):
        places[str(file.path)] = number
        places.setdefault(file.relative.as_posix(), number)
        if names[file.path.name] == 1:
            places.setdefault(file.path.name, number)
    folder = path.absolute().parent
    found: list[Annotation | None] = [None] * len(files)
    for line, row in rows:
        beside = os.path.abspath(folder / row["image"])  # noqa: PTH100 (links stay, as in the list of photos)
        here = places.get(beside, places.get(row["image"]))
        if here is None:  # a table may well tell of more photos than are scored
            continue
        said = Annotation(
            mask=folder / row["mask"] if row.get("mask") else None,
            boxes=(_box(row, path, line),) if any(row.get(side) for side in _BOX) else (),
            label=row.get("label", ""),
            group=row.get("group", ""),
        )
        before = found[here]
        found[here] = said if before is None else _joined(before, said, path, line)
    return found


def _joined(before: Annotation, said: Annotation, path: Path, line: int) -> Annotation:
    """Two rows of one photo: their boxes together."""
    joined = replace(said, boxes=before.boxes + said.boxes)
    if replace(joined, boxes=()) != replace(before, boxes=()):
        raise UserError(
            f"{printable(path)}, line {line}: another mask, label or group than before for the same image.\n"
            "An image has one of each; only boxes may take several rows."
        )
    return joined


def _box(row: dict[str, str], path: Path, line: int) -> Box:
    try:
        x0, y0, x1, y1 = (float(row.get(side) or "nan") for side in _BOX)
    except ValueError:
        x0 = y0 = x1 = y1 = math.nan
    if not (x0 < x1 < math.inf and y0 < y1 < math.inf):
        given = ", ".join(row.get(side) or "nothing" for side in _BOX)
        raise UserError(f"{printable(path)}, line {line}: the box {given}.\nx1 must be above x0, and y1 above y0.")
    return x0, y0, x1, y1


def _read_csv(path: Path) -> list[tuple[int, dict[str, str]]]:
    """(line, row) of all that is there, its known columns in plain letters."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            columns = {name: name.strip().lower() for name in reader.fieldnames or () if name}
            rows = [
                (reader.line_num, {columns[name]: cell.strip() for name, cell in row.items() if name in columns})
                for row in reader
            ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{printable(path)} can't be read as a CSV: {error}.") from None
    known = set(columns.values())
    if "image" not in known or not ("mask" in known or known.issuperset(_BOX)):
        there = ", ".join(columns.values()) or "none"
        raise UserError(
            f"{printable(path)} has the columns {there[:200]}.\n"
            "Wanted are image and mask, or image, x0, y0, x1, y1; and where there are any, label and group."
        )
    return [(line, {name: row[name] for name in _COLUMNS if name in row}) for line, row in rows]

"""Photographs with the object marked by mask images, or by boxes in a CSV, to score saliency maps against.

    a folder    mask images, each with the relative path of its photo (MASKS/a/x.png for PHOTOS/a/x.jpg), or with its
                name (without suffix), if just one mask and one photo have that name
    a CSV       one row per photo with the columns image and mask, or one row per box with image, x0, y0, x1, y1: pixels
                of the upright photo, x1 and y1 just outside the object. Optional columns: label, the true class as
                one of the model's labels or its index; group, for photos that belong together, such as video frames

Paths in a CSV are relative to its folder; a photo may also be given by its path below the folder of the photos, or by
its name if only one photo has it.

A mask has the size of its photo, or at least its proportions. In an image with only two values, or with a palette,
everything that is not black is the object, however dark; otherwise everything at least half bright is, so that soft
edges are cut in the middle.
"""

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
from datamodules.manifest import open_csv
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

MASK_SIDE = 224  # side of the squashed masks in pixels, as in most published localisation scores
_BOX = ("x0", "y0", "x1", "y1")
_COLUMNS = ("image", "mask", *_BOX, "label", "group")
_WANTED = "It needs image and mask, or image, x0, y0, x1, y1; optional are label and group."

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Annotation:
    """What is known about a photo.

    Args:
        mask: path of its mask image.
        boxes: (x0, y0, x1, y1) around its objects, in pixels of the upright photo.
        label, group: its true class, and the group that it belongs to; empty if not given.
    """

    mask: Path | None = None
    boxes: tuple[Box, ...] = ()
    label: str = ""
    group: str = ""


def find_annotations(source: str | os.PathLike[str], files: Sequence[ImageFile]) -> list[Annotation | None]:
    """The annotation of each photo in `source`, a folder of masks or a CSV; None for photos without one.

    Raises:
        UserError: there is no such source, it is not as described above, or it fits none of the photos.
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
            "Masks need the photos' names or relative paths; a CSV needs them in its column `image`."
        )
    return found


def labels_and_groups(
    files: Sequence[ImageFile], annotations: Sequence[Annotation | None] | None
) -> tuple[list[str], list[str] | None]:
    """(The label of each photo, by its annotation or else the name of its folder; the group of each photo, its own path
    if its annotation has none). The groups are None if no annotation has one."""
    known = annotations or [None] * len(files)
    labels = [
        each.label if each and each.label else file.path.parent.name for file, each in zip(files, known, strict=True)
    ]
    if not any(each and each.group for each in known):
        return labels, None
    groups = [each.group if each and each.group else str(file.path) for file, each in zip(files, known, strict=True)]
    return labels, groups


class MarkedImages(ImageFiles):
    """Listed photos, squashed, with their masks and targets.

    An item is that of `ImageFiles`, with `target` int, and, if there are annotations, `mask` bool (MASK_SIDE,
    MASK_SIDE), squashed like the photo; or Skipped, when the photo or its mask can't be read.

    Args:
        files: the photos.
        annotations: those of the photos, as `find_annotations` returns them; None for items without masks.
        targets: index of the true class of each photo; -1 if it is not known.
        image_size, mean, std, keywords: as for `ImageFiles`.
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
        """A batch without photos."""
        empty = super().empty_batch() | {"target": torch.empty(0, dtype=torch.int64)}
        if self.annotations is not None:
            empty["mask"] = torch.empty(0, MASK_SIDE, MASK_SIDE, dtype=torch.bool)
        return empty


class _Unusable(Exception):
    pass


def read_mask(annotation: Annotation | None, size: tuple[int, int]) -> np.ndarray:
    """bool (MASK_SIDE, MASK_SIDE), True on the object of a photo of `size` (img_h, img_w).

    Raises:
        UnreadableImage: the mask image can't be read.
        _Unusable: there is no mask, it has other proportions than the photo, or it has no object.
    """
    if annotation is None:
        raise _Unusable("it has no mask")
    mask = _from_boxes(annotation.boxes, size) if annotation.mask is None else _from_image(annotation.mask, size)
    if not mask.any():
        raise _Unusable(f"its mask has no object, or one too small to be seen at {MASK_SIDE} x {MASK_SIDE} pixels")
    return mask


def _from_image(path: Path, size: tuple[int, int]) -> np.ndarray:
    photo = read_photo(path)
    (mask_h, mask_w), (img_h, img_w) = photo.size, size
    # One pixel more or less, in either size, is rounding.
    if abs(mask_h * img_w - mask_w * img_h) > 2 * max(mask_h + mask_w, img_h + img_w):
        raise _Unusable(f"its mask is {mask_w} x {mask_h} pixels, but the photo is {img_w} x {img_h}")
    bright = photo.image.max(axis=2)
    with Image.open(path, formats=formats()) as file:  # read_photo has checked that it is a valid image
        palette = file.mode == "P"
        levels, black = _stored_levels(file) if file.mode[0] in "IF" else (bright, 0)
    two_values = np.all((levels == levels.min()) | (levels == levels.max()))
    inside = levels != black if palette or two_values else bright >= 128
    squashed = Image.fromarray(inside.astype(np.uint8)).resize((MASK_SIDE, MASK_SIDE), Image.Resampling.NEAREST)
    return np.asarray(squashed).astype(bool)


def _stored_levels(file: Image.Image) -> tuple[np.ndarray, float]:
    """The stored values (img_h, img_w) of an image with 16 or more bits, and the one that is black. Converted to 8
    bits, as photos are, mask values such as 1 or 100 would become black as well."""
    levels = np.asarray(file)  # loads it; only then is a TIFF's orientation known
    return upright(levels, orientation_of(file)), black_and_white(file)[0]


def _from_boxes(boxes: Iterable[Box], size: tuple[int, int]) -> np.ndarray:
    """A mask from boxes; a pixel is inside if its centre is."""
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
        if here is None:  # a table may well list more photos than are scored
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
    """The annotation from two rows about one photo: their boxes are combined."""
    joined = replace(said, boxes=before.boxes + said.boxes)
    if replace(joined, boxes=()) != replace(before, boxes=()):
        raise UserError(
            f"{printable(path)}, line {line}: a second mask, label or group for the same image.\n"
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
        raise UserError(f"{printable(path)}, line {line}: invalid box {given}.\nx1 must be above x0, and y1 above y0.")
    return x0, y0, x1, y1


def _read_csv(path: Path) -> list[tuple[int, dict[str, str]]]:
    """(line, row) of every row; missing cells are empty."""
    with open_csv(path, _WANTED) as rows:
        known = {name for name in rows.fieldnames or () if name}
        if "image" not in known or not ("mask" in known or known.issuperset(_BOX)):
            there = ", ".join(filter(None, rows.fieldnames or ())) or "none"
            raise UserError(f"{printable(path)} has the columns {there[:200]}.\n{_WANTED}")
        columns = [name for name in _COLUMNS if name in known]
        return [(rows.line_num, {name: (row[name] or "").strip() for name in columns}) for row in rows]

"""Photographs without labels: found in files, folders and globs, named for the output tree, read in
batches."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from datamodules.reading import FORMATS, SUFFIXES, UnreadableImage, formats, printable, read_photo
from datamodules.sampling import Draw, SampleLoader, Skipped, evenly, image_batch, sample_loader
from datamodules.transforms import Interpolation, ResizeMode, eval_transform
from vit.foundation import UserError, nearest

Name = TypeVar("Name", str, Path)

_HEIC = (".heic", ".heif")


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One photo to process.

    Args:
        path: absolute.
        relative: below the folder that all the arguments share; never has `..` in it.
        output_stem: `relative` without its suffix, or with it where two photos would share the stem. Unique
            in its list: add a suffix, and two photos never write the same file.
    """

    path: Path
    relative: Path
    output_stem: Path


def list_images(
    arguments: Sequence[str | os.PathLike[str]],
    *,
    limit: int | None = None,
    elsewhere: Iterable[str | os.PathLike[str]] = (),
) -> list[ImageFile]:
    """The photos that files, folders (with all below them) and globs name, each once, in the arguments'
    order.

    A named file is taken whatever it is; from folders and globs, what has the suffix of an image.

    Args:
        limit: at most so many, spread evenly over all; their names are those that they have among all.
        elsewhere: folders, there or not, that a folder or glob around them is listed without, such as the one that
            is written to. What is named in them is taken all the same.

    Raises:
        UserError: an argument that does not exist, or names no images.
    """
    bases: set[str] = set()
    paths: dict[str, None] = {}
    apart = [Path(place).resolve() for place in elsewhere if Path(place).is_dir()]
    for argument in arguments:
        base, found = _expand(os.fspath(argument), apart)
        bases.add(base)
        paths.update(dict.fromkeys(found))
    if not paths:
        raise UserError("No images were named.\nGive files, folders or globs such as 'photos/*.jpg'.")
    refuse_heic(paths)
    base = os.path.commonpath(bases)
    relatives = [os.path.relpath(path, base) for path in paths]
    stems = unique_stems([os.path.splitext(relative)[0] for relative in relatives], relatives)  # noqa: PTH122
    files = [
        ImageFile(Path(path), Path(relative), Path(stem))
        for path, relative, stem in zip(paths, relatives, stems, strict=True)
    ]
    return [files[place] for place in evenly(len(files), limit)]


def find_images(folder: str | os.PathLike[str], elsewhere: Iterable[str | os.PathLike[str]] = ()) -> list[str]:
    """Absolute paths of all that has an image's suffix below `folder`, sorted by path.

    Hidden names and the leavings of archives and notebooks are passed over. Links to folders are followed
    after the real folders, each folder once, and never into a folder that holds `folder` or is in
    `elsewhere`.
    """
    start = Path(folder).absolute()
    seen = {_identity(place) for place in (*start.resolve().parents, *elsewhere)}
    found: list[str] = []
    links: list[str] = []
    pending = [str(start)]
    while pending or links:
        place = pending.pop() if pending else links.pop(0)
        if (identity := _identity(place)) in seen:
            continue
        seen.add(identity)
        for entry in _entries(place):
            if is_ignored(entry.name):
                continue
            if has_image_suffix(entry.name):
                found.append(entry.path)  # a folder of such a name too: it is skipped with a reason when read
            elif entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
            elif os.path.isdir(entry.path):  # noqa: PTH112
                links.append(entry.path)
    return sorted(found)


def is_ignored(name: str) -> bool:
    """Whether a file or folder of this name is none of the user's photos."""
    return name.startswith(".") or name == "__MACOSX"


def has_image_suffix(name: str) -> bool:
    """Whether the name ends as an image's does, in either case."""
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122


def refuse_heic(paths: Iterable[str]) -> None:
    """Raises UserError when there are HEIC photos and no plugin that reads them."""
    if formats() != FORMATS:
        return
    heic = [path for path in paths if path.lower().endswith(_HEIC)]
    if heic:
        raise UserError(
            f"{len(heic)} HEIC photos can't be read, the first is {printable(heic[0])}.\n"
            "Install the plugin for them with: pip install pillow-heif"
        )


class ImageFiles(Dataset):
    """Listed photos with the transform of evaluation.

    An item is a dict of `image` float32 (3, h, w), `index` int, `size` (img_h, img_w) of the whole upright
    photo and, where there is a `photo_side`, `photo` uint8 (h, w, 3), upright and shrunk to have no longer
    side; or Skipped, for a file that can't be read.
    """

    def __init__(
        self,
        files: Sequence[ImageFile],
        image_size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        *,
        crop_pct: float = 1.0,
        resize_mode: ResizeMode = "squash",
        interpolation: Interpolation = "bicubic",
        photo_side: int | None = None,
    ) -> None:
        self.files = list(files)
        self.image_size = image_size
        self.photo_side = photo_side
        self.transform = eval_transform(
            image_size, mean, std, crop_pct=crop_pct, resize_mode=resize_mode, interpolation=interpolation
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, draw: Draw | int) -> dict[str, Any] | Skipped:
        index = draw.index if isinstance(draw, Draw) else draw
        try:
            photo = read_photo(self.files[index].path, min_size=self.transform.min_size)
        except UnreadableImage as error:
            return Skipped(error.path, error.reason)
        item = {"image": self.transform(photo.image), "index": index, "size": photo.size, "note": photo.note}
        if self.photo_side is not None:
            item["photo"] = torch.from_numpy(_shrunk(photo.image, self.photo_side))
        return item

    def empty_batch(self) -> dict[str, Any]:
        """A batch of no photos."""
        lists: dict[str, Any] = {"size": [], "photo": []} if self.photo_side is not None else {"size": []}
        return image_batch(self.image_size) | lists

    def loader(self, batch_size: int, num_workers: int = -1, *, strict: bool = False) -> SampleLoader:
        """Batches in the order of the list; `strict` raises UserError at the first photo that is skipped."""
        return sample_loader(self, self.empty_batch(), batch_size=batch_size, num_workers=num_workers, strict=strict)


def _shrunk(image: np.ndarray, longest: int) -> np.ndarray:
    """The image, its longer side `longest` at most: what a picture of it needs, and cheap to hand on."""
    scale = longest / max(image.shape[:2])
    if scale >= 1:
        return image
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def _expand(argument: str, apart: list[Path]) -> tuple[str, list[str]]:
    """(base folder, absolute paths) of one argument, less what it has in the resolved folders `apart`. An existing
    name is never read as a glob."""
    path = os.path.abspath(argument)  # noqa: PTH100
    if Path(path).is_dir():
        base, found = path, find_images(path, [place for place in apart if not _is_within(path, [place])])
    elif os.path.lexists(path):
        return str(Path(path).parent), [path]
    elif glob.has_magic(argument):
        base, found = _expand_glob(path, apart)
    else:
        raise UserError(_missing(path))
    if not found:
        raise UserError(
            f"{printable(argument)} holds no images.\nAn image ends in one of: {' '.join(sorted(SUFFIXES))}."
        )
    return base, found


def _expand_glob(pattern: str, apart: list[Path]) -> tuple[str, list[str]]:
    base = Path(pattern)
    while glob.has_magic(str(base)):
        base = base.parent
    apart = [place for place in apart if not _is_within(base, [place])]
    found: dict[str, None] = {}
    for match in sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207
        if any(is_ignored(part) for part in Path(match).relative_to(base).parts):
            continue
        is_folder = Path(match).is_dir()
        if _is_within(match if is_folder else Path(match).parent, apart):
            continue
        if is_folder:
            found.update(dict.fromkeys(find_images(match, apart)))
        elif has_image_suffix(match):
            found[match] = None
    return str(base), list(found)


def _is_within(folder: str | os.PathLike[str], places: list[Path]) -> bool:
    """Whether the folder is one of the resolved places, or below one."""
    return bool(places) and any(map(Path(folder).resolve().is_relative_to, places))


def _missing(path: str) -> str:
    """The message for a path that does not exist, with the nearest name beside the first part that is
    missing."""
    missing = Path(path)
    while not missing.parent.is_dir():
        missing = missing.parent
    hint = nearest(missing.name, [place.name for place in missing.parent.iterdir()])
    return f"There is no {printable(path)}{hint}.\nGive files, folders or globs such as 'photos/*.jpg'."


def unique_stems(stems: Iterable[Name], relatives: Sequence[Name]) -> list[Name]:
    """The stem of each path, or the path whole where that is not unique. The paths are unique, so this ends."""
    stems = list(stems)
    while True:  # a path with its suffix may be the stem of one more
        count = Counter(stems)
        clashing = [n for n, stem in enumerate(stems) if count[stem] > 1 and stem != relatives[n]]
        if not clashing:
            return stems
        for n in clashing:
            stems[n] = relatives[n]


def _identity(place: str | os.PathLike[str]) -> tuple[int, int]:
    status = Path(place).stat()
    return status.st_dev, status.st_ino


def _entries(place: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(place) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"Can't list the folder {printable(place)}: {error.strerror}.") from None

"""Photographs without labels: found by files, folders and globs, named for the output tree, and read in batches."""

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
        relative: path below the common folder of all arguments; never contains `..`.
        output_stem: `relative` without its suffix, or with it if two photos would have the same stem. Unique in its
            list, so that output files named after it never collide.
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
    """The photos that files, folders (searched recursively) and globs name, each once, in the arguments' order.

    Explicitly named files are always included; from folders and globs, only files with the suffix of an image.

    Args:
        limit: at most this many photos, spread evenly over all; their names are the same as without a limit.
        elsewhere: folders, existing or not, to leave out when a folder or glob around them is listed, such as the
            output folder. Files in them that are named explicitly are included all the same.

    Raises:
        UserError: an argument does not exist or names no images, a folder can't be listed, there are HEIC photos but no
            plugin for them, or the limit is below 1.
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
    """Absolute paths of everything below `folder` with the suffix of an image, sorted by path.

    Hidden files and folders and `__MACOSX` are ignored. Links to folders are followed after the real folders, each
    folder once, and never into a folder that contains `folder` or is in `elsewhere`.

    Raises:
        UserError: when a folder can't be listed.
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
                found.append(entry.path)  # also a folder with such a name: it is skipped with a reason when read
            elif entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
            elif os.path.isdir(entry.path):  # noqa: PTH112
                links.append(entry.path)
    return sorted(found)


def is_ignored(name: str) -> bool:
    """Whether a file or folder with this name is ignored, because it is not one of the user's photos."""
    return name.startswith(".") or name == "__MACOSX"


def has_image_suffix(name: str) -> bool:
    """Whether the name ends with the suffix of an image, in upper or lower case."""
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122


def refuse_heic(paths: Iterable[str]) -> None:
    """Raises UserError when there are HEIC photos but no plugin to read them."""
    if formats() != FORMATS:
        return
    heic = [path for path in paths if path.lower().endswith(_HEIC)]
    if heic:
        raise UserError(
            f"{len(heic)} HEIC photos can't be read; the first is {printable(heic[0])}.\n"
            "Install the plugin for them: pip install pillow-heif"
        )


class ImageFiles(Dataset):
    """Listed photos with the transform of evaluation.

    An item is a dict of `image` float32 (3, h, w), `index` int, `size` (img_h, img_w) of the whole upright photo and,
    if there is a `photo_side`, `photo` uint8 (photo_h, photo_w, 3), upright and shrunk so that its longer side has at
    most that many pixels; or Skipped, for a file that can't be read.

    Args:
        files: the photos, as `list_images` returns them.
        image_size: (h, w) of the model.
        mean, std: of the three channels, for values 0 to 1.
        crop_pct, resize_mode, interpolation: see `eval_transform`.
        photo_side: largest side of `photo` in pixels; None leaves `photo` out.

    Raises:
        UserError: for an unknown interpolation.
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
        """A batch without photos."""
        lists: dict[str, Any] = {"size": [], "photo": []} if self.photo_side is not None else {"size": []}
        return image_batch(self.image_size) | lists

    def loader(self, batch_size: int, num_workers: int = -1, *, strict: bool = False) -> SampleLoader:
        """Batches in the order of the list; if `strict`, iterating raises UserError at the first skipped photo."""
        return sample_loader(self, self.empty_batch(), batch_size=batch_size, num_workers=num_workers, strict=strict)


def _shrunk(image: np.ndarray, longest: int) -> np.ndarray:
    """The image, shrunk so that its longer side is at most `longest`: enough for display, and cheap to pass on."""
    scale = longest / max(image.shape[:2])
    if scale >= 1:
        return image
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def _expand(argument: str, apart: list[Path]) -> tuple[str, list[str]]:
    """(base folder, absolute paths) of one argument, without what is in the resolved folders `apart`. The name of an
    existing file or folder is never read as a glob."""
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
            f"{printable(argument)} holds no images.\nNames of images end in: {' '.join(sorted(SUFFIXES))}."
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
    """Whether the folder is one of the resolved places, or below one of them."""
    return bool(places) and any(map(Path(folder).resolve().is_relative_to, places))


def _missing(path: str) -> str:
    """The message for a path that does not exist, with a similar name beside its first missing part."""
    missing = Path(path)
    while not missing.parent.is_dir():
        missing = missing.parent
    hint = nearest(missing.name, [place.name for place in missing.parent.iterdir()])
    return f"There is no {printable(path)}{hint}.\nGive files, folders or globs such as 'photos/*.jpg'."


def unique_stems(stems: Iterable[Name], relatives: Sequence[Name]) -> list[Name]:
    """The stem of each path, or the whole path if the stem is not unique. The paths are unique, so this terminates."""
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

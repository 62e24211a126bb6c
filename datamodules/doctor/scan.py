"""Reads every image once, with several processes, and keeps a few hundred bytes about each."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import cv2
import numpy as np
from torch.utils.data import Dataset

from datamodules.doctor.duplicates import THUMB, perceptual_hash, thumbnail
from datamodules.reading import UnreadableImage, read_photo
from datamodules.sampling import Draw, sample_loader

_BATCH = 64
# Enough to recognise blank images and to hash; large JPEGs are decoded at down to 1/8 size, but all bytes are read.
_MIN_SIZE = (64, 64)


class Look(NamedTuple):
    """What is known about one image after reading it. An image without a `reason` is readable."""

    reason: str
    size: tuple[int, int] = (0, 0)  # img_h, img_w
    file_bytes: int = 0
    kind: str = ""  # format and mode, such as JPEG RGB
    frames: bool = False  # whether there are further frames
    contrast: float = 0.0  # standard deviation of grey, 0 to 127.5
    content: int = 0  # hash of the file's bytes
    looks: int = 0  # perceptual hash
    thumb: np.ndarray | None = None


@dataclass
class Scan:
    """What is known about all images, one row each, in the order of the listing.

    Args:
        reasons: why images can't be read, by index.
        sizes: (images, 2) int32, img_h and img_w; 0 for the unreadable.
        file_bytes: (images,) int64.
        kinds: (images,) uint8, an index into `kind_names`.
        kind_names: formats and modes, such as JPEG RGB, in the order in which they were found.
        frames: (images,) bool, whether there are further frames.
        contrast: (images,) float32, standard deviation of grey.
        content: (images,) uint64, hash of the file's bytes.
        looks: (images,) uint64, perceptual hash.
        thumbs: (images, THUMB) uint8.
        seconds: duration of the scan.
    """

    reasons: dict[int, str]
    sizes: np.ndarray
    file_bytes: np.ndarray
    kinds: np.ndarray
    kind_names: list[str]
    frames: np.ndarray
    contrast: np.ndarray
    content: np.ndarray
    looks: np.ndarray
    thumbs: np.ndarray
    seconds: float = 0.0

    @classmethod
    def empty(cls, count: int) -> "Scan":
        """For images that have not been read yet."""
        return cls(
            reasons={},
            sizes=np.zeros((count, 2), np.int32),
            file_bytes=np.zeros(count, np.int64),
            kinds=np.zeros(count, np.uint8),
            kind_names=[],
            frames=np.zeros(count, bool),
            contrast=np.zeros(count, np.float32),
            content=np.zeros(count, np.uint64),
            looks=np.zeros(count, np.uint64),
            thumbs=np.zeros((count, THUMB), np.uint8),
        )

    @property
    def readable(self) -> np.ndarray:
        """(images,) bool."""
        return self.sizes[:, 0] > 0

    def kind(self, image: int) -> str:
        """The format and mode of a readable image."""
        return self.kind_names[self.kinds[image]]

    def put(self, image: int, look: Look) -> None:
        """Stores what is known about one image."""
        if look.reason:
            self.reasons[image] = look.reason
            return
        if look.kind not in self.kind_names:
            self.kind_names.append(look.kind)
        self.kinds[image] = self.kind_names.index(look.kind)
        self.sizes[image] = look.size
        for name in ("file_bytes", "frames", "contrast", "content", "looks"):
            getattr(self, name)[image] = getattr(look, name)
        self.thumbs[image] = look.thumb


def look_at(path: str | os.PathLike[str]) -> Look:
    """Reads one image file; never raises, whatever the file is."""
    try:
        photo = read_photo(path, min_size=_MIN_SIZE)
        content, file_bytes = _content(path)
    except UnreadableImage as error:
        return Look(error.reason)
    except OSError as error:  # removed in the meantime
        return Look(error.strerror or "can't be read")
    grey = cv2.cvtColor(photo.image, cv2.COLOR_RGB2GRAY)
    return Look(
        "",
        photo.size,
        file_bytes,
        photo.kind,
        bool(photo.note),
        float(grey.std()),
        content,
        perceptual_hash(grey),
        thumbnail(photo.image),
    )


def scan(paths: Sequence[str], found: Scan, num_workers: int = -1) -> Iterator[int]:
    """Reads all images into `found`, which starts empty; yields the number of images in each batch read.

    Args:
        paths: paths of one or more images.
        num_workers: reading processes; -1 uses all cores but one, at most 8.
    """
    began = perf_counter()
    loader = sample_loader(_Looks(paths), {"look": []}, batch_size=_BATCH, num_workers=num_workers)
    for batch in loader:
        for image, look in zip(batch["index"].tolist(), batch["look"], strict=True):
            found.put(image, look)
        found.seconds = perf_counter() - began
        yield len(batch["look"])


class _Looks(Dataset):
    """An item is a dict of `look` and `index`."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        return {"look": look_at(self.paths[draw.index]), "index": draw.index}


def _content(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(hash, count) of the file's bytes."""
    digest, count = blake2b(digest_size=8), 0
    with Path(path).open("rb") as file:
        while block := file.read(1 << 18):
            digest.update(block)
            count += len(block)
    return int.from_bytes(digest.digest(), "big"), count

"""Decoded photographs on disk, for data sets that are read many times.

The cache stores the exact pixels that the reader and the fixed part of a transform return, so nothing changes
numerically:

    for training      the photo as decoded for the training crop: a JPEG at the smallest of 1, 1/2, 1/4 and 1/8 of its
                      size that the smallest crop needs, anything else whole
    for evaluation    the photo resized (and cropped) to the model's size

The key of an entry is the file's path, size and time of change, and what was done to it, so a photo that changed gets a
new entry. Entries are written atomically, by any number of processes at once, and have a checksum: a damaged one is
replaced. A cache that is full, or can't be written, is only read.
"""

import logging
import multiprocessing
import struct
import time
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import numpy as np
from isal import isal_zlib

from datamodules.reading import MAX_PIXELS, Photo, printable
from vit.foundation import UserError, atomic_write

log = logging.getLogger("vit.data")

_HEADER = struct.Struct("<8s4I2HI")  # magic, h and w of the pixels, h and w of the whole photo, two lengths, checksum
_MAGIC = b"vitphot1"
_SUFFIX = ".photo"
_STALE = 3600.0  # seconds after which a half-written file must be the leftover of a killed process
_RECOUNT = 1000  # files written before checking again what other runs wrote


class PhotoCache:
    """A cache of decoded photos.

    Args:
        folder: created if it does not exist.
        limit: maximum size in bytes; simultaneous runs may exceed it by what each writes between two counts.

    Raises:
        UserError: the folder can't be created or written to.
    """

    def __init__(self, folder: str | Path, limit: float) -> None:
        self.folder = Path(folder).absolute()
        self.limit = limit
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Backup programs ignore a folder with this file (bford.info/cachedir).
            (self.folder / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n")
        except OSError as error:
            raise UserError(
                f"Can't create the cache {printable(folder)}: {error.strerror}.\nGive --data.cache another folder."
            ) from None
        context = multiprocessing.get_context()
        self._bytes = context.Value("q", self._count())  # shared with the reading processes
        self._written = context.Value("q", 0)
        self._told = False

    def photo(self, source: bytes, recipe: str, make: Callable[[], Photo]) -> Photo:
        """The photo that `make` returns, from the cache or made now.

        Args:
            source: key that distinguishes this file in its present state from all others.
            recipe: what `make` does to it.
            make: reads the photo.
        """
        name = blake2b(source + b"\0" + recipe.encode(), digest_size=20).hexdigest()
        path = self.folder / name[:2] / (name[2:] + _SUFFIX)
        if (found := _read(path)) is not None:
            return found
        photo = make()
        self._write(path, photo)
        return photo

    def _write(self, path: Path, photo: Photo) -> None:
        note, kind = photo.note.encode("utf-8", "surrogateescape"), photo.kind.encode()
        pixels = np.ascontiguousarray(photo.image)
        body = note + kind + pixels.tobytes()
        head = _HEADER.pack(
            _MAGIC, *pixels.shape[:2], *photo.size, len(note), len(kind), isal_zlib.crc32(body)
        )  # fmt: skip
        if not self._room(len(head) + len(body)):
            return
        try:
            with atomic_write(path, sync=False) as temporary, temporary.open("wb") as file:
                file.write(head)
                file.write(body)
        except OSError as error:  # a cache is no reason to stop a run
            self._tell(error.strerror or "it can't be written")
            self._bytes.value = int(self.limit)

    def _room(self, size: int) -> bool:
        """Whether there is room for a file of this size; if so, it is counted."""
        with self._bytes.get_lock():
            if self._bytes.value + size > self.limit:
                self._tell("it is full (--data.cache_gb is its maximum size)")
                return False
            self._bytes.value += size
            self._written.value += 1
            if self._written.value % _RECOUNT == 0:
                self._bytes.value = max(self._bytes.value, self._count())
            return True

    def _tell(self, why: str) -> None:
        if not self._told:
            log.warning("The cache %s is only read from now on: %s.", printable(self.folder), why)
            self._told = True

    def _count(self) -> int:
        """The size of all entries in bytes. Removes half-written leftovers of killed processes."""
        total = 0
        for path in self.folder.glob(f"??/*{_SUFFIX}"):
            try:
                status = path.stat()
                if path.name.startswith(".") and status.st_mtime < time.time() - _STALE:
                    path.unlink()
                else:
                    total += status.st_size
            except OSError:  # another run has removed it
                continue
        return total


def _read(path: Path) -> Photo | None:
    """The photo of an entry, or None if the entry is missing or damaged."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER.size)
            if len(head) < _HEADER.size:
                return None
            magic, height, width, img_h, img_w, notes, kinds, checksum = _HEADER.unpack(head)
            if magic != _MAGIC or height * width > MAX_PIXELS:
                return None
            body = bytearray(notes + kinds + 3 * height * width)  # writable, like the reader's pixels
            if file.readinto(body) != len(body) or file.read(1):
                return None
    except OSError:
        return None
    if isal_zlib.crc32(body) != checksum:
        return None
    note, kind = bytes(body[:notes]).decode("utf-8", "surrogateescape"), bytes(body[notes : notes + kinds]).decode()
    pixels = np.frombuffer(body, np.uint8, offset=notes + kinds).reshape(height, width, 3)
    return Photo(pixels, (img_h, img_w), note, kind)

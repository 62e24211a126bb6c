"""The one reader of images against files that were damaged on purpose.

Real photographs in every format are damaged in ways that follow from a seed and a number: bits flipped, sizes and
offsets overwritten, pieces cut out, doubled, zeroed or taken from another file; a PNG's checksums are often mended
afterwards, so that the damage gets past them. And some are cut off at every offset. Each must give an image, or
`UnreadableImage` with the file's name and one line of reason. The reading is done in child processes with a limit of
memory; one that dies, or says nothing for some seconds, has found a fault.
"""

import argparse
import io
import os
import resource
import select
import shlex
import struct
import subprocess
import sys
import tempfile
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.photographs import write_scenes
from datamodules.reading import Photo, UnreadableImage, read_photo

MAX_PIXELS = 4_000_000
MEMORY = 400_000_000  # bytes that a child may take on top of what it has when it starts: 100 a pixel
SECONDS = 20.0  # without a word from a child, on a machine that is also busy otherwise


@dataclass
class Found:
    """What came of a run. `faults` are (number of the case, what happened)."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)  # by format and outcome
    reasons: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[int, str]] = field(default_factory=list)
    slowest: float = 0.0
    memory: float = 0.0  # MB, the most that reading added to a child

    @property
    def cases(self) -> int:
        return sum(self.outcomes.values()) + len(self.faults)


@cache
def originals(photos: Path, seed: int) -> list[tuple[str, bytes]]:
    """(name of a format and kind, the file's bytes) of photographs in every format, most of them small."""
    with tempfile.TemporaryDirectory() as name:
        if not photos.is_dir():
            photos = Path(name)
            write_scenes(photos, 4, size=160, seed=seed)
        paths = sorted(photos.rglob("*.jpg"))[:4]
        files = [("JPEG as found", path.read_bytes()) for path in paths]
        first, second = (Image.open(path).convert("RGB").resize((61, 43)) for path in paths[:2])
    exif = Image.Exif()
    exif[274] = 6
    grey16 = Image.fromarray(np.asarray(first.convert("L")).astype(np.uint16) * 257)
    real = Image.fromarray(np.asarray(first.convert("L")).astype(np.float32) / 255)
    clear = first.copy()
    clear.putalpha(second.convert("L"))
    frames = {"save_all": True, "append_images": [second.copy()]}
    kinds: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("JPEG", first, {"exif": exif}),
        ("JPEG", second, {"progressive": True, "subsampling": 0}),
        ("JPEG", first.convert("CMYK"), {}),
        ("JPEG", first.convert("L"), {}),
        ("MPO", first, frames),
        ("PNG", first, {"exif": exif}),
        ("PNG", clear, {}),
        ("PNG", second.quantize(13), {"transparency": 3}),
        ("PNG", grey16, {}),
        ("PNG", first.convert("1"), {}),
        ("PNG", first, frames),
        ("WEBP", first, {"exif": exif}),
        ("WEBP", clear, {"lossless": True}),
        ("WEBP", first, frames),
        ("TIFF", first, {"exif": exif}),
        *(("TIFF", first, {"compression": kind}) for kind in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")),
        ("TIFF", first.convert("1"), {"compression": "group4"}),
        ("TIFF", grey16, {"compression": "tiff_lzw"}),
        ("TIFF", real, {}),
        ("TIFF", clear, frames),
        ("BMP", first, {}),
        ("BMP", second.quantize(200), {}),
        ("BMP", first.convert("1"), {}),
        ("GIF", first.quantize(40), {}),
        ("GIF", first.quantize(40), {"save_all": True, "append_images": [second.quantize(40)], "transparency": 2}),
    ]
    for form, image, options in kinds:
        out = io.BytesIO()
        # Copies, because saving leaves one format's settings on an image.
        more = {"append_images": [frame.copy() for frame in options["append_images"]]} if "save_all" in options else {}
        image.copy().save(out, form, **options | more)
        files.append((f"{form} {image.mode}" + "".join(f" {name}" for name in options), out.getvalue()))
    return files


def truncations(files: Sequence[tuple[str, bytes]]) -> list[tuple[int, int]]:
    """(which file, how many bytes are left), for every length of the smallest file of each format."""
    smallest: dict[str, int] = {}
    for number, (name, raw) in enumerate(files):
        form = name.split()[0]
        if form not in smallest or len(raw) < len(files[smallest[form]][1]):
            smallest[form] = number
    return [(number, length) for number in smallest.values() for length in range(len(files[number][1]))]


def case(
    files: Sequence[tuple[str, bytes]], cuts: Sequence[tuple[int, int]], seed: int, number: int
) -> tuple[str, bytes]:
    """(format and kind, bytes) of case `number`: first the truncations, then mutations."""
    if number < len(cuts):
        which, length = cuts[number]
        return f"{files[which][0]}, cut", files[which][1][:length]
    rng = np.random.default_rng((seed, number))
    name, raw = files[int(rng.integers(len(files)))]
    other = files[int(rng.integers(len(files)))][1]
    data = bytearray(raw)
    for _ in range(int(rng.integers(1, 4))):
        MUTATIONS[int(rng.integers(len(MUTATIONS)))](data, other, rng)
    if name.startswith("PNG") and rng.random() < 0.8:
        _mend_checksums(data)
    return name, bytes(data)


def _place(data: bytearray, rng: np.random.Generator) -> int:
    """An offset; every other time in the first bytes, where formats keep their sizes and offsets."""
    return int(rng.integers(max(1, min(len(data), 200) if rng.random() < 0.5 else len(data))))


def _flip(data: bytearray, other: bytes, rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(1, 9))):
        if data:
            data[_place(data, rng)] ^= 1 << int(rng.integers(8))


def _overwrite(data: bytearray, other: bytes, rng: np.random.Generator) -> None:
    value = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]))
    size = int(rng.choice([1, 2, 4]))
    at = _place(data, rng)
    data[at : at + size] = struct.pack(str(rng.choice(["<I", ">I"])), value)[:size]


def _random(data: bytearray, other: bytes, rng: np.random.Generator) -> None:
    at, size = _place(data, rng), int(rng.integers(1, 33))
    data[at : at + size] = rng.bytes(size)


def _cut(data: bytearray, other: bytes, rng: np.random.Generator) -> None:
    at = _place(data, rng)
    del data[at : at + int(rng.integers(1, 200))]


def _double(data: bytearray, other: bytes, rng: np.random.Generator) -> None:
    at, size = _place(data, rng), int(rng.integers(1, 400))
    data[at:at] = data[at : at + size] * int(rng.integers(1, 20))


def _zero(data: bytearray, other: bytes, rng: np.random.Generator) -> None:
    at, size = _place(data, rng), int(rng.integers(1, 400))
    data[at : at + size] = bytes(len(data[at : at + size]))


def _splice(data: bytearray, other: bytes, rng: np.random.Generator) -> None:
    start = int(rng.integers(len(other)))
    data[_place(data, rng) :] = other[start:]


def _truncate(data: bytearray, other: bytes, rng: np.random.Generator) -> None:
    del data[int(rng.integers(len(data) + 1)) :]


MUTATIONS: list[Callable[[bytearray, bytes, np.random.Generator], None]] = [
    _flip, _flip, _overwrite, _overwrite, _overwrite, _random, _cut, _double, _zero, _splice, _truncate,
]  # fmt: skip


def _mend_checksums(data: bytearray) -> None:
    """Gives each chunk of a PNG the checksum of what it holds now, as far as chunks can be made out."""
    at = 8
    while at + 12 <= len(data):
        end = at + 8 + struct.unpack(">I", data[at : at + 4])[0]
        if end + 4 > len(data):
            return
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4


def read_case(name: str, raw: bytes, path: Path, number: int) -> str:
    """Reads one case; returns `read`, or `refused` and the reason. Raises AssertionError for a wrong answer."""
    path.write_bytes(raw)
    min_size = [None, (20, 20), (9, 3)][number % 3]
    try:
        photo = read_photo(path, max_pixels=MAX_PIXELS, min_size=min_size)
    except UnreadableImage as error:
        told = error
    else:
        return _checked(photo, min_size)
    assert told.path == str(path), told.path
    assert told.reason, "no reason"
    assert told.reason.isprintable(), ascii(told.reason)
    return f"refused\t{told.reason}"


def _checked(photo: Photo, min_size: tuple[int, int] | None) -> str:
    assert photo.image.dtype == np.uint8, photo.image.dtype
    assert photo.image.ndim == 3, photo.image.shape
    assert photo.image.shape[2] == 3, photo.image.shape
    assert 0 < photo.size[0] * photo.size[1] <= MAX_PIXELS, photo.size
    assert min_size is not None or photo.image.shape[:2] == photo.size, (photo.image.shape, photo.size)
    return "read\t"


def child(start: int, stop: int, seed: int, photos: Path, folder: Path) -> None:
    """Reads the cases from start to stop; prints one line before and one after each, and its memory at the end."""
    files = originals(photos, seed)
    cuts = truncations(files)
    read_photo(_written(files[0][1], folder / "warm.jpg"))
    size = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    before = _peak()
    for number in range(start, stop):
        name, raw = case(files, cuts, seed, number)
        print(f"begin\t{number}", flush=True)
        began = perf_counter()
        try:
            outcome = read_case(name, raw, folder / f"{start}.jpg", number)
        except BaseException:
            told = " / ".join(traceback.format_exc().splitlines()[-3:])
            outcome = f"fault\t{told}"
        print(f"done\t{perf_counter() - began:.6f}\t{name}\t{outcome}", flush=True)
    print(f"memory\t{_peak() - before:.1f}", flush=True)


def _written(raw: bytes, path: Path) -> Path:
    path.write_bytes(raw)
    return path


def _peak() -> float:
    """The greatest resident memory of this process, in MB."""
    return int(Path("/proc/self/status").read_text(encoding="ascii").split("VmHWM:")[1].split()[0]) / 1024


def run(cases: int, *, seed: int, photos: Path, truncate: bool = True) -> Found:
    """Reads the truncations at every offset, where asked, and `cases` mutations, in child processes."""
    found = Found()
    first = len(truncations(originals(photos, seed)))
    start, stop = 0 if truncate else first, first + cases
    with tempfile.TemporaryDirectory() as folder:
        while start < stop:
            start = _watch(start, min(start + 5000, stop), seed, photos, Path(folder), found)
    return found


def _watch(start: int, stop: int, seed: int, photos: Path, folder: Path, found: Found) -> int:
    """Runs one child and counts what it tells; returns the case to go on with."""
    words = ["--child", str(start), str(stop), "--seed", str(seed), "--photos", str(photos), "--folder", str(folder)]
    command = [sys.executable, "-m", "benchmarks.fuzz_reading", *words]
    root = Path(__file__).resolve().parents[1]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=False) as process:
        number, hung = start - 1, True
        for line in _lines(process):
            hung = False
            kind, *rest = line.split("\t", 4)
            if kind == "begin":
                number, hung = int(rest[0]), True
            elif kind == "done":
                _count(number, rest, found)
            elif kind == "memory":
                found.memory = max(found.memory, float(rest[0]))
        ended = process.poll()
        process.kill()
        assert process.stderr is not None
        noise = process.stderr.read().decode(errors="replace")
    if "Traceback" in noise:  # libtiff tells of damage there, in a line each
        found.faults.append((number, f"wrote to stderr: {noise[-300:]}"))
    if ended == 0:
        return stop
    what = f"died with {ended}" if ended is not None else f"hangs: {SECONDS:.0f} s without a word" if hung else "silent"
    found.faults.append((number, what))
    return number + 1


def _lines(process: subprocess.Popen[bytes]) -> Iterator[str]:
    """The child's lines, until it ends or is silent for too long."""
    assert process.stdout is not None
    rest = b""
    while select.select([process.stdout], [], [], SECONDS)[0]:
        block = os.read(process.stdout.fileno(), 1 << 16)
        if not block:
            process.wait(SECONDS)
            return
        *lines, rest = (rest + block).split(b"\n")
        yield from (line.decode() for line in lines)


def _count(number: int, told: list[str], found: Found) -> None:
    seconds, name, outcome, reason = told
    found.slowest = max(found.slowest, float(seconds))
    if outcome == "fault":
        found.faults.append((number, f"{name}: {reason}"))
        return
    form = name.split()[0] + (", cut" if name.endswith(", cut") else "")
    found.outcomes[form.replace(",,", ","), outcome] += 1
    if outcome == "refused":
        found.reasons["not enough memory" if "memory" in reason else reason[:60]] += 1


def described(found: Found, seconds: float) -> str:
    """The result as Markdown."""
    lines = ["| files | read | refused |", "|---|---|---|"]
    for form in sorted({form for form, _ in found.outcomes}):
        lines.append(f"| {form} | {found.outcomes[form, 'read']:,} | {found.outcomes[form, 'refused']:,} |")
    read = sum(count for (_, outcome), count in found.outcomes.items() if outcome == "read")
    lines.append(f"| all {found.cases:,} | {read:,} | {found.cases - read - len(found.faults):,} |")
    lines += [
        "",
        f"- crashes, hangs, tracebacks, wrong answers: {len(found.faults)}",
        f"- slowest file: {found.slowest:.3f} s; all: {seconds:.0f} s",
        f"- memory that reading added to a process at most: {found.memory:.0f} MB "
        f"(limit {MEMORY / 1e6:.0f} MB of address space, {MAX_PIXELS:,} pixels)",
        f"- refused for want of that memory: {found.reasons['not enough memory']}",
        "",
        *(f"- case {number}: {what}" for number, what in found.faults[:50]),
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the cases and reports; returns 1 when a fault was found."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fuzz_reading", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--cases", type=int, default=20_000, help="mutated files, besides truncations (default 20000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--photos", type=Path, default=Path("../shared/data/birds"), metavar="DIR")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="file to write the result to")
    parser.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.child:
        child(*chosen.child, chosen.seed, chosen.photos, chosen.folder)
        return 0
    began = perf_counter()
    found = run(chosen.cases, seed=chosen.seed, photos=chosen.photos)
    text = described(found, perf_counter() - began)
    print(text)
    if chosen.out:
        command = shlex.join(["python", "-m", "benchmarks.fuzz_reading", *arguments])
        head = f"# Damaged image files, {datetime.now().astimezone():%Y-%m-%d %H:%M}\n\n- command: `{command}`\n"
        head += f"- Pillow {Image.__version__}, Python {sys.version.split()[0]}, seed {chosen.seed}\n\n"
        chosen.out.write_text(head + text.rstrip() + "\n", encoding="utf-8")
    return 1 if found.faults else 0


if __name__ == "__main__":
    sys.exit(main())

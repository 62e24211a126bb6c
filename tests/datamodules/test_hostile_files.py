"""Files made to exhaust who reads them, in a process with bounded memory; and a short run of the damaged ones."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import fuzz_reading
from datamodules import reading
from datamodules.reading import UnreadableImage, read_photo

ROOT = Path(__file__).parents[2]
PHOTOS = ROOT.parent / "shared" / "data" / "birds"


def encoded(form, **options):
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, form, **options)
    return out.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(side):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1_000_000)) + chunk(b"IEND", b"")


def jpeg_of(side):
    raw = encoded("JPEG")
    at = raw.index(b"\xff\xc0") + 5
    return raw[:at] + struct.pack(">HH", side, side) + raw[at + 4 :]


def tiff(*tags):
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"


def tiff_of(side):
    return tiff((256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8))


def webp_of(side):
    canvas = (side - 1).to_bytes(3, "little") * 2
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes([2, 0, 0, 0]) + canvas
    body += b"ANIM" + struct.pack("<I", 6) + bytes(6)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def many_scans(count):
    raw = encoded("JPEG", progressive=True)
    last = raw.rindex(b"\xff\xda")
    return raw[:last] + raw[last:-2] * count + raw[-2:]


GIB = 1 << 30
# name -> (bytes at the start, size of the whole, the rest being a hole; part of the reason)
HOSTILE = {
    "bomb.png": (png_of(40_000), 0, "more than the allowed"),
    "bomb.jpg": (jpeg_of(65_000), 0, "pixels"),
    "bomb.tif": (tiff_of(60_000), 0, "pixels"),
    "bomb.gif": (b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + encoded("GIF")[10:], 0, "pixels"),
    "bomb.bmp": (
        b"BM" + struct.pack("<IIIIIIHHIIIIII", 54, 0, 54, 40, 50_000, 50_000, 1, 24, 0, 0, 0, 0, 0, 0),
        0,
        "pixels",
    ),
    "bomb.webp": (webp_of(16_384), 0, ""),
    "text.png": (encoded("PNG")[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(b"a" * 300_000_000, 9)), 0, ""),
    "chunk.png": (encoded("PNG")[:33] + struct.pack(">I", 2**31 - 1) + b"tEXt", 3 * GIB, "bytes of metadata"),
    "pixels.png": (encoded("PNG")[:33] + struct.pack(">I", GIB // 2) + b"IDAT", GIB // 2 + 45, "checksum"),
    "search.jpg": (encoded("JPEG")[:20], 4 * GIB, "no image found after"),
    "whole.webp": (encoded("WEBP"), 3 * GIB, "before its pixels"),
    "tag.tif": (tiff((256, 4, 1, 9), (257, 4, 1, 9), (270, 2, 2**31, 200)), 3 * GIB, "before its pixels"),
    "scans.jpg": (many_scans(1000), 0, "scans"),
}

PROGRAM = """
import resource, sys
from pathlib import Path
from datamodules.reading import UnreadableImage, read_photo
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 700_000_000,) * 2)
for path in sys.argv[1:]:
    try:
        read_photo(path)
        print("read")
    except UnreadableImage as error:
        assert error.path == path
        print(error.reason)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are those of Linux")
def test_hostile_files_are_refused_in_bounded_memory_and_time(tmp_path):
    for name, (start, size, _) in HOSTILE.items():
        with (tmp_path / name).open("wb") as file:
            file.write(start)
            file.truncate(max(size, len(start)))
    paths = [str(tmp_path / name) for name in HOSTILE]
    command = [sys.executable, "-c", PROGRAM, *paths]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    told = dict(zip(HOSTILE, done.stdout.splitlines(), strict=True))
    for name, (_, _, reason) in HOSTILE.items():
        assert told[name] != "read", name
        assert reason in told[name], name
        assert "memory" not in told[name], name  # refused by what the file says, not by the limit


def test_scans_that_encoders_write_are_read(tmp_path):
    (tmp_path / "x.jpg").write_bytes(encoded("JPEG", progressive=True))
    assert read_photo(tmp_path / "x.jpg").kind == "JPEG RGB"
    (tmp_path / "x.jpg").write_bytes(many_scans(reading._MAX_SCANS - 20))
    assert read_photo(tmp_path / "x.jpg").size == (40, 56)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_cut_at_every_offset(tmp_path, form):
    raw = encoded(form, quality=20)
    for length in range(0, len(raw), 5 if form == "JPEG" else 23):
        (tmp_path / "x").write_bytes(raw[:length])
        with pytest.raises(UnreadableImage):
            read_photo(tmp_path / "x")


def test_a_short_run_of_damaged_files():
    found = fuzz_reading.run(500, seed=1, photos=PHOTOS, truncate=False)
    assert found.faults == []
    assert found.cases == 500
    read = sum(count for (_, outcome), count in found.outcomes.items() if outcome == "read")
    assert 50 < read < 450


def test_the_run_finds_what_it_looks_for(monkeypatch):
    """A reader that lets an exception out, one that dies, one that hangs: each is a fault with its number."""
    program = (
        "import benchmarks.fuzz_reading as f, os, sys, time\n"
        "from pathlib import Path\n"
        "first = len(f.truncations(f.originals(Path('nowhere'), 0)))\n"
        "def broken(name, raw, path, number):\n"
        "    if number == first + 1: raise KeyError('let out')\n"
        "    if number == first + 2: os.abort()\n"
        "    if number == first + 4: time.sleep(60)\n"
        "    return 'read\\t'\n"
        "f.read_case = broken\n"
        "sys.exit(f.main(sys.argv[1:]))\n"
    )
    real = subprocess.Popen

    def start(command, **keywords):
        return real([sys.executable, "-c", program, *command[3:]], **keywords)

    monkeypatch.setattr(fuzz_reading.subprocess, "Popen", start)
    monkeypatch.setattr(fuzz_reading, "SECONDS", 8.0)
    found = fuzz_reading.run(6, seed=0, photos=Path("nowhere"), truncate=False)
    first = len(fuzz_reading.truncations(fuzz_reading.originals(Path("nowhere"), 0)))
    assert [number - first for number, _ in found.faults] == [1, 2, 4]
    assert "let out" in found.faults[0][1]
    assert "died with -6" in found.faults[1][1]
    assert "hangs" in found.faults[2][1]
    assert found.cases == 6

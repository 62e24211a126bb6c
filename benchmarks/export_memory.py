"""Memory of `vit explain` over many photographs, and what a kill in the middle costs.

A tiny model explains --images generated scenes (--distinct of them, linked under new names) in a process of its own,
with a gallery. As maps are logged, the resident memory of the process and of its readers is read from /proc. Half way
it is killed (SIGKILL, the readers with it) and started again with --resume: maps that were there must be left as
they were, and the index must have every photograph once.
"""

import argparse
import csv
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import sleep

from benchmarks.harness import Table, begin, options, report
from benchmarks.photographs import write_scenes

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "vit/assets/birdscenes"
LOG = "export.jsonl"


def linked(folder: Path, count: int, distinct: int, seed: int) -> Path:
    """A folder of `count` photographs."""
    write_scenes(folder / "scenes", distinct, size=96, seed=seed)
    scenes = sorted((folder / "scenes").rglob("*.jpg"))
    for number in range(count):
        place = folder / "photos" / f"{number // 1000:03}"
        place.mkdir(parents=True, exist_ok=True)
        os.link(scenes[number % len(scenes)], place / f"{number:06}.jpg")
    return folder / "photos"


def resident(pid: int) -> float:
    """MB in memory of a process; 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    return int(status.split("VmRSS:")[1].split()[0]) / 1024 if "VmRSS:" in status else 0.0


def children(pid: int) -> list[int]:
    """Processes that a process started, in any of its threads."""
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for each in found for child in each.read_text(encoding="utf-8").split()]


def watched(process: subprocess.Popen[bytes], log: Path, every: int) -> Iterator[tuple[int, float, float]]:
    """(maps that are logged, MB of the process, MB of its readers) each time `every` more maps are logged."""
    done = lines(log) // every * every
    while process.poll() is None:
        sleep(0.1)
        count = lines(log)
        if count >= done + every:
            done = count // every * every
            yield count, resident(process.pid), sum(map(resident, children(process.pid)))


def lines(log: Path) -> int:
    """Maps in a log; its first line is none."""
    return max(0, log.read_bytes().count(b"\n") - 1) if log.exists() else 0


def explaining(photos: Path, out: Path, method: str, *more: str) -> subprocess.Popen[bytes]:
    """`vit explain` in a group of processes of its own."""
    command = [sys.executable, str(ROOT / "cli.py"), "explain", str(MODEL), str(photos), "--out", str(out)]
    words = [*command, "--method", method, "--gallery", *more]
    return subprocess.Popen(
        words, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def run(photos: Path, out: Path, chosen: argparse.Namespace) -> tuple[Table, Table]:
    """Explains all, with a kill half way."""
    memory = Table("resident memory, MB", ("maps written", "vit explain", "its readers"))
    log = out / LOG
    process = explaining(photos, out, chosen.method)
    for row in watched(process, log, chosen.every):
        memory.rows.append((f"{row[0]:,}", *row[1:]))
        if row[0] >= chosen.images // 2:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    maps = [path for path in out.rglob("*.npy") if not path.name.startswith(".")]  # the kill may leave one half written
    written = {path: path.stat().st_mtime_ns for path in maps}
    logged = lines(log)
    memory.rows.append((f"{logged:,}: killed, resumed", "", ""))
    process = explaining(photos, out, chosen.method, "--resume")
    for row in watched(process, log, chosen.every):
        memory.rows.append((f"{row[0]:,}", *row[1:]))
    code = process.wait()
    kept = sum(path.stat().st_mtime_ns == before for path, before in written.items())
    with (out / "index.csv").open(newline="", encoding="utf-8") as file:
        names = [row["image"] for row in csv.DictReader(file)]
    resumed = Table("what the kill cost", ("", "maps"))
    resumed.rows += [
        ("logged at the kill", f"{logged:,}"),
        ("files of maps at the kill", f"{len(written):,}"),
        ("of these left as they were", f"{kept:,}"),
        ("in the index at the end", f"{len(names):,}"),
        ("of these different photographs", f"{len(set(names)):,}"),
        ("exit code of the second run", str(code)),
    ]
    return memory, resumed


def main(arguments: Sequence[str] | None = None) -> list[Table]:
    """Measures and reports; returns the tables."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = options("export_memory", __doc__ or "", rounds=1, warmup=0)
    parser.add_argument("--images", type=int, default=10_000, help="photographs to explain (default 10000)")
    parser.add_argument("--distinct", type=int, default=200, help="of them different (default 200)")
    parser.add_argument("--every", type=int, default=500, help="maps between two readings (default 500)")
    parser.add_argument("--method", default="default", help="as --method of vit explain (default default)")
    chosen = parser.parse_args(arguments)
    machine = begin(chosen)
    with tempfile.TemporaryDirectory() as name:
        photos = linked(Path(name), chosen.images, chosen.distinct, chosen.seed)
        tables = list(run(photos, Path(name) / "maps", chosen))
    settings = {"model": MODEL.name, "photographs": f"{chosen.images:,}", "method": chosen.method}
    report("export_memory", arguments, machine, settings, tables, chosen.out)
    return tables


if __name__ == "__main__":
    main()

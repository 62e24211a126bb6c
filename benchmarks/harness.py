"""What all benchmarks share: variants timed in turns, ratios round by round, tables at the terminal and in a file.

A machine's speed drifts by tens of percent within minutes. So what is compared is run in turns, in one process, and
the ratio of two variants is taken within each round, where both met the same machine; the median of these ratios
is the result. Seconds and images/s are given too, but two of them compare only within one table.
"""

import argparse
import math
import os
import platform
import shlex
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch

Variants = Mapping[str, Callable[[], object]]
Timings = dict[str, list[float]]  # variant -> seconds of one call, a round each


class Spread(NamedTuple):
    """A measurement over rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{readable(self.median)} ({readable(self.low)}..{readable(self.high)})"


@dataclass
class Table:
    """A result: its title, columns, and rows of text, numbers and spreads."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[object, ...]] = field(default_factory=list)

    def markdown(self) -> str:
        """The table in Markdown, its columns aligned for the terminal."""
        cells = [list(self.columns), *([_cell(value) for value in row] for row in self.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(self.columns))]
        lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
        lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        return "\n".join([f"**{self.title}**", "", *lines, ""])


def measure(
    variants: Variants,
    *,
    rounds: int,
    warmup: int = 1,
    min_seconds: float = 0.0,
    rotate: bool = True,
    seldom: Mapping[str, int] | None = None,
) -> Timings:
    """Seconds a call of each variant, in each of `rounds` rounds.

    A round runs every variant once, one after the other; each round begins with another one, so that none always
    runs behind the same place in the round.

    Args:
        variants: calls without arguments, by name.
        rounds: rounds that count.
        warmup: rounds before them that don't.
        min_seconds: the first variant is called as often in a row as fills this time, and all others as often; its
            mean counts. One call of a few milliseconds is mostly noise.
        rotate: False keeps the given order in every round.
        seldom: variants that run in so many of the first rounds that count, and in no others: those that take long.
    """
    seldom = seldom or {}
    names = list(variants)
    calls = _calls(variants[names[0]], min_seconds) if min_seconds else 1
    timings: Timings = {name: [] for name in names}
    for number in range(warmup + rounds):
        first = number % len(names) if rotate else 0
        for name in names[first:] + names[:first]:
            if name in seldom and not warmup <= number < warmup + seldom[name]:
                continue
            call = variants[name]
            start = perf_counter()
            for _ in range(calls):
                call()
            if number >= warmup:
                timings[name].append((perf_counter() - start) / calls)
    return timings


def _calls(call: Callable[[], object], min_seconds: float) -> int:
    call()  # the first one allocates and chooses kernels
    start = perf_counter()
    call()
    return max(1, math.ceil(min_seconds / (perf_counter() - start)))


def spread(values: Sequence[float]) -> Spread:
    """Median, least and greatest."""
    return Spread(statistics.median(values), min(values), max(values))


def ratio(timings: Timings, over: str, under: str) -> Spread:
    """Seconds of `over` in units of those of `under`, taken within each round that both took part in."""
    return spread([a / b for a, b in zip(timings[over], timings[under], strict=False)])


def images_per_second(timings: Timings, name: str, images: int) -> Spread:
    """The rate of a variant that handles `images` a call."""
    return spread([images / seconds for seconds in timings[name]])


def readable(value: float) -> str:
    """A number with as many digits as mean something."""
    size = abs(value)
    if size and size < 0.001:
        return f"{value:.1e}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.1f}" if size >= 10 else f"{value:.3f}"


def _cell(value: object) -> str:
    return readable(value) if isinstance(value, float) else str(value)


def options(
    module: str, description: str, *, rounds: int, warmup: int = 2, threads: int = 2
) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--rounds", type=int, default=rounds, help=f"rounds that count (default {rounds})")
    parser.add_argument("--warmup", type=int, default=warmup, help=f"rounds dropped before them (default {warmup})")
    parser.add_argument("--threads", type=int, default=threads, help=f"threads of torch (default {threads})")
    parser.add_argument("--seed", type=int, default=0, help="of random weights and images (default 0)")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="file to append the result to")
    return parser


def begin(chosen: argparse.Namespace) -> str:
    """Sets the threads and the seed, before anything is built; returns the machine and all else that speed
    depends on, its load before this benchmark included."""
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(chosen.seed)
    parts = [
        _processor(),
        f"{os.cpu_count()} cores",
        f"torch {torch.__version__} with {torch.get_num_threads()} threads",
        f"Python {platform.python_version()}",
    ]
    if hasattr(os, "getloadavg"):
        parts.append(f"load average {os.getloadavg()[0]:.1f} before")
    return ", ".join(parts)


def _processor() -> str:
    described = Path("/proc/cpuinfo")
    if described.is_file():
        for line in described.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def report(
    module: str,
    arguments: Sequence[str],
    machine: str,
    settings: Mapping[str, object],
    tables: Iterable[Table],
    out: Path | None,
) -> None:
    """Prints the tables, and appends a dated section with all that it takes to measure them again to `out`.

    Args:
        module: the benchmark's name, and `arguments` its command line.
        machine: as `begin` described it.
        settings: what was measured, by name.
    """
    text = "\n".join(table.markdown() for table in tables)
    described = ", ".join(f"{name} {value}" for name, value in settings.items())
    print(f"\n{machine}\n{described}\n\n{text}")
    if out is None:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    head = [
        f"## {datetime.now().astimezone():%Y-%m-%d %H:%M}, benchmarks.{module}",
        "",
        f"- machine: {machine}",
        f"- settings: {described}",
        f"- command: `{shlex.join(['python', '-m', f'benchmarks.{module}', *arguments])}`",
    ]
    before = out.read_text(encoding="utf-8").rstrip("\n") + "\n\n" if out.is_file() else ""
    out.write_text(before + "\n".join([*head, "", text]), encoding="utf-8")

"""What the verbs tell at the terminal: results on the output stream, all else on the error stream."""

import csv
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from vit.foundation import atomic_write

T = TypeVar("T")


def say(*lines: str) -> None:
    """Tells the user, on the error stream: the output stream is for results."""
    for line in lines:
        print(line, file=sys.stderr)


def tell_skipped(skipped: dict[str, str], folder: Path) -> None:
    """Counts the images that could not be read, and lists them in skipped.csv."""
    if not skipped:
        return
    with (
        atomic_write(folder / "skipped.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        rows = csv.writer(file)
        rows.writerow(["path", "reason"])
        rows.writerows(sorted(skipped.items()))
    say(f"{len(skipped)} images could not be read; they are listed in {folder / 'skipped.csv'}")


def progress(items: Iterable[T], what: str, total: int, advance: Callable[[T], int]) -> Iterator[T]:
    """The items, with a progress bar on the error stream. `advance` tells the images of an item."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("images, left"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        line = bar.add_task(what, total=total)
        for item in items:
            yield item
            bar.update(line, advance=advance(item))


def print_classes(per_class: dict[str, dict[str, float]]) -> None:
    """A table of the classes on the output stream."""
    width = max(len(label) for label in per_class)
    print(f"{'':{width}}  images  precision  recall")
    for label, row in per_class.items():
        print(f"{label:{width}}  {row['images']:6}  {row['precision']:9.3f}  {row['recall']:6.3f}")


def print_scores(scores: dict[str, dict[str, float]]) -> None:
    """A table of methods and metrics on the output stream."""
    print(f"{'':10}" + "".join(f"{metric.replace('_', ' '):>20}" for metric in next(iter(scores.values()))))
    for name, row in scores.items():
        print(f"{name:10}" + "".join(f"{value:20.3f}" for value in row.values()))

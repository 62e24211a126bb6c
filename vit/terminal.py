"""What the verbs print at the terminal: results to stdout, everything else to stderr."""

import csv
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from vit.foundation import SKIPPED, atomic_write, is_first_process

T = TypeVar("T")


def say(*lines: str) -> None:
    """Prints lines to stderr, because stdout is for results. With several processes only the first prints."""
    for line in lines if is_first_process() else ():
        print(line, file=sys.stderr)


def tell_skipped(skipped: dict[str, str], folder: Path, *, how: str = "could not be read; they are") -> None:
    """Lists the images that were left out in skipped.csv, and prints how many; an earlier list is removed.

    Args:
        how: what is said of them, before "listed in".
    """
    path = folder / SKIPPED
    if not is_first_process():
        return
    if not skipped:
        path.unlink(missing_ok=True)
        return
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "reason"])
        rows.writerows(sorted(skipped.items()))
    say(f"{len(skipped)} images {how} listed in {path}")


def progress(items: Iterable[T], what: str, total: int, advance: Callable[[T], int]) -> Iterator[T]:
    """The items, with a progress bar on stderr. `advance` returns the number of images in an item."""
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
    quiet = not console.is_terminal or not is_first_process()
    with Progress(*columns, console=console, transient=True, disable=quiet) as bar:
        line = bar.add_task(what, total=total)
        for item in items:
            yield item
            bar.update(line, advance=advance(item))


def print_lines(lines: Iterable[str]) -> None:
    """Prints results in words to stdout."""
    for line in lines:
        print(line)


def print_facts(rows: Iterable[tuple[str, str]]) -> None:
    """Prints a table of (subject, text) to stdout; one line per row if stdout is not a terminal."""
    from rich.console import Console
    from rich.table import Table

    rows = list(rows)
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        width = max(len(subject) for subject, _ in rows)
        print_lines(f"{subject:{width}}  {text}" for subject, text in rows)
        return
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for subject, text in rows:
        table.add_row(subject, text)
    console.print(table)


def print_classes(per_class: dict[str, dict[str, float]]) -> None:
    """Prints a table of the classes to stdout."""
    width = max(len(label) for label in per_class)
    print(f"{'':{width}}  images  precision  recall")
    for label, row in per_class.items():
        print(f"{label:{width}}  {row['images']:6}  {row['precision']:9.3f}  {row['recall']:6.3f}")


def print_tables(tables: Iterable[tuple[str, Sequence[str], Sequence[Sequence[str]]]]) -> None:
    """Prints tables, (title, columns, rows) each, to stdout. With several processes only the first prints."""
    if not is_first_process():
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 120  # a file has no width of its own
    for title, columns, rows in tables:
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        for number, column in enumerate(columns):
            words = number == 0 or any(row[number][:1].isalpha() for row in rows)
            table.add_column(column, justify="left" if words else "right", no_wrap=number == 0)
        for row in rows:
            table.add_row(*row)
        console.print(title)
        console.print(table)
        console.print()


def print_problems(rows: Iterable[tuple[str, str, int, str]]) -> None:
    """Prints a table of (severity, problem, how many, what to do) to stdout."""
    rows = list(rows)
    if not rows:
        print("no problems found")
        return
    from rich.console import Console
    from rich.table import Table

    colours = {"error": "red", "warning": "yellow", "note": "dim"}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column("problem", no_wrap=True)
    table.add_column("count", justify="right")
    table.add_column("what to do")
    for severity, problem, count, advice in rows:
        table.add_row(severity, problem, f"{count:,}", advice, style=colours[severity])
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 120  # a file has no width of its own
    console.print(table)

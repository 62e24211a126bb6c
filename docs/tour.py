"""Runs the tour: executes the Python of tour.md, writes what it prints below each piece, and makes tour.ipynb of both.

    python docs/tour.py

tour.md is what is edited. A piece of Python is followed by what it printed, which this program replaces.
"""

import contextlib
import io
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE, NOTEBOOK = HERE / "tour.md", HERE / "tour.ipynb"
PIECE = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)


@dataclass
class Cell:
    """A piece of the page.

    Args:
        text: Markdown, or Python.
        is_code: which of the two.
        printed: what the Python printed.
    """

    text: str
    is_code: bool = False
    printed: str = ""


def read_page(page: str) -> list[Cell]:
    """Markdown -> its cells, in order."""
    cells, end = [], 0
    for piece in PIECE.finditer(page):
        cells += [Cell(page[end : piece.start()].strip()), Cell(piece[1].rstrip(), True, piece[2] or "")]
        end = piece.end()
    return [cell for cell in [*cells, Cell(page[end:].strip())] if cell.text]


def as_page(cells: list[Cell]) -> str:
    """The inverse of `read_page`."""
    parts = []
    for cell in cells:
        text = f"```python\n{cell.text}\n```" if cell.is_code else cell.text
        parts.append(text + (f"\n\n```text\n{cell.printed}```" if cell.printed else ""))
    return "\n\n".join(parts) + "\n"


def as_notebook(cells: list[Cell]) -> str:
    """The same as a Jupyter notebook, format 4.5."""
    count = 0
    found: list[dict[str, Any]] = []
    for number, cell in enumerate(cells):
        entry: dict[str, Any] = {"id": f"cell-{number}", "metadata": {}, "source": cell.text.splitlines(keepends=True)}
        if cell.is_code:
            count += 1
            text = cell.printed.splitlines(keepends=True)
            output = {"output_type": "stream", "name": "stdout", "text": text}
            entry |= {"cell_type": "code", "execution_count": count, "outputs": [output] if text else []}
        else:
            entry |= {"cell_type": "markdown"}
        found.append(entry)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    notebook = {"cells": found, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def run(sources: list[str], folder: Path) -> list[str]:
    """Executes pieces of Python one after the other in one namespace, `folder` being the current one -> what each
    printed."""
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = []
    before = Path.cwd()
    os.chdir(folder)
    try:
        for number, source in enumerate(sources, 1):
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(compile(source, f"piece {number} of the tour", "exec"), names)
            printed.append(output.getvalue())
    finally:
        os.chdir(before)
    return printed


def main() -> None:
    """Brings the page and the notebook up to date."""
    sys.path.insert(0, str(HERE.parent))
    cells = read_page(PAGE.read_text(encoding="utf-8"))
    code = [cell for cell in cells if cell.is_code]
    for cell, printed in zip(code, run([cell.text for cell in code], HERE), strict=True):
        cell.printed = printed
    PAGE.write_text(as_page(cells), encoding="utf-8")
    NOTEBOOK.write_text(as_notebook(cells), encoding="utf-8")


if __name__ == "__main__":
    main()

"""docs/reliability.md can't go stale: every fault has its row, and every test that it names is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
ROWS = {int(number): cells for number, cells in re.findall(r"^\| (\d+) \| (.*) \|$", PAGE, re.MULTILINE)}


def test_every_fault_has_its_row() -> None:
    assert list(ROWS) == list(range(1, 39))


@pytest.mark.parametrize("number", ROWS)
def test_the_tests_of_a_row_are_there(number: int) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", ROWS[number])
    assert named
    for file, function in named:
        assert re.search(rf"^def {function}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), function


def test_the_benchmarks_it_names_are_there() -> None:
    for name in re.findall(r"python -m benchmarks\.(\w+)", PAGE):
        assert (ROOT / "benchmarks" / f"{name}.py").is_file()

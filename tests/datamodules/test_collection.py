"""Holding out of train images that have several labels: from the same seed the same, and no label whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from datamodules.collection import Record, hold_out

ROOT = Path(__file__).parents[2]
BASE = Path("/photos")

# What is held at first is u1, u2, u3: all of c and all of d. Train gets both back with u1.
APART = {"u1": "a1 c d", "v1": "a1 x", "u2": "a2 c", "v2": "a2 x", "u3": "a3 d", "v3": "a3 x"}


def records(labels: dict[str, str]) -> list[Record]:
    return [Record(f"/photos/{name}.jpg", tuple(several.split())) for name, several in labels.items()]


def held(labels: dict[str, str], seed: int) -> list[str]:
    return [Path(record.path).stem for record in hold_out(records(labels), BASE, 0.5, seed)[1]]


def test_an_image_given_back_may_mend_several_labels() -> None:
    assert held(APART, seed=3) == ["u2", "u3"]


@pytest.mark.parametrize("together", ["c d", "c d e"])
def test_labels_that_come_together_leave_some_for_validation(together: str) -> None:
    labels = {"u1": f"a1 {together}", "v1": "a1 x", "u2": f"a2 {together}", "v2": "a2 x"}
    assert held(labels, seed=3) == ["u2"]
    for seed in range(20):
        kept, val = hold_out(records(labels), BASE, 0.5, seed)
        assert val
        assert {label for record in kept for label in record.labels} == {"a1", "a2", "x", *together.split()}


def test_what_is_held_does_not_follow_the_hashes_of_texts() -> None:
    lines = [
        "from pathlib import Path",
        "from datamodules.collection import Record, hold_out",
        f"records = [Record(f'/photos/{{name}}.jpg', tuple(several.split())) for name, several in {APART}.items()]",
        "print(*[Path(record.path).stem for record in hold_out(records, Path('/photos'), 0.5, 3)[1]])",
    ]
    said = {
        subprocess.run(
            [sys.executable, "-c", "\n".join(lines)], cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": hashes},
            capture_output=True, text=True, check=True,
        ).stdout
        for hashes in ("0", "1", "2")
    }  # fmt: skip
    assert said == {"u2 u3\n"}

"""The benchmark that kills runs, in short: ten kills in all kinds of moments, and the comparison that judges them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import kills


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_runs_that_are_killed_ten_times_are_the_run_left_alone() -> None:
    """With four workers, accumulation, a moving average, mixing and low-rank matrices, all at once."""
    moments, phases = kills.main(["--rounds", "10", "--settings", "all at once"])
    assert [(row[0], row[1], row[3]) for row in moments.rows] == [("all at once", 10, "equal")]
    assert sum(phases.rows[0]) == 10  # type: ignore[arg-type]


def test_a_killed_run_that_differs_is_seen(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "model").mkdir()
        for file in ("metrics.csv", "model/model.safetensors", "model/config.json"):
            (tmp_path / name / file).write_text(f"{name == 'one' and file == 'metrics.csv'}")
        for file, step in (("best", 3), ("last", 3 if name == "one" else 4)):
            torch.save(
                {"global_step": step, "loops": name, "state_dict": {"w": torch.ones(step)}},
                tmp_path / name / "checkpoints" / f"{file}.ckpt",
            )
    expected = ["metrics.csv", "last.ckpt: global_step", "last.ckpt: state_dict"]
    assert kills.differences(tmp_path / "one", tmp_path / "other") == expected
    assert kills.differences(tmp_path / "one", tmp_path / "one") == []

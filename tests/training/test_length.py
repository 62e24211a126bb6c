"""When a run ends: after epochs that were no better, or when its time is spent."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

from tests.training.noise import Noise, noise_task
from vit.foundation import UserError
from vit.options import TrainerOptions, seconds
from vit.training import fit as fit_module
from vit.training import length
from vit.training.checkpoints import CheckpointWriter
from vit.training.classification import ClassificationTask
from vit.training.fit import FitResult, fit
from vit.training.length import RunClock

SCORES = (0.25, 0.75, 0.5, 0.75, 0.75, 1.0)  # better in the second and the sixth epoch only


class Scripted(ClassificationTask):
    """Learns as ever, but the validation says what SCORES say."""

    def log(self, name: str, value: Any, **options: Any) -> None:  # type: ignore[override]
        told = {"val_top1": SCORES[self.current_epoch], "val_loss": 1.0}  # the loss decides between equals
        super().log(name, told.get(name, value), **options)


class Clock:
    """Time that goes by where the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


class Timed(ClassificationTask):
    """A batch of training takes a second, and one of validation two."""

    clock: Clock

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        self.clock.now += 1
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.clock.now += 2
        super().validation_step(batch, batch_idx)


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_module, "draw_curves", lambda *paths: None)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    Timed.clock = Clock()
    monkeypatch.setattr(length, "time", Timed.clock)
    return Timed.clock


def run(folder: Path, kind: type[ClassificationTask], *, max_epochs: int = 6, **options: Any) -> FitResult:
    module = Noise(train=20, val=4)  # five batches and one
    return fit(noise_task(kind), module, folder, max_epochs=max_epochs, precision="fp32", device="cpu", **options)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("patience", "epochs"), [(1, 3), (2, 4), (3, 5), (4, 6), (0, 6)])
def test_a_run_ends_when_so_many_epochs_were_no_better(tmp_path: Path, patience: int, epochs: int) -> None:
    assert run(tmp_path, Scripted, patience=patience).epochs == epochs


def test_a_run_that_ended_early_has_nothing_left_to_do(tmp_path: Path) -> None:
    first = run(tmp_path, Scripted, patience=2)
    before = (tmp_path / "checkpoints" / "last.ckpt").read_bytes()
    assert run(tmp_path, Scripted, patience=2, resume=True) == first
    assert (tmp_path / "checkpoints" / "last.ckpt").read_bytes() == before


def test_more_patience_goes_on(tmp_path: Path) -> None:
    assert run(tmp_path, Scripted, patience=1).epochs == 3
    assert run(tmp_path, Scripted, patience=2, resume=True).epochs == 4


def test_a_budget_of_time_is_kept_and_the_last_validation_is_within_it(tmp_path: Path, clock: Clock) -> None:
    # Two epochs of 5 + 2 seconds, and 6 seconds more: 4 batches and the validation.
    result = run(tmp_path, Timed, max_time=20.0)
    assert clock.now == pytest.approx(120.0)
    assert result.epochs == 3
    assert [float(row["seconds"]) for row in rows(tmp_path / "times.csv")] == pytest.approx([7.0, 14.0, 20.0])
    assert [float(row["images_per_second"]) for row in rows(tmp_path / "times.csv")] == pytest.approx([4.0] * 3)


def test_what_is_written_behind_an_epoch_and_prepared_before_the_run_is_within_the_budget(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = CheckpointWriter.on_train_epoch_end

    def slow(*args: Any) -> None:
        clock.now += 3
        write(*args)

    monkeypatch.setattr(CheckpointWriter, "on_train_epoch_end", slow)
    # Three seconds before, an epoch of 5 + 2 + 3, and 4 seconds and 5 for what follows.
    result = run(tmp_path, Timed, max_time=22.0, prepared=3.0)
    assert (clock.now, result.epochs) == (pytest.approx(119.0), 2)
    clock.now = 100.0
    # Behind the second epoch a second is left: that is no time for another.
    result = run(tmp_path / "ended", Timed, max_time=21.0)
    assert (clock.now, result.epochs) == (pytest.approx(120.0), 2)


def test_steps_are_whole_when_the_time_is_up(tmp_path: Path, clock: Clock) -> None:
    run(tmp_path, Timed, max_time=4.5, accumulate=2)  # up in the fifth batch; no validation has been timed
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3
    assert clock.now == pytest.approx(107.0)
    clock.now = 100.0
    run(tmp_path / "less", Timed, max_time=2.5, accumulate=2)  # up in the third batch, seen after the fourth
    assert torch.load(tmp_path / "less" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2


def test_the_schedule_follows_the_time(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_module, "STEPS_A_ROW", 1)
    run(tmp_path, Timed, max_time=20.0)
    rates = [float(row["lr"]) for row in rows(tmp_path / "metrics.csv") if row["lr"]]
    # After step n of the first epoch, n of 20 seconds are spent: the length of a validation is not known yet.
    cosine = [0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * spent / 20)) for spent in (1, 2, 3, 4)]
    assert rates[1:5] == pytest.approx([1e-2 * factor for factor in cosine])
    # Later two seconds are kept for the last validation; the last step begins when one second is left to train in.
    assert rates[-1] == pytest.approx(1e-2 * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * 17 / 18))))


def test_a_resumed_run_counts_the_time_that_it_had_spent(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, calls = Timed.training_step, 0

    def killed(task: Timed, batch: Any, batch_idx: int) -> Any:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise RuntimeError
        return step(task, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(Timed, "training_step", killed)
        with pytest.raises(RuntimeError):
            run(tmp_path, Timed, max_time=20.0)
    clock.now = 5000.0  # 7 seconds are on record: the first epoch
    result = run(tmp_path, Timed, max_time=20.0, resume=True)
    assert clock.now == pytest.approx(5013.0)
    assert result.epochs == 3
    assert run(tmp_path, Timed, max_time=20.0, resume=True) == result
    assert clock.now == pytest.approx(5013.0)


def test_an_epoch_that_is_resumed_at_its_validation_has_no_speed(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def killed(task: Timed, batch: Any, batch_idx: int) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(Timed, "validation_step", killed)
        with pytest.raises(RuntimeError):
            run(tmp_path, Timed, max_epochs=2, checkpoint_minutes=0.0)
    run(tmp_path, Timed, max_epochs=2, resume=True)
    speeds = [row["images_per_second"] for row in rows(tmp_path / "times.csv")]
    assert speeds == ["", "4.00"]
    first, second = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch")]
    assert "images/s" not in first
    assert "4.0 images/s" in second


def test_a_clock_without_a_budget_only_counts(tmp_path: Path, clock: Clock) -> None:
    assert run(tmp_path, Timed, max_epochs=2).epochs == 2
    assert [float(row["seconds"]) for row in rows(tmp_path / "times.csv")] == pytest.approx([7.0, 14.0])


def test_steps_at_this_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Clock()
    monkeypatch.setattr(length, "time", time)
    clock = RunClock(Path("times.csv"), budget=60.0)
    time.now += 15
    clock.on_before_optimizer_step(Trainer())
    assert clock.steps_at_this_pace(30) == pytest.approx(120)
    time.now += 1000
    clock.on_before_optimizer_step(Trainer())
    assert clock.steps_at_this_pace(31) == 31


@pytest.mark.parametrize(("text", "expected"), [("90s", 90), ("10m", 600), ("2h", 7200), ("1h30m", 5400), ("1m1s", 61)])
def test_times_are_read(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "10", "0s", "m", "1.5h", "10m1h", "-1s", "10 m"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="90s, 10m or 1h30m"):
        TrainerOptions(max_time=text)

"""Callbacks that report on a run: the progress bar, and the writer of metrics.csv."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from vit.training.length import RunClock
from vit.training.task import TrainingTask


class TrainingProgress(L.Callback):
    """A rich progress bar for the whole run, and a line for each finished epoch.

    Args:
        clock: the run's clock, which must come earlier in the list of callbacks.
        console: where to print; default: stderr.
    """

    def __init__(self, clock: RunClock, console: Console | None = None):
        self.clock = clock
        self.console = console or Console(stderr=True)
        self.bar: Progress | None = None
        self._line = TaskID(0)

    def on_train_start(self, trainer: L.Trainer, task: Any) -> None:
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(
            TextColumn("{task.description}"),
            *columns,
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        epochs = trainer.max_epochs or 1
        total = int(trainer.num_training_batches) * epochs if epochs > 0 else None
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1  # also in the middle of a resumed epoch
        self._line = self.bar.add_task("training", total=total, completed=done)
        self.bar.start()

    def on_train_batch_end(self, trainer: L.Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert self.bar is not None
        metrics = trainer.callback_metrics
        loss = float(metrics.get("train_loss_step", float("nan")))
        text = f"{_epoch(trainer)}  loss {loss:.3f}"
        if task.judge.metric in metrics:
            text += f"  val {task.judge.text(float(metrics[task.judge.metric]))}"
        self.bar.update(self._line, advance=1, description=f"{text}  {self.clock.rate:.1f} images/s")

    def on_train_epoch_end(self, trainer: L.Trainer, task: Any) -> None:
        text = _epoch(trainer)
        for name in _epoch_columns(task):
            split, what = name.removesuffix("_epoch").split("_", 1)
            value = float(trainer.callback_metrics[name])
            text += f"  {split} loss {value:.3f}" if what == "loss" else f" {what} {value:.1%}"
        rate = self.clock.rows[-1][2]
        text += "" if rate is None else f"  {rate:.1f} images/s"
        self.console.print(text, highlight=False, soft_wrap=True)

    def on_exception(self, trainer: L.Trainer, task: Any, exception: BaseException) -> None:
        self._stop()

    def teardown(self, trainer: L.Trainer, task: Any, stage: str) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()


def _epoch(trainer: L.Trainer) -> str:
    length = f"/{trainer.max_epochs}" if trainer.max_epochs != -1 else ""  # some runs end by the clock
    return f"epoch {trainer.current_epoch + 1}{length}"


class MetricsFile(L.Callback):
    """Writes metrics.csv: a row every `every` steps, and one after each epoch.

    The file only grows, and each checkpoint stores its length. A resumed run truncates it to that length and continues:
    no row of an earlier epoch is lost, and steps that are repeated don't appear twice.
    """

    def __init__(self, path: Path, *, every: int):
        self.path = path
        self.every = every
        self.length = 0  # bytes
        self._last_step = 0

    def state_dict(self) -> dict[str, Any]:
        return {"length": self.length}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.length = state["length"]

    def on_train_start(self, trainer: L.Trainer, task: Any) -> None:
        self._last_step = trainer.global_step
        if self.length and self.path.is_file():
            os.truncate(self.path, min(self.length, self.path.stat().st_size))
        else:
            self.path.write_text(",".join(_columns(task)) + "\n", encoding="utf-8")

    def on_train_batch_end(self, trainer: L.Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step > self._last_step and trainer.global_step % self.every == 0:
            self._append(trainer, task, ("lr", "train_loss_step"))
        self._last_step = trainer.global_step

    def on_train_epoch_end(self, trainer: L.Trainer, task: Any) -> None:
        self._append(trainer, task, _epoch_columns(task))

    def _append(self, trainer: L.Trainer, task: TrainingTask, names: Sequence[str]) -> None:
        found = {name: float(trainer.callback_metrics[name]) for name in names if name in trainer.callback_metrics}
        with self.path.open("a", newline="", encoding="utf-8") as file:
            rows = csv.DictWriter(file, _columns(task), lineterminator="\n")
            rows.writerow({"epoch": trainer.current_epoch + 1, "step": trainer.global_step, **found})
        self.length = self.path.stat().st_size


def _columns(task: TrainingTask) -> list[str]:
    """The columns of metrics.csv."""
    return ["epoch", "step", "lr", "train_loss_step", *_epoch_columns(task)]


def _epoch_columns(task: TrainingTask) -> list[str]:
    """The metrics of an epoch: first those of training, then those of validation, the loss first."""
    return sorted(task.epoch_metrics(), key=lambda name: name.startswith("val"))

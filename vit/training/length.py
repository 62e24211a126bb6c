"""The length of a run: its clock, a time budget instead of epochs, and early stopping."""

import csv
import time
from pathlib import Path
from typing import Any

import lightning as L

from vit import processes
from vit.foundation import atomic_write
from vit.training.checkpoints import CheckpointWriter


class RunClock(L.Callback):
    """The time that a run has taken, over all its resumptions, in times.csv: one row per epoch with the epoch, seconds
    since the start of the run, and training images per second of all processes (empty if a resumed run had none left).

    With a budget, the run ends when it is spent: at an optimizer step, early enough for a validation and checkpoints
    that take as long as the last ones. Work that is lost by a kill is not counted. The clock then affects the learning
    rates, so two such runs are never bit for bit the same.

    Args:
        path: path of times.csv.
        budget: seconds; None for no budget.
        prepared: seconds that the run has already taken, such as for the probe that its head starts from.
    """

    def __init__(self, path: Path, budget: float | None = None, *, prepared: float = 0.0):
        self.path = path
        self.budget = budget
        self.rows: list[tuple[int, float, float | None]] = []
        self._before = 0.0  # spent by the runs that this one continues
        self._began = time.perf_counter() - prepared
        self._images, self._epoch_began = 0, 0.0
        self._validation_began = self._validation = self._writing = 0.0
        self._agreed = [0.0, 0.0]

    @property
    def spent(self) -> float:
        """Seconds of the run so far."""
        return self._before + time.perf_counter() - self._began

    @property
    def share(self) -> float:
        """The share of the training time that is spent, 0 to 1: the same in all processes, as of the current step."""
        assert self.budget is not None
        return min(1.0, self._agreed[0] / max(self.budget - self._agreed[1], 1e-9))

    @property
    def rate(self) -> float:
        """Training images per second in the current epoch so far."""
        return self._images / max(self.spent - self._epoch_began, 1e-9)

    def _agree(self) -> None:
        if self.budget is not None:
            self._agreed = processes.largest(self.spent, self._validation + self._writing)

    def steps_at_this_pace(self, step: int) -> float:
        """How many steps the whole run will have if it continues at the pace so far, up to step `step`.

        With this as the run's length, a schedule follows the share of the time (Li et al. 2020, Budgeted Training).
        """
        return max(step, 1) / max(self.share, 1e-9)

    def state_dict(self) -> dict[str, Any]:
        rows = [list(row) for row in self.rows]
        return {"spent": self.spent, "validation": self._validation, "writing": self._writing, "rows": rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._before, self._validation = state["spent"], state["validation"]
        self._writing = state.get("writing", 0.0)
        self.rows = [(int(epoch), seconds, rate) for epoch, seconds, rate in state["rows"]]

    def on_train_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        # If a run is resumed in the middle of an epoch, the hook for the start of that epoch is not called again.
        self._images, self._epoch_began = 0, self.spent
        self._stop_if_spent(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        self._images, self._epoch_began = 0, self.spent

    def on_before_optimizer_step(self, trainer: L.Trainer, *_: Any) -> None:
        self._agree()  # the schedule needs it right after the step

    def on_train_batch_end(
        self, trainer: L.Trainer, task: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._images += len(batch["image"]) * trainer.world_size
        done = batch_idx + 1
        # After the last batch comes the validation anyway.
        if done % trainer.accumulate_grad_batches == 0 and done < trainer.num_training_batches:
            self._stop_if_spent(trainer)

    def on_validation_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        self._validation_began = self.spent

    def on_validation_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        self._validation = self.spent - self._validation_began

    def on_train_epoch_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        training = self.spent - self._epoch_began - self._validation
        rate = self._images / max(training, 1e-9) if self._images else None
        self.rows.append((trainer.current_epoch + 1, self.spent, rate))
        if trainer.is_global_zero:
            self._write()

    def end_epoch(self, trainer: L.Trainer) -> None:
        """Behind all that an epoch ends with: ends the run when there is no time for another."""
        self._writing = self.spent - self.rows[-1][1]
        self._stop_if_spent(trainer)

    def _write(self) -> None:
        with atomic_write(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["epoch", "seconds", "images_per_second"])
            for epoch, seconds, rate in self.rows:
                rows.writerow([epoch, f"{seconds:.2f}", "" if rate is None else f"{rate:.2f}"])

    def _stop_if_spent(self, trainer: L.Trainer) -> None:
        self._agree()
        if self.budget is not None and self.share >= 1:
            trainer.should_stop = True


class EndOfBudget(L.Callback):
    """Lets the clock end a run behind an epoch; its place is behind the callback that writes, which takes time, too."""

    def __init__(self, clock: RunClock):
        self.clock = clock

    def on_train_epoch_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        self.clock.end_epoch(trainer)


class EarlyStop(L.Callback):
    """Ends a run after `patience` epochs in a row without improvement over the best one, according to the writer.

    It uses the state of `CheckpointWriter`, so a resumed run ends after the same epoch. It must come after the writer
    in the list of callbacks.
    """

    def __init__(self, patience: int, writer: CheckpointWriter):
        self.patience = patience
        self.writer = writer

    def on_train_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        self._stop_if_stale(trainer, trainer.current_epoch - 1)  # the run may have been killed as it ended

    def on_train_epoch_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        self._stop_if_stale(trainer, trainer.current_epoch)

    def _stop_if_stale(self, trainer: L.Trainer, epoch: int) -> None:
        if self.writer.best_epoch >= 0 and epoch - self.writer.best_epoch >= self.patience:
            trainer.should_stop = True

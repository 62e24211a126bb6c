"""The checkpoints of a run: when they are written, whole, verified, and such that a resumed run is the same run."""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch

from vit import processes
from vit.checkpoints.card import Training
from vit.checkpoints.folder import sha256
from vit.foundation import UserError, atomic_write
from vit.training.stopping import StopRequest
from vit.training.task import TrainingTask

SUFFIX = ".sha256"  # of the file beside a checkpoint that says what its bytes must be


class CheckpointWriter(L.Callback):
    """Writes last.ckpt after every epoch, every few minutes within it and when the run is asked to stop; best.ckpt
    and the model folder when an epoch is the best so far.

    Which is the best the task's `judge` says, and the task writes its model folder. After an epoch, last.ckpt is
    written after all else: it knows of a best epoch only when that epoch's files are there, and a run that is killed
    before does the rest of the epoch again. Within an epoch it is written at optimizer steps only, where no gradient
    is half added up. Validation is done again as a whole. Of several processes the first writes, when one of them is
    due or asked to stop.

    Args:
        run: the run folder.
        minutes: most time between two checkpoints.
        stop: what asks the run to stop.
        about: what the model card tells of the data; the metrics are added here.
    """

    def __init__(self, run: Path, *, minutes: float, stop: StopRequest, about: Training | None = None):
        self.run = run
        self.about = about
        self.seconds = 60 * minutes
        self.stop = stop
        self.best: tuple[float, float] = (-math.inf, 0.0)  # its judge's score
        self.best_value = self.last_value = 0.0  # of the judge's metric
        self.best_epoch = -1
        self._saved_at = 0.0
        self._loaders: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        values = [self.best_value, self.last_value]
        return {"best": list(self.best), "best_epoch": self.best_epoch, "values": values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = (state["best"][0], state["best"][1])
        self.best_epoch = state["best_epoch"]
        self.best_value, self.last_value = state["values"]

    def on_load_checkpoint(self, trainer: L.Trainer, task: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._loaders = checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader", [])

    def on_train_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        # Lightning would do it, but not where the number of steps was asked for before the checkpoint was read.
        for state in self._loaders:
            trainer.train_dataloader.load_state_dict(state)  # type: ignore[union-attr]
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, task: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = batch_idx + 1
        # The last batch is followed by the validation, whose beginning is a place to save, too.
        if done % trainer.accumulate_grad_batches == 0 and done < trainer.num_training_batches:
            self._save_if_due(trainer)

    def on_validation_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        self._save_if_due(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self.stop.share():
            self._save_and_stop(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, task: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.validating:  # as if the first batch of the validation were begun: a resumed run then does them all
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            progress["current"] = dict.fromkeys(progress["current"], 0)
            progress["total"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}

    def on_train_epoch_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        assert isinstance(task, TrainingTask)
        metrics = trainer.callback_metrics
        score, self.last_value = task.judge.score(metrics), float(metrics[task.judge.metric])
        if is_best := self.best_epoch < 0 or score > self.best:
            self.best, self.best_value, self.best_epoch = score, self.last_value, trainer.current_epoch
            if trainer.is_global_zero:
                task.write_model(self.run / "model", self._told(trainer, task))
        for name in ("best.ckpt", "last.ckpt") if is_best else ("last.ckpt",):
            self._save(trainer, name)
        if self.stop.share():
            self.stop.stop()

    def _told(self, trainer: L.Trainer, task: TrainingTask) -> Training | None:
        """What the model card of this epoch tells."""
        metrics = {}
        for name, key in task.told.items():
            value = float(trainer.callback_metrics[key])
            metrics[name] = f"{value:.4f}" if key == "val_loss" else f"{value:.1%}"
        return self.about and replace(self.about, metrics=metrics, epoch=trainer.current_epoch + 1)

    def _save_if_due(self, trainer: L.Trainer) -> None:
        if self.stop.share():
            self._save_and_stop(trainer)
        if processes.largest(time.monotonic() - self._saved_at - self.seconds)[0] >= 0:
            self._save(trainer, "last.ckpt")

    def _save_and_stop(self, trainer: L.Trainer) -> NoReturn:
        self._save(trainer, "last.ckpt")
        self.stop.stop()

    def _save(self, trainer: L.Trainer, name: str) -> None:
        try:
            self._write(trainer, self.run / "checkpoints" / name)
        except Exception:
            self.stop.signal = None  # the run ends of this, and not as the signal asked it to
            raise

    def _write(self, trainer: L.Trainer, path: Path) -> None:
        if not trainer.is_global_zero:
            trainer.save_checkpoint(path)  # gives its part to the first process, which alone writes
            self._saved_at = time.monotonic()
            return
        with atomic_write(path) as temporary:
            trainer.save_checkpoint(temporary)
            verify(temporary)
            digest = sha256(temporary)
            accept(path, [*accepted(path), digest])  # whatever moment the run is killed at, the file there is accepted
        accept(path, [digest])
        self._saved_at = time.monotonic()


def verify(path: Path) -> None:
    """Loads a checkpoint that was just written, before it takes the place of the one before.

    Raises:
        UserError: when it does not come back, or holds weights that are not finite.
    """
    try:
        weights = torch.load(path, map_location="cpu", mmap=True, weights_only=True)["state_dict"]
    except Exception as error:
        raise UserError(
            f"The checkpoint that was written can't be read back: {error}\nThe one before is kept."
        ) from None
    bad = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise UserError(
            f"{len(bad)} of {len(weights)} weights are NaN or infinite, such as {bad[0]}.\n"
            "The checkpoint before is kept.\n"
            "Resume from it with a lower --optim.lr in a new run, or with --trainer.precision fp32."
        )


def accepted(path: Path) -> list[str]:
    """The sha256 that the checkpoint `path` may have."""
    beside = path.with_name(path.name + SUFFIX)
    return beside.read_text(encoding="ascii").split() if beside.is_file() else []


def accept(path: Path, digests: list[str]) -> None:
    """Writes down which sha256 the checkpoint `path` may have."""
    with atomic_write(path.with_name(path.name + SUFFIX)) as temporary:
        temporary.write_text("\n".join(digests) + "\n", encoding="ascii")


def is_whole(path: Path) -> bool:
    """Whether the bytes of a checkpoint are those that were written."""
    return path.is_file() and sha256(path) in accepted(path)

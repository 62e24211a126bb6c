"""The checkpoints of a run: written atomically and verified, so that a resumed run gives the same results."""

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

SUFFIX = ".sha256"  # suffix of the file with the digest of a checkpoint


class CheckpointWriter(L.Callback):
    """Writes last.ckpt after every epoch, every few minutes in between and when the run is asked to stop; best.ckpt and
    the model folder when an epoch is the best so far.

    The task's `judge` decides which epoch is the best, and the task writes its model folder. After an epoch, last.ckpt
    is written last: it only mentions a best epoch whose files exist, and a run that is killed before repeats the rest
    of the epoch. Within an epoch it is only written at optimizer steps, where no gradient is partly accumulated. An
    interrupted validation is repeated as a whole. With several processes the first one writes, when any of them is due
    or asked to stop.

    Args:
        run: the run folder.
        minutes: maximum time between two checkpoints.
        stop: the request to stop the run.
        about: what the model card says about the data; the metrics are added here.
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
        # Lightning would do this, but not if the number of steps was requested before the checkpoint was read.
        for state in self._loaders:
            trainer.train_dataloader.load_state_dict(state)  # type: ignore[union-attr]
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, task: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = batch_idx + 1
        # After the last batch comes the validation, at whose start a checkpoint may be written as well.
        if done % trainer.accumulate_grad_batches == 0 and done < trainer.num_training_batches:
            self._save_if_due(trainer)

    def on_validation_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        self._save_if_due(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self.stop.share():
            self._save_and_stop(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, task: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.validating:  # as if the first validation batch had just started, so that a resumed run does them all
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            progress["current"] = dict.fromkeys(progress["current"], 0)
            progress["total"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}

    def on_train_epoch_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        assert isinstance(task, TrainingTask)
        metrics = trainer.callback_metrics
        score, self.last_value = task.judge.score(metrics), float(metrics[task.judge.metric])
        if is_best := self.best_epoch < 0 or score > self.best:
            self.best, self.best_value, self.best_epoch = score, self.last_value, trainer.current_epoch
            model = task.whole_model()
            if trainer.is_global_zero:
                task.write_model(model, self.run / "model", self._told(trainer, task))
        for name in ("best.ckpt", "last.ckpt") if is_best else ("last.ckpt",):
            self._save(trainer, name)
        if self.stop.share():
            self.stop.stop()

    def _told(self, trainer: L.Trainer, task: TrainingTask) -> Training | None:
        """What the model card says about this epoch."""
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
            self.stop.signal = None  # the run ends because of this error, not because of the signal
            raise

    def _write(self, trainer: L.Trainer, path: Path) -> None:
        if not trainer.is_global_zero:
            trainer.save_checkpoint(path)  # sends its part to the first process, which does the writing
            self._saved_at = time.monotonic()
            return
        with atomic_write(path) as temporary:
            trainer.save_checkpoint(temporary)
            verify(temporary)
            digest = sha256(temporary)
            accept(path, [*accepted(path), digest])  # whenever the run is killed, the existing file is accepted
        accept(path, [digest])
        self._saved_at = time.monotonic()


def verify(path: Path) -> None:
    """Loads a checkpoint that was just written, before it replaces the previous one.

    Raises:
        UserError: when it can't be read back, or has weights that are not finite.
    """
    try:
        weights = torch.load(path, map_location="cpu", mmap=True, weights_only=True)["state_dict"]
    except Exception as error:
        raise UserError(
            f"The checkpoint that was just written can't be read back: {error}\nThe previous one is kept."
        ) from None
    bad = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise UserError(
            f"{len(bad)} of {len(weights)} weights are NaN or infinite, such as {bad[0]}.\n"
            "The previous checkpoint is kept.\n"
            "Resume from it with a lower --optim.lr in a new run, or with --trainer.precision fp32."
        )


def accepted(path: Path) -> list[str]:
    """The sha256 digests that the checkpoint `path` may have."""
    beside = path.with_name(path.name + SUFFIX)
    return beside.read_text(encoding="ascii").split() if beside.is_file() else []


def accept(path: Path, digests: list[str]) -> None:
    """Stores the sha256 digests that the checkpoint `path` may have."""
    with atomic_write(path.with_name(path.name + SUFFIX)) as temporary:
        temporary.write_text("\n".join(digests) + "\n", encoding="ascii")


def is_whole(path: Path) -> bool:
    """Whether a checkpoint exists and has the bytes that were written."""
    return path.is_file() and sha256(path) in accepted(path)

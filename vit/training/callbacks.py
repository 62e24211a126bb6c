"""What watches a run: the progress bar, and the writer of checkpoints and the model folder."""

import time
from pathlib import Path
from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from vit.checkpoints.folder import write_folder
from vit.foundation import atomic_write
from vit.training.classification import ClassificationTask


class TrainingProgress(L.Callback):
    """A rich progress bar over the whole run, and a line for each finished epoch."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(stderr=True)
        self.bar: Progress | None = None
        self.images = 0
        self.seconds = 0.0
        self._batch_began = 0.0

    def on_train_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(TextColumn("{task.description}"), *columns, console=self.console, transient=True)
        total = int(trainer.num_training_batches) * (trainer.max_epochs or 1)
        done = int(trainer.num_training_batches) * trainer.current_epoch
        self._bar_id = self.bar.add_task("training", total=total, completed=done)
        self.bar.start()

    def on_train_epoch_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        self.images, self._epoch_began = 0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, task: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self.bar is not None
        self.images += len(batch["image"])
        self.seconds = time.perf_counter() - self._epoch_began
        metrics = trainer.callback_metrics
        loss = float(metrics.get("train_loss_step", float("nan")))
        text = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  loss {loss:.3f}"
        if "val_top1" in metrics:
            text += f"  val {float(metrics['val_top1']):.1%}"
        self.bar.update(self._bar_id, advance=1, description=f"{text}  {self.images / self.seconds:.0f} images/s")

    def on_train_epoch_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.console.print(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            f"  train loss {metrics.get('train_loss_epoch', float('nan')):.3f}"
            f" accuracy {metrics.get('train_top1', float('nan')):.1%}"
            f"  val loss {metrics.get('val_loss', float('nan')):.3f}"
            f" accuracy {metrics.get('val_top1', float('nan')):.1%}"
            f"  {self.images / max(self.seconds, 1e-9):.0f} images/s",
            highlight=False,
        )

    def teardown(self, trainer: L.Trainer, task: L.LightningModule, stage: str) -> None:
        if self.bar is not None:
            self.bar.stop()


class CheckpointWriter(L.Callback):
    """Writes last.ckpt after every epoch, and best.ckpt and the model folder when the epoch is the best so far.

    Best is by top-1 on the validation images, the lower loss deciding between equals. Files are whole or not there.
    """

    def __init__(self, run: Path):
        self.run = run
        self.best: tuple[float, float] = (-1.0, 0.0)
        self.best_epoch = -1

    def state_dict(self) -> dict[str, Any]:
        return {"best": list(self.best), "best_epoch": self.best_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = (state["best"][0], state["best"][1])
        self.best_epoch = state["best_epoch"]

    def on_train_epoch_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        assert isinstance(task, ClassificationTask)
        metrics = trainer.callback_metrics
        score = (float(metrics.get("val_top1", 0.0)), -float(metrics.get("val_loss", 0.0)))
        if is_best := score > self.best:
            self.best, self.best_epoch = score, trainer.current_epoch
        names = ["last.ckpt", "best.ckpt"] if is_best else ["last.ckpt"]
        for name in names:
            with atomic_write(self.run / "checkpoints" / name) as temporary:
                trainer.save_checkpoint(temporary)
        if is_best:
            write_folder(task.model, self.run / "model")

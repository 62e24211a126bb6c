"""A whole training run: from a model and its data to the run folder."""

import logging
import signal
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from vit.checkpoints.card import Training
from vit.checkpoints.read import weights_only_enforced
from vit.foundation import UserError, is_first_process, remove_torn
from vit.inference import choose_device, choose_precision
from vit.training.callbacks import MetricsFile, TrainingProgress
from vit.training.checkpoints import CheckpointWriter
from vit.training.length import EarlyStop, EndOfBudget, RunClock
from vit.training.pictures import draw_curves
from vit.training.profile import Table, TimeTable
from vit.training.resume import last_checkpoint
from vit.training.sharding import strategy_of
from vit.training.stopping import StopRequest
from vit.training.task import TrainingTask

STEPS_A_ROW = 10  # steps per row of metrics.csv, and between TensorBoard events
# What Lightning would do by default, but is done here.
_OURS: dict[str, Any] = {
    "log_every_n_steps": STEPS_A_ROW,
    "num_sanity_val_steps": 0,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}


@dataclass(frozen=True)
class FitResult:
    """The results of a run.

    Args:
        best: the judge's metric in the best epoch, whose weights are in the model folder.
        best_epoch: number of the best epoch, counted from 1.
        last: the judge's metric in the last epoch.
        skipped: images that could not be read (path to reason).
        bad_steps: number of steps that were skipped because their loss or gradient was not finite.
        epochs: number of epochs that were trained, the last one possibly in part.
        profile: where the time went.
    """

    best: float
    best_epoch: int
    last: float
    skipped: dict[str, str]
    bad_steps: int = 0
    epochs: int = 0
    profile: Table | None = None


def fit(
    task: TrainingTask,
    data: L.LightningDataModule,
    run: Path,
    *,
    max_epochs: int,
    max_time: float | None = None,
    prepared: float = 0.0,
    patience: int = 0,
    precision: str = "auto",
    accumulate: int = 1,
    clip_grad: float = 1.0,
    activation_checkpointing: bool = False,
    compile: bool = False,
    checkpoint_minutes: float = 5.0,
    devices: int = 1,
    num_nodes: int = 1,
    strategy: str = "auto",
    device: str = "auto",
    resume: bool = False,
    about: Training | None = None,
    profile: bool = False,
) -> FitResult:
    """Trains, and leaves checkpoints/, model/, metrics.csv, times.csv, TensorBoard events and curves.png in `run`.

    Args:
        task: the task to train.
        data: training and validation data.
        run: the run folder.
        max_epochs: length of the run, unless `max_time` is given.
        max_time: length of the run in seconds; the learning rate schedule follows it.
        prepared: seconds that the run has already taken, which count as part of its time.
        patience: number of epochs without improvement after which the run ends; 0 never ends early.
        precision: "auto", "fp32" or "bf16", see `vit.inference.choose_precision`.
        accumulate: batches per step.
        clip_grad: maximum gradient norm; 0 for no limit.
        activation_checkpointing: recompute blocks for their gradients, see `Encoder`.
        compile: compile the training forward pass with torch.compile.
        checkpoint_minutes: maximum time between two checkpoints.
        devices, num_nodes: number of processes per machine, and of machines; each process has its own batches.
        strategy: "auto", "ddp" or "fsdp", see `vit.training.sharding`.
        device: "auto", "cpu", "cuda" or "mps".
        resume: continue from the last good checkpoint.
        about: what the model card says about the data.
        profile: measure where the time goes.

    Raises:
        UserError: when there is nothing to resume from, no image can be read, or the loss is not finite.
        KeyboardInterrupt: on an interrupt, after saving the run.
        SystemExit: with code 143, on SIGTERM, after saving the run.
    """
    last = last_checkpoint(run) if resume else None
    task.model.encoder.activation_checkpointing = activation_checkpointing
    if compile:
        task.model.compile()
    arithmetic = choose_precision(precision, choose_device(device))
    stop = StopRequest()
    writer = CheckpointWriter(run, minutes=checkpoint_minutes, stop=stop, about=about)
    clock = RunClock(run / "times.csv", max_time, prepared=prepared)
    # The order matters: the progress bar shows what the clock counted, the checkpoint includes the epoch's rows, and
    # the early stop uses the writer's best epoch.
    callbacks: list[L.Callback] = [stop, clock, *_first_process_only(run, clock), writer]
    if max_time is not None:
        task.expected_steps = clock.steps_at_this_pace
        callbacks.append(EndOfBudget(clock))
    if patience:
        callbacks.append(EarlyStop(patience, writer))
    times = TimeTable() if profile else None
    _silence_lightning()
    trainer = L.Trainer(
        accelerator="gpu" if device == "cuda" else device,
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy_of(strategy, devices * num_nodes),
        precision="bf16-mixed" if arithmetic == "bf16" else "32-true",
        max_epochs=-1 if max_time is not None else max_epochs,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=clip_grad or None,
        logger=TensorBoardLogger(save_dir=run, name="", version="tensorboard"),
        callbacks=callbacks,
        profiler=times,
        **_OURS,
    )
    _fit_or_stop(trainer, task, data, last, stop)
    if trainer.is_global_zero:
        draw_curves(run / "metrics.csv", run / "curves.png")
    return FitResult(
        writer.best_value,
        writer.best_epoch + 1,
        writer.last_value,
        task.skipped,
        task.bad_steps,
        epochs=len(clock.rows),
        profile=times.table() if times else None,
    )


def _first_process_only(run: Path, clock: RunClock) -> list[L.Callback]:
    """The callbacks of the process that writes and prints; half-written leftovers of a killed run are removed."""
    if not is_first_process():
        return []
    remove_torn((run, run / "checkpoints", run / "model"))
    return [MetricsFile(run / "metrics.csv", every=STEPS_A_ROW), TrainingProgress(clock)]


def _silence_lightning() -> None:
    """Turns off Lightning's notices (devices, tips, existing folders), which would hide what matters to the user."""
    for part in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(part).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view")  # from expanded tokens; harmless


def _fit_or_stop(
    trainer: L.Trainer, task: TrainingTask, data: L.LightningDataModule, last: Path | None, stop: StopRequest
) -> None:
    """Trains, from a checkpoint if given; a stopped run ends the way a command does."""
    try:
        with weights_only_enforced():
            trainer.fit(task, datamodule=data, ckpt_path=last, weights_only=True)
    except SIGTERMException:
        sys.exit(128 + signal.SIGTERM)
    except SystemExit:  # Lightning raises this for an interrupt
        raise KeyboardInterrupt from None
    except Exception as error:
        ended = isinstance(error, ConnectionError) or not isinstance(error, UserError | OSError)
        if not stop.asked or not ended:
            raise
        # The signal also ended a helper of the step, such as the compiler of torch.compile.
        if stop.signal == signal.SIGINT:
            raise KeyboardInterrupt from None
        sys.exit(128 + signal.SIGTERM)

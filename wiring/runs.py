"""Training runs of any task: the options that they share, their folder, and what is printed about them."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit.foundation import UserError, atomic_write, claim_folder, is_first_process
from vit.options import Device, OptimOptions, TrainerOptions, TrainingDataOptions, seconds
from vit.terminal import print_tables, say, tell_skipped

if TYPE_CHECKING:
    from vit.checkpoints.card import Training
    from vit.training.fit import FitResult
    from vit.training.task import Judge, TrainingTask


CHECKPOINTS = [f"checkpoints/{name}.ckpt{end}" for name in ("last", "best") for end in ("", ".sha256")]
FOLDS = "folds.json"  # in the folder of a cross-validation: the results of its folds


@dataclass(frozen=True)
class RunOptions:
    """The folder of a run, and how it starts.

    Args:
        run: the folder.
        config: all options as YAML, to be saved in the folder.
        seed: seed of everything random in the run.
        limit: maximum number of images per split; None for all.
        profile: measure where the time goes.
        device: "auto" uses a GPU if there is one.
        overwrite: write into a folder that already holds files.
        resume: continue from the folder's last checkpoint.
    """

    run: Path
    config: str
    seed: int = 0
    limit: int | None = None
    profile: bool = False
    device: Device = "auto"
    overwrite: bool = False
    resume: bool = False


def check_run(options: RunOptions, trainer: TrainerOptions, start: str | None) -> None:
    """Raises UserError for a device that does not exist, a wrong number of processes, a starting checkpoint that would
    be overwritten, or a run that can't be resumed with these options."""
    from vit.inference import choose_device
    from vit.training.resume import last_checkpoint, refuse_changes

    choose_device(options.device)
    _check_processes(trainer)
    if options.overwrite and start and _is_overwritten(Path(start), options.run):
        raise UserError(
            f"{start} is a checkpoint of the run that --overwrite would replace.\nCopy it, or give another --run."
        )
    if options.resume:
        last_checkpoint(options.run)
        refuse_changes(options.run / "config.yaml", options.config)


def refuse_unfit_fsdp(trainer: TrainerOptions, optim: OptimOptions, *, classifies: bool) -> None:
    """Raises UserError for --trainer.strategy fsdp with what needs all weights in each process."""
    if trainer.strategy != "fsdp":
        return
    unfit = {
        "--optim.ema": optim.ema > 0,
        "--optim.trained head": optim.trained == "head",
        "--trainer.compile": trainer.compile,
        "a task other than classify": not classifies,
    }
    if found := next((name for name, given in unfit.items() if given), None):
        raise UserError(f"--trainer.strategy fsdp does not work with {found}.\nTry --trainer.strategy ddp.")


def _is_overwritten(start: Path, run: Path) -> bool:
    return start.resolve() in {(home / name).resolve() for home in _homes(run) for name in CHECKPOINTS}


def _homes(run: Path) -> list[Path]:
    """The folder of a run, and the folders of its folds."""
    folds = [fold for fold in run.glob("fold_*") if re.fullmatch(r"fold_\d+", fold.name)]
    return [run, *(fold for fold in folds if (fold / "config.yaml").is_file())]


def _check_processes(trainer: TrainerOptions) -> None:
    """Raises UserError when torchrun started a different number of processes than the options ask for."""
    wanted, started = trainer.devices * trainer.num_nodes, int(os.environ.get("WORLD_SIZE") or 0)
    if "LOCAL_RANK" in os.environ and started and started != wanted:  # else Lightning starts them
        here = int(os.environ.get("LOCAL_WORLD_SIZE") or started)
        raise UserError(
            f"There are {started} processes, but --trainer.devices times --trainer.num_nodes is {wanted}.\n"
            f"Give --trainer.devices {here} --trainer.num_nodes {started // here}."
        )


def open_run(options: RunOptions) -> Path:
    """Creates the run folder, with the options in it as config.yaml. Raises UserError as `claim_folder` does."""
    folder = claim_folder(options.run, overwrite=options.overwrite, resume=options.resume)
    if is_first_process():
        if not options.resume:
            _forget(folder)  # first: a kill must not leave the new options beside another run's checkpoints
        with atomic_write(folder / "config.yaml") as temporary:
            temporary.write_text(options.config, encoding="utf-8")
    return folder


def _forget(folder: Path) -> None:
    """Removes the checkpoints, curves and metrics of an earlier run in the folder."""
    (folder / FOLDS).unlink(missing_ok=True)
    for home in _homes(folder):
        for name in (*CHECKPOINTS, "metrics.csv", "times.csv", "curves.png"):
            (home / name).unlink(missing_ok=True)
        for events in (home / "tensorboard").glob("events.out.tfevents.*"):
            events.unlink()


def run_task(
    task: TrainingTask,
    module: Any,
    options: RunOptions,
    optim: OptimOptions,
    trainer: TrainerOptions,
    about: Training,
    *,
    prepared: float = 0.0,
) -> FitResult:
    """Trains the task on the data, as the options say, into the run folder, and prints how it went.

    Args:
        prepared: seconds that the run has taken before.

    Raises:
        UserError: as `vit.training.fit.fit` does.
    """
    from vit.training.fit import fit

    length = asdict(trainer)
    del length["skip_bad_steps"]  # the task's own
    length["max_time"] = seconds(trainer.max_time) if trainer.max_time else None
    result = fit(
        task, module, options.run, clip_grad=optim.clip_grad, device=options.device, resume=options.resume, about=about,
        profile=options.profile, prepared=prepared, **length,
    )  # fmt: skip
    _tell_result(result, task.judge, options.run)
    return result


def refuse_classification(data: TrainingDataOptions, optim: OptimOptions, *, takes: str = "") -> None:
    """Raises UserError for options that only classification uses, except for the one that this task `takes`."""
    usual = OptimOptions()
    if data.balanced:
        raise UserError("--data.balanced needs classes, and there are none in this task.\nLeave it out.")
    for name in (*usual.classification(), "class_weights", "head_init", "neighbours"):
        value = getattr(optim, name)
        if value != getattr(usual, name) and name != takes:
            raise UserError(f"--optim.{name} is {value!r}, which this task does not use.\nLeave it out.")


def _tell_result(result: FitResult, judge: Judge, folder: Path) -> None:
    """Prints the results of a run, and where its files are."""
    tell_skipped(result.skipped, folder)
    if result.bad_steps:
        say(f"{result.bad_steps} steps were skipped: their loss or gradient was not finite")
    best, last = judge.text(result.best), judge.text(result.last)
    say(f"best {judge.name} {best} in epoch {result.best_epoch}, last {last} in epoch {result.epochs}")
    if result.profile:
        print_tables([result.profile])
    say(f"model: {folder / 'model'}   curves: {folder / 'curves.png'}")

"""Cross-validation: one training run per fold, and a summary of them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from vit.foundation import UserError, atomic_write, is_first_process
from vit.options import ModelOptions, OptimOptions, TrainerOptions, TrainingDataOptions
from vit.terminal import print_tables, say
from wiring.runs import FOLDS, RunOptions, open_run
from wiring.training import prepared, train_classifier

if TYPE_CHECKING:
    from vit.training.task import Judge


def cross_validate(
    data: TrainingDataOptions,
    model: ModelOptions,
    optim: OptimOptions,
    trainer: TrainerOptions,
    options: RunOptions,
    *,
    folds: int,
) -> None:
    """Trains once per fold, each time validating on a different part of the images, in the folders fold_1, fold_2 ...
    of the run; writes folds.json there, and prints its table.

    Raises:
        UserError: for folds, options, a model or data that can't be used, or when a run fails.
    """
    from vit.training.resume import refuse_changes

    check_folds(folds, data, trainer)
    if options.resume:
        refuse_changes(options.run / "config.yaml", options.config)
    if not options.resume:  # find invalid options before anything is written or removed
        prepared(data, model, optim, trainer, options, fold=(1, folds))
    folder = open_run(options)
    done, judge = _finished(folder) if options.resume else ([], None)
    for number in range(len(done) + 1, folds + 1):
        home = folder / f"fold_{number}"
        say("", f"fold {number} of {folds}")
        begun = options.resume and (home / "checkpoints" / "last.ckpt").is_file()
        of_fold = replace(options, run=home, resume=begun, overwrite=options.overwrite or options.resume)
        result, judge = train_classifier(data, model, optim, trainer, of_fold, fold=(number, folds))
        done.append({"fold": number, "best": result.best, "best_epoch": result.best_epoch, "last": result.last,
                     "epochs": result.epochs})  # fmt: skip
        if is_first_process():
            _write(folder / FOLDS, done, judge)
    assert judge is not None
    print_tables([fold_table(done, judge)])
    say(f"written to {folder}: {FOLDS}, fold_1 to fold_{folds}")


def check_folds(folds: int, data: TrainingDataOptions, trainer: TrainerOptions) -> None:
    """Raises UserError for an invalid number of folds, or data or processes that don't allow any."""
    if folds < 2:
        raise UserError(f"--folds is {folds}; allowed are 2 or more.")
    if data.root.startswith("birdscenes:"):
        raise UserError("Generated scenes have no folds: new ones can be generated in any number.\nLeave out --folds.")
    if trainer.devices * trainer.num_nodes > 1 and "RANK" not in os.environ:
        raise UserError(
            "Folds in several processes need a launcher.\nStart `vit train` with torchrun, see docs/training.md."
        )


def _finished(folder: Path) -> tuple[list[dict[str, Any]], Judge | None]:
    """The folds that a run has finished before, and the metric that judges them."""
    from vit.training.task import Judge

    if not (folder / FOLDS).is_file():
        return [], None
    found = json.loads((folder / FOLDS).read_text(encoding="utf-8"))
    return found["folds"], Judge(**found["judge"])


def _write(path: Path, done: list[dict[str, Any]], judge: Judge) -> None:
    summary = {"judge": asdict(judge), "folds": done} | {
        name: {"mean": mean, "std": spread} for name, (mean, spread) in _summarised(done).items()
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def _summarised(done: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Mean and sample standard deviation over the folds."""
    columns = {name: [float(row[name]) for row in done] for name in ("best", "last")}
    return {name: (fmean(values), stdev(values) if len(values) > 1 else 0.0) for name, values in columns.items()}


def fold_table(done: list[dict[str, Any]], judge: Judge) -> tuple[str, list[str], list[list[str]]]:
    """(Title, columns, rows): one row per fold, then their mean and spread."""
    rows = [
        [str(row["fold"]), judge.text(row["best"]), str(row["best_epoch"]), judge.text(row["last"]), str(row["epochs"])]
        for row in done
    ]
    found = _summarised(done)
    for name, place in (("mean", 0), ("spread", 1)):
        rows.append([name, judge.text(found["best"][place]), "", judge.text(found["last"][place]), ""])
    title = f"Validation {judge.name} of {len(done)} folds (spread: standard deviation; it also chose the best epoch):"
    return title, ["fold", "best", "in epoch", "last", "epochs"], rows

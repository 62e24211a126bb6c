"""Compares runs: the options and results of each, read from its folder."""

import csv
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from vit.foundation import RECIPE, UserError, nearest
from vit.training.resume import FREE_TO_CHANGE, flat
from vit.training.task import Judge

# A run is judged by the first of these that it has.
JUDGES = (
    Judge("val_top1", "top-1"), Judge("val_map", "mAP"), Judge("val_exact", "exact match"),
    Judge("val_loss", "loss", higher_is_better=False),
)  # fmt: skip

DATA = "data.root"  # a run may go on when its data was moved, but accuracies on other data are not comparable
PATCH_SIZE = 16  # of new models, as in wiring.models

FEW = 3  # runs whose options can all be read


@dataclass(frozen=True)
class Run:
    """A run folder.

    Args:
        folder: the run folder.
        recipes: names of the recipes that it started from.
        options: its options by name, such as optim.lr.
        judge: the metric that judges its epochs.
        values: the value of that metric in each epoch.
        best: the best epoch, counted from 0; -1 for none.
        images_per_second: the median over the epochs' training; None if it is not known.
        seconds: total duration; None if it is not known.
    """

    folder: Path
    recipes: tuple[str, ...]
    options: dict[str, Any]
    judge: Judge
    values: tuple[float, ...]
    best: int
    images_per_second: float | None
    seconds: float | None


def find_runs(folders: Sequence[str]) -> list[Path]:
    """The run folders among the given folders and below them.

    Raises:
        UserError: for a folder that does not exist, or contains no run.
    """
    found: dict[Path, None] = {}
    for name in folders:
        folder = Path(name)
        if folder.is_file():
            raise UserError(f"{name} is a file.\nGive folders of runs.")
        if not folder.is_dir():
            beside = [place.name for place in folder.parent.iterdir()] if folder.parent.is_dir() else []
            raise UserError(f"There is no folder {name}{nearest(folder.name, beside)}.")
        runs = [path.parent for path in sorted(folder.rglob("metrics.csv")) if (path.parent / "config.yaml").is_file()]
        if not runs:
            raise UserError(f"{name} holds no run: no folder with config.yaml and metrics.csv.")
        found |= dict.fromkeys(runs)
    return list(found)


def read_run(folder: Path) -> Run:
    """What the folder of a run tells of it."""
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    epochs = [row for row in _rows(folder / "metrics.csv") if row.get("val_loss")]
    judge = next((judge for judge in JUDGES if epochs and epochs[0].get(judge.metric)), JUDGES[-1])
    times = _rows(folder / "times.csv")
    rates = [float(row["images_per_second"]) for row in times if row["images_per_second"]]
    return Run(
        folder,
        tuple(line.removeprefix(RECIPE) for line in text.splitlines() if line.startswith(RECIPE)),
        flat(yaml.safe_load(text)),
        judge,
        tuple(float(row[judge.metric]) for row in epochs),
        max(range(len(epochs)), key=lambda epoch: judge.score(epochs[epoch]), default=-1),
        median(rates) if rates else None,
        float(times[-1]["seconds"]) if times else None,
    )


def _rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV, but one that is being written, or was when the run was killed."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]


def read_runs(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """The runs of folders, and what is wrong with those that can't be read.

    Raises:
        UserError: when none can.
    """
    found, wrong = [], []
    for folder in folders:
        try:
            found.append(read_run(folder))
        except (yaml.YAMLError, ValueError, KeyError, AttributeError) as error:
            wrong.append(f"{folder} is not a readable run: {' '.join(str(error).split())[:120]}")
    if not found:
        raise UserError("\n".join(wrong[:3]))
    return found, wrong


def differing(runs: Sequence[Run]) -> list[str]:
    """The options that are not the same in all of the runs, but for those that make no other run, and those that an
    earlier version did not have."""
    names = [name for name in runs[0].options if all(name in run.options for run in runs)]
    told = [name for name in names if name == DATA or name not in FREE_TO_CHANGE]
    return [name for name in told if len({repr(_meant(run, name)) for run in runs}) > 1]


def _meant(run: Run, name: str) -> Any:
    """The value of an option, of new models also the default size of patches, which earlier versions wrote out."""
    if name == "model.patch_size" and run.options.get("model.pretrained") is None:
        return run.options[name] or PATCH_SIZE
    return run.options[name]


def run_table(runs: Sequence[Run]) -> tuple[str, list[str], list[list[str]]]:
    """Title, columns, and a row a run. Of more than a `FEW`, what most have is not told of each."""
    names = differing(runs)
    usual: dict[str, str] = {}
    for name in names:
        value, count = Counter(str(run.options[name]) for run in runs).most_common(1)[0]
        usual |= {name: value} if len(runs) > FEW and count > len(runs) / 2 else {}
    base = os.path.commonpath([run.folder.absolute().parent for run in runs])
    columns = ["run", "recipe", "best", "in epoch", "last", "epochs", "images/s", "time", "options that differ"]
    rows = []
    for run in runs:
        of = "" if run.options.get("trainer.max_time") else f"/{run.options.get('trainer.max_epochs', '?')}"
        ends = [_shown(run, run.best), str(run.best + 1), _shown(run, -1)] if run.values else ["", "", ""]
        rate = "" if run.images_per_second is None else f"{run.images_per_second:.1f}"
        own = ", ".join(f"{name}={run.options[name]}" for name in names if str(run.options[name]) != usual.get(name))
        rows.append([os.path.relpath(run.folder, base), " + ".join(run.recipes), *ends, f"{len(run.values)}{of}", rate,
                     _duration(run.seconds), own])  # fmt: skip
    told = ", ".join(dict.fromkeys(run.judge.name for run in runs))
    others = f"; what most have: {', '.join(f'{name}={value}' for name, value in usual.items())}" if usual else ""
    return f"Runs below {base}, {told} on their validation images{others}:", columns, rows


def _shown(run: Run, epoch: int) -> str:
    return f"{'' if run.judge.higher_is_better else 'loss '}{run.judge.text(run.values[epoch])}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"

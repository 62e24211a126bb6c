"""Resuming a stopped run: from which checkpoint, and only with the options that it started with."""

from pathlib import Path
from typing import Any

import yaml

from vit.foundation import UserError
from vit.training.checkpoints import is_whole

# Options of a run that may differ when it is resumed. The others would be ignored, or mix two runs.
FREE_TO_CHANGE = (
    "run", "device", "overwrite", "resume", "profile", "data.root", "data.num_workers", "data.strict",
    "data.cache", "data.cache_gb",
    "trainer.checkpoint_minutes",
)  # fmt: skip


def last_checkpoint(run: Path) -> Path:
    """The checkpoint from which a run continues: the last, or the best if the last is damaged. The epochs in between
    are repeated, with the same results.

    Raises:
        UserError: when there is no undamaged one.
    """
    paths = [path for name in ("last.ckpt", "best.ckpt") if (path := run / "checkpoints" / name).is_file()]
    if not paths:
        instead = "with --overwrite in its place" if run.is_dir() and any(run.iterdir()) else "without --resume"
        raise UserError(f"There is nothing to resume in {run}: it has no checkpoints/last.ckpt.\nStart it {instead}.")
    for path in paths:
        if is_whole(path):
            return path
    raise UserError(
        f"No checkpoint of {run} can be read; these are damaged: {', '.join(path.name for path in paths)}.\n"
        "Start it again with --overwrite."
    )


def refuse_changes(config: Path, now: str) -> None:
    """Raises UserError if a run is resumed with other options than it started with.

    Args:
        config: path of the run's config.yaml.
        now: the options that it is resumed with, as YAML.
    """
    began = flat(yaml.safe_load(config.read_text(encoding="utf-8"))) if config.is_file() else {}
    changed = [
        f"{name}: {began[name]}, now {value}"
        for name, value in flat(yaml.safe_load(now)).items()
        if name in began and began[name] != value and name not in FREE_TO_CHANGE
    ]
    if changed:
        raise UserError(
            f"The run started with other options: {'; '.join(changed[:6])}.\n"
            f"Resume with --config {config} --resume, or start a new run."
        )


def flat(options: dict[str, Any] | None) -> dict[str, Any]:
    """{"data": {"root": x}, "seed": 0} -> {"data.root": x, "seed": 0}."""
    found: dict[str, Any] = {}
    for name, value in (options or {}).items():
        group = {f"{name}.{field}": item for field, item in value.items()} if isinstance(value, dict) else {name: value}
        found |= group
    return found

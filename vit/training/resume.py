"""Going on with a run that was stopped: from which checkpoint, and only with the options that it began with."""

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
    """The checkpoint that a run goes on from: the last, or the best when the last is damaged. The epochs between
    are done again, and come out the same.

    Raises:
        UserError: when there is none.
    """
    paths = [path for name in ("last.ckpt", "best.ckpt") if (path := run / "checkpoints" / name).is_file()]
    if not paths:
        instead = "with --overwrite in its place" if run.is_dir() and any(run.iterdir()) else "without --resume"
        raise UserError(f"There is nothing to resume in {run}: it has no checkpoints/last.ckpt.\nStart it {instead}.")
    for path in paths:
        if is_whole(path):
            return path
    raise UserError(
        f"No checkpoint of {run} can be read; damaged are {', '.join(path.name for path in paths)}.\n"
        "Start it again with --overwrite."
    )


def refuse_changes(config: Path, now: str) -> None:
    """Raises UserError when a run is to go on with other options than it began with.

    Args:
        config: the config.yaml of the run.
        now: the YAML of the options that it is resumed with.
    """
    began = flat(yaml.safe_load(config.read_text(encoding="utf-8"))) if config.is_file() else {}
    changed = [
        f"{name}: {began[name]}, now {value}"
        for name, value in flat(yaml.safe_load(now)).items()
        if name in began and began[name] != value and name not in FREE_TO_CHANGE
    ]
    if changed:
        raise UserError(
            f"The run began with other options: {'; '.join(changed[:6])}.\n"
            f"Resume with --config {config} --resume, or start a new run."
        )


def flat(options: dict[str, Any] | None) -> dict[str, Any]:
    """{"data": {"root": x}, "seed": 0} -> {"data.root": x, "seed": 0}."""
    found: dict[str, Any] = {}
    for name, value in (options or {}).items():
        group = {f"{name}.{field}": item for field, item in value.items()} if isinstance(value, dict) else {name: value}
        found |= group
    return found

"""The model folder: what `vit train` leaves, and all that it takes to use the model.

model.safetensors   the weights, under timm's names
config.json         architecture, preprocessing, pooling, labels in order, the sha256 of the weights
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from vit.checkpoints import canonical
from vit.checkpoints.sources.source import Facts
from vit.foundation import UserError, atomic_write
from vit.models.classifier import Classifier

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


def write_folder(model: Classifier, folder: Path) -> None:
    """Writes the model folder; each of its files is whole, and the config names the weights that it is for.

    The config goes last: a folder that was cut short between the two is refused by its sha256, never half-read.
    """
    tensors = canonical.from_ours({name: value.cpu() for name, value in model.state_dict().items()}, model.pool)
    with atomic_write(folder / WEIGHTS) as temporary:
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, {"format": "pt"})
        digest = sha256(temporary)
    config = {
        "format": "vitscope",
        "architecture": model.encoder.architecture,
        "num_classes": model.num_classes,
        "pool": model.pool,
        "labels": list(model.labels),
        "preprocessing": asdict(model.preprocessing),
        "weights_sha256": digest,
    }
    with atomic_write(folder / CONFIG) as temporary:
        temporary.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def facts(folder: Path, config: dict[str, Any]) -> Facts:
    """What the config of a model folder says, the weights checked against the stored sha256.

    Raises:
        UserError: when the config is none of a model folder, or the weights are not those it was written with.
    """
    weights = folder / WEIGHTS
    try:
        expected = config["weights_sha256"]
        for name, kind in (("architecture", dict), ("preprocessing", dict), ("pool", str), ("labels", list)):
            if not isinstance(config[name], kind):
                raise TypeError(f"{name} is {config[name]!r}")
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / CONFIG} is not the config of a model folder: {error!r}") from None
    if not weights.is_file():
        raise UserError(f"{folder} is no model folder: it has no {WEIGHTS}.\nGive the `model` folder of a run.")
    if (found := sha256(weights)) != expected:
        raise UserError(
            f"{weights} is damaged: its sha256 is {found[:12]}..., its config says {expected[:12]}...\n"
            "Copy the model folder again."
        )
    return Facts(
        encoder=_with_tuples(config["architecture"]),
        pool=config["pool"],
        labels=tuple(config["labels"]),
        preprocessing=_with_tuples(config["preprocessing"]),
    )


def _with_tuples(options: dict[str, Any]) -> dict[str, Any]:
    """JSON knows lists only."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}


def sha256(path: Path) -> str:
    """The hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""The model folder: what `vit train` writes, and all that is needed to use the model, here and elsewhere.

model.safetensors   the weights, with timm's names
neighbours.safetensors   the features and classes of the training photographs that vote, if the model has them
config.json         for timm and transformers: architecture, labels, preprocessing, if timm can represent them;
                    for us, under "vitscope": the same in all detail, and the sha256 of the weights and the neighbours
README.md           the model card
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vit.checkpoints.card import Training, model_card
from vit.checkpoints.read import read_tensors, refuse_link
from vit.checkpoints.sources.source import Facts
from vit.checkpoints.targets import timm
from vit.checkpoints.targets.target import sha256, write_json, write_safetensors
from vit.foundation import UserError, atomic_write
from vit.models.classifier import Classifier
from vit.models.neighbours import Neighbours

WEIGHTS = "model.safetensors"
NEIGHBOURS = "neighbours.safetensors"
CONFIG = "config.json"
CARD = "README.md"
OURS = "vitscope"  # the key of our part of the config


def write_folder(model: Classifier, folder: Path, training: Training | None = None) -> None:
    """Writes the model folder; each file is written atomically, and the config has the sha256 of its weights.

    The config is written last: an incomplete folder is refused because of the sha256, and never read in part.

    Args:
        model: the model.
        folder: the folder, created if it does not exist.
        training: what the model card says about the data and the run.
    """
    digest = write_safetensors(timm.tensors(model), folder / WEIGHTS)
    neighbours = _write_neighbours(model.neighbours, folder / NEIGHBOURS)
    obstacles = timm.obstacles(model)
    ways = {"vitscope": _LOADING}
    if not obstacles:
        ways |= {"timm": timm.loading(model), "transformers, which needs timm": timm.loading_by_transformers(model)}
    digests = {WEIGHTS: digest} | ({NEIGHBOURS: neighbours["sha256"]} if neighbours else {})
    with atomic_write(folder / CARD) as temporary:
        card = model_card(model, digests, ways, training=training, obstacles=obstacles)
        temporary.write_text(card, encoding="utf-8")
    ours = {**describe(model), "weights_sha256": digest} | ({"neighbours": neighbours} if neighbours else {})
    write_json(_config(ours, {} if obstacles else timm.config(model)), folder / CONFIG)
    if not neighbours:
        (folder / NEIGHBOURS).unlink(missing_ok=True)  # an earlier model's, which the config no longer names


def _write_neighbours(neighbours: Neighbours | None, path: Path) -> dict[str, Any]:
    """Writes the tensors; returns what the config says about them, nothing if there are none."""
    if neighbours is None:
        return {}
    return {**neighbours.settings(), "sha256": write_safetensors(dict(neighbours.named_buffers()), path)}


def read_neighbours(folder: Path, config: Mapping[str, Any]) -> Neighbours | None:
    """The neighbours of the model in a folder, None if it has none.

    Raises:
        UserError: when they are missing, damaged or invalid.
    """
    told = config[OURS].get("neighbours")
    if told is None:
        return None
    path = folder / NEIGHBOURS
    if not path.is_file():
        raise UserError(f"{folder} is not a whole model folder: {NEIGHBOURS} is missing.\nCopy the model folder again.")
    refuse_link(path)
    try:
        settings = {name: told[name] for name in ("share", "count", "temperature")}
        refuse_damaged(path, told["sha256"], sha256(path))
        tensors = read_tensors(path)
        return Neighbours(tensors["features"], tensors["targets"], **settings)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} does not fit what {CONFIG} says about it: {error!r:.200}") from None


def _config(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """timm's part, if timm can represent the model, and ours, with the sha256 of both."""
    return {**theirs, OURS: {**ours, "config_sha256": digest_of({**theirs, OURS: ours})}}


def describe(model: Classifier) -> dict[str, Any]:
    """What the weights don't say about a model, in plain values, for the config and for training checkpoints."""
    return {
        "architecture": model.encoder.architecture,
        "pool": model.pool,
        "pool_blocks": model.pool_blocks,
        "multilabel": model.multilabel,
        "labels": list(model.labels),
        "preprocessing": asdict(model.preprocessing),
    }


def described(ours: Mapping[str, Any]) -> Facts:
    """The facts that `describe` wrote.

    Raises:
        KeyError, TypeError: when a value is missing or has another type.
    """
    ours = {"pool_blocks": 1, "multilabel": False, **ours}  # older folders don't say
    kinds = {
        "architecture": dict, "preprocessing": dict, "pool": str, "labels": list, "pool_blocks": int,
        "multilabel": bool,
    }  # fmt: skip
    for name, kind in kinds.items():
        if not isinstance(ours[name], kind):
            raise TypeError(f"{name} is {ours[name]!r}")
    for name in ("image_size", "patch_size"):
        size = ours["architecture"][name]
        if not (isinstance(size, list | tuple) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)):
            raise TypeError(f"{name} is {size!r}")
    # In other models with rotary positions, the channels of the heads have another order.
    order = {"rotary_order": ""} if ours["architecture"].get("rotary") else {}
    return Facts(
        encoder=with_tuples(ours["architecture"]) | order,
        pool=ours["pool"],
        pool_blocks=ours["pool_blocks"],
        multilabel=ours["multilabel"],
        labels=tuple(ours["labels"]),
        preprocessing=with_tuples(ours["preprocessing"]),
    )


_LOADING = """\
import torch
import vit
from datamodules.reading import read_image
from datamodules.transforms import eval_transform

model = vit.load("FOLDER").eval()
use = model.preprocessing
transform = eval_transform(use.image_size, use.mean, use.std, crop_pct=use.crop_pct,
                           resize_mode=use.resize_mode, interpolation=use.interpolation)
with torch.inference_mode():
    logits = model(transform(read_image("photo.jpg"))[None])
probabilities = dict(zip(model.labels, logits.softmax(dim=1)[0].tolist()))
"""


def digest_of(config: dict[str, Any]) -> str:
    """The sha256 of a config's content, independent of its formatting."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def is_ours(config: dict[str, Any]) -> bool:
    """Whether a config.json is one of ours, including the first format, which `facts` refuses."""
    return OURS in config or config.get("format") == OURS


def facts(folder: Path, config: dict[str, Any]) -> Facts:
    """The facts in the config of a model folder.

    Raises:
        UserError: when it is not the config of a model folder or was changed since it was written, the folder holds a
            captioner, or the weights are missing.
    """
    path = folder / CONFIG
    if config.get("format") == OURS:
        raise UserError(f"{path} has the first format, which is no longer supported.\nTrain the model again.")
    ours = config.get(OURS)
    try:
        if not isinstance(ours, dict):
            raise TypeError(f"it has no {OURS!r}")
        if ours.get("kind") == "captioner":
            raise UserError(f"{folder} holds a captioner, which generates sentences and has no classes.")
        found = described(ours)
        if not isinstance(ours["weights_sha256"], str):
            raise TypeError(f"weights_sha256 is {ours['weights_sha256']!r}")
        written = ours["config_sha256"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is not the config of a model folder: {error!r}") from None
    rest = {name: value for name, value in ours.items() if name != "config_sha256"}
    if digest_of({**config, OURS: rest}) != written:
        raise UserError(f"{path} was changed since it was written: its sha256 differs.\nCopy the model folder again.")
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} is not a model folder: {WEIGHTS} is missing.\nGive the `model` folder of a run.")
    return found


def refuse_damaged(path: Path, expected: str, found: str) -> None:
    """Raises UserError for a file whose sha256, `found`, is not the one that it was written with."""
    if found != expected:
        raise UserError(
            f"{path} is damaged: its sha256 is {found[:12]}..., its config says {expected[:12]}...\n"
            "Copy the model folder again."
        )


def with_tuples(options: dict[str, Any]) -> dict[str, Any]:
    """The options with tuples instead of lists, because JSON only has lists."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}


__all__ = [
    "CARD", "CONFIG", "NEIGHBOURS", "OURS", "WEIGHTS", "describe", "described", "digest_of", "facts", "is_ours",
    "read_neighbours", "refuse_damaged", "sha256", "with_tuples", "write_folder",
]  # fmt: skip

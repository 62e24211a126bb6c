"""The content of a checkpoint, before a model is built from it: its tensors, and the facts that come with them."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from vit.checkpoints import folder, hub, timm_config, transformers_config
from vit.checkpoints.live import neighbours_of, read_module
from vit.checkpoints.read import Stored, read_file, read_tensors, refuse_link
from vit.checkpoints.sources.lightning import merge_adapters
from vit.checkpoints.sources.source import Facts, Tensors
from vit.foundation import UserError
from vit.models.neighbours import Neighbours

TIMM_WRAPPER = "timm_wrapper"  # transformers' model type of timm's models, with timm's config


@dataclass(frozen=True)
class Content:
    """A checkpoint as it was found.

    Args:
        name: its name as the user gave it.
        tensors: its tensors, with the names of the library that it comes from.
        facts: facts from its config, hub record or live module.
        file: the weight file, if there is one.
        neighbours: see `Classifier`.
    """

    name: str
    tensors: Tensors
    facts: Facts = Facts()  # noqa: RUF009 (frozen)
    file: Path | None = None
    neighbours: Neighbours | None = None


def read(source: str | Path | nn.Module) -> Content:
    """The tensors of a checkpoint, and all facts that come with them.

    Raises:
        UserError: when there is nothing to read, or it can't be read.
    """
    if isinstance(source, nn.Module):
        return Content(type(source).__name__, *read_module(source), neighbours=neighbours_of(source))
    name = str(source)
    if name.startswith("timm:"):
        path, config = hub.fetch_timm(name.removeprefix("timm:"))
        told = {"architecture": name.removeprefix("timm:"), "pretrained_cfg": config}
        return Content(name, read_tensors(path), timm_config.facts(told, name), path)
    if name.startswith("hf:"):
        return _read_folder(hub.fetch_repository(name.removeprefix("hf:")), name)
    path = Path(source)
    if path.is_dir():
        return _read_folder(path, name)
    _refuse_rotary_alone(path)
    stored = read_file(path)
    if folder.OURS in stored.extra:
        return _of_training(stored, name, path)
    return Content(name, stored.tensors, Facts(notes=stored.notes), path)


def _refuse_rotary_alone(path: Path) -> None:
    """Raises UserError for the weight file of one of our model folders with rotary positions: its tensors are named
    like those of published models, whose queries and keys have another order, and the file does not say that it is
    ours."""
    beside = path.parent / folder.CONFIG
    if path.name != folder.WEIGHTS or not beside.is_file():
        return
    try:
        ours = read_json(beside).get(folder.OURS)
    except UserError:  # then it says nothing about the weights
        return
    if isinstance(ours, dict) and (ours.get("architecture") or {}).get("rotary") is not None:
        raise UserError(
            f"{path} belongs to a model with rotary positions; the file alone does not describe them.\n"
            f"Give its folder, {path.parent}."
        )


def _of_training(stored: Stored, name: str, path: Path) -> Content:
    """A checkpoint of our own training, which describes its model."""
    ours = stored.extra[folder.OURS]
    try:
        facts = replace(folder.described(ours), notes=stored.notes)
        tensors = merge_adapters(stored.tensors, float(ours["lora_scale"])) if "lora_scale" in ours else stored.tensors
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} has an invalid description of its model: {error!r:.200}") from None
    return Content(name, tensors, facts, path)


def _read_folder(path: Path, name: str) -> Content:
    """The content of a folder, by the kind of its config.json: ours (which is also timm's), transformers' or timm's."""
    config = read_json(path / folder.CONFIG)
    if folder.is_ours(config) or not config.keys() & {"model_type", "pretrained_cfg", "architecture"}:
        facts = folder.facts(path, config)
        tensors, neighbours = _undamaged(path, config), folder.read_neighbours(path, config)
        return Content(name, tensors, facts, path / folder.WEIGHTS, neighbours)
    file = hub.weights_in(path)
    if file is None:
        raise UserError(f"{path} has none of {', '.join(hub.WEIGHTS)}.\nCopy the weights into it.")
    refuse_link(file)
    tensors = read_tensors(file)
    if config.get("model_type", TIMM_WRAPPER) != TIMM_WRAPPER:
        processor = _processor(path)
        facts = transformers_config.facts(config, processor, tensors, str(path / folder.CONFIG))
    else:
        facts = timm_config.facts(config, str(path / folder.CONFIG))
    return Content(name, tensors, facts, file)


def _undamaged(path: Path, config: dict[str, Any]) -> Tensors:
    """The weights of a model folder, which are read and hashed at the same time. Raises UserError if they changed."""
    weights = path / folder.WEIGHTS
    refuse_link(weights)
    with ThreadPoolExecutor(1) as beside:
        digest = beside.submit(folder.sha256, weights)
        try:
            return read_tensors(weights)
        finally:
            folder.refuse_damaged(weights, config[folder.OURS]["weights_sha256"], digest.result())


def _processor(path: Path) -> dict[str, Any] | None:
    """How transformers preprocesses images for the model in this folder, if the folder says so."""
    for name in hub.PROCESSORS:
        if (path / name).is_file():
            config = read_json(path / name)
            inner = config.get("image_processor", config)  # a processor for images and texts contains that for images
            return inner if isinstance(inner, dict) else config
    return None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: when the file is missing, is a link out of its folder, or is not a JSON object.
    """
    if not path.exists():
        raise UserError(
            f"{path.parent} is not a model folder: {path.name} is missing.\nGive the `model` folder of a run."
        )
    refuse_link(path)
    if not path.is_file():  # opening a pipe would block
        raise UserError(f"{path} is not the config of a model folder: it is not a regular file.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise UserError(f"{path} is not the config of a model folder: it is nested too deeply.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not the config of a model folder: {error!s:.200}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not the config of a model folder: it holds a {type(content).__name__}.")
    return content

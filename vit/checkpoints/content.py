"""What a checkpoint holds, before a model is built of it: its tensors, and the facts that stand beside them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from vit.checkpoints import folder, hub
from vit.checkpoints.read import read_tensors
from vit.checkpoints.sources.source import Facts, Tensors
from vit.foundation import UserError


@dataclass(frozen=True)
class Content:
    """A checkpoint as it was found.

    Args:
        name: as the user gave it.
        tensors: under the names of where it comes from.
        facts: of its sidecar, hub record or live module.
        file: the weight file, if it is one.
    """

    name: str
    tensors: Tensors
    facts: Facts = Facts()  # noqa: RUF009 (frozen)
    file: Path | None = None


def read(source: str | Path | nn.Module) -> Content:
    """The tensors of a checkpoint and all that stands beside them.

    Raises:
        UserError: when there is nothing to read, or it can't be read.
    """
    if isinstance(source, nn.Module):
        raise NotImplementedError
    name = str(source)
    if name.startswith("timm:"):
        path, config = hub.fetch_timm(name.removeprefix("timm:"))
        return Content(name, read_tensors(path), Facts(preprocessing=hub.timm_preprocessing(config)), path)
    path = Path(source)
    if not path.is_dir():
        return Content(name, read_tensors(path), file=path)
    return _read_folder(path)


def _read_folder(path: Path) -> Content:
    """By the kind of its config.json: ours, timm's, or that of transformers."""
    config = read_json(path / folder.CONFIG)
    facts = folder.facts(path, config)
    return Content(str(path), read_tensors(path / folder.WEIGHTS), facts, path / folder.WEIGHTS)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: when the file is missing or holds anything else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path.parent} is no model folder: it has no {path.name}.\nGive the `model` folder of a run."
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is not the config of a model folder: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not the config of a model folder: it holds a {type(content).__name__}.")
    return content

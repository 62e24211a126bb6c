"""Any checkpoint file to a plain dictionary of tensors. Nothing in the file is ever executed."""

import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from vit.foundation import UserError

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")

# What training scripts wrap a state dict in, and what parallel and compiled wrappers put before each key.
WRAPPERS = ("state_dict", "model", "model_state_dict")
PREFIXES = ("module.", "_orig_mod.")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file, by name.

    Raises:
        UserError: when the file is missing, is no checkpoint, or holds anything but tensors.
    """
    if not path.is_file():
        raise UserError(f"No checkpoint at {path}.\nGive a {', '.join(SUFFIXES)} file, a model folder, or timm:NAME.")
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} is not a checkpoint by its name.\nAllowed are {', '.join(SUFFIXES)} files.")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _read_pickle(path)
    except Exception as error:  # whatever a damaged file makes a reader do
        reason = str(error).strip().splitlines() or [type(error).__name__]
        if isinstance(error, pickle.UnpicklingError) and _is_pickle(path):
            raise UserError(
                f"{path} holds more than tensors, or is damaged; nothing of it was executed.\n"
                "Only weights are read: save model.state_dict(), best as .safetensors."
            ) from None
        raise UserError(
            f"{path} can't be read as a checkpoint: {reason[0][:200]}\n{_what_it_looks_like(path)}"
        ) from None
    return _unwrap(content, path)


def _read_pickle(path: Path) -> Any:
    with _without_override():
        return torch.load(path, map_location="cpu", weights_only=True)


@contextmanager
def _without_override() -> Iterator[None]:
    """TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD turns torch's refusal to unpickle code off; not here."""
    variable = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    value = os.environ.pop(variable, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[variable] = value


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(content, Mapping):
        inner = next((content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            break
        content = inner
    tensors = {}
    if isinstance(content, Mapping):
        tensors = {_strip(str(name)): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no tensors.\nA checkpoint is a state dict, also inside {', '.join(WRAPPERS)}.")
    return tensors


def _strip(name: str) -> str:
    while name.startswith(PREFIXES):
        name = name.split(".", 1)[1]
    return name


def _is_pickle(path: Path) -> bool:
    """Whether the file starts as torch.save's zip or as a pickle of protocol 2 or later does."""
    with path.open("rb") as file:
        return file.read(2) in (b"PK", *(bytes([0x80, protocol]) for protocol in range(2, 6)))


def _what_it_looks_like(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        return "The file is empty."
    if start.startswith(b"version https://git-lfs"):
        return "It is a git-lfs pointer: fetch the file itself with `git lfs pull`."
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "It is a web page: download the file behind the page."
    return "It may be damaged or cut short: copy or download it again."

"""Reads any checkpoint file into a plain dictionary of tensors. Nothing in the file is ever executed."""

import json
import os
import pickle
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from vit.foundation import UserError

INDEX = ".index.json"  # for weights in several files: model.safetensors.index.json

# Names under which training scripts store a state dict. The first one is used: averaged weights are what is evaluated.
AVERAGED = ("state_dict_ema", "model_ema", "ema", "teacher")
WRAPPERS = (*AVERAGED, "state_dict", "model", "model_state_dict", "student")

# An archive may unpack to this many times its size, plus this much: weights can hardly be compressed.
SMALL = 2**20  # bytes that a tensor may have, even if fewer of its numbers are in the file
UNPACKED_RATIO, UNPACKED_MORE = 20, 64 * 2**20

# What parallel and compiled wrappers put before each key.
PREFIXES = ("module.", "_orig_mod.")

_STATE_DICT = f"A checkpoint is a state dict, also inside {', '.join(WRAPPERS)}."


class Stored(NamedTuple):
    """The content of a file.

    Args:
        tensors: tensors by name.
        notes: which of several state dicts were used, one sentence each.
        extra: what is stored with the state dict: epoch, options, optimizer.
    """

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    extra: Mapping[str, Any] = {}


class _Hostile(Exception):
    """The file asks for code to be run."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of `read_file`. Raises UserError as it does."""
    return read_file(path).tensors


def read_file(path: Path) -> Stored:
    """The tensors of a checkpoint file, or of all the files of its index.

    Raises:
        UserError: when the file is missing, is not a checkpoint, or its state dict holds anything but tensors.
    """
    if not path.is_file():
        raise UserError(
            f"There is no checkpoint at {path}.\nGive a {', '.join(READERS)} file, a *{INDEX} "
            "of several, a model folder, timm:NAME or hf:OWNER/NAME."
        )
    if path.name.endswith(INDEX):
        return Stored(_read_shards(path))
    if path.suffix not in READERS:
        raise UserError(f"{path} does not have the suffix of a checkpoint.\nAllowed are {', '.join(READERS)} files.")
    try:
        _refuse_bomb(path)
        content = READERS[path.suffix](path)
    except UserError:
        raise
    except Exception as error:  # damaged files raise many kinds of errors
        if isinstance(error, _Hostile) or (isinstance(error, pickle.UnpicklingError) and _is_pickle(path)):
            raise UserError(
                f"{path} holds more than tensors, or is damaged; nothing in it was executed.\n"
                "Only weights can be read: save model.state_dict(), preferably as .safetensors."
            ) from None
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{path} can't be read as a checkpoint: {reason[0][:200]}\n{_what_it_looks_like(path)}"
        ) from None
    return _unwrap(content, path)


def _refuse_bomb(path: Path) -> None:
    """Raises UserError for an archive, of torch or numpy, that unpacks to far more than its size."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\3\4":
            return
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    size = path.stat().st_size
    if unpacked > UNPACKED_RATIO * size + UNPACKED_MORE:
        raise UserError(
            f"{path} unpacks to {unpacked / 2**20:,.0f} MB, but the file only has {size / 2**20:,.1f} MB.\n"
            f"Allowed are {UNPACKED_RATIO} times its size plus {UNPACKED_MORE // 2**20} MB."
        )


def _read_pickle(path: Path) -> Any:
    # A Namespace only has values and no code of its own; training scripts store their options in one.
    with (
        weights_only_enforced(),
        torch.serialization.safe_globals([Namespace]),
        warnings.catch_warnings(action="ignore", category=UserWarning),  # of a pickle that is not torch's own
    ):
        return torch.load(path, map_location="cpu", weights_only=True)


@contextmanager
def weights_only_enforced() -> Iterator[None]:
    """Ignores TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD, which turns off torch's refusal to unpickle code."""
    variable = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    value = os.environ.pop(variable, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[variable] = value


def _read_npz(path: Path) -> dict[str, Tensor]:
    tensors = {}
    with path.open("rb") as file:  # numpy leaves a damaged file open, if it is the one to open it
        if file.read(2) != b"PK":  # numpy would treat it as a pickle, or as a single array without a name
            raise _Hostile if _is_pickle(path) else ValueError("it is not an .npz archive")
        file.seek(0)
        with np.load(file, allow_pickle=False) as archive:
            for name in archive.files:
                try:
                    value = archive[name]
                except ValueError as error:
                    raise _Hostile if "allow_pickle" in str(error) else error from None
                if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
                    # torch only has the machine's byte order, and needs writable memory
                    tensors[name] = torch.from_numpy(np.array(value, value.dtype.newbyteorder("=")))
    return tensors


READERS: dict[str, Callable[[Path], Any]] = {
    # Not memory-mapped: the weights would change with the file, and have to be copied to be kept.
    ".safetensors": partial(load_file, backend="pread"),
    ".pth": _read_pickle,
    ".pt": _read_pickle,
    ".bin": _read_pickle,
    ".ckpt": _read_pickle,
    ".npz": _read_npz,
}


def _read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors of several files, as listed in an index: every file, every tensor, and nothing else."""
    shards, total_size = _read_index(index)
    tensors: dict[str, Tensor] = {}
    missing = [name for name in sorted(shards) if not (index.parent / name).is_file()]
    if missing:
        raise UserError(
            f"{index} needs {len(shards)} files, of which {len(missing)} are missing: {', '.join(missing[:4])}\n"
            "Copy them into its folder."
        )
    for name, expected in shards.items():
        refuse_link(index.parent / name)
        found = read_tensors(index.parent / name)
        if found.keys() != expected:
            differing = sorted(found.keys() ^ expected)
            raise UserError(
                f"{index.parent / name} does not hold what {index.name} says: {len(differing)} tensors differ.\n"
                f"The first is {differing[0]}. Copy the files of the folder again, all in the same version."
            )
        tensors |= found
    size = sum(value.numel() * value.element_size() for value in tensors.values())
    if total_size is not None and size != total_size:
        raise UserError(f"{index} says {total_size} bytes, but its files hold {size}.\nCopy the files again.")
    return tensors


def _read_index(index: Path) -> tuple[dict[str, set[str]], int | None]:
    """The names of the tensors in each file, and the total number of bytes, if the index has it."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        shards: dict[str, set[str]] = {}
        for name, file in content["weight_map"].items():
            shards.setdefault(file, set()).add(name)
        # Only files with the index's own suffix, so that an index can't lead to another reader.
        suffix = Path(index.name.removesuffix(INDEX)).suffix
        strange = [file for file in shards if Path(file).name != file or Path(file).suffix != suffix or "\0" in file]
        total_size = content.get("metadata", {}).get("total_size")
        if not shards or strange or suffix not in READERS or not (total_size is None or total_size == int(total_size)):
            raise ValueError(f"it names {strange[:1] or 'nothing'}, not {suffix} files of its folder")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{index} is not an index of weights: {error!s:.200}\nCopy the file again.") from None
    return shards, total_size


def refuse_link(path: Path) -> None:
    """Refuses a link that leads out of its folder, except in a hub's cache, where all files are links to its blobs.

    This is for files that a folder names; a file that the user names may be a link to anywhere.

    Raises:
        UserError: for such a link.
    """
    folder = path.parent.absolute()
    roots = [folder.resolve()]
    for place in (folder, folder.resolve()):  # the folder of a snapshot, or the target of a link
        roots += [(each.parent / "blobs").resolve() for each in place.parents if each.name == "snapshots"]
    target = path.resolve()
    if target.parent not in roots:
        raise UserError(f"{path} is a link to {target}, outside of its folder.\nCopy the file itself there.")


def _unwrap(content: Any, path: Path) -> Stored:
    notes: list[str] = []
    extra: Mapping[str, Any] = {}
    for _ in range(len(WRAPPERS) + 1):
        if not isinstance(content, Mapping):
            break
        found = [name for name in WRAPPERS if _may_hold_tensors(content.get(name))]
        if not found:
            break
        if found[1:]:
            averaged = ", which is averaged" if found[0] in AVERAGED else ""
            notes.append(f"of {', '.join(sorted(found))} in the file, {found[0]} was used{averaged}")
        extra, content = content, content[found[0]]
    else:  # a pickle may contain itself
        raise UserError(f"{path} nests dictionaries more than {len(WRAPPERS)} deep.\n{_STATE_DICT}")
    tensors = {}
    if isinstance(content, Mapping):
        tensors = {_strip(str(name)): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no tensors.\n{_STATE_DICT}")
    if odd := [name for name, value in tensors.items() if not _is_whole(value)]:
        raise UserError(
            f"{path} does not hold all numbers of {len(odd)} tensors; the first is {odd[0]:.100}.\n"
            "Allowed are plain tensors with all numbers in the file: no expanded, sparse or meta ones."
        )
    return Stored(tensors, tuple(notes), extra)


def _is_whole(value: Tensor) -> bool:
    """Whether all numbers are in memory; a number that is expanded to a billion takes as long as a billion to read."""
    if value.layout != torch.strided or value.device.type != "cpu":
        return False
    size = value.numel() * value.element_size()
    return size <= max(value.untyped_storage().nbytes(), SMALL)


def _may_hold_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(inner, Tensor | Mapping) for inner in value.values())


def _strip(name: str) -> str:
    while name.startswith(PREFIXES):
        name = name.split(".", 1)[1]
    return name


def _is_pickle(path: Path) -> bool:
    """Whether the file starts like torch.save's zip, or like a pickle of protocol 2 or later."""
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
    return "It may be damaged or incomplete: copy or download it again."

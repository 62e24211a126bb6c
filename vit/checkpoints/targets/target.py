"""Export targets: what a library can't represent of a model, and what is written for it."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from vit.checkpoints.sources.source import Tensors
from vit.foundation import atomic_write
from vit.models.classifier import Classifier


@dataclass(frozen=True)
class Target:
    """One library's layout.

    Args:
        name: as `vit export --to` calls it.
        writes: the files; for the documentation, as are the next two.
        tested: what reads them in the tests.
        limits: what has no place there.
        obstacles: what of a model has no place there, a phrase each; none when it can be written.
        write: writes the files of a model without obstacles into a folder.
        loading: the lines of Python that load a folder and classify `photo.jpg`, for its model card.
    """

    name: str
    writes: str
    tested: str
    limits: str
    obstacles: Callable[[Classifier], list[str]]
    write: Callable[[Classifier, Path], None]
    loading: Callable[[Classifier], str]


def rename_back(tensors: Tensors, table: Iterable[tuple[str, str]]) -> Tensors:
    """The canonical tensors under the names of a source, by the source's own table of parts (theirs, ours).

    Of several names that become the same one of ours, the first in the table is written.
    """
    first: dict[str, str] = {}
    for theirs, ours in table:
        first.setdefault(ours, theirs)
    parts = re.compile("|".join(re.escape(ours) for ours in sorted(first, key=len, reverse=True)))
    return {parts.sub(lambda found: first[found[0]], name): value for name, value in tensors.items()}


def split_qkv(tensors: Tensors, names: tuple[str, str, str] = ("attn.q.", "attn.k.", "attn.v.")) -> Tensors:
    """The tensors with separate projections of queries, keys and values."""
    apart: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if "attn.qkv." in name:
            apart |= {name.replace("attn.qkv.", part): rows for part, rows in zip(names, value.chunk(3), strict=True)}
        else:
            apart[name] = value
    return apart


def with_patch_bias(tensors: Tensors) -> Tensors:
    """The tensors with a bias of the patches' projection; if the model has none, it is zero."""
    weight = tensors["patch_embed.proj.weight"]
    return {"patch_embed.proj.bias": weight.new_zeros(weight.shape[0]), **tensors}


def mlp_widths(model: Classifier) -> tuple[int, int]:
    """The output width of the first matrix of a block's MLP, and the input width of the second."""
    state = model.state_dict()
    return state["encoder.blocks.0.mlp.fc1.weight"].shape[0], state["encoder.blocks.0.mlp.fc2.weight"].shape[1]


def beyond(architecture: Mapping[str, Any], known: Iterable[str]) -> list[str]:
    """The options of an architecture that are set, but unknown to a target."""
    strange = {name: value for name, value in architecture.items() if value and name not in set(known)}
    return ["rotary positions" if name == "rotary" else f"{name}={value}" for name, value in strange.items()]


def write_safetensors(tensors: Tensors, path: Path) -> str:
    """Writes a weight file atomically; returns its sha256."""
    with atomic_write(path) as temporary:
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, {"format": "pt"})
        return sha256(temporary)


def write_json(content: object, path: Path) -> None:
    """Writes a JSON file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def sha256(path: Path) -> str:
    """The hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Sources of checkpoints: how their layouts are recognised, and converted to the canonical one."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]

MULTILABEL = "multi_label_classification"  # transformers' problem type, in its own configs and those of timm's models

# What every checkpoint in timm's layout has, and those that are near it.
CANONICAL = {"patch_embed.proj.weight", "pos_embed", "blocks.0.attn.qkv.weight"}


@dataclass(frozen=True)
class Converted:
    """A checkpoint in the canonical layout, timm's (see `vit.checkpoints.canonical`).

    Args:
        tensors: by timm's names. A key that the source doesn't know keeps its name, and is refused later.
        left_out: what is not needed to classify or to give features, by the source's names, each with its reason:
            a decoder's weights, mask tokens, a projection head.
        known: keywords of `image_encoder` that this layout tells by itself (Google's kernels tell the heads).
        assumed: keywords that models of this kind have as a rule, beyond what the source assumes of all.
        head_behind: what the head reads that has no place here; it is left out, but only if the user says so.
        pool: see `Classifier`; None where the layout does not say.
    """

    tensors: Tensors
    left_out: tuple[str, ...] = ()
    known: Mapping[str, Any] = field(default_factory=dict)
    pool: str | None = None
    assumed: Mapping[str, Any] = field(default_factory=dict)
    head_behind: str = ""


@dataclass(frozen=True)
class Facts:
    """The facts that come with the tensors: from a config file, a hub record, or a live module.

    Args:
        encoder: keywords of `image_encoder`.
        pool: see `Classifier`.
        pool_blocks, multilabel: see `Classifier`.
        labels: names of the classes, in order.
        preprocessing: keywords of `Preprocessing`.
        notes: what else the reader should know, a sentence each.
    """

    encoder: Mapping[str, Any] = field(default_factory=dict)
    pool: str | None = None
    pool_blocks: int = 1
    multilabel: bool = False
    labels: tuple[str, ...] = ()
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """One layout of checkpoints.

    Args:
        name: as reports call it, such as "transformers ViT".
        models: which models it serves; for the documentation, as are the next three.
        recognised_by: the keys, in words.
        tested: what the numbers were compared with.
        limits: what is refused or left out.
        recognises: whether the keys are of this layout. At most one source says yes to a checkpoint.
        convert: to the canonical layout.
        assumes: keywords of `image_encoder` that are always so in this library, where nothing else says it.
    """

    name: str
    models: str
    recognised_by: str
    tested: str
    limits: str
    recognises: Callable[[Tensors], bool]
    convert: Callable[[Tensors], Converted]
    assumes: Mapping[str, Any] = field(default_factory=dict)


def rename(tensors: Tensors, table: Iterable[tuple[str, str]]) -> Tensors:
    """The tensors with each key's parts replaced by the table's rows (theirs, ours), all that apply, in their order."""
    table = tuple(table)
    renamed = {}
    for name, value in tensors.items():
        for theirs, ours in table:
            name = name.replace(theirs, ours)
        renamed[name] = value
    return renamed


def fuse(tensors: Tensors, parts: Sequence[str], whole: str) -> Tensors:
    """The tensors with those whose names differ in `parts` alone laid one on the other: queries, keys and values.

    Where one of them is missing, or does not fit the others, they stay as they are, to be refused by their names.
    """
    fused = dict(tensors)
    for first in [name for name in tensors if parts[0] in name]:
        names = [first.replace(parts[0], part) for part in parts]
        shape = fused[first].shape[1:]
        if fused[first].ndim and all(name in fused and fused[name].shape[1:] == shape for name in names):
            fused[first.replace(parts[0], whole)] = torch.cat([fused.pop(name) for name in names])
    return fused


def leave_out(tensors: Tensors, unused: Mapping[str, str]) -> tuple[Tensors, tuple[str, ...]]:
    """The tensors without those whose names start as `unused` says, and what to say of these.

    Args:
        unused: start of names -> what the tensors are.
    """
    kept, told = dict(tensors), []
    for start, what in unused.items():
        names = [name for name in kept if name.startswith(start)]
        for name in names:
            del kept[name]
        if names:
            told.append(f"{names[0]} ({what})" if len(names) == 1 else f"{start}* ({len(names)} tensors, {what})")
    return kept, tuple(told)


def unprefixed(tensors: Tensors, known: str, prefixes: Sequence[str]) -> Tensors | None:
    """The tensors with the first of the prefixes that stands before the name `known` taken from all that have it.

    None when there is no such name. Heads have no prefix, so a prefix is no container of the whole.
    """
    prefix = next((prefix for prefix in prefixes if prefix + known in tensors), None)
    return None if prefix is None else {name.removeprefix(prefix): value for name, value in tensors.items()}

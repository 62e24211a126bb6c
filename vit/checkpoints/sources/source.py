"""What a source of checkpoints is: how its layout is recognised, and how it becomes the canonical one."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Converted:
    """A checkpoint in the canonical layout, timm's (see `vit.checkpoints.canonical`).

    Args:
        tensors: by timm's names. A key that the source doesn't know keeps its name, and is refused later.
        left_out: what is not needed to classify or to give features, by the source's names, each with its reason:
            a decoder's weights, mask tokens, a projection head.
        known: keywords of `image_encoder` that this layout tells by itself (Google's kernels tell the heads).
        pool: see `Classifier`; None where the layout does not say.
    """

    tensors: Tensors
    left_out: tuple[str, ...] = ()
    known: Mapping[str, Any] = field(default_factory=dict)
    pool: str | None = None


@dataclass(frozen=True)
class Facts:
    """What stands beside the tensors: in a sidecar file, in a hub's record, or in a live module.

    Args:
        encoder: keywords of `image_encoder`.
        pool: see `Classifier`.
        labels: names of the classes, in order.
        preprocessing: keywords of `Preprocessing`.
        notes: what else the reader should know, a sentence each.
    """

    encoder: Mapping[str, Any] = field(default_factory=dict)
    pool: str | None = None
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

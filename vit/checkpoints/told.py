"""What the user says of a checkpoint beside what it says itself."""

from collections.abc import Mapping
from math import isclose
from operator import index
from typing import Any

from vit.foundation import UserError

Size = int | tuple[int, int]  # pixels: of both sides, or (height, width)


def pair(name: str, size: Any) -> tuple[int, int] | None:
    """A size as (height, width); None stays None.

    Raises:
        UserError: unless it is one or two positive whole numbers.
    """
    if size is None:
        return None
    try:
        if isinstance(size, bool | Mapping):
            raise TypeError
        height, width = map(index, size if hasattr(size, "__iter__") else (size, size))
    except (TypeError, ValueError):
        height = width = 0
    if min(height, width) < 1:
        raise UserError(
            f"{name} is {size!r}; allowed are a number of pixels, 1 or more, or two of them, (height, width)."
        )
    return height, width


def reconciled(told: Mapping[str, Any], said: Mapping[str, Any], source: str) -> list[str]:
    """Notes on what the user tells otherwise than the checkpoint says itself: how positions are resized.

    Args:
        told, said: keywords of `image_encoder`.

    Raises:
        UserError: when it is something that the model would compute wrongly with.
    """
    notes = []
    for name, value in told.items():
        if name not in said or _same(value, said[name]):
            continue
        if name == "pos_interpolation":
            notes.append(f"positions are resized by {value}, as asked; the checkpoint says {said[name]}")
            continue
        option = "trained_size" if name == "image_size" else name
        raise UserError(
            f"{option} is {value}, but {source} says {said[name]}.\n"
            f"Leave {option} out: it is for checkpoints that do not say."
        )
    return notes


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return isclose(one, other, rel_tol=1e-6)
    return bool(tuple(one) == tuple(other)) if isinstance(other, tuple | list) else bool(one == other)

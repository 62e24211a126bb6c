"""Strict loading: every tensor of the model is in the checkpoint, nothing else is, and all numbers are finite."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from vit.foundation import UserError

SHOWN = 4  # names of each kind in a message


@dataclass(frozen=True)
class Match:
    """How the tensors of a checkpoint match those of a model.

    Args:
        matched: number of those with the same name and shape.
        missing, unexpected, misshapen: names of the model's that are not there, of those that the model does not have,
            and of those with another shape, sorted.
    """

    matched: int
    missing: list[str]
    unexpected: list[str]
    misshapen: list[str]

    def require(self, source: object) -> None:
        """Raises UserError unless all tensors match; `source` is the checkpoint as the user knows it."""
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": self.misshapen}
        lines = [
            f"{len(names)} {what}: {', '.join(names[:SHOWN])}{' ...' if len(names) > SHOWN else ''}"
            for what, names in kinds.items()
            if names
        ]
        if lines:
            raise UserError("\n".join([f"{source} does not fit: {self.matched} tensors match.", *lines]))


def match(model: nn.Module, tensors: Mapping[str, Tensor]) -> Match:
    """Compares the names and shapes of a checkpoint's tensors with those of the model's state dict."""
    expected = model.state_dict()
    shared = expected.keys() & tensors.keys()
    misshapen = sorted(name for name in shared if expected[name].shape != tensors[name].shape)
    return Match(
        len(shared) - len(misshapen),
        sorted(expected.keys() - tensors.keys()),
        sorted(tensors.keys() - expected.keys()),
        misshapen,
    )


def refuse_nonfinite(tensors: Mapping[str, Tensor], source: object) -> None:
    """Raises UserError for NaN or infinite numbers; `source` is the checkpoint as the user knows it."""
    bad = [name for name, value in tensors.items() if not _is_finite(value)]
    if bad:
        raise UserError(
            f"{source} has NaN or infinite weights in {len(bad)} of {len(tensors)} tensors.\n"
            f"The first is {bad[0]}. Take an earlier checkpoint of the run that wrote it."
        )


def _is_finite(value: Tensor) -> bool:
    """Whether all values are finite, by their sum, which is ten times as fast; if it overflows, by each element."""
    return bool(value.float().sum().isfinite()) or bool(value.isfinite().all())

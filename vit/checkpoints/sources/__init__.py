"""Where checkpoints come from: one file a source, and the registry of them all.

Adding a source is one file here, one row in SOURCES, and one test against the library that it comes from.
"""

from vit.checkpoints.sources.source import Converted, Facts, Source, Tensors
from vit.checkpoints.sources.timm import TIMM

SOURCES: tuple[Source, ...] = (TIMM,)

__all__ = ["SOURCES", "Converted", "Facts", "Source", "Tensors", "recognise"]


def recognise(tensors: Tensors) -> Source | None:
    """The source whose layout the keys are of, if there is one."""
    return next((source for source in SOURCES if source.recognises(tensors)), None)

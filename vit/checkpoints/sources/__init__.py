"""The sources of checkpoints: one file per source, and the registry of all of them.

Adding a source is one file here, one row in SOURCES, and one test against the library that it comes from.
"""

from vit.checkpoints.sources.facebook import FACEBOOK
from vit.checkpoints.sources.google import GOOGLE
from vit.checkpoints.sources.lightning import LIGHTNING
from vit.checkpoints.sources.source import Converted, Facts, Source, Tensors
from vit.checkpoints.sources.timm import TIMM
from vit.checkpoints.sources.timm_rotary import TIMM_ROTARY
from vit.checkpoints.sources.torchvision import TORCHVISION
from vit.checkpoints.sources.transformers_clip import TRANSFORMERS_CLIP
from vit.checkpoints.sources.transformers_dinov2 import TRANSFORMERS_DINOV2, TRANSFORMERS_DINOV2_REGISTERS
from vit.checkpoints.sources.transformers_dinov3 import TRANSFORMERS_DINOV3
from vit.checkpoints.sources.transformers_siglip import TRANSFORMERS_SIGLIP
from vit.checkpoints.sources.transformers_vit import TRANSFORMERS_VIT

SOURCES: tuple[Source, ...] = (
    TIMM,
    TIMM_ROTARY,
    FACEBOOK,
    GOOGLE,
    TORCHVISION,
    LIGHTNING,
    TRANSFORMERS_VIT,
    TRANSFORMERS_DINOV2,
    TRANSFORMERS_DINOV2_REGISTERS,
    TRANSFORMERS_DINOV3,
    TRANSFORMERS_CLIP,
    TRANSFORMERS_SIGLIP,
)

# Where training code keeps the encoder within a larger model. Of several the first is taken; the rest is beside it.
CONTAINERS = (
    "teacher.",
    "model_ema.",
    "model.",
    "net.",
    "backbone.",
    "encoder.",
    "vit.",
    "visual.trunk.",
    "student.",
    "timm_model.",
    "module.",  # behind another: at the start of a file's keys it is gone already
)

__all__ = ["SOURCES", "TIMM", "Converted", "Facts", "Source", "Tensors", "locate", "recognise"]


def recognise(tensors: Tensors) -> Source | None:
    """The source whose layout the keys have; None if there is none."""
    return next((source for source in SOURCES if source.recognises(tensors)), None)


def locate(tensors: Tensors) -> tuple[Source | None, Tensors, tuple[str, ...]]:
    """The source whose layout the keys have, even inside a larger model.

    Returns:
        The source, or None; the tensors of its layout; and what is left out, being beside it.
    """
    if (source := recognise(tensors)) is not None:
        return source, tensors, ()
    for container in CONTAINERS:
        inner = {name.removeprefix(container): value for name, value in tensors.items() if name.startswith(container)}
        source, found, left_out = locate(inner) if inner else (None, inner, ())
        if source is not None:
            beside = [name for name in tensors if not name.startswith(container)]
            told = (f"{beside[0]} ... ({len(beside)} tensors beside {container[:-1]})",) if beside else ()
            return source, found, (*told, *left_out)
    return None, tensors, ()

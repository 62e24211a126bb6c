"""Libraries that models are exported to: one file per target, and the registry of all of them."""

from vit.checkpoints.targets.target import Target
from vit.checkpoints.targets.timm import TIMM
from vit.checkpoints.targets.torchvision import TORCHVISION
from vit.checkpoints.targets.transformers import TRANSFORMERS

TARGETS: tuple[Target, ...] = (TIMM, TRANSFORMERS, TORCHVISION)

__all__ = ["TARGETS", "Target"]

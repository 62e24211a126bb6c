"""A Vision Transformer toolkit: fine-tune, learn how far to trust the model, and see where it looked.

The public names are imported when they are first used, so that `vit --help` doesn't have to wait for torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Classifier": "vit.models.classifier",
    "Encoder": "vit.models.encoder",
    "explain": "vit.saliency.explain",
    "load": "vit.checkpoints.anything",
    "record": "vit.saliency.record",
}
__all__ = ["Classifier", "Encoder", "__version__", "explain", "load", "record"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vit' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

"""What timm says in addition to its weights: the config.json of its folders and hub records.

Heads, epsilon and activation don't stand there: the architecture's name tells them, and timm builds it to be asked.
"""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from vit.checkpoints.hub import MODULES
from vit.checkpoints.modules import is_timm_eva, rotary_facts, timm_facts
from vit.checkpoints.sources.source import MULTILABEL, Facts
from vit.foundation import UserError, nearest
from vit.models.classifier import IMAGENET_MEAN, IMAGENET_STD

RESIZE_MODES = {"center": "crop", "squash": "squash"}  # by timm's crop modes


def facts(config: Mapping[str, Any], name: str) -> Facts:
    """What a config says that weights don't.

    Args:
        config: as config.json has it, or only an architecture and its pretrained_cfg.
        name: of the config, for messages.

    Raises:
        UserError: when timm does not know the architecture, or it does not fit.
    """
    model = skeleton(config, name)
    told = config.get("pretrained_cfg") or config  # older configs have all in one
    try:
        options, labels, notes = prepared({**told, "label_names": config.get("label_names") or told.get("label_names")})
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{name} does not say how images are prepared: {error!s:.200}") from None
    found = rotary_facts(model) if is_timm_eva(model) else timm_facts(model)
    several = config.get("problem_type") == MULTILABEL
    return replace(found, multilabel=several, labels=labels, preprocessing=options, notes=notes)


def skeleton(config: Mapping[str, Any], name: str) -> nn.Module:
    """The Vision Transformer of timm that a config describes, one block deep and without memory for its weights.

    Args:
        config: as config.json has it, or with an architecture alone.
        name: of the checkpoint, for messages.

    Raises:
        UserError: when timm does not know the architecture, or it is not a Vision Transformer.
    """
    import timm
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    try:
        architecture = config["architecture"].split(".")[0]  # without the tag of its weights
        given: dict[str, Any] = {"num_classes": config.get("num_classes"), "global_pool": config.get("global_pool")}
        given |= config.get("model_args") or {}
        given = {key: value for key, value in given.items() if value is not None}
        if not timm.is_model(architecture):
            raise ValueError(f"there is no {architecture!r}{nearest(architecture, timm.list_models())}")
        home = timm.model_entrypoint(architecture).__module__.split(".")[-1]
        if home not in MODULES:
            raise UserError(
                f"{name} is of {architecture!r}, which is not of timm's {', '.join(MODULES)} but of its {home}.\n"
                "Its computation does not fit: take a plain vit_* or deit* model."
            )
        # What describes the model, and no more: others of timm's arguments would read files, or a hub.
        known = inspect.signature(Eva if home == "eva" else VisionTransformer).parameters
        if strange := sorted(given.keys() - known):
            raise ValueError(f"{strange[0]!r} is not an argument of a Vision Transformer")
        with torch.device("meta"):
            return timm.create_model(architecture, **{**given, "depth": 1})
    except UserError:
        raise
    except Exception as error:  # whatever strange arguments make a library do
        raise UserError(f"{name} is not the config of a timm model: {error!s:.200}") from None


def prepared(config: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]:
    """From timm's pretrained config: keywords of `Preprocessing`, labels, and notes on what has no equivalent here."""
    notes = []
    crop_mode, interpolation = config.get("crop_mode", "center"), config.get("interpolation", "bicubic")
    crop_pct = config.get("crop_pct", 1.0)
    if crop_mode not in RESIZE_MODES or (crop_mode == "squash" and crop_pct != 1.0):
        notes.append(f"timm prepares images by {crop_mode!r} with crop_pct {crop_pct}; here they are squashed whole")
        crop_mode, crop_pct = "squash", 1.0
    if interpolation not in ("bicubic", "bilinear"):
        notes.append(f"timm resizes images by {interpolation!r}; here it is bicubic")
        interpolation = "bicubic"
    options = {
        "mean": tuple(config.get("mean", IMAGENET_MEAN)),
        "std": tuple(config.get("std", IMAGENET_STD)),
        "interpolation": interpolation,
        "resize_mode": RESIZE_MODES[crop_mode],
        "crop_pct": crop_pct,
    }
    labels = config.get("label_names") or ()
    return options, tuple(str(label) for label in labels), tuple(notes)

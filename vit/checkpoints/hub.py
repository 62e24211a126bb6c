"""Weights by name from the hub that timm publishes on: the cache first, then the network, or a quick refusal."""

import socket
from pathlib import Path
from typing import Any

from vit.foundation import UserError, nearest
from vit.models.classifier import IMAGENET_MEAN, IMAGENET_STD

HUB = ("huggingface.co", 443)
SECONDS_TO_CONNECT = 1.0


def fetch_timm(name: str) -> tuple[Path, dict[str, Any]]:
    """The weight file of a timm model, and how its images are prepared (timm's pretrained config).

    Raises:
        UserError: for a name that timm does not know, and within two seconds when there is no network.
    """
    import timm
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    try:
        config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:  # an unknown tag
        config = None
    if config is None or not config.hf_hub_id:
        known = timm.list_models("*vit*", pretrained=True) + timm.list_models("deit*", pretrained=True)
        raise UserError(f"timm has no pretrained model {name!r}{nearest(name, known)}.")
    repository, file = config.hf_hub_id, config.hf_hub_filename or "model.safetensors"
    cached = try_to_load_from_cache(repository, file)
    if isinstance(cached, str):
        return Path(cached), config.to_dict()
    try:
        socket.create_connection(HUB, timeout=SECONDS_TO_CONNECT).close()
    except OSError as error:
        raise UserError(
            f"timm:{name} is not in the cache, and {HUB[0]} can't be reached ({error}).\n"
            "Connect to a network once, or give a weight file that you have."
        ) from None
    try:
        return Path(hf_hub_download(repository, file)), config.to_dict()
    except OSError as error:
        raise UserError(f"timm:{name} can't be downloaded: {str(error).splitlines()[0]}\nTry again later.") from None


def timm_preprocessing(config: dict[str, Any]) -> dict[str, Any]:
    """Keywords of `Preprocessing` from timm's pretrained config."""
    return {
        "mean": tuple(config.get("mean", IMAGENET_MEAN)),
        "std": tuple(config.get("std", IMAGENET_STD)),
        "interpolation": config.get("interpolation", "bicubic"),
        "resize_mode": "crop",
        "crop_pct": config.get("crop_pct", 1.0),
    }

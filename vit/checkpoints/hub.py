"""Weights by name from the Hugging Face hub: from its cache, or else the network, or a quick refusal."""

import json
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from vit.foundation import UserError, nearest
from vit.network import refuse_without_network

MODULES = ("vision_transformer", "deit", "eva")  # modules of timm whose models may fit
CONFIG = "config.json"
# Optional files beside the config with the preprocessing, from older and newer versions of transformers.
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
INDEX = "model.safetensors.index.json"
WEIGHTS = ("model.safetensors", INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")  # best first


def refuse_unreachable(name: str) -> None:
    """Refuses `timm:NAME` or `hf:OWNER/NAME` if it clearly can't be downloaded. This is fast, because it doesn't import
    timm and torch, which takes seconds. The cache and mistakes in the name are checked elsewhere.

    Raises:
        UserError: when there is no network, and nothing in the cache that it could be.
    """
    from huggingface_hub import constants

    kind, _, repository = name.partition(":")
    cache = Path(constants.HF_HUB_CACHE)
    wanted = "models--" + repository.replace("/", "--") if kind == "hf" else "models--*"
    if not any(cache.glob(wanted.replace("[", "[[]"))):
        _refuse_without_network(name)


def fetch_timm(name: str) -> tuple[Path, dict[str, Any]]:
    """The weight file of a timm model, and its preprocessing (timm's pretrained config).

    Raises:
        UserError: for a name that timm does not know, and within two seconds when there is no network.
    """
    import timm
    from huggingface_hub import try_to_load_from_cache

    try:
        config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:  # an unknown tag
        config = None
    if config is None or not config.hf_hub_id:
        known = [each for module in MODULES for each in timm.list_models(module=module, pretrained=True)]
        raise UserError(f"timm has no pretrained model {name!r}{nearest(name, known)}.")
    repository, file = config.hf_hub_id, config.hf_hub_filename or "model.safetensors"
    cached = try_to_load_from_cache(repository, file)
    if isinstance(cached, str):
        return Path(cached), config.to_dict()
    _refuse_without_network(f"timm:{name}")
    found = _download(repository, file, f"timm:{name}")
    if found is None:
        raise UserError(f"timm:{name} can't be downloaded: {repository} has no {file}.\nUse another model.")
    return found, config.to_dict()


def fetch_repository(repository: str) -> Path:
    """The folder in the hub's cache with the config and weights of a repository, OWNER/NAME.

    Raises:
        UserError: for a repository without a config or weights, and within two seconds when there is no network.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    name = f"hf:{repository}"
    try:
        cached = try_to_load_from_cache(repository, CONFIG)
    except HFValidationError as error:
        raise UserError(
            f"{name} is not a repository of {_host()}: {str(error).splitlines()[0]:.200}\nGive hf:OWNER/NAME."
        ) from None
    if isinstance(cached, str):
        weights = weights_in(Path(cached).parent)
        if weights is not None and not _missing(weights):
            return Path(cached).parent
    _refuse_without_network(name)
    config = _download(repository, CONFIG, name)
    if config is None:
        raise UserError(
            f"{name} has no {CONFIG}, so it is not a model of transformers or timm.\nGive one of its weight files."
        )
    for file in PROCESSORS:
        _download(repository, file, name)
    for file in WEIGHTS:
        weights = _download(repository, file, name)
        if weights is not None:
            for shard in _shards(weights):
                _download(repository, shard, name)
            return config.parent
    raise UserError(f"{name} has none of {', '.join(WEIGHTS)}.\nGive one of its weight files.")


def weights_in(folder: Path) -> Path | None:
    """The weight file of a folder, or the index of several: the best kind that is complete."""
    found = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    return next((file for file in found if not _missing(file)), found[0] if found else None)


def _missing(index: Path) -> list[str]:
    return [shard for shard in _shards(index) if not (index.parent / shard).is_file()]


def _shards(index: Path) -> list[str]:
    """The files that an index of weights names; none for another file, or a broken index."""
    if index.suffix != ".json":
        return []
    try:
        names = {str(file) for file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # reading it later says what is wrong
        return []
    return sorted(name for name in names if Path(name).name == name)


def _host() -> str:
    from huggingface_hub import constants

    return urlsplit(constants.ENDPOINT).hostname or "the hub"


def _refuse_without_network(name: str) -> None:
    from huggingface_hub import constants

    offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else ""
    refuse_without_network(name, constants.ENDPOINT, "give a weight file that you have", offline=offline)


def _download(repository: str, file: str, name: str) -> Path | None:
    """A file of a repository in the cache; None if the repository does not have it."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(hf_hub_download(repository, file))
    except LocalEntryNotFoundError as error:
        _not_downloaded(name, error)
    except EntryNotFoundError:
        return None
    except RepositoryNotFoundError:
        raise UserError(f"{name} is not on {_host()}, or is not public.\nLook up its name there.") from None
    except Exception as error:  # network problems raise many kinds of errors
        _not_downloaded(name, error)


def _not_downloaded(name: str, error: Exception) -> NoReturn:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    raise UserError(f"{name} can't be downloaded: {reason[0]:.200}\nTry again later.") from None

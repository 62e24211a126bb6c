"""Models that are already in memory: their tensors, and what the models say in addition."""

from dataclasses import asdict, replace
from typing import Any

from torch import nn

from vit.checkpoints import canonical, timm_config, transformers_config
from vit.checkpoints.modules import is_a, is_timm_eva, is_timm_vit, rotary_facts, timm_facts, torchvision_facts
from vit.checkpoints.sources.source import MULTILABEL, Facts, Tensors
from vit.foundation import UserError
from vit.models.classifier import Classifier
from vit.models.encoder import Encoder
from vit.models.neighbours import Neighbours


def read_module(module: nn.Module) -> tuple[Tensors, Facts]:
    """Tensors and facts of a model of timm, torchvision, transformers or our own, also if it is compiled or parallel.

    For any other module there are only the tensors.

    Raises:
        UserError: when the module has no weights yet, or computes something that our encoder can't.
    """
    module = _unwrapped(module)
    tensors = {name: value.detach().cpu() for name, value in module.state_dict().items() if not value.is_meta}
    if len(tensors) < len(module.state_dict()):
        raise UserError(f"The {type(module).__name__} is on the meta device: it has no weights.\nLoad them first.")
    if isinstance(module, Encoder):
        module = Classifier(module, 0, pool="class" if module.embed.cls_token is not None else "mean")
    if isinstance(module, Classifier):
        return _ours(module)
    if is_a(module, "transformers.modeling_utils", "PreTrainedModel"):
        config: Any = module.config
        if isinstance(inner := getattr(module, "timm_model", None), nn.Module):  # timm's, wrapped by transformers
            found, facts = read_module(inner)
            several = getattr(config, "problem_type", None) == MULTILABEL
            names = transformers_config.labels({"id2label": config.id2label})
            return found, replace(facts, multilabel=several, labels=names)
        told = f"The {type(module).__name__}'s config"
        return tensors, transformers_config.facts(config.to_dict(), None, tensors, told)
    if is_timm_vit(module):
        return tensors, _with_training(timm_facts(module), module)
    if is_timm_eva(module) and getattr(module, "rope", None) is not None:
        return tensors, _with_training(rotary_facts(module), module)
    if is_a(module, "torchvision.models.vision_transformer", "VisionTransformer"):
        return tensors, torchvision_facts(module)
    return tensors, Facts()


def neighbours_of(module: nn.Module) -> Neighbours | None:
    """The neighbours of a model of our own, also if it is compiled or parallel: in float32, on the CPU, in memory of
    their own. None for a model without any, or of another library."""
    module = _unwrapped(module)
    if not isinstance(module, Classifier) or module.neighbours is None:
        return None
    found = module.neighbours
    return Neighbours(found.features.float().cpu(), found.targets.cpu().clone(), **found.settings())


def _with_training(facts: Facts, module: nn.Module) -> Facts:
    """Adds what timm knows about the training of the weights, if the model was created by name."""
    config = getattr(module, "pretrained_cfg", None)
    if config is None:
        return facts
    prepared, labels, notes = timm_config.prepared(config if isinstance(config, dict) else config.to_dict())
    fits = len(labels) == module.num_classes  # a model with a new head still has the old one's record
    return replace(facts, labels=labels if fits else (), preprocessing=prepared, notes=notes)


def _ours(model: Classifier) -> tuple[Tensors, Facts]:
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    facts = Facts(
        encoder=model.encoder.architecture,
        pool=model.pool,
        pool_blocks=model.pool_blocks,
        multilabel=model.multilabel,
        labels=model.labels,
        preprocessing=asdict(model.preprocessing),
    )
    return canonical.from_ours(state, model.pool), facts


def _unwrapped(module: nn.Module) -> nn.Module:
    """The model inside the wrappers of torch.compile, DataParallel and DistributedDataParallel."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while hasattr(module, "_orig_mod") or isinstance(module, parallel):
        module = module.module if isinstance(module, parallel) else module._orig_mod  # type: ignore[assignment]
    return module

"""LoRA: a matrix W stays frozen, and a low-rank update B A of it is trained (Hu et al. 2022, equation 3)."""

from copy import deepcopy

from torch import nn

from vit.foundation import UserError
from vit.models.classifier import Classifier

# Every matrix of a block. Queries, keys and values are one matrix here, so they share A, and each has its rows of B.
MATRICES = r"encoder\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))"


def add_lora(model: Classifier, *, rank: int, alpha: float) -> None:
    """Adds adapters to the matrices of all blocks, using peft.

    Args:
        model: the model, changed in place.
        rank: rank of B A.
        alpha: B A is scaled by alpha / rank.

    Raises:
        UserError: when peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("--optim.trained lora needs peft, which is not installed.\nTry: pip install peft") from None
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=MATRICES), model)  # type: ignore[arg-type]


def merged(model: Classifier) -> Classifier:
    """A copy of the model with its adapters merged into the matrices, which computes the same; the model itself if it
    has no adapters."""
    if not any("lora_" in name for name, _ in model.named_parameters()):
        return model
    from peft.tuners.lora import LoraLayer

    plain = deepcopy(model)
    for name, module in list(plain.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, own = name.rpartition(".")
            base = module.get_base_layer()
            assert isinstance(base, nn.Linear)
            setattr(plain.get_submodule(parent), own, base)
    return plain

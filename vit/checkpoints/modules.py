"""What modules of timm and torchvision say of themselves that their tensors don't tell."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vit.checkpoints.sources.source import Facts
from vit.foundation import UserError
from vit.layers.mlp import ACTIVATIONS

POOLS = {"token": "class", "avg": "mean", "map": "attention", "": None}  # timm's names


def timm_facts(module: nn.Module) -> Facts:
    """What a VisionTransformer of timm says of itself; it may be on the meta device.

    Raises:
        UserError: when it computes what our encoder does not.
    """
    timm: Any = module
    block = timm.blocks[0]
    kinds = [type(part).__name__ for part in (block, getattr(block, "attn", None), getattr(block, "mlp", None))]
    if kinds[:2] != ["Block", "Attention"] or kinds[2] not in ("Mlp", "GluMlp"):
        raise _unfit(module, f"blocks of {', '.join(kinds)}")
    if timm.global_pool not in POOLS:
        raise _unfit(module, f"{timm.global_pool!r} pooling")
    if timm.pool_include_prefix and timm.num_prefix_tokens and timm.global_pool in ("avg", "map"):
        raise _unfit(module, "a pooling that takes prefix tokens in")
    encoder = {
        "num_heads": block.attn.num_heads,
        "norm_eps": _epsilon(module),
        "act": "gelu" if kinds[2] == "GluMlp" else _activation(module, block.mlp.act),
        "image_size": tuple(timm.patch_embed.img_size),
        "pos_interpolation": "bicubic_antialias",
        "final_norm": not isinstance(timm.norm, nn.Identity),
    }
    if kinds[2] == "GluMlp" and (block.mlp.gate_last or not isinstance(block.mlp.act, nn.SiLU)):
        raise _unfit(module, "a gated MLP that is no SwiGLU with the gate first")
    # With two heads, both tokens are read. The tensors tell that.
    return Facts(encoder=encoder, pool=None if hasattr(timm, "head_dist") else POOLS[timm.global_pool])


def torchvision_facts(module: nn.Module) -> Facts:
    """What a VisionTransformer of torchvision says of itself."""
    torchvision: Any = module
    encoder = {
        "num_heads": torchvision.encoder.layers[0].num_heads,
        "norm_eps": _epsilon(module),
        "act": _activation(module, torchvision.encoder.layers[0].mlp[1]),
        "image_size": (torchvision.image_size,) * 2,
    }
    return Facts(encoder=encoder, pool="class")


def is_timm_vit(module: nn.Module) -> bool:
    return is_a(module, "timm.models.vision_transformer", "VisionTransformer")


def is_a(module: nn.Module, home: str, name: str) -> bool:
    """Whether it is of the class of another library, which is not imported to ask."""
    return any((kind.__module__, kind.__name__) == (home, name) for kind in type(module).__mro__)


def _epsilon(module: nn.Module) -> float:
    """The epsilon of all layer norms."""
    found = {norm.eps for norm in module.modules() if isinstance(norm, nn.LayerNorm)}
    if len(found) != 1:
        raise _unfit(module, f"layer norms with epsilons of {', '.join(map(str, sorted(found))) or 'no kind'}")
    return found.pop()


def _activation(module: nn.Module, act: Callable[[Tensor], Tensor]) -> str:
    """Our name of an activation, by what it does: libraries have several classes of each."""
    points = torch.linspace(-6, 6, 97)
    values = act(points.clone())
    for name, ours in ACTIVATIONS.items():
        if torch.allclose(ours(points), values, rtol=0, atol=1e-6):
            return name
    raise _unfit(module, f"the activation {type(act).__name__}; known are {', '.join(ACTIVATIONS)}")


def _unfit(module: nn.Module, what: str) -> UserError:
    return UserError(f"The {type(module).__name__} does not fit: it has {what}.\nOur encoder has no place for that.")

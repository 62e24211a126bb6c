"""What modules of timm and torchvision say about themselves in addition to their tensors."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vit.checkpoints.sources.source import Facts
from vit.foundation import UserError
from vit.layers.mlp import ACTIVATIONS

POOLS = {"token": "class", "avg": "mean", "map": "attention", "": None}  # timm's names


def timm_facts(module: nn.Module) -> Facts:
    """The facts about a VisionTransformer of timm, which may be on the meta device.

    Raises:
        UserError: when it computes something that our encoder can't.
    """
    timm: Any = module
    block = timm.blocks[0]
    kinds = [type(part).__name__ for part in (block, getattr(block, "attn", None), getattr(block, "mlp", None))]
    if kinds[:2] != ["Block", "Attention"] or kinds[2] not in ("Mlp", "GluMlp"):
        raise _unfit(module, f"blocks of {', '.join(kinds)}")
    if timm.pos_embed is None:
        raise _unfit(module, "no positions (pos_embed='none')")
    if timm.global_pool not in POOLS:
        raise _unfit(module, f"{timm.global_pool!r} pooling")
    if timm.pool_include_prefix and timm.num_prefix_tokens and timm.global_pool in ("avg", "map"):
        raise _unfit(module, "a pooling that includes prefix tokens")
    encoder = {
        "num_heads": block.attn.num_heads,
        "norm_eps": _epsilon(module),
        "act": "gelu" if kinds[2] == "GluMlp" else _activation(module, block.mlp.act),
        "image_size": tuple(timm.patch_embed.img_size),
        "pos_interpolation": "bicubic_antialias",
        "final_norm": not isinstance(timm.norm, nn.Identity),
    }
    if kinds[2] == "GluMlp" and (block.mlp.gate_last or not isinstance(block.mlp.act, nn.SiLU)):
        raise _unfit(module, "a gated MLP that is not a SwiGLU with the gate first")
    if kinds[2] == "GluMlp" and timm.global_pool == "map":  # whose MLP has the activation of the gate
        raise _unfit(module, "attention pooling beside SwiGLU")
    # With two heads, both tokens are read. The tensors show that.
    return Facts(encoder=encoder, pool=None if hasattr(timm, "head_dist") else POOLS[timm.global_pool])


def rotary_facts(module: nn.Module) -> Facts:
    """The facts about a model of timm's class Eva with rotary positions, which may be on the meta device.

    Raises:
        UserError: when it computes something that our encoder can't.
    """
    timm: Any = module
    block, rope = timm.blocks[0], timm.rope
    kinds = [type(part).__name__ for part in (block, block.mlp)]
    if kinds[0] != "EvaBlock" or not isinstance(getattr(block.mlp, "norm", nn.Identity()), nn.Identity):
        raise _unfit(module, f"blocks of {', '.join(kinds)}, with norms in the MLP")
    if block.attn.qkv is None or not isinstance(getattr(block.attn, "norm", nn.Identity()), nn.Identity):
        raise _unfit(module, "attention of its own kind, as EVA-02's")
    if timm.pos_embed is not None or block.gamma_1 is None or block.gamma_2 is None:
        raise _unfit(module, "learned positions beside rotary ones, or no layer scale")
    if timm.global_pool not in ("token", "avg", ""):
        raise _unfit(module, f"{timm.global_pool!r} pooling")
    gated = not hasattr(block.mlp, "fc1")
    encoder = {
        "num_heads": block.attn.num_heads,
        "norm_eps": _epsilon(module),
        "act": "gelu" if gated else _activation(module, block.mlp.act),
        "image_size": tuple(timm.patch_embed.img_size),
        "final_norm": not isinstance(timm.norm, nn.Identity),
        "rotary": _rotary(module, rope),
        "rotary_order": _order(module, rope, half=block.attn.rotate_half),
    }
    return Facts(encoder=encoder, pool=POOLS[timm.global_pool])


def _rotary(module: nn.Module, rope: Any) -> dict[str, Any]:
    """The keywords of `vit.layers.positions.rotation` for one of timm's modules of rotary positions."""
    kind = type(rope).__name__
    if kind == "RotaryEmbeddingDinoV3" and rope.normalize_coords == "separate" and not rope.grid_offset:
        return {"kind": "centred", "theta": rope.temperature}
    if kind == "RotaryEmbeddingCat" and not rope.in_pixels and not rope.grid_offset:
        reference = rope.ref_feat_shape and tuple(rope.ref_feat_shape)
        return {"kind": "counted", "theta": rope.temperature} | ({"reference": reference} if reference else {})
    raise _unfit(module, f"rotary positions of its own kind, {kind}")


def _order(module: nn.Module, rope: Any, *, half: bool) -> str:
    """The order in which channels of queries and keys are rotated, see `vit.checkpoints.sources.timm_rotary`."""
    if half and rope.grid_indexing == "ij":
        return ""
    if half:
        raise _unfit(module, "rotary positions of half the channels, columns first")
    return "pairs" if rope.grid_indexing == "ij" else "pairs, columns first"


def torchvision_facts(module: nn.Module) -> Facts:
    """The facts about a VisionTransformer of torchvision. Raises UserError for an unknown activation."""
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


def is_timm_eva(module: nn.Module) -> bool:
    return is_a(module, "timm.models.eva", "Eva")


def is_a(module: nn.Module, home: str, name: str) -> bool:
    """Whether it has this class of another library, which is not imported for that."""
    return any((kind.__module__, kind.__name__) == (home, name) for kind in type(module).__mro__)


def _epsilon(module: nn.Module) -> float:
    """The epsilon of all layer norms."""
    found = {norm.eps for norm in module.modules() if isinstance(norm, nn.LayerNorm)}
    if len(found) != 1:
        raise _unfit(module, f"layer norms with epsilons of {', '.join(map(str, sorted(found))) or 'no kind'}")
    return found.pop()


def _activation(module: nn.Module, act: Callable[[Tensor], Tensor]) -> str:
    """Our name of an activation, by its values, because libraries have several classes for each."""
    points = torch.linspace(-6, 6, 97)
    values = act(points.clone())
    for name, ours in ACTIVATIONS.items():
        if torch.allclose(ours(points), values, rtol=0, atol=1e-6):
            return name
    raise _unfit(module, f"the activation {type(act).__name__}; known are {', '.join(ACTIVATIONS)}")


def _unfit(module: nn.Module, what: str) -> UserError:
    return UserError(f"The {type(module).__name__} does not fit: it has {what}.\nThis encoder does not support that.")

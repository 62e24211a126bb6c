"""Google's own checkpoints: .npz files of vision_transformer (ViT, AugReg) and big_vision.

Kernels are transposed: (in, out) of dense layers, (h, w, in, out) of convolutions, (D, H, Dh) of q, k and v.
"""

import re
from collections.abc import Callable

import torch
from torch import Tensor

from vit.checkpoints.sources.source import Converted, Source, Tensors, leave_out
from vit.checkpoints.sources.unfit import refuse_unfit

ROOTS = ("", "opt/target/", "params/", "params/img/")
_BLOCK = re.compile(r"Transformer/encoderblock_(\d+)/(.+)")
_STACKED = "Transformer/encoderblock/"  # big_vision's scan over layers: all blocks in one tensor

DENSE = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def recognises(tensors: Tensors) -> bool:
    return _root(tensors) is not None


def _root(tensors: Tensors) -> str | None:
    """The prefix of all names of the image encoder."""
    return next((root for root in ROOTS if f"{root}embedding/kernel" in tensors), None)


def convert(tensors: Tensors) -> Converted:
    refuse_unfit(tensors)
    root = _root(tensors) or ""
    outside = [name for name in tensors if not name.startswith(root)]
    behind = dict.fromkeys((f"{root}pre_logits/", f"{root}head/"), "the head reads a representation layer")
    inside, left_out = leave_out(tensors, behind if f"{root}pre_logits/kernel" in tensors else {})
    if outside:
        left_out += (f"{outside[0]} ... ({len(outside)} tensors, not of the image encoder)",)
    inside = _unstacked({name.removeprefix(root): inside[name] for name in inside if name not in outside})
    pool = "attention" if "MAPHead_0/probe" in inside else "class" if "cls" in inside else "mean"
    query = next((value for name, value in inside.items() if name.endswith("query/kernel")), None)
    known = {"num_heads": query.shape[1]} if query is not None and query.ndim == 3 else {}
    return Converted(_renamed(inside), left_out, known, pool)


def _unstacked(tensors: Tensors) -> Tensors:
    result = {}
    for name, value in tensors.items():
        if name.startswith(_STACKED):
            for index, layer in enumerate(value):
                single = f"Transformer/encoderblock_{index}/{name.removeprefix(_STACKED)}"
                if single in tensors:
                    raise ValueError(f"it has both {name} and {single}")
                result[single] = layer
        else:
            result[name] = value
    return result


def _renamed(tensors: Tensors) -> Tensors:
    """The canonical tensors; names that are not part of this layout are kept, and refused later."""
    blocks: dict[str, Tensors] = {}
    result: Tensors = {}
    for name, value in tensors.items():
        if found := _BLOCK.fullmatch(name):
            blocks.setdefault(f"blocks.{found[1]}.", {})[found[2]] = value
        elif name.startswith("MAPHead_0/") and name != "MAPHead_0/probe":
            blocks.setdefault("attn_pool.", {})[name.removeprefix("MAPHead_0/")] = value
        else:
            ours, fix = _SINGLE.get(name, (name, _same))
            result[ours] = fix(value)
    for prefix, block in blocks.items():
        result |= {prefix + name: value for name, value in _block(block, pool=prefix == "attn_pool.").items()}
    return result


def _block(block: Tensors, *, pool: bool) -> Tensors:
    """The tensors of one block, or of the attention pool, whose names are numbered in the order of creation."""
    norms = sorted({name.split("/")[0] for name in block if name.startswith("LayerNorm_")})
    names = dict(zip(norms, ["norm"] if pool else ["norm1", "norm2"], strict=False))
    result: Tensors = {}
    joined: dict[str, dict[str, Tensor]] = {"weight": {}, "bias": {}}
    for name, value in block.items():
        parts = (*name.split("/"), "")
        kind = DENSE.get(parts[-2], parts[-2])
        if parts[0] in names:
            result[f"{names[parts[0]]}.{kind}"] = value
        elif parts[0].startswith("MlpBlock_") and parts[1] in ("Dense_0", "Dense_1"):
            result[f"mlp.fc{int(parts[1][-1]) + 1}.{kind}"] = _dense(value)
        elif parts[0].startswith("MultiHeadDotProductAttention_") and parts[1] in ("query", "key", "value"):
            joined[kind][parts[1]] = value.flatten(1).T if kind == "weight" else value.flatten()
        elif parts[0].startswith("MultiHeadDotProductAttention_") and parts[1] == "out":
            result[f"{'' if pool else 'attn.'}proj.{kind}"] = value.flatten(0, -2).T if kind == "weight" else value
        else:
            result[name] = value
    for kind, each in joined.items():
        if len(each) == 3:
            q, k, v = each["query"], each["key"], each["value"]
            if pool:
                result |= {f"q.{kind}": q, f"kv.{kind}": torch.cat([k, v])}
            else:
                result[f"attn.qkv.{kind}"] = torch.cat([q, k, v])
    return result


def _same(value: Tensor) -> Tensor:
    return value


def _dense(value: Tensor) -> Tensor:
    return value.T if value.ndim == 2 else value


def _convolution(value: Tensor) -> Tensor:
    return value.permute(3, 2, 0, 1) if value.ndim == 4 else value


_SINGLE: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "embedding/kernel": ("patch_embed.proj.weight", _convolution),
    "embedding/bias": ("patch_embed.proj.bias", _same),
    "cls": ("cls_token", _same),
    "Transformer/posembed_input/pos_embedding": ("pos_embed", _same),
    "pos_embedding": ("pos_embed", _same),
    "Transformer/encoder_norm/scale": ("norm.weight", _same),
    "Transformer/encoder_norm/bias": ("norm.bias", _same),
    "MAPHead_0/probe": ("attn_pool.latent", _same),
    "head/kernel": ("head.weight", _dense),
    "head/bias": ("head.bias", _same),
}

GOOGLE = Source(
    name="Google",
    models="ViT and AugReg .npz files of vision_transformer, ViT and SigLIP image towers of big_vision",
    recognised_by="embedding/kernel, also behind opt/target/, params/ or params/img/",
    tested="timm's own reader of these files, every value random; other sizes with scipy.ndimage.zoom, as in the code",
    limits="no ResNet stem; a head behind a representation layer (pre_logits) is left out",
    recognises=recognises,
    convert=convert,
    # flax's gelu is the tanh approximation unless told otherwise, and Google's code does not tell it.
    assumes={"norm_eps": 1e-6, "act": "gelu_tanh", "pos_interpolation": "bilinear_corners"},
)

"""transformers' DINOv3: rotary positions, registers, MLP or SwiGLU."""

import torch

from vit.checkpoints.sources.source import Converted, Source, Tensors, fuse, leave_out, rename, unprefixed
from vit.checkpoints.sources.timm_rotary import heads
from vit.checkpoints.sources.transformers_dinov2 import UNUSED

KEY_TABLE = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.register_tokens", "reg_token"),
    ("embeddings.patch_embeddings.", "patch_embed.proj."),
    ("model.layer.", "blocks."),
    ("layer.", "blocks."),
    ("attention.q_proj.", "attn.q."),
    ("attention.k_proj.", "attn.k."),
    ("attention.v_proj.", "attn.v."),
    ("attention.o_proj.", "attn.proj."),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
)
GATED = (("mlp.down_proj.", "mlp.fc2."),)
PLAIN = (("mlp.up_proj.", "mlp.fc1."), ("mlp.down_proj.", "mlp.fc2."))
PATCHES = "embeddings.patch_embeddings.weight"
PREFIXES = ("", "dinov3_vit.")


def recognises(tensors: Tensors) -> bool:
    found = unprefixed(tensors, PATCHES, PREFIXES) or {}
    return "embeddings.cls_token" in found and any(name.endswith("0.attention.o_proj.weight") for name in found)


def convert(tensors: Tensors) -> Converted:
    tensors, left_out = leave_out(unprefixed(tensors, PATCHES, PREFIXES) or {}, UNUSED)
    if "embeddings.register_tokens" in tensors and not tensors["embeddings.register_tokens"].numel():
        del tensors["embeddings.register_tokens"]
    gated = any("mlp.gate_proj." in name for name in tensors)
    tensors = _with_biases(rename(tensors, (*KEY_TABLE, *(GATED if gated else PLAIN))))
    tensors = fuse(tensors, ("attn.q.", "attn.k.", "attn.v."), "attn.qkv.")
    tensors = fuse(tensors, ("mlp.gate_proj.", "mlp.up_proj."), "mlp.fc1.")
    assumed = heads(tensors["patch_embed.proj.weight"].shape[0])
    return Converted(tensors, left_out, pool="class", assumed=assumed)


def _with_biases(tensors: Tensors) -> Tensors:
    """Zeros where queries, keys and values don't all have biases, but one of them does: as a rule, keys have none."""
    tensors = dict(tensors)
    parts = ("attn.q.", "attn.k.", "attn.v.")
    for name in [name for name in tensors if any(name.endswith(f"{part}bias") for part in parts)]:
        start = name[: name.index("attn.")]
        for part in parts:
            tensors.setdefault(f"{start}{part}bias", torch.zeros_like(tensors[name]))
    return tensors


TRANSFORMERS_DINOV3 = Source(
    name="transformers DINOv3",
    models="DINOv3ViTModel, MLP or SwiGLU",
    recognised_by="embeddings.patch_embeddings.weight, attention.o_proj",
    tested="transformers' own class, every parameter random: tokens and pooled output, also at other image sizes",
    limits="the mask token is left out; the library resizes images after scaling them to 0..1, here before, a rounding "
    "to grey levels; the augmentation of places in its training is not done",
    recognises=recognises,
    convert=convert,
    assumes={"norm_eps": 1e-5, "rotary": {"kind": "centred", "theta": 100.0}},
)

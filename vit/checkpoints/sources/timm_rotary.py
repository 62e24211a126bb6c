"""timm's Vision Transformers with rotary positions, of its class Eva: DINOv3, and vit_*_rope_*."""

import re
from collections.abc import Mapping
from typing import Any

import torch

from vit.checkpoints.sources.source import Converted, Source, Tensors, fuse, rename
from vit.foundation import UserError

KEYS = {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.norm1.weight"}
SCALES = {"blocks.0.gamma_1", "blocks.0.ls1.gamma"}  # of the layer scale, which all of them have; timm's, and ours
KEY_TABLE = (
    (".gamma_1", ".ls1.gamma"),
    (".gamma_2", ".ls2.gamma"),
)

# (class token, registers) -> what the published models with these take.
FAMILIES: Mapping[tuple[bool, bool], Mapping[str, Any]] = {
    (True, True): {"rotary": {"kind": "centred", "theta": 100.0}, "norm_eps": 1e-5},  # DINOv3
    (True, False): {"rotary": {"kind": "counted", "theta": 100.0}, "rotary_order": "pairs, columns first"},
    (False, True): {
        "rotary": {"kind": "counted", "theta": 10_000.0, "reference": (16, 16)},
        "rotary_order": "pairs",
    },
}


def recognises(tensors: Tensors) -> bool:
    others = any(word in name for name in tensors for word in ("rope", "relative_position", "rel_pos", "attn.norm."))
    return tensors.keys() >= KEYS and bool(tensors.keys() & SCALES) and "pos_embed" not in tensors and not others


def convert(tensors: Tensors) -> Converted:
    if "blocks.0.ls1.gamma" in tensors:  # of a live model of ours, which says the rest itself
        return Converted(tensors)
    family = FAMILIES.get(("cls_token" in tensors, "reg_token" in tensors))
    if family is None:
        raise UserError(
            "The checkpoint has rotary positions, but neither a class token nor registers, as no model known here:\n"
            "the names don't tell its frequencies. Give the folder with its config.json, or timm:NAME."
        )
    tensors = fuse(rename(tensors, KEY_TABLE), ("mlp.fc1_g.", "mlp.fc1_x."), "mlp.fc1.")
    return Converted(_with_biases(tensors), assumed={**family, **heads(tensors["patch_embed.proj.weight"].shape[0])})


def heads(width: int) -> dict[str, int]:
    """Of all published models with rotary positions, by their width: 64 channels each, but for DINOv3's largest."""
    return {"num_heads": 32 if width == 4096 else width // 64} if width % 64 == 0 else {}


def _with_biases(tensors: Tensors) -> Tensors:
    """The biases of queries and values, which have their own names, with zeros between them: keys have none."""
    tensors = dict(tensors)
    for name in [name for name in tensors if name.endswith("attn.q_bias")]:
        start = name.removesuffix("q_bias")
        if start + "v_bias" in tensors:
            q, v = tensors.pop(name), tensors.pop(start + "v_bias")
            tensors[start + "qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    return tensors


def reorder(tensors: Tensors, num_heads: int, order: str) -> Tensors:
    """The canonical tensors with the channels of queries and keys in our order; their products stay the same.

    Ours turns channel j of a head with channel j + Dh / 2, and the first half of the angles tells the row.

    Args:
        num_heads: H.
        order: theirs: "pairs" (2 j with 2 j + 1), "pairs, columns first", or "" (ours).
    """
    if not order:
        return tensors
    tensors = dict(tensors)
    for name in [name for name in tensors if re.search(r"\.attn\.(qkv|[qk]_norm)\.", name)]:
        parts = 1 if "_norm." in name else 3 * num_heads  # queries of each head, keys, values
        rows = tensors[name].unflatten(0, (parts, -1)).clone()
        angles = torch.arange(rows.shape[1] // 2)
        if order.endswith("columns first"):
            angles = angles.roll(len(angles) // 2)
        turned = slice(0, 1 if parts == 1 else 2 * num_heads)  # not the values
        rows[turned] = rows[turned][:, torch.cat([2 * angles, 2 * angles + 1])]
        tensors[name] = rows.flatten(0, 1)
    return tensors


TIMM_ROTARY = Source(
    name="timm with rotary positions",
    models="vit_*_dinov3 (MLP or SwiGLU, with and without biases), vit_*_rope_* with axial frequencies, and our own "
    "model folders of these",
    recognised_by="patch_embed.proj.weight, blocks.0.attn.qkv.weight, blocks.0.gamma_1, no pos_embed",
    tested="timm's own models, every parameter random; other sizes with its dynamic_img_size",
    limits="a bare file is taken for the published model with the same tokens: DINOv3, RoPE-ViT or timm's own; learned "
    "frequencies (rope_mixed) and learned positions beside rotary ones (rope_ape) are refused; the augmentation of "
    "places in DINOv3's training is not done",
    recognises=recognises,
    convert=convert,
    assumes={},
)

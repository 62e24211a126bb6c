"""timm's Vision Transformers: their layout is the canonical one, and that of our own model folders."""

from vit.checkpoints.sources.source import Converted, Source, Tensors


def recognises(tensors: Tensors) -> bool:
    return {"patch_embed.proj.weight", "pos_embed", "blocks.0.attn.qkv.weight"} <= tensors.keys()


TIMM = Source(
    name="timm",
    models="vit_*, deit_*, deit3_*, DINOv2, MAE, CLIP and SigLIP towers",
    recognised_by="patch_embed.proj.weight, pos_embed, blocks.0.attn.qkv.weight",
    tested="timm's own models, every parameter random",
    limits="no relative positions (BEiT), no parallel blocks",
    recognises=recognises,
    convert=lambda tensors: Converted(tensors),
    assumes={"pos_interpolation": "bicubic_antialias"},
)

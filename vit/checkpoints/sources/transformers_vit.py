"""transformers' ViT and models that are built like it: DeiT, ViTMAE, ViTMSN."""

from vit.checkpoints.sources.source import Converted, Source, Tensors, fuse, leave_out, rename, unprefixed

# Those of transformers 5 in memory, and those that it and its earlier versions write to files.
ATTENTION = (
    ("attention.attention.query.", "attn.q."),
    ("attention.attention.key.", "attn.k."),
    ("attention.attention.value.", "attn.v."),
    ("attention.output.dense.", "attn.proj."),
    ("attention.q_proj.", "attn.q."),
    ("attention.k_proj.", "attn.k."),
    ("attention.v_proj.", "attn.v."),
    ("attention.o_proj.", "attn.proj."),
)
EMBEDDINGS = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.distillation_token", "dist_token"),
    ("embeddings.register_tokens", "reg_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
)
PATCHES = "embeddings.patch_embeddings.projection.weight"
PREFIXES = ("", "vit.", "deit.")
KEY_TABLE = (
    *EMBEDDINGS,
    *ATTENTION,
    ("encoder.layer.", "blocks."),
    ("layers.", "blocks."),
    ("intermediate.dense.", "mlp.fc1."),
    ("output.dense.", "mlp.fc2."),
    ("layernorm_before.", "norm1."),
    ("layernorm_after.", "norm2."),
    ("layernorm.", "norm."),
    ("distillation_classifier.", "head_dist."),
    ("cls_classifier.", "head."),
    ("classifier.", "head."),
)
UNUSED = {
    "pooler.": "a layer behind the class token, for pretraining",
    "decoder.": "the decoder of pretraining",
    "embeddings.mask_token": "what hides patches in pretraining",
}


def has(tensors: Tensors, *ends: str) -> bool:
    """Whether each of `ends` is the end of some name."""
    return all(any(name.endswith(end) for name in tensors) for end in ends)


def recognises(tensors: Tensors) -> bool:
    found = unprefixed(tensors, PATCHES, PREFIXES) or {}
    if has(found, "0.lambda_1") or any("relative_position" in name for name in found):
        return False  # BEiT, which has the other names, too
    return "embeddings.position_embeddings" in found and has(found, "0.layernorm_before.weight")


def convert(tensors: Tensors) -> Converted:
    tensors, left_out = leave_out(unprefixed(tensors, PATCHES, PREFIXES) or {}, UNUSED)
    canonical = fuse(rename(tensors, KEY_TABLE), ("attn.q.", "attn.k.", "attn.v."), "attn.qkv.")
    told = "cls_token" in canonical and "head_dist.weight" not in canonical
    return Converted(canonical, left_out, pool="class" if told else None)


TRANSFORMERS_VIT = Source(
    name="transformers ViT",
    models="ViT, DeiT, ViTMAE and ViTMSN: bare, for classification, for pretraining; DeiT with both heads",
    recognised_by="embeddings.patch_embeddings.projection.weight, embeddings.position_embeddings, layernorm_before",
    tested="transformers' own classes, every parameter random: tokens and logits, also at other image sizes",
    limits="pooler, decoder and mask token are left out; DeiT's heads become one, their mean",
    recognises=recognises,
    convert=convert,
    assumes={"norm_eps": 1e-12, "pos_interpolation": "bicubic"},
)

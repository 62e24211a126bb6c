"""transformers' CLIP: its image tower."""

from vit.checkpoints.sources.source import Converted, Source, Tensors, fuse, leave_out, rename, unprefixed

PATCHES = "embeddings.patch_embedding.weight"
PREFIXES = ("", "vision_model.")
KEY_TABLE = (
    ("embeddings.class_embedding", "cls_token"),
    ("embeddings.position_embedding.weight", "pos_embed"),
    ("embeddings.patch_embedding.", "patch_embed.proj."),
    ("pre_layrnorm.", "norm_pre."),  # so spelt in the library
    ("post_layernorm.", "norm."),
    ("encoder.layers.", "blocks."),
    ("self_attn.q_proj.", "attn.q."),
    ("self_attn.k_proj.", "attn.k."),
    ("self_attn.v_proj.", "attn.v."),
    ("self_attn.out_proj.", "attn.proj."),
    ("layer_norm1.", "norm1."),
    ("layer_norm2.", "norm2."),
    ("classifier.", "head."),
)
UNUSED = {
    "text_model.": "the text tower",
    "text_projection.": "the text tower",
    "visual_projection.": "the way into the space shared with text",
    "logit_scale": "of comparing with text",
    "logit_bias": "of comparing with text",
    "embeddings.position_ids": "counts from 0 up",
}


def recognises(tensors: Tensors) -> bool:
    found = unprefixed(tensors, PATCHES, PREFIXES) or {}
    return {"embeddings.class_embedding", "pre_layrnorm.weight"} <= found.keys()


def convert(tensors: Tensors) -> Converted:
    """The model for classification reads the mean of the patches after the last block, without the norm."""
    classifies = "classifier.weight" in tensors
    unused = UNUSED | ({"post_layernorm.": "of the class token, which the head does not read"} if classifies else {})
    tensors, left_out = leave_out(unprefixed(tensors, PATCHES, PREFIXES) or {}, unused)
    tensors = as_canonical(tensors)
    if classifies:
        return Converted(tensors, left_out, known={"final_norm": False}, pool="mean")
    return Converted(tensors, left_out, pool="class")


def as_canonical(tensors: Tensors) -> Tensors:
    """The renamed and fused tensors of the tower of CLIP or SigLIP."""
    tensors = fuse(rename(tensors, KEY_TABLE), ("attn.q.", "attn.k.", "attn.v."), "attn.qkv.")
    if "cls_token" in tensors:  # (D,)
        tensors["cls_token"] = tensors["cls_token"][None, None]
    if "pos_embed" in tensors:  # (N, D)
        tensors["pos_embed"] = tensors["pos_embed"][None]
    return tensors


TRANSFORMERS_CLIP = Source(
    name="transformers CLIP",
    models="CLIPVisionModel, with projection, CLIPModel, CLIPForImageClassification",
    recognised_by="embeddings.patch_embedding.weight, embeddings.class_embedding, pre_layrnorm",
    tested="transformers' own classes, every parameter random: tokens, pooled output and logits, also at other sizes",
    limits="text tower and projections are left out: the features are the pooled output before the projection",
    recognises=recognises,
    convert=convert,
    assumes={"norm_eps": 1e-5, "act": "quick_gelu", "pos_interpolation": "bicubic"},
)

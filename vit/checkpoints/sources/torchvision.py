"""torchvision's Vision Transformers."""

from vit.checkpoints.sources.source import Converted, Source, Tensors, leave_out, rename
from vit.checkpoints.sources.unfit import refuse_unfit

TABLE = (
    ("class_token", "cls_token"),
    ("conv_proj.", "patch_embed.proj."),
    ("encoder.pos_embedding", "pos_embed"),
    ("encoder.ln.", "norm."),
    ("encoder.layers.encoder_layer_", "blocks."),
    (".ln_1.", ".norm1."),
    (".ln_2.", ".norm2."),
    (".self_attention.in_proj_", ".attn.qkv."),
    (".self_attention.out_proj.", ".attn.proj."),
    (".mlp.linear_1.", ".mlp.fc1."),  # before torchvision 0.14
    (".mlp.linear_2.", ".mlp.fc2."),
    (".mlp.0.", ".mlp.fc1."),
    (".mlp.3.", ".mlp.fc2."),
    ("heads.head.", "head."),
)


def recognises(tensors: Tensors) -> bool:
    return {"conv_proj.weight", "encoder.pos_embedding", "encoder.ln.weight"} <= tensors.keys()


def convert(tensors: Tensors) -> Converted:
    refuse_unfit(tensors)
    layer = "a representation layer" if "heads.pre_logits.weight" in tensors else ""
    tensors, left_out = leave_out(tensors, {"heads.": f"the head reads {layer}"} if layer else {})
    return Converted(rename(tensors, TABLE), left_out, pool="class", head_behind=layer)


TORCHVISION = Source(
    name="torchvision",
    models="vit_b_16 to vit_h_14, with either naming of the MLP",
    recognised_by="conv_proj.weight, encoder.pos_embedding, encoder.ln.weight",
    tested="torchvision's own models, every parameter random; other sizes with its interpolate_embeddings",
    limits="no convolutional stem; a head behind a representation layer is refused, or left out with --model.pool",
    recognises=recognises,
    convert=convert,
    assumes={"norm_eps": 1e-6, "act": "gelu", "pos_interpolation": "bicubic_corners"},
)

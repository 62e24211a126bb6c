"""timm's Vision Transformers: their layout is the canonical one, and that of our own model folders."""

from vit.checkpoints.sources import facebook
from vit.checkpoints.sources.source import CANONICAL, Converted, Source, Tensors
from vit.checkpoints.sources.unfit import refuse_unfit


def recognises(tensors: Tensors) -> bool:
    return tensors.keys() >= CANONICAL and not facebook.recognises(tensors)


def convert(tensors: Tensors) -> Converted:
    refuse_unfit(tensors)
    assumed: dict[str, object] = {}
    if "norm_pre.weight" in tensors:
        assumed["norm_eps"] = 1e-5  # of all of timm's CLIP towers
    if tensors["patch_embed.proj.weight"].shape[0] == 1536:
        assumed["num_heads"] = 24 if "cls_token" in tensors else 16  # DINOv2's giant, or SigLIP 2
    return Converted(tensors, assumed=assumed)


TIMM = Source(
    name="timm",
    models="vit_*, deit_* with both heads, deit3_*, vit_*_dinov2 with and without registers, MAE, CLIP and SigLIP "
    "image towers (class token, mean, attention pool), and our own model folders",
    recognised_by="patch_embed.proj.weight, pos_embed, blocks.0.attn.qkv.weight",
    tested="timm's own models, every parameter random; other sizes with its dynamic_img_size",
    limits="a bare file does not say GELU or quick GELU (some CLIP), nor tanh GELU (some SigLIP 2): give --model.act; "
    "a folder or timm:NAME does. Refused by name: relative positions (BEiT), EVA-02, parallel blocks, ResNet stems, "
    "pooling by maximum, norms behind the branches (vit_base_patch16_rpn_224; a bare file that may be one, too)",
    recognises=recognises,
    convert=convert,
    assumes={"pos_interpolation": "bicubic_antialias"},
)

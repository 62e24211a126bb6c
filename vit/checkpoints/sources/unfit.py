"""Models that are similar to a Vision Transformer, and why they don't fit. Some have the same keys, and would load."""

import re

from vit.checkpoints.sources.source import Tensors
from vit.foundation import UserError

RELATIVE = "its attention adds a bias for each pair of places, and the encoder here has none"
ROTARY = "it turns queries and keys by the place of their token, in a way of its own"

# (in the lines of keys, one a line; what it is; what does not fit): the first that is found tells.
PATTERNS = (
    (r"patch_embed\.backbone\.|^(.*/)?conv_root/", "a hybrid", "its patches come from a ResNet"),
    (r"layers\.\d+\.blocks\.\d+\.attn", "a Swin Transformer", "it attends within windows, in stages of several sizes"),
    (r"relative_position_|rel_pos|layers?\.\d+\.lambda_1$", "a model with relative positions, such as BEiT", RELATIVE),
    (
        r"^blocks\.\d+\.attn\.(q_bias$|q_proj\.)|rope|attn\.inner_attn_ln",
        "a model with rotary positions, such as EVA, RoPE-ViT with learned frequencies, or DINOv3's own files",
        ROTARY,
    ),
    (r"blocks\.\d+\.attns\.|blocks\.\d+\.in_proj\.", "a model of parallel blocks", "ours are one after the other"),
    (r"attn\.proj_l\.", "a CaiT", "its heads talk to each other"),
    (r"lambda_q1$", "a model of differential attention", "it subtracts one attention from another"),
    (r"conv_proj\.conv_bn_relu_", "a model with a convolutional stem", "its patches come from several convolutions"),
    (r"conv_dw\.|dwconv\.", "a ConvNeXt or another convolutional network", "it has no tokens"),
    (r"running_mean$|layer\d\.\d+\.conv\d\.", "a convolutional network, such as a ResNet", "it has no tokens"),
    (r"mlp_tokens\.", "an MLP-Mixer", "it has no attention"),
)


def refuse_unfit(tensors: Tensors) -> None:
    """Raises UserError for the tensors of a model that is known not to fit."""
    keys = "\n".join(tensors)
    for pattern, what, why in PATTERNS:
        if re.search(pattern, keys, re.MULTILINE):
            raise UserError(_text(what, why))
    if "pos_embed" not in tensors and {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= tensors.keys():
        refuse_unpositioned()
    if any(name.endswith("embeddings.patch_embeddings.weight") for name in tensors):
        raise UserError(_text("near transformers' DINOv3, which is known here, but not of its names", ROTARY))
    if {"norm_pre.weight", "pos_embed"} <= tensors.keys() and "attn_pool.latent" in tensors:
        raise UserError(_text("a Perception Encoder", ROTARY))  # its keys are those of CLIP with another pooling
    if "blocks.0.gamma_1" in tensors:
        what = "of DeiT III's own files, or a model with rotary positions and the same keys"
        raise UserError(_text(what, "which of the two can't be told; timm's deit3_* are the former under other names"))


def refuse_unpositioned() -> None:
    """Raises UserError for a model that has neither learned positions nor rotary ones that are known."""
    raise UserError(
        "The checkpoint has no pos_embed: either it has no positions at all, as timm's models with pos_embed='none',\n"
        "or rotary ones that its names don't tell. The encoder here needs positions.\n"
        "If they are rotary, give the folder with its config.json, or timm:NAME; otherwise take another model."
    )


def refuse_twins(tensors: Tensors) -> None:
    """Raises UserError for canonical tensors whose names are those of a model that computes something else.

    Of timm's published models with these names all norm behind the branches: no other goes without the bias of queries,
    keys and values, without layer scale and without a class token.
    """
    has = tensors.keys() & {"cls_token", "blocks.0.attn.qkv.bias", "blocks.0.ls1.gamma", "norm.weight"}
    if not has and "fc_norm.weight" in tensors:
        raise UserError(
            "The checkpoint may be timm's vit_base_patch16_rpn_224, which normalises behind attention and MLP, or a\n"
            "plain model with the same names, which does before: they don't tell, and the former does not fit.\n"
            "Give the folder with its config.json, or timm:NAME; from Python also vit.load(..., post_norm=False)."
        )


def refuse_gated_pool(tensors: Tensors, mlp: str) -> None:
    """Raises UserError for timm's tensors of attention pooling beside SwiGLU: timm's pool has the activation of the
    gate, that of our own models another, and the names are the same."""
    if mlp == "swiglu" and "attn_pool.latent" in tensors:
        raise UserError(
            "The checkpoint has attention pooling beside SwiGLU, and does not say which activation the pool has.\n"
            "Give the model folder, if it is one of ours; or another pooling than attention, and the pool is left out."
        )


def _text(what: str, why: str) -> str:
    return (
        f"The checkpoint is {what}, which does not fit: {why}.\n"
        "Take a plain Vision Transformer, such as ViT, DeiT, DINOv2, MAE, CLIP or SigLIP."
    )

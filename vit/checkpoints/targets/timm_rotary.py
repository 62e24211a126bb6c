"""timm's layout of models with rotary positions: its class Eva."""

from typing import Any

from vit.checkpoints.sources.source import Tensors
from vit.checkpoints.sources.timm_rotary import KEY_TABLE
from vit.checkpoints.targets.target import mlp_widths, rename_back
from vit.models.classifier import Classifier

# The entry point whose norms have an epsilon; everything else of it is overridden.
ENTRY_POINTS = {1e-5: "vit_small_patch16_dinov3", 1e-6: "vit_small_patch16_rope_224"}
TYPES = {"centred": "dinov3", "counted": "cat"}
POOLS = {"class": "token", "mean": "avg"}


def obstacles(model: Classifier) -> list[str]:
    """Reasons why timm's Eva can't compute a model with rotary positions, one phrase each."""
    shape = model.encoder.architecture
    found = []
    if shape["norm_eps"] not in ENTRY_POINTS:
        found.append(f"norm_eps {shape['norm_eps']:g} beside rotary positions")
    if shape["act"] != "gelu" and shape.get("mlp", "mlp") == "mlp":
        found.append(f"act {shape['act']} beside rotary positions")
    if model.pool not in POOLS:
        found.append(f"a head that reads {model.pool} beside rotary positions")
    there = ("learned_positions", "dist_token", "embed_norm")
    found += [f"{name.replace('_', ' ')} beside rotary positions" for name in there if shape.get(name)]
    if not shape.get("patch_bias", True):
        found.append("patches without a bias beside rotary positions")
    return found


def model_args(model: Classifier, *, fc_norm: bool) -> dict[str, Any]:
    """The keywords of timm's Eva, all of them, so that none depends on the defaults of an entry point."""
    shape = model.encoder.architecture
    rotary = shape["rotary"]
    hidden = mlp_widths(model)[1]
    return {
        "img_size": list(shape["image_size"]),
        "patch_size": list(shape["patch_size"]),
        "in_chans": shape.get("in_chans", 3),
        "embed_dim": shape["embed_dim"],
        "depth": shape["depth"],
        "num_heads": shape["num_heads"],
        "mlp_ratio": (hidden + 0.5) / shape["embed_dim"],  # timm rounds down
        "swiglu_mlp": shape.get("mlp") == "swiglu",
        "swiglu_align_to": 0,
        "qkv_bias": shape.get("qkv_bias", True),
        "qk_norm": shape.get("qk_norm", False),
        "attn_type": "rope",  # which has biases of keys, too
        "init_values": shape.get("init_values"),
        "global_pool": POOLS[model.pool],
        "use_post_transformer_norm": shape.get("final_norm", True),
        "use_fc_norm": fc_norm,
        "class_token": shape.get("class_token", True),
        "num_reg_tokens": shape.get("num_registers", 0),
        "use_abs_pos_emb": False,
        "dynamic_img_size": False,
        "use_rot_pos_emb": True,
        "rope_type": TYPES[rotary["kind"]],
        "rope_temperature": rotary["theta"],
        "ref_feat_shape": list(rotary["reference"]) if rotary.get("reference") else None,
        "rope_rotate_half": True,
        "rope_grid_indexing": "ij",
        "rope_grid_offset": 0.0,
    }


def tensors(canonical: Tensors) -> Tensors:
    """The canonical tensors with Eva's names."""
    return rename_back(canonical, KEY_TABLE)

"""transformers' own layouts: ViT, DeiT and DINOv2, which load without timm and without this library."""

from pathlib import Path
from typing import Any

import torch

from vit.checkpoints import canonical
from vit.checkpoints.sources.source import MULTILABEL, Tensors
from vit.checkpoints.sources.transformers_dinov2 import KEY_TABLE as DINOV2_TABLE
from vit.checkpoints.sources.transformers_vit import KEY_TABLE as VIT_TABLE
from vit.checkpoints.targets.target import (
    Target,
    beyond,
    mlp_widths,
    rename_back,
    split_qkv,
    with_patch_bias,
    write_json,
    write_safetensors,
)
from vit.checkpoints.transformers_processor import ANY_BY_PILLOW
from vit.models.classifier import Classifier

ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_tanh": "gelu_pytorch_tanh"}
RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}  # Pillow's numbers
CLASSES = {
    "vit": "ViTForImageClassification",
    "deit": "DeiTForImageClassification",
    "dinov2": "Dinov2ForImageClassification",
    "dinov2_with_registers": "Dinov2WithRegistersForImageClassification",
}
KNOWN = {
    *("image_size", "patch_size", "embed_dim", "depth", "num_heads", "in_chans", "class_token", "dist_token"),
    *(
        "num_registers",
        "pos_interpolation",
        "learned_positions",
        "patch_bias",
        "act",
        "norm_eps",
        "mlp_ratio",
        "mlp",
        "qkv_bias",
    ),
    *("init_values", "final_norm"),
}


def model_type(model: Classifier) -> str:
    """The family whose code computes what this model does.

    DINOv2's head reads the class token beside the mean of the patches: with zeros for one of them, it is any head.
    """
    shape = model.encoder.architecture
    if shape.get("num_registers"):
        return "dinov2_with_registers"
    if shape.get("dist_token"):
        return "deit"
    plain = model.pool == "class" and shape.get("init_values") is None and shape.get("mlp", "mlp") == "mlp"
    return "vit" if plain else "dinov2"


def obstacles(model: Classifier) -> list[str]:
    """What transformers' ViT, DeiT and DINOv2 can't represent of a model, one phrase each."""
    shape, kind = model.encoder.architecture, model_type(model)
    found = beyond(shape, KNOWN)
    if not model.num_classes:
        found.append("a model without a head")
    if not shape.get("class_token", True):
        found.append("a model without a class token")
    if not shape.get("final_norm", True) or any(True for _ in model.fc_norm.parameters()):
        found.append("a norm behind the pooling")
    if model.pool_blocks > 1:
        found.append(f"a head that reads {model.pool_blocks} blocks")
    if model.pool == "attention":
        found.append("a head that reads attention")
    if kind == "deit" and model.pool not in ("class", "class+dist"):
        found.append(f"a head that reads {model.pool}, in a model with a distillation token")
    if kind == "deit" and (shape.get("init_values") is not None or shape.get("mlp", "mlp") != "mlp"):
        found.append("layer scale or SwiGLU beside a distillation token")
    if kind.startswith("dinov2"):
        found += _no_dinov2(model)
    prepared = model.preprocessing
    if prepared.resize_mode == "crop" and prepared.image_size[0] != prepared.image_size[1]:
        found.append("a crop that is not square")
    return found


def _no_dinov2(model: Classifier) -> list[str]:
    """What keeps a model that only DINOv2's code could compute from being one."""
    shape = model.encoder.architecture
    found = []
    if shape.get("dist_token"):
        found.append("registers beside a distillation token")
    if shape["image_size"][0] != shape["image_size"][1]:
        found.append("an image that is not square, in a model with registers, layer scale or pooled patches")
    _, hidden = mlp_widths(model)
    if shape.get("mlp") == "swiglu":
        if hidden != _swiglu_width(shape["embed_dim"], _mlp_ratio(model)):
            found.append(f"SwiGLU of width {hidden}, which its rule does not give for any whole mlp_ratio")
    elif hidden % shape["embed_dim"]:
        found.append(f"an MLP of width {hidden}, no multiple of {shape['embed_dim']}, in a model as DINOv2's")
    return found


def _swiglu_width(width: int, ratio: int) -> int:
    """The width by DINOv2's rule: two thirds of the MLP's, rounded up to a multiple of 8."""
    return (int(width * ratio * 2 / 3) + 7) // 8 * 8


def _mlp_ratio(model: Classifier) -> int:
    """The integer ratio that gives the width of the model's MLP, or the nearest one."""
    width, (_, hidden) = model.encoder.embed_dim, mlp_widths(model)
    if model.encoder.architecture.get("mlp") != "swiglu":
        return hidden // width
    return min(range(1, 33), key=lambda ratio: abs(_swiglu_width(width, ratio) - hidden))


def config(model: Classifier) -> dict[str, Any]:
    """The content of config.json."""
    shape, kind = model.encoder.architecture, model_type(model)
    labels = list(model.labels) or [f"LABEL_{index}" for index in range(model.num_classes)]
    both = model.pool == "class+dist"
    common = {
        "architectures": [CLASSES[kind] + ("WithTeacher" if both else "")],
        "model_type": kind,
        "hidden_size": shape["embed_dim"],
        "num_hidden_layers": shape["depth"],
        "num_attention_heads": shape["num_heads"],
        "hidden_act": ACTIVATIONS[shape["act"]],
        "layer_norm_eps": shape["norm_eps"],
        "image_size": _one_or_pair(shape["image_size"]),
        "patch_size": _one_or_pair(shape["patch_size"]),
        "num_channels": shape.get("in_chans", 3),
        "qkv_bias": shape.get("qkv_bias", True),
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
        "dtype": "float32",
        **({"problem_type": MULTILABEL} if model.multilabel else {}),
    }
    if not kind.startswith("dinov2"):
        return {**common, "intermediate_size": mlp_widths(model)[0]}
    registers = {"num_register_tokens": shape["num_registers"]} if kind == "dinov2_with_registers" else {}
    swiglu = shape.get("mlp") == "swiglu"
    return {**common, "mlp_ratio": _mlp_ratio(model), "use_swiglu_ffn": swiglu, "use_mask_token": False, **registers}


def _one_or_pair(size: tuple[int, int]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)


def preprocessor(model: Classifier) -> dict[str, Any]:
    """The content of preprocessor_config.json."""
    prepared = model.preprocessing
    height, width = prepared.image_size
    crop = prepared.resize_mode == "crop"
    size = {"shortest_edge": int(height / prepared.crop_pct)} if crop else {"height": height, "width": width}
    return {
        # Pillow's resize, as the model was evaluated with. Of the processors that are named after models the library
        # takes the one that resizes by torchvision, which differs by a grey level or two.
        "image_processor_type": ANY_BY_PILLOW,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": size,
        "resample": RESAMPLE[prepared.interpolation],
        "do_center_crop": crop,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(prepared.mean),
        "image_std": list(prepared.std),
    }


def tensors(model: Classifier) -> Tensors:
    """The weights with the names that all versions of transformers read from files."""
    kind = model_type(model)
    state = {name: value.cpu() for name, value in model.state_dict().items()}
    named = split_qkv(with_patch_bias(canonical.from_ours(state, model.pool)))
    prefix = f"{kind}."
    if kind in ("vit", "deit"):
        heads = {"head.": "cls_classifier.", "head_dist.": "distillation_classifier."}
        table = (
            list(VIT_TABLE)
            if model.pool == "class+dist"
            else [row for row in VIT_TABLE if row[0] not in heads.values()]
        )
        renamed = rename_back(named, table)
    else:
        swiglu = model.encoder.architecture.get("mlp") == "swiglu"  # else its MLP has timm's names
        table = [row for row in DINOV2_TABLE if swiglu or "mlp." not in row[1]]
        renamed = rename_back(_as_dinov2(named, model), table)
    return {name if "classifier." in name else prefix + name: value for name, value in renamed.items()}


def _as_dinov2(named: Tensors, model: Classifier) -> Tensors:
    """The tensors with what DINOv2 always has: layer scale, a position of the class token, a head that reads both."""
    named = dict(named)
    width = model.encoder.embed_dim
    positions = named["pos_embed"]
    if "reg_token" in named:  # canonical.from_ours left it out
        named["pos_embed"] = torch.cat([positions.new_zeros(1, 1, width), positions], dim=1)
    for index in range(len(model.encoder.blocks)):
        for scale in ("ls1", "ls2"):
            named.setdefault(f"blocks.{index}.{scale}.gamma", positions.new_ones(width))
    if model.pool != "class+mean":
        head = named["head.weight"]
        halves = [head, torch.zeros_like(head)]
        named["head.weight"] = torch.cat(halves if model.pool == "class" else halves[::-1], dim=1)
    return named


def write(model: Classifier, folder: Path) -> None:
    """Writes model.safetensors, config.json and preprocessor_config.json."""
    write_safetensors(tensors(model), folder / "model.safetensors")
    write_json(preprocessor(model), folder / "preprocessor_config.json")
    write_json(config(model), folder / "config.json")


def loading(model: Classifier) -> str:
    """See `Target`."""
    return f"""\
from transformers import pipeline

# For transformers before 5.4, write "ViTImageProcessor" in place of "PilBackend" in preprocessor_config.json.
classify = pipeline("image-classification", model="FOLDER")
probabilities = {{found["label"]: found["score"] for found in classify("photo.jpg", top_k={model.num_classes})}}
"""


TRANSFORMERS = Target(
    name="transformers",
    writes="model.safetensors, config.json and preprocessor_config.json of its ViT, DeiT, Dinov2 or "
    "Dinov2WithRegisters",
    tested='AutoModelForImageClassification, AutoImageProcessor and pipeline("image-classification", model=FOLDER), '
    "probabilities on a photograph",
    limits="a class token and a head; no qk-norm, no norm before the blocks or behind the pooling, no attention "
    "pooling; transformers 5.4 or later, as its processor is named PilBackend; where the margin of a crop is odd, its "
    "crop may lie one pixel beside ours",
    obstacles=obstacles,
    write=write,
    loading=loading,
)

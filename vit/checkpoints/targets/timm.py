"""timm's layout, also used by our own model folders, so that timm and transformers' TimmWrapper can load these."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vit.checkpoints import canonical
from vit.checkpoints.sources.source import MULTILABEL, Tensors
from vit.checkpoints.targets import timm_rotary
from vit.checkpoints.targets.target import Target, beyond, mlp_widths, write_json, write_safetensors
from vit.models.classifier import Classifier

POOLS = {"class": "token", "mean": "avg", "attention": "map", "class+dist": "token"}

# What the options of our encoder are in timm: by its keywords, by its entry points, or they need not be told.
KNOWN = {
    *("image_size", "patch_size", "embed_dim", "depth", "num_heads", "in_chans", "class_token", "dist_token"),
    *(
        "num_registers",
        "pos_interpolation",
        "learned_positions",
        "patch_bias",
        "embed_norm",
        "act",
        "norm_eps",
        "mlp_ratio",
        "mlp",
    ),
    *("qkv_bias", "qk_norm", "init_values", "final_norm", "rotary"),
}


def obstacles(model: Classifier) -> list[str]:
    """What timm can't represent of a model, one phrase each."""
    shape = model.encoder.architecture
    distilled = model.pool == "class+dist"
    found = beyond(shape, KNOWN)
    if model.pool_blocks > 1:
        found.append(f"a head that reads {model.pool_blocks} blocks")
    if has_fc_norm(model) and shape.get("final_norm", True):
        found.append("norms before and after the pooling")
    if shape.get("rotary") is not None:
        return found + timm_rotary.obstacles(model)
    if model.pool not in POOLS:
        found.append(f"a head that reads {model.pool}")
    if shape.get("dist_token") and not distilled:
        found.append("a distillation token without a head of its own")
    if distilled and shape.get("num_registers"):
        found.append("registers beside a distillation token")
    if distilled and (shape.get("mlp") == "swiglu" or shape["norm_eps"] == 1e-5):
        found.append("a distillation token in a model with SwiGLU, or with norm_eps 1e-05")
    if shape["norm_eps"] not in (1e-6, 1e-5) and not _is_as_good_as_zero(model):
        found.append(f"norm_eps {shape['norm_eps']:g}: its models have 1e-6 or 1e-5")
    if shape.get("mlp") == "swiglu" and shape["norm_eps"] == 1e-5:
        found.append("SwiGLU with norm_eps 1e-05")
    if shape.get("mlp") == "swiglu" and shape.get("init_values") is None:
        found.append("SwiGLU without layer scale")
    if shape.get("mlp") == "swiglu" and model.pool == "attention":  # whose MLP would get the gate's activation
        found.append("attention pooling beside SwiGLU")
    if shape.get("patch_bias", True) == shape.get("embed_norm", False):
        found.append("patches with a bias and a norm, or with neither")
    if model.pool == "attention" and has_fc_norm(model):
        found.append("a norm behind attention pooling")
    return found


def has_fc_norm(model: Classifier) -> bool:
    """Whether the pooled vector is normalised."""
    return any(True for _ in model.fc_norm.parameters())


@torch.inference_mode()
def _is_as_good_as_zero(model: Classifier) -> bool:
    """Whether norm_eps is below timm's 1e-6, as transformers' 1e-12 is, and that in its place changes nothing: tried on
    noise and on plain grey, whose patches vary least. No probability may move by more than 1e-5."""
    if model.encoder.architecture["norm_eps"] > 1e-6:
        return False
    shape = model.encoder.architecture
    noise = torch.randn(1, shape.get("in_chans", 3), *shape["image_size"], generator=torch.Generator().manual_seed(0))
    images = torch.cat([noise, torch.zeros_like(noise)]).to(model.encoder.embed.pos_embed.device)  # type: ignore[arg-type]
    modes = {module: module.training for module in model.modules()}
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    before = [norm.eps for norm in norms]
    try:
        expected = _answers(model.eval(), images)
        for norm in norms:
            norm.eps = 1e-6
        found = _answers(model, images)
    finally:
        for norm, eps in zip(norms, before, strict=True):
            norm.eps = eps
        for module, training in modes.items():
            module.training = training
    return bool((found - expected).abs().max() <= 1e-5)


def _answers(model: Classifier, images: Tensor) -> Tensor:
    """The head's probabilities, without neighbours, or the features of a model without a head as directions."""
    output = model.head(model.features(images)).float()
    return model.probabilities(output) if model.num_classes else torch.nn.functional.normalize(output)


def config(model: Classifier) -> dict[str, Any]:
    """The config.json that timm, and transformers by its TimmWrapper, build the model and its preprocessing from.

    The number of classes stands at the top alone: transformers 5 hands it to timm beside `model_args`.
    """
    prepared = model.preprocessing
    labels = {"label_names": list(model.labels)} if model.labels else {}
    return {
        "architecture": entry_point(model),
        "num_classes": model.num_classes,
        "dtype": "float32",  # transformers would compute in the weights' own, which may be of half precision
        "num_features": model.encoder.embed_dim,
        "global_pool": POOLS[model.pool],
        **labels,
        **({"problem_type": MULTILABEL} if model.multilabel else {}),
        "model_args": model_args(model),
        "pretrained_cfg": {
            "input_size": [model.encoder.architecture.get("in_chans", 3), *prepared.image_size],
            "fixed_input_size": True,
            "interpolation": prepared.interpolation,
            # Squashed photos are not cropped; of timm's squashed ones crop_pct would cut the rim.
            "crop_pct": prepared.crop_pct if prepared.resize_mode == "crop" else 1.0,
            "crop_mode": "center" if prepared.resize_mode == "crop" else "squash",
            "mean": list(prepared.mean),
            "std": list(prepared.std),
            "first_conv": "patch_embed.proj",
            "classifier": ["head", "head_dist"] if model.pool == "class+dist" else "head",
        },
    }


def entry_point(model: Classifier) -> str:
    """The model of timm's that has what no keyword in JSON tells; all its sizes are overridden."""
    shape = model.encoder.architecture
    if shape.get("rotary") is not None:
        return timm_rotary.ENTRY_POINTS[shape["norm_eps"]]
    if model.pool == "class+dist":
        return "deit_base_distilled_patch16_224"
    if shape.get("mlp") == "swiglu":
        return "vit_giant_patch14_dinov2"
    return "vit_base_patch16_clip_224" if shape["norm_eps"] == 1e-5 else "vit_base_patch16_224"


def model_args(model: Classifier) -> dict[str, Any]:
    """The keywords of timm's VisionTransformer, all of them, so that none depends on the defaults of an entry point."""
    shape = model.encoder.architecture
    fc_norm = has_fc_norm(model)
    if shape.get("rotary") is not None:
        return timm_rotary.model_args(model, fc_norm=fc_norm)
    arguments = {
        "img_size": list(shape["image_size"]),
        "patch_size": list(shape["patch_size"]),
        "in_chans": shape.get("in_chans", 3),
        "embed_dim": shape["embed_dim"],
        "depth": shape["depth"],
        "num_heads": shape["num_heads"],
        "mlp_ratio": _mlp_ratio(model),
        "qkv_bias": shape.get("qkv_bias", True),
        "qk_norm": shape.get("qk_norm", False),
        "init_values": shape.get("init_values"),
        "pre_norm": shape.get("embed_norm", False),
        "global_pool": POOLS[model.pool],
        "final_norm": shape.get("final_norm", True) or fc_norm,
        "fc_norm": fc_norm,
        "class_token": shape.get("class_token", True),
        "reg_tokens": shape.get("num_registers", 0),
        "no_embed_class": bool(shape.get("num_registers", 0)),  # as canonical.from_ours writes the positions
        "pool_include_prefix": False,
    }
    if shape.get("mlp") != "swiglu":  # whose activation is the entry point's
        arguments["act_layer"] = shape["act"]
    return arguments


def _mlp_ratio(model: Classifier) -> float:
    """A ratio from which timm, which rounds down, gets the width: 22 * (49 / 22) is below 49."""
    width, (hidden, _) = model.encoder.embed_dim, mlp_widths(model)
    return hidden / width if int(width * (hidden / width)) == hidden else (hidden + 0.5) / width


def tensors(model: Classifier) -> Tensors:
    """The weights with timm's names, on the CPU."""
    named = canonical.from_ours({name: value.cpu() for name, value in model.state_dict().items()}, model.pool)
    return named if model.encoder.rotary is None else timm_rotary.tensors(named)


def write(model: Classifier, folder: Path) -> None:
    """Writes model.safetensors and config.json."""
    write_safetensors(tensors(model), folder / "model.safetensors")
    write_json(config(model), folder / "config.json")


def loading(model: Classifier) -> str:
    """See `Target`."""
    return """\
import timm
import torch
from PIL import Image, ImageOps

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
photo = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
with torch.inference_mode():
    logits = model(transform(photo)[None])
probabilities = dict(zip(model.pretrained_cfg["label_names"], logits.softmax(dim=1)[0].tolist()))
"""


def loading_by_transformers(model: Classifier) -> str:
    """The code with which transformers loads the same folder, for which it needs timm."""
    return f"""\
from transformers import pipeline

classify = pipeline("image-classification", model="FOLDER")
probabilities = {{found["label"]: found["score"] for found in classify("photo.jpg", top_k={model.num_classes})}}
"""


TIMM = Target(
    name="timm",
    writes="model.safetensors and config.json, as in every model folder, which timm and, by way of it, transformers "
    "read",
    tested='timm.create_model("local-dir:..."), AutoModelForImageClassification and the pipeline, probabilities on a '
    "photograph",
    limits="norm_eps 1e-6, 1e-5, or so small that 1e-6 is measured to change no probability by 1e-5; no head that "
    "reads the class token beside the mean of the patches; a distillation token with its own head alone; SwiGLU with "
    "layer scale alone; no norm behind a residual sum; rotary positions with norm_eps 1e-6 or 1e-5 and GELU or SwiGLU",
    obstacles=obstacles,
    write=write,
    loading=loading,
)

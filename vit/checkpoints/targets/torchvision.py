"""torchvision's layout: a state dict, for a model that its user builds."""

from pathlib import Path

import torch

from vit.checkpoints import canonical
from vit.checkpoints.sources.source import Tensors
from vit.checkpoints.sources.torchvision import TABLE
from vit.checkpoints.targets.target import Target, beyond, mlp_widths, rename_back, with_patch_bias, write_json
from vit.foundation import atomic_write
from vit.models.classifier import Classifier

KNOWN = {
    *(
        "image_size",
        "patch_size",
        "embed_dim",
        "depth",
        "num_heads",
        "in_chans",
        "class_token",
        "pos_interpolation",
        "learned_positions",
    ),
    *("patch_bias", "act", "norm_eps", "mlp_ratio", "mlp", "qkv_bias", "final_norm"),
}
OLD_NAMES = ("linear_1", "linear_2")  # of the MLP, before torchvision 0.14


def obstacles(model: Classifier) -> list[str]:
    """What torchvision's VisionTransformer can't represent of a model, one phrase each."""
    shape = model.encoder.architecture
    named = {"num_registers": "registers", "dist_token": "a distillation token", "init_values": "layer scale",
             "qk_norm": "qk-norm", "embed_norm": "a norm before the blocks"}  # fmt: skip
    found = [what for name, what in named.items() if shape.get(name)]
    found += beyond(shape, KNOWN | named.keys())
    if not model.num_classes:
        found.append("a model without a head")
    if model.pool_blocks > 1:
        found.append(f"a head that reads {model.pool_blocks} blocks")
    if model.pool != "class":
        found.append(f"a head that reads {model.pool}")
    if shape.get("mlp", "mlp") != "mlp":
        found.append("SwiGLU")
    if shape["act"] != "gelu":
        found.append(f"act {shape['act']}")
    if not shape.get("final_norm", True) or any(True for _ in model.fc_norm.parameters()):
        found.append("a norm behind the pooling")
    if len(set(shape["image_size"])) > 1 or len(set(shape["patch_size"])) > 1:
        found.append("an image or patches that are not square")
    if shape.get("in_chans", 3) != 3:
        found.append(f"{shape['in_chans']} channels")
    return found


def tensors(model: Classifier) -> Tensors:
    """The weights with torchvision's names."""
    state = {name: value.cpu() for name, value in model.state_dict().items()}
    named = with_patch_bias(canonical.from_ours(state, model.pool))
    for index in range(len(model.encoder.blocks)):  # nn.MultiheadAttention has a bias everywhere, or nowhere
        weight = named[f"blocks.{index}.attn.qkv.weight"]
        named.setdefault(f"blocks.{index}.attn.qkv.bias", weight.new_zeros(len(weight)))
    table = [row for row in TABLE if not any(old in row[0] for old in OLD_NAMES)]
    return {name: value.clone() for name, value in rename_back(named, table).items()}


def write(model: Classifier, folder: Path) -> None:
    """Writes model.pth and labels.json."""
    with atomic_write(folder / "model.pth") as temporary:
        torch.save(tensors(model), temporary)
    write_json(list(model.labels), folder / "labels.json")


def loading(model: Classifier) -> str:
    """See `Target`."""
    shape, prepared = model.encoder.architecture, model.preprocessing
    height, width = prepared.image_size
    crop = prepared.resize_mode == "crop"
    size = f"{int(height / prepared.crop_pct)}" if crop else f"({height}, {width})"
    return f"""\
import json
from functools import partial
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torchvision import transforms
from torchvision.models import VisionTransformer

labels = json.loads(Path("FOLDER/labels.json").read_text(encoding="utf-8"))
model = VisionTransformer(
    image_size={shape["image_size"][0]},
    patch_size={shape["patch_size"][0]},
    num_layers={shape["depth"]},
    num_heads={shape["num_heads"]},
    hidden_dim={shape["embed_dim"]},
    mlp_dim={mlp_widths(model)[0]},
    num_classes={model.num_classes},
    norm_layer=partial(torch.nn.LayerNorm, eps={shape["norm_eps"]}),
).eval()
model.load_state_dict(torch.load("FOLDER/model.pth", weights_only=True), strict=True)
transform = transforms.Compose([
    transforms.Resize({size}, transforms.InterpolationMode.{prepared.interpolation.upper()}),
    transforms.CenterCrop(({height}, {width})),
    transforms.ToTensor(),
    transforms.Normalize({prepared.mean}, {prepared.std}),
])
photo = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
with torch.inference_mode():
    logits = model(transform(photo)[None])
probabilities = dict(zip(labels, logits.softmax(dim=1)[0].tolist()))
"""


TORCHVISION = Target(
    name="torchvision",
    writes="model.pth, a state dict, and labels.json; the model card has the lines that build the model",
    tested="load_state_dict(strict=True) of its VisionTransformer, probabilities on a photograph",
    limits="a plain ViT alone: no registers, distillation token, layer scale, qk-norm, SwiGLU; square images of three "
    "channels; a head that reads the class token",
    obstacles=obstacles,
    write=write,
    loading=loading,
)

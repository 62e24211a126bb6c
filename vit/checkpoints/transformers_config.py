"""What transformers writes besides its weights: config.json, and preprocessor_config.json of the image processor."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vit.checkpoints.sources.source import MULTILABEL, Facts, Tensors
from vit.checkpoints.transformers_processor import Misfit, preprocessing, shown
from vit.foundation import UserError

# The library's names for activations that are known here. Two of these are the same function, written differently.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}

LARGEST = 1_000_000  # of any size: no model is near it

# The number of a layer of the image tower, in the names of its weights; the text tower's and the decoder's are others'.
LAYER = re.compile(r"^(?!text_model\.|decoder\.)(?:.*\.)?layers?\.(\d+)\.")


@dataclass(frozen=True)
class Kind:
    """A model type, and what the library takes where its config does not say.

    Args:
        processor: the image processor that goes with it.
        square_positions: whether the library takes the positions for a square grid, whatever the image is.
        pos_interpolation: the filter that resizes them.
        rotary: whether there are rotary positions in place of these.
    """

    processor: str = "ViT"
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"
    patch_size: int = 16
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    square_positions: bool = False
    pos_interpolation: str = "bicubic"
    rotary: bool = False
    rope_theta: float = 100.0


KINDS = {
    "vit": Kind(),
    "deit": Kind("DeiT"),
    "vit_mae": Kind(),
    "vit_msn": Kind(layer_norm_eps=1e-6),
    "dinov2": Kind("Bit", layer_norm_eps=1e-6, patch_size=14, square_positions=True),
    "dinov2_with_registers": Kind(
        "Bit", layer_norm_eps=1e-6, square_positions=True, pos_interpolation="bicubic_antialias"
    ),
    "dinov3_vit": Kind("DINOv3ViT", layer_norm_eps=1e-5, hidden_size=384, num_attention_heads=6, rotary=True),
    "clip_vision_model": Kind("CLIP", layer_norm_eps=1e-5, hidden_act="quick_gelu", patch_size=32),
    "siglip_vision_model": Kind("Siglip", layer_norm_eps=1e-6, hidden_act="gelu_pytorch_tanh"),
}
# Of image and text: the config of the image tower is inside.
TOWERS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}
REFUSED = {
    "beit": "its attention adds learned relative positions",
    "data2vec-vision": "its attention adds learned relative positions",
    "siglip2": "it takes images of any aspect ratio (NaFlex)",
    "siglip2_vision_model": "it takes images of any aspect ratio (NaFlex)",
    "bert": 'it reads text, and is for `vit explain FOLDER "a sentence" --task text`',
}


class Foreign(Misfit):
    """A config that is right, of a model that is not one of ours."""


def facts(config: Mapping[str, Any], processor: Mapping[str, Any] | None, tensors: Tensors, name: str) -> Facts:
    """What the config says that weights don't.

    Args:
        config: as config.json has it, or a live model's `config.to_dict()`.
        processor: as preprocessor_config.json has it, if there is one.
        tensors: the weights; the config must be of the same sizes.
        name: of the config, for messages.

    Raises:
        UserError: when the model is of a type that is not known here, the config is malformed, or is of other sizes.
    """
    try:
        kind, tower = _tower(config)
        sizes = _sizes(tower, kind)
        _refuse_other_sizes(sizes, tensors)
        act = _of_type(tower, kind, "hidden_act", str)
        if tower.get("use_gated_mlp") and kind.rotary:  # SwiGLU, with no activation to choose
            act = "gelu" if act == "silu" else f"gated {act}"
        if act not in ACTIVATIONS:
            raise Misfit(f"its hidden_act is {shown(act)}; known are {', '.join(ACTIVATIONS)}")
        encoder: dict[str, Any] = {
            "num_heads": _positive(tower, kind, "num_attention_heads"),
            "norm_eps": _epsilon(tower, kind),
            "act": ACTIVATIONS[act],
            "pos_interpolation": kind.pos_interpolation,
        }
        if kind.rotary:
            encoder["rotary"] = {"kind": "centred", "theta": float(_of_type(tower, kind, "rope_theta", int | float))}  # type: ignore[arg-type]
        if not kind.square_positions:
            encoder["image_size"] = sizes.image_size
        prepared, notes = preprocessing(processor, kind.processor, sizes.image_size, sizes.patch_size, sizes.channels)
        if prepared["image_size"] != sizes.image_size and not kind.square_positions:  # where the library would stop
            differing = (*prepared["image_size"], *sizes.image_size)
            notes.append("its processor makes images of {} x {}, its model takes {} x {}".format(*differing))
            prepared["image_size"] = sizes.image_size
        names = labels(config)
        notes += _problem(config)
    except Misfit as misfit:
        way = "" if isinstance(misfit, Foreign) else "\nTake it from the place of the weights again."
        raise UserError(f"{name} can't be used: {misfit}.{way}") from None
    several = config.get("problem_type") == MULTILABEL
    return Facts(encoder=encoder, multilabel=several, labels=names, preprocessing=prepared, notes=tuple(notes))


@dataclass(frozen=True)
class _Sizes:
    depth: int
    width: int
    channels: int
    image_size: tuple[int, int]
    patch_size: tuple[int, int]


def _tower(config: Mapping[str, Any]) -> tuple[Kind, Mapping[str, Any]]:
    """What is known of the model type, and the config of the image tower."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise Misfit(f"its model_type is {shown(model_type)}, not a name")
    if model_type in REFUSED:
        raise Foreign(f"its model type is {model_type!r}, which is not possible here: {REFUSED[model_type]}")
    if model_type in TOWERS:
        tower = config.get("vision_config") or {}
        if not isinstance(tower, Mapping):
            raise Misfit(f"its vision_config is {shown(tower)}, not an object")
        return KINDS[TOWERS[model_type]], tower
    if model_type not in KINDS:
        raise Foreign(f"its model_type is {model_type!r:.60}; known are {', '.join([*KINDS, *TOWERS])}")
    return KINDS[model_type], config


def _sizes(tower: Mapping[str, Any], kind: Kind) -> _Sizes:
    return _Sizes(
        depth=_positive(tower, kind, "num_hidden_layers"),
        width=_positive(tower, kind, "hidden_size"),
        channels=_positive(tower, kind, "num_channels"),
        image_size=_pair(tower, kind, "image_size"),
        patch_size=_pair(tower, kind, "patch_size"),
    )


def _refuse_other_sizes(sizes: _Sizes, tensors: Tensors) -> None:
    """Raises Misfit when the config belongs to another model than the weights."""
    kernel = _ending(tensors, r"embeddings\.patch_embedding(s\.projection)?\.weight")
    if kernel is not None and kernel.ndim == 4:
        said = (sizes.width, sizes.channels, *sizes.patch_size)
        if said != tuple(kernel.shape):
            raise Misfit(
                "it says {} channels of tokens, {} of images, patches of {} x {}".format(*said)
                + ", but the weights are of {}, {}, {} x {}".format(*kernel.shape)
            )
    found = {match[1] for name in tensors if (match := LAYER.search(name))}
    if sizes.depth != len(found):  # before anything is built: a config may say a million
        raise Misfit(f"it says {sizes.depth} layers, but the weights have {len(found)}")
    positions = _ending(tensors, r"embeddings\.position_embedding(s|\.weight)")
    if positions is not None and positions.ndim >= 2:
        (height, width), (patch_h, patch_w) = sizes.image_size, sizes.patch_size
        patches, length = (height // patch_h) * (width // patch_w), positions.shape[-2]
        if not patches <= length <= patches + 2:  # class and distillation token may have positions
            raise Misfit(f"its image_size {height} x {width} is {patches} patches, its weights have {length} positions")


def _ending(tensors: Tensors, pattern: str) -> Tensor | None:
    """The one tensor of an image tower whose name ends as the pattern says; text towers have positions too."""
    found = [value for name, value in tensors.items() if re.search(rf"(^|\.){pattern}$", name) and "text_" not in name]
    return found[0] if len(found) == 1 else None


def _of_type(tower: Mapping[str, Any], kind: Kind, name: str, expected: type) -> Any:
    value = tower.get(name, getattr(kind, name))
    if not isinstance(value, expected) or isinstance(value, bool):
        raise Misfit(f"its {name} is {shown(value)}, not {'a number' if expected is not str else 'a name'}")
    return value


def _positive(tower: Mapping[str, Any], kind: Kind, name: str) -> int:
    value: int = _of_type(tower, kind, name, int)
    if not 1 <= value <= LARGEST:
        raise Misfit(f"its {name} is {shown(value)}; allowed are 1 to {LARGEST}")
    return value


def _epsilon(tower: Mapping[str, Any], kind: Kind) -> float:
    value = _of_type(tower, kind, "layer_norm_eps", (int | float))  # type: ignore[arg-type]
    if not 0 <= value < 1:
        raise Misfit(f"its layer_norm_eps is {value}; allowed are 0 to below 1")
    return float(value)


def _pair(tower: Mapping[str, Any], kind: Kind, name: str) -> tuple[int, int]:
    """A size in pixels, (height, width), from one number or two."""
    value = tower.get(name, getattr(kind, name))
    numbers = tuple(value) if isinstance(value, list | tuple) else (value, value)
    if len(numbers) != 2 or not all(type(number) is int and 1 <= number <= LARGEST for number in numbers):
        raise Misfit(f"its {name} is {shown(value)}; allowed are one number, or [height, width]")
    return numbers


def labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the classes in the order of the outputs; none where there are only the library's placeholders.

    Raises:
        Misfit: when they are malformed.
    """
    table = config.get("id2label")
    if table is None:
        return ()
    if not isinstance(table, Mapping) or not all(isinstance(label, str) for label in table.values()):
        raise Misfit(f"its id2label is {shown(table)}, not a name for each number")
    names = {str(number): label for number, label in table.items()}
    if names.keys() != {str(number) for number in range(len(table))}:
        raise Misfit(f"its id2label has {len(table)} names, but not for the numbers 0 to {len(table) - 1}")
    found = tuple(names[str(number)] for number in range(len(table)))
    return () if all(label == f"LABEL_{number}" for number, label in enumerate(found)) else found


def _problem(config: Mapping[str, Any]) -> list[str]:
    problem = config.get("problem_type")
    if problem in (None, "single_label_classification", MULTILABEL):
        return []
    return [f"trained for {problem}, so its outputs are not logits of classes, one of which is correct"]

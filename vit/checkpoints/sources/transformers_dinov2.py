"""transformers' DINOv2, without and with registers, which differ in how they resize positions."""

from collections.abc import Callable

from vit.checkpoints.sources.source import Converted, Source, Tensors, fuse, leave_out, rename, unprefixed
from vit.checkpoints.sources.transformers_vit import ATTENTION, EMBEDDINGS, PATCHES, has

KEY_TABLE = (
    *EMBEDDINGS,
    *ATTENTION,
    ("encoder.layer.", "blocks."),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
    ("mlp.weights_in.", "mlp.fc1."),
    ("mlp.weights_out.", "mlp.fc2."),
    ("mlp.down_proj.", "mlp.fc2."),
    ("layernorm.", "norm."),
    ("classifier.", "head."),
)
UNUSED = {"embeddings.mask_token": "what hides patches in pretraining"}
PREFIXES = ("", "dinov2.", "dinov2_with_registers.")
REGISTERS = "embeddings.register_tokens"


def recognises(*, registers: bool) -> Callable[[Tensors], bool]:
    def of(tensors: Tensors) -> bool:
        found = unprefixed(tensors, PATCHES, PREFIXES) or {}
        named = "embeddings.position_embeddings" in found and has(found, "0.layer_scale1.lambda1")
        return named and (REGISTERS in found) == registers

    return of


def convert(tensors: Tensors) -> Converted:
    tensors, left_out = leave_out(unprefixed(tensors, PATCHES, PREFIXES) or {}, UNUSED)
    if REGISTERS in tensors and not tensors[REGISTERS].numel():  # a model that was made with none of them
        del tensors[REGISTERS]
    tensors = fuse(rename(tensors, KEY_TABLE), ("attn.q.", "attn.k.", "attn.v."), "attn.qkv.")
    tensors = fuse(tensors, ("mlp.gate_proj.", "mlp.up_proj."), "mlp.fc1.")
    return Converted(tensors, left_out, pool="class+mean" if "head.weight" in tensors else "class")


TRANSFORMERS_DINOV2 = Source(
    name="transformers Dinov2",
    models="Dinov2: bare, as backbone, for classification; MLP or SwiGLU",
    recognised_by="embeddings.patch_embeddings.projection.weight, layer_scale1.lambda1",
    tested="transformers' own classes, every parameter random: tokens and logits, also at other image sizes",
    limits="the mask token is left out",
    recognises=recognises(registers=False),
    convert=convert,
    assumes={"norm_eps": 1e-6, "pos_interpolation": "bicubic"},
)
TRANSFORMERS_DINOV2_REGISTERS = Source(
    name="transformers Dinov2WithRegisters",
    models="Dinov2WithRegisters: bare, as backbone, for classification; MLP or SwiGLU",
    recognised_by="as Dinov2, with embeddings.register_tokens",
    tested="transformers' own classes, every parameter random: tokens and logits, also at other image sizes",
    limits="the mask token is left out",
    recognises=recognises(registers=True),
    convert=convert,
    assumes={"norm_eps": 1e-6, "pos_interpolation": "bicubic_antialias"},
)

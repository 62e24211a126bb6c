"""Meta's own checkpoints, .pth files of facebookresearch: DINO, DINOv2, MAE. Names are similar to timm's."""

import re

from vit.checkpoints.sources.source import CANONICAL, Converted, Source, Tensors, leave_out, rename
from vit.checkpoints.sources.unfit import refuse_unfit

_CHUNK = re.compile(r"^blocks\.\d+\.(?=\d+\.)")  # DINOv2 in chunks of blocks: blocks.1.7. is the block 7
TABLE = (
    ("register_tokens", "reg_token"),
    (".mlp.w12.", ".mlp.fc1."),
    (".mlp.w3.", ".mlp.fc2."),
)

# The starts of what is not needed for features or classes, and what it is for.
LEFT_OUT = {
    "head.mlp.": "projection head of DINO",
    "head.last_layer.": "projection head of DINO",
    "dino_head.": "projection head of DINO",
    "ibot_head.": "projection head of iBOT",
    "backbone.mask_token": "stands for hidden patches while pretraining",
    "mask_token": "stands for hidden patches while pretraining",
    "decoder_": "decoder of MAE",
}


# What none of timm's models has.
TELLING = (*LEFT_OUT, "register_tokens", "blocks.0.mlp.w12.")


def recognises(tensors: Tensors) -> bool:
    names = {_plain(name) for name in tensors}
    chunked = any(_CHUNK.match(name.removeprefix("backbone.")) for name in tensors)
    return names >= CANONICAL and (chunked or any(name.startswith(TELLING) for name in names))


def _plain(name: str) -> str:
    """Without the chunk, and without the name that whole DINO checkpoints give to what is beside the head."""
    return _CHUNK.sub("blocks.", name.removeprefix("backbone."))


def convert(tensors: Tensors) -> Converted:
    refuse_unfit(tensors)
    kept, left_out = leave_out(tensors, LEFT_OUT)
    kept = {_plain(name): value for name, value in kept.items()}
    known: dict[str, object] = {}
    assumed: dict[str, object] = {}
    if "decoder_embed.weight" in tensors:
        known["pos_interpolation"] = "bicubic"
    elif "register_tokens" in kept:
        known["pos_interpolation"] = "bicubic_antialias"
    if kept["patch_embed.proj.weight"].shape[0] == 1536:
        assumed["num_heads"] = 24  # DINOv2's giant
    return Converted(rename(kept, TABLE), left_out, known, assumed=assumed)


FACEBOOK = Source(
    name="facebookresearch",
    models="DINO (backbone, or whole checkpoints: the teacher), DINOv2 with and without registers, MAE",
    recognised_by="timm's keys, and one of head.mlp, dino_head, mask_token, register_tokens, mlp.w12, decoder_embed, "
    "blocks.0.0",
    tested="timm's models, every parameter random, their tensors named and shaped as in these files; other sizes with "
    "torch's interpolate as the original code calls it",
    limits="projection heads, MAE's decoder and mask tokens are left out; a backbone alone of DINO or MAE has timm's "
    "keys exactly, and is read as timm's: give --model.pos_interpolation bicubic_offset or bicubic at another size; "
    "DeiT III's own files are refused, as models with rotary positions have the same keys",
    recognises=recognises,
    convert=convert,
    assumes={"norm_eps": 1e-6, "act": "gelu", "pos_interpolation": "bicubic_offset"},
)

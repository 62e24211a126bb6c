"""timm's Vision Transformers (`vit_*`, `deit_*`, DINOv2): recognised by their keys, both ways by one table.

The names are also those of our own model folders.
"""

from math import isqrt
from typing import Any

import torch
from torch import Tensor

from vit.foundation import UserError

# (ours, timm's): the start of a key; the rest of it is the same in both.
KEY_TABLE = (
    ("encoder.embed.patch_embed.", "patch_embed."),
    ("encoder.embed.cls_token", "cls_token"),
    ("encoder.embed.dist_token", "dist_token"),
    ("encoder.embed.reg_token", "reg_token"),
    ("encoder.embed.pos_embed", "pos_embed"),
    ("encoder.blocks.", "blocks."),
    ("encoder.norm.", "norm."),
    ("head.", "head."),
)

# Widths whose published models all have the same number of heads. A checkpoint doesn't say: the shapes are the same.
# (1536 is not here: DINOv2's giant has 24, SigLIP 2's has 16.)
HEADS_BY_WIDTH = {128: 4, 160: 5, 192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}


# The tensors that the sizes are read from, and how many dimensions each has.
REQUIRED = {
    "patch_embed.proj.weight": 4,
    "pos_embed": 3,
    "blocks.0.mlp.fc1.weight": 2,
    "blocks.0.mlp.fc2.weight": 2,
}
OPTIONAL = {"cls_token": 3, "dist_token": 3, "reg_token": 3, "head.weight": 2}


def recognises(tensors: dict[str, Tensor]) -> bool:
    """Whether the keys are those of a timm Vision Transformer."""
    return {"patch_embed.proj.weight", "pos_embed", "blocks.0.attn.qkv.weight"} <= tensors.keys()


def to_ours(tensors: dict[str, Tensor], grid: tuple[int, int]) -> dict[str, Tensor]:
    """timm's state dict under our names, the positions of prefix tokens added into those tokens."""
    tensors = dict(tensors)
    prefix = tensors["pos_embed"].shape[1] - grid[0] * grid[1]
    if prefix:
        positions = tensors["pos_embed"]
        tensors["pos_embed"] = positions[:, prefix:]
        names = [name for name in ("cls_token", "dist_token") if name in tensors]
        for index, name in enumerate(names[:prefix]):
            tensors[name] = tensors[name] + positions[:, index : index + 1]
    return {rename(name, to=0): value for name, value in tensors.items()}


def from_ours(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under timm's names; the prefix tokens' positions are zero, being in the tokens already."""
    tensors = {rename(name, to=1): value for name, value in state.items()}
    prefix = sum(1 for name in ("cls_token", "dist_token") if name in tensors)
    if prefix and "reg_token" not in tensors:
        positions = tensors["pos_embed"]
        tensors["pos_embed"] = torch.cat([positions.new_zeros(1, prefix, positions.shape[2]), positions], dim=1)
    return tensors


def rename(name: str, *, to: int) -> str:
    """A key by the table: to=0 gives ours, to=1 timm's. A key that the table doesn't know stays as it is."""
    for row in KEY_TABLE:
        if name.startswith(row[1 - to]):
            return row[to] + name[len(row[1 - to]) :]
    return name


def architecture(
    tensors: dict[str, Tensor], known: dict[str, Any], *, image_size: tuple[int, int] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """The keywords of `image_encoder` that fit the tensors, and what had to be assumed.

    Args:
        known: keywords that a sidecar or the user gave; they win over what the tensors suggest.
        image_size: pixels (height, width) that the user wants; tells the grid where nothing else does.

    Raises:
        UserError: when the file doesn't say something that can't be assumed either, or holds it in another shape.
    """
    _refuse_misshapen(tensors)
    patch = tensors["patch_embed.proj.weight"]  # (D, in_chans, patch_h, patch_w)
    embed_dim = patch.shape[0]
    patch_size = (patch.shape[2], patch.shape[3])
    grid = _grid(tensors, known.get("image_size"), patch_size, image_size)
    hidden, fc2_in = tensors["blocks.0.mlp.fc1.weight"].shape[0], tensors["blocks.0.mlp.fc2.weight"].shape[1]
    found = {
        "image_size": (grid[0] * patch_size[0], grid[1] * patch_size[1]),
        "patch_size": patch_size,
        "embed_dim": embed_dim,
        # Blocks counted, not the largest number read: one stray key must not make a model of a million blocks.
        "depth": len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
        "in_chans": patch.shape[1],
        "class_token": "cls_token" in tensors,
        "dist_token": "dist_token" in tensors,
        "num_registers": tensors["reg_token"].shape[1] if "reg_token" in tensors else 0,
        "mlp_ratio": hidden / embed_dim,
        "mlp": "swiglu" if fc2_in * 2 == hidden else "mlp",
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
        "qk_norm": "blocks.0.attn.q_norm.weight" in tensors,
        "init_values": 1e-5 if "blocks.0.ls1.gamma" in tensors else None,
    }
    assumed = {"norm_eps": 1e-6, "act": "gelu", "pos_interpolation": "bicubic_antialias"}
    if embed_dim in HEADS_BY_WIDTH:
        assumed["num_heads"] = HEADS_BY_WIDTH[embed_dim]
    elif "num_heads" not in known:
        raise UserError(
            f"The checkpoint does not say how many heads it has, and its width, {embed_dim}, does not tell.\n"
            "Give the number with --model.num_heads."
        )
    told = [f"{name}={value}" for name, value in assumed.items() if name not in known]
    return {
        **found,
        **assumed,
        **{name: value for name, value in known.items() if name != "image_size"},
    }, told


def _refuse_misshapen(tensors: dict[str, Tensor]) -> None:
    """Refuses a checkpoint whose sizes can't be read."""
    missing = [name for name in REQUIRED if name not in tensors]
    dimensions = {name: count for name, count in (REQUIRED | OPTIONAL).items() if name in tensors}
    wrong = [name for name, count in dimensions.items() if tensors[name].ndim != count or not tensors[name].numel()]
    if not missing and not wrong:
        width = tensors["patch_embed.proj.weight"].shape[0]
        added = [name for name, count in dimensions.items() if count == 3]  # positions and tokens, (1, N, D)
        wrong = [name for name in added if tensors[name].shape[::2] != (1, width)]
    if missing or wrong:
        shapes = [f"{name} {tuple(tensors[name].shape)}" for name in wrong]
        raise UserError(
            f"The checkpoint does not fit: of the tensors that tell the sizes, {len(dimensions) - len(wrong)} match.\n"
            f"{len(missing)} missing: {', '.join(missing) or 'none'}\n"
            f"{len(wrong)} of another shape: {', '.join(shapes) or 'none'}"
        )


def _grid(
    tensors: dict[str, Tensor],
    known: tuple[int, int] | None,
    patch_size: tuple[int, int],
    wanted: tuple[int, int] | None,
) -> tuple[int, int]:
    """The grid that the positions were learned for; with or without places for the prefix tokens.

    That of the `known` image size, or a square one, or that of the `wanted` image size, if it has as many patches.
    """
    length = tensors["pos_embed"].shape[1]
    prefix = sum(1 for name in ("cls_token", "dist_token") if name in tensors)
    counts = [count for count in (length - prefix, length) if count > 0]
    squares = [(isqrt(count), isqrt(count)) for count in counts]
    given = [size and (size[0] // patch_size[0], size[1] // patch_size[1]) for size in (known, wanted)]
    for grid in (given[0], *squares, given[1]):
        if grid is not None and grid[0] * grid[1] in counts:
            return grid
    raise UserError(
        f"The checkpoint has {length} positions, which is no square grid, and it does not say which grid it is.\n"
        "Give the size that it was trained at with --model.image_size [height, width]."
    )

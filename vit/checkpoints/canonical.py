"""The canonical layout of weights, with timm's names: every source is converted to it, model folders use it, and it is
converted to ours.

What the tensors say about the architecture is also read here, once for all sources.
"""

from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from vit.checkpoints.sources.unfit import refuse_unpositioned
from vit.foundation import UserError

# (ours, timm's): the start of a key; the rest of it is the same in both.
KEY_TABLE = (
    ("encoder.embed.patch_embed.", "patch_embed."),
    ("encoder.embed.cls_token", "cls_token"),
    ("encoder.embed.dist_token", "dist_token"),
    ("encoder.embed.reg_token", "reg_token"),
    ("encoder.embed.pos_embed", "pos_embed"),
    ("encoder.embed.norm.", "norm_pre."),
    ("encoder.blocks.", "blocks."),
    ("encoder.norm.", "norm."),
    ("attn_pool.norm.", "attn_pool.norm."),
    ("attn_pool.mlp.", "attn_pool.mlp."),
    ("attn_pool.latent", "attn_pool.latent"),
    ("attn_pool.attn.", "attn_pool."),  # the rest of it, so it comes last
    ("fc_norm.", "fc_norm."),
    ("head.", "head."),
)

# Widths whose published models all have the same number of heads. A checkpoint doesn't say: the shapes are the same.
# (1536 is not here: DINOv2's giant has 24, SigLIP 2's has 16; their sources tell them apart.)
HEADS_BY_WIDTH = {
    128: 4, 160: 5, 192: 3, 256: 4, 320: 5, 384: 6, 512: 8, 640: 10, 768: 12, 832: 13, 896: 14,
    1024: 16, 1152: 16, 1280: 16, 1408: 16, 1664: 16,
}  # fmt: skip


USUAL_SIZE = 224  # pixels, where nothing tells: rotary positions fit any size

# The tensors that the sizes are read from, and how many dimensions each has.
REQUIRED = {
    "patch_embed.proj.weight": 4,
    "pos_embed": 3,  # where there are no rotary ones
    "blocks.0.mlp.fc1.weight": 2,
    "blocks.0.mlp.fc2.weight": 2,
}
OPTIONAL = {"cls_token": 3, "dist_token": 3, "reg_token": 3, "head.weight": 2}


def to_ours(tensors: dict[str, Tensor], grid: tuple[int, int]) -> dict[str, Tensor]:
    """The canonical state dict under our names.

    The positions of prefix tokens are added into those tokens, DeiT's two heads become the one that is their mean,
    and the two projections of an attention pool become one.
    """
    tensors = dict(tensors)
    prefix = tensors["pos_embed"].shape[1] - grid[0] * grid[1] if "pos_embed" in tensors else 0
    if prefix:
        positions = tensors["pos_embed"]
        tensors["pos_embed"] = positions[:, prefix:]
        start = 0
        for name in ("cls_token", "dist_token", "reg_token"):
            if name in tensors and start < prefix:
                end = start + tensors[name].shape[1]
                tensors[name] = tensors[name] + positions[:, start:end]
                start = end
    if has_two_heads(tensors):
        heads = tensors["head.weight"], tensors.pop("head_dist.weight")
        tensors["head.weight"] = torch.cat(heads, dim=1) / 2
        tensors["head.bias"] = (tensors["head.bias"] + tensors.pop("head_dist.bias")) / 2
    for kind in ("weight", "bias"):
        if {f"attn_pool.q.{kind}", f"attn_pool.kv.{kind}"} <= tensors.keys():
            both = tensors.pop(f"attn_pool.q.{kind}"), tensors.pop(f"attn_pool.kv.{kind}")
            tensors[f"attn_pool.qkv.{kind}"] = torch.cat(both)
    return {rename(name, to=0): value for name, value in tensors.items()}


def from_ours(state: dict[str, Tensor], pool: str) -> dict[str, Tensor]:
    """Our state dict with the canonical names; prefix tokens already include their positions, which are zero here."""
    tensors = {rename(name, to=1): value for name, value in state.items()}
    prefix = sum(1 for name in ("cls_token", "dist_token") if name in tensors)
    if prefix and "reg_token" not in tensors and "pos_embed" in tensors:
        positions = tensors["pos_embed"]
        tensors["pos_embed"] = torch.cat([positions.new_zeros(1, prefix, positions.shape[2]), positions], dim=1)
    if pool == "class+dist" and "head.weight" in tensors:
        tensors["head.weight"], tensors["head_dist.weight"] = (2 * tensors["head.weight"]).chunk(2, dim=1)
        tensors["head_dist.bias"] = tensors["head.bias"].clone()  # a file holds no tensor twice
    for kind in ("weight", "bias"):
        if f"attn_pool.qkv.{kind}" in tensors:
            q, k, v = tensors.pop(f"attn_pool.qkv.{kind}").chunk(3)
            tensors[f"attn_pool.q.{kind}"], tensors[f"attn_pool.kv.{kind}"] = q, torch.cat([k, v])
    return tensors


def pooling(tensors: dict[str, Tensor], asked: str | None = None) -> str:
    """What the head reads, as far as the tensors show; see `Classifier`.

    Args:
        tensors: the tensors, in the canonical layout.
        asked: what the user says about it.

    Raises:
        UserError: when neither the tensors nor the user say it.
    """
    if "attn_pool.latent" in tensors:
        return "attention"
    if has_two_heads(tensors):
        return "class+dist"
    if "cls_token" not in tensors or ("fc_norm.weight" in tensors and "norm.weight" not in tensors):
        return "mean"
    width = tensors["patch_embed.proj.weight"].shape[0]
    if "head.weight" not in tensors or tensors["head.weight"].shape[1] != 2 * width:
        return "class"
    if "dist_token" not in tensors:
        return "class+mean"
    if asked is None:
        raise UserError(
            "The checkpoint's head reads two vectors: the class token's, and the distillation token's or the mean.\n"
            "Say which: vit.load takes pool='class+dist' or 'class+mean', vit train --model.pool class+mean."
        )
    return asked if "+" in asked else "class+mean"


def has_two_heads(tensors: dict[str, Tensor]) -> bool:
    """Whether there is a distilled model's second head, complete and as large as the first."""
    pairs = [("head.weight", "head_dist.weight"), ("head.bias", "head_dist.bias")]
    names = {name for pair in pairs for name in pair} | {"dist_token"}
    return names <= tensors.keys() and all(tensors[a].shape == tensors[b].shape for a, b in pairs)


def rename(name: str, *, to: int) -> str:
    """A key by the table: to=0 gives ours, to=1 timm's. A key that the table doesn't know stays as it is."""
    for row in KEY_TABLE:
        if name.startswith(row[1 - to]):
            return row[to] + name[len(row[1 - to]) :]
    return name


def architecture(
    tensors: dict[str, Tensor],
    known: Mapping[str, Any],
    assumed: Mapping[str, Any],
    *,
    image_size: tuple[int, int] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """The keywords of `image_encoder` that fit the tensors, and what had to be assumed.

    Args:
        known: keywords that a sidecar or the user gave; they win over what the tensors suggest.
        assumed: keywords that the source's models have as a rule.
        image_size: pixels (height, width) that the user wants; tells the grid where nothing else does.

    Raises:
        UserError: when the file doesn't say something that can't be assumed either, or holds it in another shape.
    """
    rotary = {**assumed, **known}.get("rotary") is not None
    if rotary and "pos_embed" in tensors:
        raise UserError(
            "The checkpoint has learned positions, but what stands beside it says that they are rotary positions.\n"
            "Take the weights and their config from the same place again."
        )
    if not rotary and "pos_embed" not in tensors:
        refuse_unpositioned()
    _refuse_misshapen(tensors, optional={"pos_embed"} if rotary else set())
    patch_h, patch_w = tensors["patch_embed.proj.weight"].shape[2:]
    if "pos_embed" in tensors:
        grid, chosen = _grid(tensors, known.get("image_size"), (patch_h, patch_w), image_size)
    else:
        chosen = ""
        height, width = known.get("image_size") or image_size or (USUAL_SIZE, USUAL_SIZE)
        grid = (max(1, height // patch_h), max(1, width // patch_w))
    found = _told_by(tensors, grid)
    embed_dim = found["embed_dim"]
    assumed = {"norm_eps": 1e-6, "act": "gelu", "pos_interpolation": "bicubic_antialias", **assumed}
    if embed_dim in HEADS_BY_WIDTH:
        assumed.setdefault("num_heads", HEADS_BY_WIDTH[embed_dim])
    if "num_heads" not in {**known, **assumed}:
        raise UserError(
            f"The checkpoint does not say how many heads it has, and its width, {embed_dim}, does not tell.\n"
            "Give the number: --num_heads, which vit train, tune and check take as --model.num_heads, and vit.load as\n"
            "num_heads=. For the other verbs write a folder with vit export --num_heads, which says it all."
        )
    told = [f"{name}={value}" for name, value in assumed.items() if name not in known]
    if chosen:
        told.append(chosen)
    if "pos_embed" not in tensors:
        told = [each for each in told if not each.startswith("pos_interpolation")]  # nothing is resized
        told += [] if known.get("image_size") or image_size else [f"image_size={found['image_size']}"]
    return {
        **found,
        **assumed,
        **{name: value for name, value in known.items() if name != "image_size"},
    }, told


def _told_by(tensors: dict[str, Tensor], grid: tuple[int, int]) -> dict[str, Any]:
    """The keywords that follow from the names and shapes of tensors, for the positions of a grid."""
    embed_dim, in_chans, patch_h, patch_w = tensors["patch_embed.proj.weight"].shape
    hidden, fc2_in = tensors["blocks.0.mlp.fc1.weight"].shape[0], tensors["blocks.0.mlp.fc2.weight"].shape[1]
    return {
        "image_size": (grid[0] * patch_h, grid[1] * patch_w),
        "patch_size": (patch_h, patch_w),
        "embed_dim": embed_dim,
        # Blocks counted, not the largest number read: one stray key must not make a model of a million blocks.
        "depth": len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
        "in_chans": in_chans,
        "class_token": "cls_token" in tensors,
        "dist_token": "dist_token" in tensors,
        "num_registers": tensors["reg_token"].shape[1] if "reg_token" in tensors else 0,
        "learned_positions": "pos_embed" in tensors,
        "mlp_ratio": hidden / embed_dim,
        "mlp": "swiglu" if fc2_in * 2 == hidden else "mlp",
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
        "qk_norm": "blocks.0.attn.q_norm.weight" in tensors,
        "init_values": 1e-5 if "blocks.0.ls1.gamma" in tensors else None,
        # What a family leaves out goes with something that it has instead; else its absence is damage.
        "patch_bias": "patch_embed.proj.bias" in tensors or "norm_pre.weight" not in tensors,
        "embed_norm": "norm_pre.weight" in tensors,
        "final_norm": not ({"norm.weight", "norm.bias"}.isdisjoint(tensors) and "fc_norm.weight" in tensors),
    }


def _refuse_misshapen(tensors: dict[str, Tensor], optional: set[str]) -> None:
    """Raises UserError for a checkpoint whose sizes can't be read."""
    missing = [name for name in REQUIRED if name not in tensors and name not in optional]
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
) -> tuple[tuple[int, int], str]:
    """The grid that the positions were learned for, and what to say of it where another would fit, too.

    That of the `known` image size if it has as many patches; else a square one, which is usual, or that of the `wanted`
    image size. Of two square ones it is that in which registers have no positions, as in all published models with
    registers.

    Raises:
        UserError: when none fits, or a square one and the wanted one have equally many patches.
    """
    length = tensors["pos_embed"].shape[1]
    places = _prefix_places(tensors)
    counts = [count for count in (length - each for each in places) if count > 0]
    known_grid, asked = (size and (size[0] // patch_size[0], size[1] // patch_size[1]) for size in (known, wanted))
    if known_grid and known_grid[0] * known_grid[1] in counts:
        return known_grid, ""
    squares = list(dict.fromkeys((isqrt(count),) * 2 for count in counts if isqrt(count) ** 2 == count))
    if asked and asked[0] * asked[1] in counts and asked not in squares:
        _refuse_two_grids(length, (isqrt(asked[0] * asked[1]),) * 2, asked, patch_size)
        found, certain = asked, not squares
    elif squares:
        found, certain = asked if asked in squares else squares[0], len(squares) == 1
    else:
        raise UserError(
            f"The checkpoint has {length} positions, which is not a square grid, and does not say which grid it is.\n"
            "Give the image size that it was trained with: --trained_size [height, width], which vit train, tune and\n"
            "check take as --model.trained_size, and vit.load as trained_size=(height, width). For the other verbs\n"
            "write a folder with vit export --trained_size, which says it all."
        )
    own = length - found[0] * found[1]
    if certain and own >= places[0]:
        return found, ""
    others = {places[0]: "no register", 0: "no other token", places[-1]: "all other tokens"}
    return found, f"positions of {found[0]} x {found[1]} patches and {others[own]}"


def _refuse_two_grids(
    length: int, square: tuple[int, int], asked: tuple[int, int], patch_size: tuple[int, int]
) -> None:
    """Raises UserError when the grid that is asked for has as many patches as a square one."""
    if square[0] * square[1] != asked[0] * asked[1]:
        return
    sizes = [f"[{grid[0] * patch_size[0]}, {grid[1] * patch_size[1]}]" for grid in (square, asked)]
    raise UserError(
        f"The checkpoint's {length} positions may be those of {square[0]} x {square[1]} patches or of {asked[0]} x "
        f"{asked[1]}, and it does not say which.\n"
        f"Give the image size that it was trained with, {' or '.join(sizes)}: --trained_size, which vit train, tune\n"
        "and check take as --model.trained_size, and vit.load as trained_size=."
    )


def _prefix_places(tensors: dict[str, Tensor]) -> list[int]:
    """How many positions may be those of prefix tokens: class and distillation token, none, or the registers, too."""
    tokens = sum(1 for name in ("cls_token", "dist_token") if name in tensors)
    registers = tensors["reg_token"].shape[1] if "reg_token" in tensors else 0
    return [tokens, 0, tokens + registers]

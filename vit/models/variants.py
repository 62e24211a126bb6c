"""Sizes of the Vision Transformer by name, as one table."""

from typing import Any

from vit.foundation import UserError, nearest

# Tiny to huge: Touvron et al. 2021 (DeiT) and Dosovitskiy et al. 2021, table 1; giant: Zhai et al. 2022, table 2.
# Pico and nano are ours, for images of 64 pixels and machines without a GPU.
VARIANTS: dict[str, dict[str, Any]] = {
    "pico": {"embed_dim": 128, "depth": 6, "num_heads": 4},
    "nano": {"embed_dim": 160, "depth": 6, "num_heads": 5},
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
    "giant": {"embed_dim": 1408, "depth": 40, "num_heads": 16, "mlp_ratio": 48 / 11},
}


def variant(name: str) -> dict[str, Any]:
    """The keywords of `image_encoder` for a size.

    Raises:
        UserError: for a name that the table does not have.
    """
    if name not in VARIANTS:
        raise UserError(f"There is no variant {name!r}{nearest(name, VARIANTS)}; allowed are {', '.join(VARIANTS)}.")
    return dict(VARIANTS[name])

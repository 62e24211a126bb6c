"""What tests of the verbs share: photos, a model made by hand that sees them, and looks at what a verb left.

The fixtures `vit`, `model`, `headless`, `classes` and `trained` of conftest.py go with it.
"""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from vit.models.classifier import Classifier, Preprocessing
from vit.models.encoder import image_encoder

BRIGHT, DARK = 230, 25
TINY = "--model.variant pico --model.patch_size 8 --model.image_size 16 --data.batch_size 4 --data.num_workers 0"


class Ran(NamedTuple):
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def told(self) -> str:
        """All that it printed, in one line."""
        return " ".join((self.out + self.err).split())


Vit = Callable[..., Ran]


def photo(path: Path, size: tuple[int, int] = (32, 32), *bright: tuple[int, int, int, int]) -> Path:
    """Writes a dark photo of `size` (height, width) with bright rectangles (top, bottom, left, right)."""
    pixels = np.full((*size, 3), DARK, np.uint8)
    for top, bottom, left, right in bright:
        pixels[top:bottom, left:right] = BRIGHT
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def all_bright(path: Path) -> Path:
    return photo(path, (32, 32), (0, 32, 0, 32))


def sees_bright(num_classes: int = 2) -> Classifier:
    """A model made by hand: its class token looks at bright patches alone, and says whether there are any.

    Channel 0 of a patch's token is its brightness, from below 0 to above, and channel 1 marks the class token. The
    query reads channel 1 and the key channel 0; the value brings channel 0 to the head.
    """
    encoder = image_encoder(image_size=(32, 32), patch_size=(8, 8), embed_dim=4, depth=1, num_heads=1)
    block = encoder.blocks[0]
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if "norm" not in name:
                weight.zero_()
        encoder.embed.patch_embed.proj.weight[0] = 1 / (3 * 8 * 8)
        encoder.embed.cls_token[0, 0, 1] = 1
        block.attn.qkv.weight[0, 1] = 8  # query
        block.attn.qkv.weight[4, 0] = 1  # key
        block.attn.qkv.weight[8, 0] = 1  # value
        block.attn.proj.weight[0, 0] = 1
        labels = ["bright", "dark"][:num_classes]
        prepared = Preprocessing((32, 32), mean=(0.5,) * 3, std=(0.25,) * 3)
        model = Classifier(encoder, num_classes, labels=labels, preprocessing=prepared)
        if num_classes:
            model.head.weight.zero_()
            model.head.weight[:, 0] = torch.tensor([1.0, -1.0])
    return model


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def peak(path: Path) -> tuple[int, int]:
    """Where a saved map is highest: (row, column)."""
    saliency = np.load(path)
    row, column = np.unravel_index(np.nanargmax(saliency), saliency.shape)
    return int(row), int(column)


def is_png(path: Path) -> bool:
    with Image.open(path) as picture:
        picture.load()
        return picture.format == "PNG"

"""Classification: the encoder's tokens pooled to one vector, and a linear head."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vit.models.encoder import Encoder, init_weights

POOLS = ("class", "mean", "class+mean")

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """How a photograph becomes the image that the model takes.

    Args:
        image_size: pixels (height, width).
        mean, std: of the channels, after scaling to 0..1.
        interpolation: "bicubic" or "bilinear", antialiased.
        resize_mode: "squash" (the whole photo, its sides scaled each for itself) or "crop" (the shorter side scaled
            to size / crop_pct, then the centre).
        crop_pct: share of the shorter side that a crop keeps.
    """

    image_size: tuple[int, int]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bicubic"
    resize_mode: str = "squash"
    crop_pct: float = 1.0


class Classifier(nn.Module):
    """An encoder with a pooled linear head. (B, C, img_h, img_w) -> (B, num_classes) logits.

    Args:
        encoder: images to tokens.
        num_classes: outputs of the head; 0 for none, and the pooled vector comes out.
        pool: "class" (the class token), "mean" (of the patches' tokens), or "class+mean" (both, side by side).
        labels: names of the classes, in order.
        preprocessing: what the images went through before they come here.
    """

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        *,
        pool: str = "class",
        labels: Sequence[str] = (),
        preprocessing: Preprocessing | None = None,
    ):
        super().__init__()
        if pool not in POOLS:
            raise ValueError(f"pool is {pool!r}; allowed are {', '.join(POOLS)}")
        if "class" in pool and encoder.embed.cls_token is None:
            raise ValueError(f"pool is {pool!r}, but the encoder has no class token; try pool='mean'")
        if labels and len(labels) != num_classes:
            raise ValueError(f"{len(labels)} labels for {num_classes} classes; there must be one each")
        self.encoder = encoder
        self.pool = pool
        self.num_classes = num_classes
        self.labels = tuple(labels)
        self.preprocessing = preprocessing or Preprocessing(encoder.architecture["image_size"])
        self.num_features = encoder.embed_dim * (2 if pool == "class+mean" else 1)
        self.head = self._new_head(num_classes)

    def reset_head(self, labels: Sequence[str]) -> None:
        """Gives the model a new head, of random weights, for these classes."""
        self.labels, self.num_classes = tuple(labels), len(labels)
        self.head = self._new_head(len(labels)).to(next(self.encoder.parameters()))  # its device and precision

    def _new_head(self, num_classes: int) -> nn.Module:
        head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        init_weights(head)
        return head

    @property
    def read(self) -> int | None:
        """How many of the encoder's first tokens the pooling looks at; None for all."""
        return 1 if self.pool == "class" else None

    def pooled(self, tokens: Tensor) -> Tensor:
        """(B, N, D) tokens, or only the first `read` of them -> (B, num_features), what the head reads."""
        if self.pool == "class":
            return tokens[:, 0]
        mean = tokens[:, self.encoder.num_prefix_tokens :].mean(dim=1)
        return mean if self.pool == "mean" else torch.cat([tokens[:, 0], mean], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.pooled(self.encoder(images, read=self.read)))

    def readout(self, num_tokens: int) -> Tensor:
        """(num_tokens,) how much of each token the pooled vector is: the start of a walk. Sums to 1."""
        readout = torch.zeros(num_tokens)
        prefix = self.encoder.num_prefix_tokens
        if "mean" in self.pool:
            readout[prefix:] = 1 / (num_tokens - prefix)
        if "class" in self.pool:
            readout[0] = 1.0
        return readout / readout.sum()

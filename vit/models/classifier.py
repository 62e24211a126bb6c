"""Classification: the encoder's tokens are pooled to one vector, which a linear head classifies."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor, nn

from vit.layers.pooling import AttentionPool
from vit.models.encoder import Encoder, init_weights
from vit.models.neighbours import Neighbours

POOLS = ("class", "mean", "class+mean", "class+dist", "attention")

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """How a photograph becomes the image that the model takes.

    Args:
        image_size: (height, width) in pixels.
        mean, std: of the channels, for values 0 to 1.
        interpolation: "bicubic" or "bilinear", antialiased.
        resize_mode: "squash" (the whole photo, both sides scaled independently) or "crop" (the shorter side scaled to
            image_size / crop_pct, then the central crop).
        crop_pct: share of the shorter side that a crop keeps.

    Raises:
        ValueError: for another interpolation or resize mode, a crop_pct outside (0, 1], or mean and std that are not
            numbers, with std above 0.
    """

    image_size: tuple[int, int]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bicubic"
    resize_mode: str = "squash"
    crop_pct: float = 1.0

    def __post_init__(self) -> None:
        """Checks the values, which may come from a file that anyone has written."""
        for name, value, allowed in (
            ("interpolation", self.interpolation, ("bicubic", "bilinear")),
            ("resize_mode", self.resize_mode, ("squash", "crop")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; allowed are {' and '.join(allowed)}")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct is {self.crop_pct!r}; allowed are numbers above 0, up to 1")
        if not all(isinstance(value, Real) for value in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise ValueError(f"mean and std are {self.mean!r} and {self.std!r}; allowed are numbers, std above 0")


class Classifier(nn.Module):
    """An encoder with a pooled linear head. (B, C, img_h, img_w) -> (B, num_classes) logits.

    Args:
        encoder: images to tokens.
        num_classes: outputs of the head; with 0 there is no head, and the model returns the pooled vector.
        pool: "class" (the class token), "mean" (of the patches' tokens), "class+mean" (both, side by side),
            "class+dist" (class and distillation tokens side by side: the mean of DeiT's two heads is one head that
            reads both), or "attention" (a learned query attends to the patches' tokens, see `AttentionPool`).
        fc_norm: whether the pooled vector is layer-normalised, as in models that take the mean before the norm.
        pool_blocks: number of last blocks whose tokens are pooled, each after the final norm; the head reads them side
            by side (Caron et al. 2021, linear evaluation of DINO).
        labels: names of the classes, in order; may be empty.
        multilabel: whether an image may show any number of the classes, each with its own probability.
        preprocessing: how photographs become the images that the model takes; None for the defaults of `Preprocessing`
            at the encoder's image size.

    Raises:
        ValueError: for another pool, one that needs a token that the encoder does not have, pool_blocks outside 1 to
            the number of blocks, more than one of them with "class+dist" or "attention", or another number of labels
            than classes.
    """

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        *,
        pool: str = "class",
        fc_norm: bool = False,
        pool_blocks: int = 1,
        labels: Sequence[str] = (),
        multilabel: bool = False,
        preprocessing: Preprocessing | None = None,
    ):
        super().__init__()
        if pool not in POOLS:
            raise ValueError(f"pool is {pool!r}; allowed are {', '.join(POOLS)}")
        if "class" in pool and encoder.embed.cls_token is None:
            raise ValueError(f"pool is {pool!r}, but the encoder has no class token; try pool='mean'")
        if "dist" in pool and encoder.embed.dist_token is None:
            raise ValueError(f"pool is {pool!r}, but the encoder has no distillation token; try pool='class'")
        depth = len(encoder.blocks)
        if not 1 <= pool_blocks <= depth:
            raise ValueError(f"pool_blocks is {pool_blocks}; allowed are 1 to {depth}")
        if pool_blocks > 1 and pool in ("class+dist", "attention"):
            raise ValueError(f"pool_blocks is {pool_blocks}, but {pool!r} pooling only reads one block")
        if labels and len(labels) != num_classes:
            raise ValueError(f"{len(labels)} labels for {num_classes} classes; there must be one per class")
        self.encoder = encoder
        self.pool = pool
        self.pool_blocks = pool_blocks
        self.multilabel = multilabel
        self.num_classes = num_classes
        self.labels = tuple(labels)
        self.preprocessing = preprocessing or Preprocessing(encoder.architecture["image_size"])
        pooled = encoder.embed_dim * (2 if "+" in pool else 1)
        self.num_features = pooled * pool_blocks
        self.attn_pool = self._new_attn_pool() if pool == "attention" else None
        self.fc_norm = (
            nn.LayerNorm(pooled, eps=encoder.architecture.get("norm_eps", 1e-6)) if fc_norm else nn.Identity()
        )
        self.head = self._new_head(num_classes)
        self.neighbours: Neighbours | None = None

    def reset_head(self, labels: Sequence[str], *, multilabel: bool = False) -> None:
        """Gives the model a new head with random weights for these classes, and no neighbours."""
        self.labels, self.num_classes, self.multilabel = tuple(labels), len(labels), multilabel
        self.head = self._new_head(len(labels)).to(next(self.encoder.parameters()))  # its device and precision
        self.neighbours = None

    def _new_head(self, num_classes: int) -> nn.Module:
        head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        init_weights(head)
        return head

    def _new_attn_pool(self) -> AttentionPool:
        shape = self.encoder.architecture
        pool = AttentionPool(
            shape["embed_dim"],
            shape["num_heads"],
            mlp_ratio=shape.get("mlp_ratio", 4.0),
            act=shape["act"],
            norm_eps=shape["norm_eps"],
        )
        pool.apply(init_weights)
        return pool

    @property
    def read(self) -> int | None:
        """How many of the encoder's first tokens the pooling reads; None for all."""
        return {"class": 1, "class+dist": 2}.get(self.pool)

    def pooled(self, tokens: Tensor) -> Tensor:
        """(B, N, D) tokens of a block, or only the first `read` of them -> (B, D or 2 D), what the head reads."""
        return self.fc_norm(self._pool(tokens))

    def _pool(self, tokens: Tensor) -> Tensor:
        if self.attn_pool is not None:
            return self.attn_pool(tokens[:, self.encoder.num_prefix_tokens :])
        if self.pool == "class":
            return tokens[:, 0]
        if self.pool == "class+dist":
            return tokens[:, :2].flatten(1)
        mean = tokens[:, self.encoder.num_prefix_tokens :].mean(dim=1)
        return mean if self.pool == "mean" else torch.cat([tokens[:, 0], mean], dim=1)

    def features(self, images: Tensor, *, whole: bool = False) -> Tensor:
        """(B, C, img_h, img_w) -> (B, num_features), what the head reads; `whole` as in `forward`."""
        read = None if whole else self.read
        if self.pool_blocks == 1:
            return self.pooled(self.encoder(images, read=read))
        blocks = self.encoder.last_tokens(images, self.pool_blocks, read=read)
        return torch.cat([self.pooled(tokens) for tokens in blocks], dim=1)

    def forward(self, images: Tensor, *, whole: bool = False) -> Tensor:
        """(B, C, img_h, img_w) -> (B, num_classes) logits, or (B, num_features) without a head.

        Args:
            whole: let the last block compute all tokens, including those that the pooling does not read.
        """
        return self.logits(self.features(images, whole=whole))

    def logits(self, features: Tensor) -> Tensor:
        """(B, num_features), what the head reads -> (B, num_classes) logits; with neighbours, those of the mixture."""
        logits = self.head(features)
        if self.neighbours is None:
            return logits
        with torch.autocast(features.device.type, enabled=False):
            mixed: Tensor = self.neighbours(features.float(), logits.float(), multilabel=self.multilabel)
            return mixed

    def probabilities(self, logits: Tensor) -> Tensor:
        """(B, num_classes) logits -> probabilities, which sum to 1 unless the model is multi-label."""
        return logits.sigmoid() if self.multilabel else logits.softmax(dim=1)

    def readout(self, num_tokens: int) -> Tensor:
        """(num_tokens,) the weight of each token in the pooled vector, where a walk starts; sums to 1.

        With class+dist pooling, the walk starts at the class token only.

        Raises:
            ValueError: for attention pooling, where it is different for each image, see `Trace.pooling`.
        """
        if self.pool == "attention":
            raise ValueError("with attention pooling, the readout is different for each image: see Trace.pooling")
        readout = torch.zeros(num_tokens)
        prefix = self.encoder.num_prefix_tokens
        if "mean" in self.pool:
            readout[prefix:] = 1 / (num_tokens - prefix)
        if "class" in self.pool:
            readout[0] = 1.0
        return readout / readout.sum()

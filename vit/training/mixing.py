"""Mixup and cutmix: two images of a batch, and their targets, are combined into one."""

import torch
from torch import Tensor
from torchvision.transforms.v2 import CutMix, MixUp


class Mixing:
    """Mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019), with equal probability if both are enabled.

    Each image is mixed with the one before it in its batch, all of a batch in the same way. Random numbers come from
    torch's global generator, which the task seeds for each micro-batch.

    Args:
        mixup, cutmix: alpha of the Beta distribution that the shares are drawn from; 0 disables it.
        prob: share of the batches that are mixed.
    """

    def __init__(self, *, mixup: float = 0.0, cutmix: float = 0.0, prob: float = 1.0):
        kinds = [(MixUp, mixup), (CutMix, cutmix)]
        self.ways = [kind(alpha=alpha) for kind, alpha in kinds if alpha > 0]
        self.prob = prob

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, img_h, img_w) images and (B, columns) targets -> the same, mixed; targets are mixed like images."""
        if not self.ways or torch.rand(()) >= self.prob:
            return images, targets
        way = self.ways[int(torch.randint(len(self.ways), ()))]
        mixed: tuple[Tensor, Tensor] = way(images, targets)
        return mixed

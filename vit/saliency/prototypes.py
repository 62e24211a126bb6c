"""The tuned map of `method="default"`: what the last block attends to, as opposed to what it does not.

Last-layer attention finds the object and marks a few of its patches. Here these patches serve as examples: the map
shows how much more similar each patch is to what is attended to than to the rest. The settings that were tried, with
their results, are in docs/saliency.md.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vit.layers.attention import Recorded
from vit.saliency.refine import mean_of_like, unit_features

ENOUGH_HEADS = 6  # for a median, which with fewer heads depends on one or two of them


def seed_fusion(num_heads: int) -> str:
    """How the heads' attention is combined to seeds: the median, so that no single head decides; the mean if there are
    few heads."""
    return "median" if num_heads >= ENOUGH_HEADS else "mean"


def prototype_contrast(last: Recorded, seeds: Tensor) -> Tensor:
    """(B, P) similarity of each patch to the attended ones minus that to the others, -2 to 2:

        r = readout fuse_h(A)                       the seeds: what is attended to, see `seed_fusion`
        s = softmax(x xᵀ / 0.1) r                   for each patch, the mean over similar patches
        w = (s - min s) / (max s - min s)
        map = x · (unit(Σ w⁴ x) - unit(Σ (1 - w)² x))

    A is the last block's attention, and x (P, 2 D) the patches' keys and queries there, side by side at unit length.
    Values above zero are more similar to the object. The map does not depend on a class. It takes one product of the
    patches with each other more than last-layer attention, and memory linear in the number of tokens.

    Args:
        last: the last block with all its tokens; the patches are the last P.
        seeds: (B, P) r.
    """
    return torch.stack([_contrast(last.of(slice(i, i + 1)), seed) for i, seed in enumerate(seeds)])


def _contrast(recorded: Recorded, seed: Tensor) -> Tensor:
    """(P,) for one image, because the tiles of a batch would not fit a CPU's caches."""
    num_patches = len(seed)
    with torch.autocast(seed.device.type, enabled=False):
        features = torch.cat([unit_features(part, num_patches) for part in (recorded.k, recorded.q)], dim=-1)
        features = F.normalize(features, dim=-1)  # (1, P, 2 D)
        shared = mean_of_like(features, seed)
        low, high = shared.aminmax()
        weights = (shared - low) / (high - low).clamp_min(torch.finfo(shared.dtype).tiny)
        attended = F.normalize(weights**4 @ features[0], dim=0)
        others = F.normalize((1 - weights) ** 2 @ features[0], dim=0)
        return features[0] @ (attended - others)

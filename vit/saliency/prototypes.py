"""The tuned map of `method="default"`: what the last block attends to, told from what it does not.

Last-layer attention finds the object and marks a few patches of it. This takes these patches for examples: a map is
how much more each patch is like what is attended to than like the rest. Which settings were tried, and what each
gave, is in docs/saliency.md.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vit.layers.attention import Recorded
from vit.saliency.last_attention import last_attention
from vit.saliency.refine import unit_features
from vit.saliency.walk import attention_tiles


def prototype_contrast(blocks: list[Recorded], readout: Tensor, num_patches: int) -> Tensor:
    """(B, P) similarity of each patch to the attended ones less that to the others, -2 to 2:

        r = readout median_h(A)                     what is attended to, no single head deciding
        s = Ā r                                     each patch: the mean over the patches that it attends to
        w = (s - min s) / (max s - min s)
        map = x · (unit(Σ w² x) - unit(Σ (1 - w) x))

    A is the last block's attention, Ā the mean over its heads between patches, rows re-normalised, and x (P, 2 D) the
    patches' keys and queries there, side by side at unit length. Above zero is more like the object. Knows no class.
    One more pass over the last block's attention than last-layer attention; memory linear in the number of tokens.

    Args:
        blocks: `Trace.blocks`; every token of the last block must have been computed.
        readout: (N,) or (B, N), how much of each last token is read.
        num_patches: P, the last P of the N tokens.
    """
    seeds = last_attention(blocks, readout, head_fusion="median")[:, -num_patches:]
    parts = [_contrast(blocks[-1].of(slice(i, i + 1)), seeds[i : i + 1]) for i in range(len(seeds))]
    return torch.cat(parts)


def _contrast(recorded: Recorded, seed: Tensor) -> Tensor:
    """(1, P) of one image: the tiles of a batch would not fit a processor's caches."""
    num_patches = seed.shape[1]
    with torch.autocast(seed.device.type, enabled=False):
        shared = _shared(recorded, seed)
        low, high = shared.aminmax(dim=1, keepdim=True)
        weights = (shared - low) / (high - low).clamp_min(torch.finfo(shared.dtype).tiny)
        features = torch.cat([unit_features(part, num_patches) for part in (recorded.k, recorded.q)], dim=-1)
        features = F.normalize(features, dim=-1)  # (1, P, 2 D)
        attended = F.normalize(weights.square()[:, None] @ features, dim=-1)
        others = F.normalize((1 - weights)[:, None] @ features, dim=-1)
        return (features @ (attended - others).transpose(1, 2)).squeeze(2)


def _shared(recorded: Recorded, seed: Tensor) -> Tensor:
    """Ā r, (1, P)."""
    num_patches = seed.shape[1]
    patches = recorded._replace(
        q=recorded.q[:, :, -num_patches:],
        mask=None if recorded.mask is None else recorded.mask[:, :, -num_patches:],
    )
    found = torch.empty_like(seed)
    for rows, attention in attention_tiles(patches):
        between = attention[..., -num_patches:].mean(dim=1)  # (1, rows, P)
        found[:, rows] = (between @ seed[:, :, None]).squeeze(2) / between.sum(dim=-1)
    return found

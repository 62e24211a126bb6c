"""Refinement of any map: it is averaged over patches with similar keys, so that outlines follow the image's parts."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vit.layers.attention import Recorded
from vit.saliency.walk import attention_tiles

TEMPERATURE = 0.1


def refine(maps: Tensor, keys: Tensor, *, temperature: float = TEMPERATURE) -> Tensor:
    """softmax(k̂ k̂ᵀ / temperature) times the map: each patch gets the mean over similar patches.

    k̂ are the patches' keys in the last block, the heads side by side, at unit length. Such keys are known to tell
    the parts of a photo apart (Amir et al. 2022; Siméoni et al. 2021, LOST; Wang et al. 2023, TokenCut). The affinity
    is computed in tiles of rows and dropped: memory is linear in the number of patches.

    Args:
        maps: (B, grid_h, grid_w).
        keys: (B, H, N, Dh) of the last block; the patches are the last grid_h * grid_w of the N tokens.

    Returns:
        (B, grid_h, grid_w) float32.
    """
    relevance = maps.flatten(1).float()
    refined = torch.empty_like(relevance)
    with torch.autocast(maps.device.type, enabled=False):
        for image in range(len(maps)):  # one at a time, as in `walk`
            directions = unit_features(keys[image : image + 1], relevance.shape[1])
            refined[image] = mean_of_like(directions, relevance[image], temperature=temperature)
    return refined.view_as(maps)


def mean_of_like(directions: Tensor, relevance: Tensor, *, temperature: float = TEMPERATURE) -> Tensor:
    """softmax(x xᵀ / temperature) r for one image, (P,), with x (1, P, D) at unit length and r (P,)."""
    found = torch.empty_like(relevance)
    # Computed as attention with one head, whose softmax divides by the square root of the width.
    scaled = directions * (directions.shape[-1] ** 0.5 / temperature)
    for rows, affinity in attention_tiles(Recorded(scaled[:, None], directions[:, None])):
        found[rows] = affinity[0, 0] @ relevance
    return found


def unit_features(projected: Tensor, num_patches: int) -> Tensor:
    """(B, H, N, Dh) keys or queries -> (B, P, D) for the patches, heads side by side, each vector with unit length."""
    patches = projected[:, :, -num_patches:].float()
    return F.normalize(patches.transpose(1, 2).flatten(2), dim=-1)

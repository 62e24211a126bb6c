"""Perturbation methods: hide parts of the image, and see how the class's probability changes.

They only use the model's output. Hidden pixels get the mean colour, which is 0 in a normalised image.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from vit.models.classifier import Classifier
from vit.saliency.explanation import Explanation, chosen_classes

FORWARD_IMAGES = 32  # images in one forward pass, unless a batch has more


@torch.inference_mode()
def occlusion_maps(
    model: Classifier, images: Tensor, target: Tensor | None, *, window: int | None = None
) -> Explanation:
    """Occlusion (Zeiler & Fergus 2014): how much probability is lost when a square of patches is hidden.

    The square slides by one patch; a patch gets the mean over the squares that hide it.

    Args:
        window: side of the square in patches; None for 3, which in 14 or 16 is about the paper's share of the image, or
            fewer if that would hide all of a small image.

    Raises:
        ValueError: for a window below 1 or larger than the grid of patches, or a target that is not a class of the
            model.
    """
    grid_h, grid_w = model.encoder.grid_of(images)
    if window is None:
        window = max(1, min(3, grid_h, grid_w, max(grid_h, grid_w) - 1))
    if not 1 <= window <= min(grid_h, grid_w):
        raise ValueError(f"window is {window}; allowed are 1 to {min(grid_h, grid_w)}, the patches of the image")
    logits = model(images).float()
    chosen = chosen_classes(logits, target)
    whole = model.probabilities(logits).gather(1, chosen[:, None])[:, 0]
    total = torch.zeros(len(images), grid_h, grid_w, device=images.device)
    hidden = torch.zeros(grid_h, grid_w, device=images.device)
    places = [(y, x) for y in range(grid_h - window + 1) for x in range(grid_w - window + 1)]
    for some in _chunks(len(places), len(images)):
        masks = torch.zeros(some.stop - some.start, grid_h, grid_w, device=images.device)
        for mask, (y, x) in zip(masks, places[some], strict=True):
            mask[y : y + window, x : x + window] = 1
        dropped = whole[:, None] - _probabilities(model, images, 1 - masks, chosen)  # (B, masks)
        total += (dropped[:, :, None, None] * masks).sum(dim=1)
        hidden += masks.sum(dim=0)
    return Explanation(total / hidden, logits)


@torch.inference_mode()
def rise_maps(
    model: Classifier,
    images: Tensor,
    target: Tensor | None,
    *,
    masks: int = 4000,
    cells: int = 7,
    kept: float = 0.5,
    seed: int = 0,
) -> Explanation:
    """RISE (Petsiuk et al. 2018, equation 6): the mean of random masks, weighted by the probability that they leave,

        map = 1 / (n kept) Σ p(image * mask) mask

    A mask is a coarse grid of zeros and ones, enlarged bilinearly and cropped at a random position, so that its edges
    are soft and can be anywhere. All images get the same masks, which only depend on the seed: the result does not
    depend on the batch.

    Args:
        masks: number n of masks; 4,000 to 8,000 in the paper. Each image needs one forward pass per mask, which takes
            minutes per image without a GPU.
        cells: side of the coarse grid in cells.
        kept: probability that a cell is kept.
        seed: seed of the masks.

    Raises:
        ValueError: for less than one mask or cell, a probability that is not between 0 and 1, or a target that is not a
            class of the model.
    """
    if masks < 1 or cells < 1 or not 0 < kept < 1:
        raise ValueError(f"masks, cells and kept are {masks}, {cells}, {kept}; allowed are 1 or more, and 0 to 1")
    logits = model(images).float()
    chosen = chosen_classes(logits, target)
    grid = model.encoder.grid_of(images)
    total = torch.zeros(len(images), *grid, device=images.device)
    generator = torch.Generator().manual_seed(seed)
    coarse = (torch.rand(masks, cells, cells, generator=generator) < kept).float()
    corners = torch.rand(masks, 2, generator=generator)
    for some in _chunks(masks, len(images)):
        soft = _soft_masks(coarse[some], corners[some], images.shape[-2:]).to(images.device)
        left = _probabilities(model, images, soft, chosen)
        total += (left[:, :, None, None] * F.adaptive_avg_pool2d(soft, grid)).sum(dim=1)
    return Explanation(total / (masks * kept), logits)


def _soft_masks(coarse: Tensor, corners: Tensor, size: torch.Size) -> Tensor:
    """(n, cells, cells) -> (n, img_h, img_w): enlarged to one cell more than the image, then cropped (section 3.2)."""
    cells = coarse.shape[-1]
    cell = [-(-pixels // cells) for pixels in size]
    large = F.interpolate(coarse[:, None], size=[(cells + 1) * side for side in cell], mode="bilinear")[:, 0]
    tops, lefts = ((corners[:, axis] * side).long().tolist() for axis, side in enumerate(cell))
    cut = [mask[y : y + size[0], x : x + size[1]] for mask, y, x in zip(large, tops, lefts, strict=True)]
    return torch.stack(cut)


def _chunks(masks: int, images: int) -> Iterator[slice]:
    """Slices of the masks, each of which is applied to all images in one forward pass of limited size."""
    together = max(1, FORWARD_IMAGES // images)
    for start in range(0, masks, together):
        yield slice(start, min(start + together, masks))


def _probabilities(model: Classifier, images: Tensor, masks: Tensor, chosen: Tensor) -> Tensor:
    """(B, n) probability of each image's class under each mask, (n, ...) of patches or pixels: 1 keeps, 0 hides."""
    over_pixels = F.interpolate(masks[:, None], size=tuple(images.shape[-2:]), mode="nearest")  # (n, 1, img_h, img_w)
    hidden = (images[:, None] * over_pixels).flatten(0, 1)
    found = model.probabilities(model(hidden).float()).unflatten(0, (len(images), -1))
    return found.gather(2, chosen[:, None, None].expand(-1, len(masks), 1))[..., 0]

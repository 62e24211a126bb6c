"""Maps made without looking at the photo: a score has to beat these before it says anything about a model."""

from zlib import crc32

import torch
from torch import Tensor

from vit.models.classifier import Classifier
from vit.saliency.explanation import Explanation


def centre_gaussian(height: int, width: int, sigma: float = 0.25) -> Tensor:
    """A Gaussian bump, (height, width) float32, 1 in the middle, because photographers centre their subject.

    `sigma` is the standard deviation as a share of each side, so the bump has the photo's proportions. The pointing
    game and IoU at equal area only depend on the order of the values and are the same for every sigma; only the share
    of energy inside depends on it.

    Raises:
        ValueError: for an empty size, or a sigma that is not positive.
    """
    if height < 1 or width < 1 or sigma <= 0:
        raise ValueError(f"The size must be at least 1 x 1 and sigma above 0, got {height} x {width}, {sigma}.")
    y = (torch.arange(height) + 0.5) / height - 0.5
    x = (torch.arange(width) + 0.5) / width - 0.5
    return torch.exp(-(y[:, None].square() + x.square()) / (2 * sigma**2))


def random_map(height: int, width: int, seed: int) -> Tensor:
    """Uniform noise in [0, 1), (height, width) float32; the same for the same seed.

    Use the size of the token grid, so that upsampling makes blobs as large as those of a real map.
    """
    return torch.rand(height, width, generator=torch.Generator().manual_seed(seed))


def noise(images: Tensor, grid: tuple[int, int], *, seed: int = 0) -> Tensor:
    """A random map per image, (B, grid_h, grid_w) on the CPU, a function of the seed and the image's values: an image
    gets the same map in any batch, and other images get other maps."""
    contents = [crc32(image.cpu().float().contiguous().numpy().tobytes(), seed) for image in images]
    return torch.stack([random_map(*grid, seed=content) for content in contents])


@torch.inference_mode()
def centre_maps(model: Classifier, images: Tensor, target: Tensor | None) -> Explanation:
    """The centre Gaussian for every image."""
    grid = model.encoder.grid_of(images)
    return Explanation(centre_gaussian(*grid).to(images.device).repeat(len(images), 1, 1), model(images).float())


@torch.inference_mode()
def random_maps(model: Classifier, images: Tensor, target: Tensor | None, *, seed: int = 0) -> Explanation:
    """The `noise` of each image."""
    maps = noise(images, model.encoder.grid_of(images), seed=seed)
    return Explanation(maps.to(images.device), model(images).float())

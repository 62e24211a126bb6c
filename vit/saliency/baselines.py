"""Maps that never saw the photo: what a score has to beat before it says anything about a model."""

import torch
from torch import Tensor


def centre_gaussian(height: int, width: int, sigma: float = 0.25) -> Tensor:
    """A Gaussian bump, (height, width) float32, 1 in the middle: photographers centre their subject.

    `sigma` is the standard deviation as a share of each side, so the bump has the photo's proportions. The
    pointing game and IoU at equal area read the order of the values alone and are the same for every
    sigma; only the share of energy inside depends on it.

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

    Give the size of the token grid, so that upsampling makes blobs as large as those of a real map.
    """
    return torch.rand(height, width, generator=torch.Generator().manual_seed(seed))

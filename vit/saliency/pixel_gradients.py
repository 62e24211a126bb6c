"""Gradients of the class's logit with respect to the pixels, by captum, summed over each patch."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from vit.models.classifier import Classifier
from vit.saliency.explanation import Explanation, chosen_classes
from vit.saliency.record import differentiable

FORWARD_IMAGES = 16  # images in one forward and backward pass, unless a batch has more


def input_x_gradient_maps(model: Classifier, images: Tensor, target: Tensor | None) -> Explanation:
    """x ∂y / ∂x (Shrikumar et al. 2016), summed over channels and the pixels of a patch; signed."""
    from captum.attr import InputXGradient

    with differentiable(model):
        pixels = images.clone().requires_grad_()
        logits = _logits(model, images)
        found = InputXGradient(model).attribute(pixels, target=chosen_classes(logits, target))
        return Explanation(_in_patches(model, found.detach()), logits)


def integrated_gradients_maps(
    model: Classifier, images: Tensor, target: Tensor | None, *, steps: int = 50
) -> Explanation:
    """Integrated gradients (Sundararajan et al. 2017, equation 1) from the mean colour, 0 in a normalised image.

    Summed over channels and the pixels of a patch, signed: the sum of a map is the logit minus that of the plain mean
    colour, up to the error of the Gauss-Legendre quadrature.

    Args:
        steps: points of the quadrature.

    Raises:
        ValueError: for less than one step.
    """
    from captum.attr import IntegratedGradients

    if steps < 1:
        raise ValueError(f"steps is {steps}; allowed are 1 or more")
    with differentiable(model):
        pixels = images.clone().requires_grad_()
        logits = _logits(model, images)
        found = IntegratedGradients(model).attribute(
            pixels,
            target=chosen_classes(logits, target),
            n_steps=steps,
            internal_batch_size=max(FORWARD_IMAGES, len(images)),
        )
        return Explanation(_in_patches(model, found.detach()), logits)


def smoothgrad_maps(
    model: Classifier, images: Tensor, target: Tensor | None, *, samples: int = 50, noise: float = 0.15, seed: int = 0
) -> Explanation:
    """SmoothGrad (Smilkov et al. 2017): the mean of ∂y / ∂x over noisy copies of the image, its magnitude per patch.

    Absolute values are taken after the mean, and summed over channels and the pixels of a patch. All images get the
    same noise, which only depends on the seed: the result does not depend on the batch.

    Args:
        samples: number of noisy copies.
        noise: standard deviation, as a share of the image's range of values; 10% to 20% in the paper.
        seed: seed of the noise.

    Raises:
        ValueError: for less than one sample, or noise that is not above 0.
    """
    from captum.attr import NoiseTunnel, Saliency

    if samples < 1 or noise <= 0:
        raise ValueError(f"samples is {samples} and noise {noise}; allowed are 1 or more and above 0")
    tunnel = NoiseTunnel(Saliency(model))
    found = []
    with differentiable(model):
        logits = _logits(model, images)
        for image, chosen in zip(images.clone(), chosen_classes(logits, target), strict=True):
            with _seeded(seed, images.device):
                gradient = tunnel.attribute(
                    image[None].requires_grad_(),
                    nt_type="smoothgrad",
                    nt_samples=samples,
                    nt_samples_batch_size=FORWARD_IMAGES,
                    stdevs=noise * float(image.max() - image.min()),
                    target=int(chosen),
                    abs=False,
                )
            found.append(gradient.detach())
        return Explanation(_in_patches(model, torch.cat(found).abs()), logits)


def _logits(model: Classifier, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images).float()


def _in_patches(model: Classifier, pixels: Tensor) -> Tensor:
    """(B, C, img_h, img_w) -> (B, grid_h, grid_w) sums."""
    grid_h, grid_w = model.encoder.grid_of(pixels)
    rows = pixels.float().sum(dim=1).unflatten(2, (grid_w, -1)).unflatten(1, (grid_h, -1))
    return rows.sum(dim=(2, 4))


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds torch's random numbers within the context; afterwards the caller's continue as if none had been drawn."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield

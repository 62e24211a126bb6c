"""Gradients of pixels, against captum on timm's model and against what the papers promise."""

import pytest
import torch

from vit.saliency.explain import explain_batch

CLASSES = torch.tensor([4, 0, 2])


def in_patches(pixels):
    """(B, 3, 21, 35) -> (B, 3, 5) sums of patches of 7 pixels."""
    return pixels.sum(dim=1).reshape(len(pixels), 3, 7, 5, 7).sum(dim=(2, 4))


@pytest.fixture
def images():
    return torch.randn(3, 3, 21, 35, dtype=torch.float64)


@pytest.fixture(
    params=[
        {},
        {"class_token": False, "global_pool": "avg", "fc_norm": False},
        {"reg_tokens": 4, "no_embed_class": True},
    ]
)
def pair(request, timm_vit, as_ours):
    reference = timm_vit(dynamic_img_size=True, **request.param).double()
    return as_ours(reference).double(), reference


def test_input_x_gradient_equals_autograd_and_captum(pair, images):
    from captum.attr import InputXGradient

    ours, reference = pair
    found = explain_batch(ours, images, method="input_x_gradient", target=CLASSES)
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(reference(leaf).gather(1, CLASSES[:, None]).sum(), leaf)
    torch.testing.assert_close(found.maps.double(), in_patches(images * gradient), rtol=1e-5, atol=1e-5)
    peer = InputXGradient(reference).attribute(leaf, target=CLASSES).detach()
    torch.testing.assert_close(found.maps.double(), in_patches(peer), rtol=1e-5, atol=1e-5)


def test_integrated_gradients_equal_captum(pair, images):
    from captum.attr import IntegratedGradients

    ours, reference = pair
    found = explain_batch(ours, images, method="integrated_gradients", target=CLASSES, steps=7).maps
    leaf = images.clone().requires_grad_()
    peer = IntegratedGradients(reference).attribute(leaf, target=CLASSES, n_steps=7).detach()
    torch.testing.assert_close(found.double(), in_patches(peer), rtol=1e-5, atol=1e-5)


def test_integrated_gradients_add_up_to_the_logit(pair, images):
    """Completeness (Sundararajan et al. 2017, proposition 1)."""
    ours, _ = pair
    small = images * 0.05  # a short way, which few steps follow closely
    found = explain_batch(ours, small, method="integrated_gradients", target=CLASSES, steps=30)
    with torch.no_grad():
        difference = ours(small) - ours(torch.zeros_like(small))
    expected = difference.gather(1, CLASSES[:, None])[:, 0]
    torch.testing.assert_close(found.maps.sum(dim=(1, 2)).double(), expected, rtol=1e-3, atol=1e-4)


def test_smoothgrad_is_the_mean_gradient_of_noisy_copies(pair, images):
    ours, reference = pair
    found = explain_batch(ours, images, method="smoothgrad", target=CLASSES, samples=20, noise=0.1, seed=3).maps
    expected = []
    for image, chosen in zip(images, CLASSES, strict=True):
        torch.manual_seed(3)
        deviation = 0.1 * (image.max() - image.min())
        # captum draws at most 16 copies at a time
        noise = [torch.normal(0, torch.full((n, 3, 21, 35), float(deviation))) for n in (16, 4)]
        noisy = (image + torch.cat(noise)).requires_grad_()
        (gradient,) = torch.autograd.grad(reference(noisy)[:, chosen].sum(), noisy)
        expected.append(gradient.mean(dim=0).abs())
    torch.testing.assert_close(found.double(), in_patches(torch.stack(expected)), rtol=1e-4, atol=1e-5)


def test_random_numbers_of_the_caller_go_on(pair, images):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    explain_batch(pair[0], images, method="smoothgrad", samples=2)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "integrated_gradients", "steps": 0}, "steps is 0"),
        ({"method": "smoothgrad", "samples": 0}, "samples is 0"),
        ({"method": "smoothgrad", "noise": 0.0}, "noise 0.0"),
    ],
)
def test_what_can_not_be_is_refused(timm_vit, as_ours, options, message):
    with pytest.raises(ValueError, match=message):
        explain_batch(as_ours(timm_vit()), torch.randn(1, 3, 14, 14), **options)

"""Occlusion against captum, RISE against its equation, one mask at a time."""

import pytest
import torch

from vit.saliency import perturbation
from vit.saliency.explain import explain_batch

CLASSES = torch.tensor([4, 0, 2])


@pytest.fixture
def images():
    return torch.randn(3, 3, 21, 35)


@pytest.fixture
def pair(timm_vit, as_ours):
    reference = timm_vit(dynamic_img_size=True)
    return as_ours(reference), reference


@pytest.mark.parametrize("window", [1, 2, 3])
def test_occlusion_equals_captum(pair, images, window):
    from captum.attr import Occlusion

    ours, reference = pair
    peer = Occlusion(lambda x: reference(x).softmax(dim=1)).attribute(
        images, (3, 7 * window, 7 * window), strides=(3, 7, 7), target=CLASSES, baselines=0
    )
    found = explain_batch(ours, images, method="occlusion", target=CLASSES, window=window).maps
    torch.testing.assert_close(found, peer[:, 0, ::7, ::7].detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found, peer[:, 2, 6::7, 6::7].detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("grid", "window"), [((1, 1), 1), ((1, 4), 1), ((2, 2), 1), ((3, 3), 2), ((2, 5), 2), ((9, 8), 3)]
)
def test_the_square_of_occlusion_fits_small_grids(pair, grid, window):
    """It never hides all of an image that has more than one patch: such a map would tell no patch from another."""
    images = torch.randn(3, 3, 7 * grid[0], 7 * grid[1])
    found = explain_batch(pair[0], images, method="occlusion", target=CLASSES).maps
    assert found.shape == (3, *grid)
    expected = explain_batch(pair[0], images, method="occlusion", target=CLASSES, window=window).maps
    torch.testing.assert_close(found, expected)
    assert grid == (1, 1) or (found.flatten(1).std(dim=1) > 0).all()


def test_rise_is_the_mean_of_weighed_masks(pair, images):
    ours, reference = pair
    found = explain_batch(ours, images, method="rise", target=CLASSES, masks=40, cells=4, kept=0.4, seed=2).maps
    generator = torch.Generator().manual_seed(2)
    coarse = (torch.rand(40, 4, 4, generator=generator) < 0.4).float()
    corners = torch.rand(40, 2, generator=generator)
    masks = perturbation._soft_masks(coarse, corners, torch.Size((21, 35)))
    total = torch.zeros(3, 21, 35)
    with torch.no_grad():
        for mask in masks:
            for number, image in enumerate(images):
                total[number] += reference(image[None] * mask).softmax(dim=1)[0, CLASSES[number]] * mask
    expected = (total / (40 * 0.4)).reshape(3, 3, 7, 5, 7).mean(dim=(2, 4))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_masks_keep_their_share_and_are_soft():
    generator = torch.Generator().manual_seed(0)
    coarse = (torch.rand(300, 7, 7, generator=generator) < 0.5).float()
    masks = perturbation._soft_masks(coarse, torch.rand(300, 2, generator=generator), torch.Size((30, 44)))
    assert masks.shape == (300, 30, 44)
    assert 0.0 <= masks.min() <= masks.max() <= 1.0
    assert masks.mean() == pytest.approx(0.5, abs=0.02)
    assert ((masks > 0) & (masks < 1)).float().mean() > 0.3


@pytest.mark.parametrize("options", [{"method": "occlusion", "window": 2}, {"method": "rise", "masks": 10}])
def test_forward_passes_are_bounded(monkeypatch, pair, images, options):
    ours, _ = pair
    expected = explain_batch(ours, images, **options).maps
    monkeypatch.setattr(perturbation, "FORWARD_IMAGES", 7)
    seen = []
    hook = ours.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    found = explain_batch(ours, images, **options).maps
    hook.remove()
    assert max(seen) == 6
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "occlusion", "window": 4}, "window is 4; allowed are 1 to 3"),
        ({"method": "occlusion", "window": 0}, "window is 0"),
        ({"method": "rise", "masks": 0}, "masks, cells and kept are 0, 7, 0.5"),
        ({"method": "rise", "kept": 1.0}, "are 4000, 7, 1.0"),
    ],
)
def test_what_can_not_be_is_refused(pair, images, options, message):
    with pytest.raises(ValueError, match=message):
        explain_batch(pair[0], images, **options)

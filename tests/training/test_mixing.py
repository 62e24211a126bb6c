"""Mixup and cutmix, worked out again from what came out."""

import pytest
import torch

from vit.training.mixing import Mixing

IMAGES = torch.rand(5, 3, 11, 13, generator=torch.Generator().manual_seed(0))
TARGETS = torch.eye(7)[torch.tensor([0, 3, 5, 6, 1])]


def mixed(seed=0, **options):
    torch.manual_seed(seed)
    return Mixing(**options)(IMAGES, TARGETS)


def test_mixup_adds_each_image_to_the_one_before_it():
    images, targets = mixed(mixup=0.8)
    share = targets[1, 3]  # of image 1 in itself
    assert 0 < share < 1
    torch.testing.assert_close(targets, share * TARGETS + (1 - share) * TARGETS.roll(1, 0))
    torch.testing.assert_close(images, share * IMAGES + (1 - share) * IMAGES.roll(1, 0))


def test_cutmix_pastes_a_rectangle_whose_share_of_the_area_is_that_of_the_target():
    images, targets = mixed(seed=1, cutmix=1.0)
    pasted = (images != IMAGES).any(dim=1)
    rows, columns = pasted[0].any(dim=1), pasted[0].any(dim=0)
    assert torch.equal(pasted[0], rows[:, None] & columns[None])  # a rectangle, the same in all
    assert 0 < pasted[0].sum() < pasted[0].numel()
    assert torch.equal(images, torch.where(pasted[:, None], IMAGES.roll(1, 0), IMAGES))
    share = 1 - pasted[0].float().mean()
    torch.testing.assert_close(targets, share * TARGETS + (1 - share) * TARGETS.roll(1, 0))


def test_chance_is_torchs_alone():
    assert torch.equal(mixed(seed=3, mixup=1.0, cutmix=1.0)[0], mixed(seed=3, mixup=1.0, cutmix=1.0)[0])
    assert not torch.equal(mixed(seed=3, mixup=1.0)[0], mixed(seed=4, mixup=1.0)[0])


@pytest.mark.parametrize("options", [{}, {"mixup": 1.0, "cutmix": 1.0, "prob": 0.0}])
def test_without_it_images_stay_as_they_are(options):
    state = torch.random.get_rng_state()
    images, targets = Mixing(**options)(IMAGES, TARGETS)
    assert images is IMAGES
    assert targets is TARGETS
    if not options:
        assert torch.equal(torch.random.get_rng_state(), state)


def test_both_are_done_and_so_is_neither():
    kinds = set()
    for seed in range(20):
        images, _ = mixed(seed, mixup=1.0, cutmix=1.0, prob=0.7)
        changed = (images != IMAGES).float().mean()
        kinds.add("none" if changed == 0 else "mixup" if changed == 1 else "cutmix")
    assert kinds == {"none", "mixup", "cutmix"}

"""A class-specific map lies on its own class: scenes with a bird on the left and another on the right."""

from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from datamodules.scenes import PRETRAIN_SPECIES, draw_scene
from datamodules.transforms import eval_transform
from vit.checkpoints.load import load
from vit.saliency.explain import explain_batch

CLEARLY = 0.15  # the least probability of a bird that the model has seen


@cache
def scenes():
    """(model, images, labels a side, masks a side) of the scenes in which the model sees both birds, first of all."""
    model = load("vit/assets/birdscenes").eval()
    prepared = model.preprocessing
    transform = eval_transform(prepared.image_size, prepared.mean, prepared.std, interpolation=prepared.interpolation)
    drawn = [draw_scene(5, number, species=PRETRAIN_SPECIES, two_birds=True) for number in range(400)]
    images = torch.stack([transform(scene.image, (0, 0, 0)) for scene in drawn])
    labels = [torch.tensor([model.labels.index(scene.birds[side].species) for scene in drawn]) for side in (0, 1)]
    masks = [torch.tensor(np.stack([scene.birds[side].mask for scene in drawn])) for side in (0, 1)]
    with torch.inference_mode():
        probabilities = model(images).softmax(dim=1)
    first_two = probabilities.topk(2, dim=1).indices
    seen = torch.ones(len(drawn), dtype=torch.bool)
    for label in labels:
        seen &= (first_two == label[:, None]).any(dim=1)
        seen &= probabilities.gather(1, label[:, None])[:, 0] > CLEARLY
    assert seen.sum() >= 15
    return model, images[seen], [label[seen] for label in labels], [mask[seen] for mask in masks]


def energy(maps, mask):
    """(B,) share of each map's positive relevance within its mask."""
    pixels = F.interpolate(maps.clamp_min(0)[:, None], size=tuple(mask.shape[1:]), mode="bilinear")[:, 0]
    return (pixels * mask).sum(dim=(1, 2)) / pixels.sum(dim=(1, 2))


@pytest.mark.parametrize("method", ["attribution", "gradient_rollout", "input_x_gradient"])
def test_the_energy_lies_on_the_bird_that_was_asked_for(method):
    model, images, labels, masks = scenes()
    maps = [explain_batch(model, images, method=method, target=label).maps for label in labels]
    own = [energy(maps[side], masks[side]) for side in (0, 1)]
    other = [energy(maps[side], masks[1 - side]) for side in (0, 1)]
    assert torch.cat(own).mean() > 2 * torch.cat(other).mean()
    # Asked for the other bird, the same image's map moves over to it.
    moved = own[0] / (own[0] + other[0]) > other[1] / (own[1] + other[1])
    assert moved.float().mean() >= 0.85


def test_a_map_that_knows_no_class_does_not_move():
    model, images, labels, _ = scenes()
    left, right = (explain_batch(model, images, method="last_attention", target=label).maps for label in labels)
    assert torch.equal(left, right)

"""Losses of classification, against torch's, torchvision's, scikit-learn's, and values worked by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from torchvision.ops import sigmoid_focal_loss

from vit.training.losses import balanced_weights, multi_label_loss, single_label_loss, smoothed

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(5, 3, generator=GENERATOR)
TARGETS = torch.tensor([0, 2, 1, 1, 0])
SEVERAL = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [0, 0, 1]]).float()
WEIGHTS = torch.tensor([1.0, 0.5, 2.0])
NONE = torch.ones(3)
ONE = torch.ones(5, 1)


def shares(amount=0.0):
    return smoothed(F.one_hot(TARGETS, 3).float(), amount, multilabel=False)


@pytest.mark.parametrize("amount", [0.0, 0.1])
def test_of_single_labels_it_is_torchs_cross_entropy(amount):
    expected = F.cross_entropy(LOGITS, TARGETS, label_smoothing=amount)
    torch.testing.assert_close(single_label_loss(LOGITS, shares(amount), NONE), expected)
    weighed = F.cross_entropy(LOGITS, TARGETS, WEIGHTS, label_smoothing=amount, reduction="none").mean()
    torch.testing.assert_close(single_label_loss(LOGITS, shares(amount), WEIGHTS), weighed)


def test_focal_loss_of_single_labels_is_that_of_the_probability_of_the_truth():
    p = LOGITS.softmax(dim=1)[torch.arange(5), TARGETS]
    expected = (-WEIGHTS[TARGETS] * (1 - p) ** 2 * p.log()).mean()
    torch.testing.assert_close(single_label_loss(LOGITS, shares(), WEIGHTS, focal_gamma=2.0), expected)


def test_of_several_labels_it_is_torchs_binary_cross_entropy():
    found = multi_label_loss(LOGITS, SEVERAL, ONE, WEIGHTS)
    expected = F.binary_cross_entropy_with_logits(LOGITS, SEVERAL, pos_weight=WEIGHTS)
    torch.testing.assert_close(found, expected)


def test_focal_loss_of_several_labels_is_torchvisions():
    found = multi_label_loss(LOGITS, SEVERAL, ONE, NONE, focal_gamma=2.0)
    torch.testing.assert_close(found, sigmoid_focal_loss(LOGITS, SEVERAL, alpha=-1, gamma=2.0, reduction="mean"))


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_an_image_of_weight_two_counts_as_two(gamma):
    weight = torch.tensor([1.0, 2.0, 0.0, 1.0, 1.0])
    rows = torch.tensor([0, 1, 1, 3, 4])
    single = single_label_loss(LOGITS, weight[:, None] * shares(), WEIGHTS, focal_gamma=gamma)
    torch.testing.assert_close(single, single_label_loss(LOGITS[rows], shares()[rows], WEIGHTS, focal_gamma=gamma))
    several = multi_label_loss(LOGITS, weight[:, None] * SEVERAL, weight[:, None], WEIGHTS, focal_gamma=gamma)
    expected = multi_label_loss(LOGITS[rows], SEVERAL[rows], ONE, WEIGHTS, focal_gamma=gamma)
    torch.testing.assert_close(several, expected)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_a_mixed_image_has_the_mix_of_two_losses(gamma):
    def losses(one, weight):
        return torch.stack(
            [
                single_label_loss(LOGITS, one, WEIGHTS, focal_gamma=gamma),
                multi_label_loss(LOGITS, one, weight, WEIGHTS, focal_gamma=gamma),
            ]
        )

    mixed = losses(0.3 * shares() + 0.7 * shares().roll(1, 0) * 2, 0.3 * ONE + 0.7 * ONE * 2)
    torch.testing.assert_close(mixed, 0.3 * losses(shares(), ONE) + 0.7 * 2 * losses(shares().roll(1, 0), ONE))


@pytest.mark.parametrize("gamma", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("true", [0, 1])
def test_focal_loss_has_a_gradient_where_the_probability_rounds_to_one(gamma, true):
    def gradient(loss, positive):
        logits = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True)
        value = loss(logits, positive)
        assert value.isfinite()
        return torch.autograd.grad(value, logits)[0]

    positive = F.one_hot(torch.tensor([true]), 3).float()
    # What is told well with certainty teaches nothing; of what is told wrong with certainty the power of 1 is 1.
    single = gradient(lambda x, m: single_label_loss(x, m, NONE, focal_gamma=gamma), positive)
    torch.testing.assert_close(single, torch.tensor([[0.0, 0.0, 0.0]] if true == 0 else [[1.0, -1.0, 0.0]]))
    several = gradient(lambda x, m: multi_label_loss(x, m, ONE[:1], NONE, focal_gamma=gamma), positive)
    # At p = 1/2 the derivative of -p^γ log(1 - p) is p^γ (p - γ (1 - p) log(1 - p)); of the other side, minus that.
    half = 0.5**gamma * (0.5 + gamma * 0.5 * math.log(2))
    torch.testing.assert_close(several * 3, torch.tensor([[0.0, half, 0.0] if true == 0 else [1.0, -half, 0.0]]))


def test_smoothing_of_several_labels_goes_to_yes_and_no():
    assert smoothed(torch.tensor([[1.0, 0.0]]), 0.25, multilabel=True).tolist() == [[0.875, 0.125]]


def test_balanced_weights_are_those_of_scikit_learn():
    classes = [0] * 5 + [1] * 2 + [2] * 3
    expected = compute_class_weight("balanced", classes=np.arange(3), y=classes)
    assert balanced_weights([5, 2, 3], 10, multilabel=False).tolist() == pytest.approx(expected.tolist())
    assert balanced_weights([5, 2, 0], 10, multilabel=True).tolist() == [1.0, 4.0, 1.0]


def test_a_class_that_every_image_shows_or_none_has_the_weight_one():
    assert balanced_weights([10, 9, 0], 10, multilabel=True).tolist() == pytest.approx([1.0, 1 / 9, 1.0])

"""Training photographs that vote beside the head, worked by hand and beside scikit-learn's classifier."""

import copy
import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from vit.models.classifier import Classifier
from vit.models.encoder import image_encoder
from vit.models.neighbours import Neighbours

# Four photographs in the plane, at 0, 90, 180 and 270 degrees, of any length, of three classes.
FEATURES = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-3.0, 0.0], [0.0, -0.5]])
TARGETS = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]])
HEAD = torch.tensor([[0.2, 0.3, 0.5]])


def mixture(neighbours, features, head):
    """The probabilities, of those of a head."""
    return neighbours(features, head.log()).softmax(dim=1)


def test_the_vote_by_hand():
    # At 30 degrees, the nearest are those at 0 (cosine √3 / 2) and at 90 (cosine 1 / 2).
    image = torch.tensor([[math.sqrt(3), 1.0]])
    near, far = (math.exp(cosine / 0.1) for cosine in (math.sqrt(3) / 2, 1 / 2))
    vote = torch.tensor([[near, far, 0.0]]) / (near + far)
    found = mixture(Neighbours(FEATURES, TARGETS, share=0.25, count=2, temperature=0.1), image, HEAD)
    torch.testing.assert_close(found, 0.75 * HEAD + 0.25 * vote)


def test_which_are_nearest():
    similarity, index = Neighbours(FEATURES, TARGETS, count=3).nearest(torch.tensor([[0.1, -1.0]]))
    assert index.tolist() == [[3, 0, 1]] or index.tolist() == [[3, 0, 2]]
    assert similarity[0, 0] == pytest.approx(1 / math.sqrt(1.01))
    assert similarity.shape == (1, 3)


@pytest.mark.parametrize("count", [1, 5, 40, 100])
def test_the_vote_is_that_of_a_weighted_nearest_neighbours_classifier(count):
    random = np.random.default_rng(0)
    features, images = random.normal(size=(40, 6)), random.normal(size=(25, 6))
    classes = np.arange(40) % 4
    theirs = KNeighborsClassifier(
        min(count, 40), metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.03)
    ).fit(features, classes)
    ours = Neighbours(torch.from_numpy(features), torch.eye(4)[classes], share=0.5, count=count)
    head = torch.from_numpy(random.dirichlet(np.ones(4), 25)).float()
    vote = torch.from_numpy(theirs.predict_proba(images)).float()
    found = mixture(ours, torch.from_numpy(images).float(), head)
    torch.testing.assert_close(found, 0.5 * head + 0.5 * vote, rtol=1e-4, atol=1e-5)


def test_several_classes_of_a_photograph_each_have_its_vote():
    targets = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]])
    neighbours = Neighbours(FEATURES, targets, share=0.5, count=1)
    found = neighbours(torch.tensor([[1.0, 0.1]]), HEAD.logit(), multilabel=True).sigmoid()
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.65, 0.25]]))


@pytest.mark.parametrize(
    ("features", "targets", "options", "told"),
    [
        (FEATURES, TARGETS[:3], {}, "must be"),
        (FEATURES[:0], TARGETS[:0], {}, "must be"),
        (FEATURES[0], TARGETS[0], {}, "must be"),
        (FEATURES, TARGETS, {"share": 1.0}, "share is 1.0"),
        (FEATURES, TARGETS, {"share": -0.1}, "share is -0.1"),
        (FEATURES, TARGETS, {"count": 0}, "count is 0"),
        (FEATURES, TARGETS, {"count": 2.5}, "count is 2.5"),
        (FEATURES, TARGETS, {"temperature": 0.0}, "temperature 0.0"),
        (FEATURES, TARGETS, {"temperature": math.nan}, "temperature nan"),
        (FEATURES / FEATURES, TARGETS, {}, "not finite"),
    ],
)
def test_what_can_not_be(features, targets, options, told):
    with pytest.raises(ValueError, match=told):
        Neighbours(features, targets, **options)


@pytest.fixture
def model(randomise):
    encoder = image_encoder(image_size=(10, 14), patch_size=(5, 7), embed_dim=22, depth=2, num_heads=2)
    return randomise(Classifier(encoder, 3, labels=["a", "b", "c"]), std=0.2)


@pytest.fixture
def images():
    return torch.randn(4, 3, 10, 14)


def given(model, images, **options):
    with torch.no_grad():
        model.neighbours = Neighbours(model.features(images), torch.eye(3)[[0, 1, 2, 0]], **options)
    return model


@torch.no_grad()
def test_a_classifier_s_probabilities_are_the_mixture(model, images):
    head = model(images).softmax(dim=1)
    given(model, images, share=0.5, count=1)  # each image is nearest to itself
    expected = 0.5 * head + 0.5 * torch.eye(3)[[0, 1, 2, 0]]
    torch.testing.assert_close(model.probabilities(model(images)), expected)


@torch.no_grad()
def test_a_multilabel_classifier_s_probabilities_are_the_mixture(model, images):
    model.multilabel = True
    head = model(images).sigmoid()
    given(model, images, share=0.5, count=1)
    expected = 0.5 * head + 0.5 * torch.eye(3)[[0, 1, 2, 0]]
    torch.testing.assert_close(model.probabilities(model(images)), expected)


@torch.no_grad()
def test_half_precision_mixes_in_full(model, images):
    given(model, images, share=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        found, features = model(images), model.features(images)
        head = model.head(features)
    assert (found.dtype, head.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(found, model.neighbours(features.float(), head.float()))
    assert model.bfloat16()(images.bfloat16()).isfinite().all()


@torch.no_grad()
def test_a_class_that_nothing_speaks_for_has_a_finite_logit(model, images):
    given(model, images, share=0.5, count=1)
    model.head.weight.zero_()
    model.head.bias.copy_(torch.tensor([200.0, 0.0, -200.0]))
    assert model(images).isfinite().all()


def test_the_weights_and_a_new_head_know_nothing_of_them(model, images):
    before = set(model.state_dict())
    given(model, images)
    assert set(model.state_dict()) == before
    assert torch.equal(copy.deepcopy(model)(images), model(images))
    model.reset_head(["x", "y"])
    assert model.neighbours is None


def test_gradients_go_through_the_vote(model, images):
    given(model, images, share=0.9)
    images.requires_grad_(True)
    model(images)[:, 0].sum().backward()
    assert images.grad.isfinite().all()
    assert images.grad.abs().sum() > 0


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("margin", [10.0, 30.0])
def test_where_all_agree_the_gradient_is_the_heads(model, images, margin, multilabel):
    """At a margin of 30, the probability is 1 to the last bit, and its own gradient 0 or noise."""
    model.multilabel = multilabel
    model.head.bias.data[0] += margin
    images.requires_grad_(True)
    (expected,) = torch.autograd.grad(model(images)[:, 0].sum(), images)
    with torch.no_grad():
        model.neighbours = Neighbours(model.features(images), torch.eye(3)[[0, 0, 0, 0]], share=0.5)
    (found,) = torch.autograd.grad(model(images)[:, 0].sum(), images)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2 * expected.abs().max().item())


@torch.no_grad()
@pytest.mark.parametrize("multilabel", [False, True])
def test_without_a_share_the_logits_are_the_heads(model, images, multilabel):
    model.multilabel = multilabel
    expected = model(images)
    torch.testing.assert_close(given(model, images, share=0.0)(images), expected)

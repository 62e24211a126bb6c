"""Pooling, the head, and where a walk starts."""

import pytest
import torch

from vit.models.classifier import Classifier, Preprocessing
from vit.models.encoder import image_encoder

SIZES = {"image_size": (10, 21), "patch_size": (5, 7), "embed_dim": 22, "depth": 2, "num_heads": 2}


def classifier(num_classes=5, *, pool="class", labels=(), **options):
    return Classifier(image_encoder(**SIZES, **options), num_classes, pool=pool, labels=labels).eval()


@pytest.fixture
def images():
    return torch.randn(3, 3, 10, 21)


@pytest.mark.parametrize("options", [{}, {"dist_token": True}, {"num_registers": 4}])
@pytest.mark.parametrize("pool", ["class", "mean", "class+mean"])
def test_head_reads_the_pooled_tokens(randomise, images, pool, options):
    model = randomise(classifier(pool=pool, **options))
    tokens = model.encoder(images)
    class_token = tokens[:, 0]
    mean = tokens[:, -6:].mean(dim=1)
    pooled = {"class": class_token, "mean": mean, "class+mean": torch.cat([class_token, mean], dim=1)}[pool]
    expected = pooled @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-5)


def test_without_a_head_the_pooled_vector_comes_out(randomise, images):
    model = randomise(classifier(0, pool="class+mean"))
    assert model(images).shape == (3, 44)
    assert torch.equal(model(images), model.pooled(model.encoder(images)))


@pytest.mark.parametrize("pool", ["class", "mean", "class+mean"])
@pytest.mark.parametrize("options", [{}, {"dist_token": True, "num_registers": 2}])
def test_readout_is_the_share_of_each_token_in_the_pooled_vector(pool, options):
    model = classifier(pool=pool, **options)
    tokens = torch.randn(1, model.encoder.num_prefix_tokens + 6, 22, requires_grad=True)
    (gradient,) = torch.autograd.grad(model.pooled(tokens).sum(), tokens)
    share = gradient[0, :, 0] / gradient[0, :, 0].sum()
    readout = model.readout(tokens.shape[1])
    assert readout.sum() == pytest.approx(1)
    torch.testing.assert_close(readout, share)


def test_readout_by_hand():
    assert classifier().readout(7).tolist() == [1, 0, 0, 0, 0, 0, 0]
    mean = classifier(pool="mean", num_registers=1).readout(6)
    torch.testing.assert_close(mean, torch.tensor([0, 0, 1, 1, 1, 1]) / 4)
    both = classifier(pool="class+mean").readout(5)
    torch.testing.assert_close(both, torch.tensor([4, 1, 1, 1, 1]) / 8)
    no_prefix = classifier(pool="mean", class_token=False).readout(4)
    torch.testing.assert_close(no_prefix, torch.ones(4) / 4)


def test_a_batch_equals_its_images_one_by_one(randomise, images):
    model = randomise(classifier(pool="class+mean"))
    torch.testing.assert_close(model(images), torch.cat([model(image[None]) for image in images]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pool", ["class", "mean", "class+mean"])
def test_gradient_reaches_every_parameter(randomise, images, pool):
    model = randomise(classifier(pool=pool, init_values=0.1), std=0.1).train()
    torch.nn.functional.cross_entropy(model(images), torch.tensor([0, 3, 1])).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_new_head_fits_the_labels_and_the_encoder(images):
    model = classifier(labels=list("abcde"), pool="class+mean").double()
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    model.reset_head(["crow", "jay"])
    assert (model.labels, model.num_classes) == (("crow", "jay"), 2)
    assert model(images.double()).shape == (3, 2)
    assert (model.head.bias == 0).all()
    assert all(torch.equal(value, before[name]) for name, value in model.encoder.state_dict().items())
    elsewhere = classifier().to("meta")
    elsewhere.reset_head(["crow"])
    assert elsewhere.head.weight.is_meta


def test_impossible_models_are_refused():
    with pytest.raises(ValueError, match="'max'; allowed are class, mean, class\\+mean"):
        classifier(pool="max")
    with pytest.raises(ValueError, match="no class token; try pool='mean'"):
        classifier(class_token=False)
    with pytest.raises(ValueError, match="2 labels for 5 classes"):
        classifier(labels=["crow", "jay"])


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"interpolation": "{open('x')}"}, "interpolation is .* allowed are bicubic and bilinear"),
        ({"resize_mode": "whatever"}, "resize_mode is 'whatever'; allowed are squash and crop"),
        ({"crop_pct": 0}, "crop_pct is 0; allowed"),
        ({"mean": ("a", 0.5, 0.5)}, "mean and std"),
        ({"std": (0.0, 0.5, 0.5)}, "std above 0"),
    ],
)
def test_a_preprocessing_that_is_none_is_refused(keywords, message):
    """What a stranger's model folder says of it ends in the code of a model card, too."""
    with pytest.raises(ValueError, match=message):
        Preprocessing((8, 8), **keywords)

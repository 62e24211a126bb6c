"""Attribution against the equations of Chefer et al. 2021, with autograd through timm's explicit attention maps."""

import pytest
import torch

from vit.saliency import walk
from vit.saliency.attribution import generic_attribution
from vit.saliency.record import record

CLASSES = torch.tensor([4, 0, 2])

# Prefix tokens, keywords of timm's model.
MODELS = [
    (0, {"class_token": False, "global_pool": "avg", "fc_norm": False}),
    (1, {}),
    (1, {"qk_norm": True, "init_values": 0.1}),
    (5, {"reg_tokens": 4, "no_embed_class": True}),
]


def textbook(maps, target, readout, start_block=0):
    """Equations 5 and 6: R <- R + mean_h relu(dA * A) R, from the first block to the last."""
    gradients = torch.autograd.grad(target.sum(), maps)
    tokens = maps[0].shape[-1]
    relevance = torch.eye(tokens, dtype=torch.float64).expand(len(maps[0]), tokens, tokens)
    for attention, gradient in list(zip(maps, gradients, strict=True))[start_block:]:
        weighted = (gradient * attention).clamp(min=0).mean(dim=1)
        relevance = relevance + weighted @ relevance
    return (readout.double() @ relevance).detach()


def attribute(model, images, classes, start_block=0):
    with record(model, gradients=True) as trace:
        logits = model(images)
        gradients = trace.gradients(logits.gather(1, classes[:, None]))
    readout = model.readout(trace.blocks[-1].k.shape[2])
    return generic_attribution(trace.blocks, gradients, readout, start_block=start_block)


@pytest.fixture
def images():
    return torch.randn(3, 3, 21, 35, dtype=torch.float64)


@pytest.fixture
def pair(timm_vit, as_ours):
    def build(**keywords):
        reference = timm_vit(dynamic_img_size=True, **keywords).double()
        return as_ours(reference).double(), reference

    return build


@pytest.mark.parametrize("tile_numbers", [None, 100])
@pytest.mark.parametrize("start_block", [0, 1])
@pytest.mark.parametrize(("prefix", "keywords"), MODELS)
def test_equals_the_textbook(monkeypatch, pair, attention_maps, images, prefix, keywords, start_block, tile_numbers):
    if tile_numbers:
        monkeypatch.setattr(walk, "TILE_NUMBERS", tile_numbers)
    model, reference = pair(**keywords)
    maps, logits = attention_maps(reference, images)
    readout = torch.zeros(prefix + 15, dtype=torch.float64)
    readout[slice(0, 1) if prefix else slice(None)] = 1 if prefix else 1 / 15
    expected = textbook(maps, logits[range(3), CLASSES], readout, start_block)
    relevance = attribute(model, images, CLASSES, start_block)
    assert relevance.shape == (3, prefix + 15)
    torch.testing.assert_close(relevance.double(), expected, rtol=1e-5, atol=1e-9)
    assert (expected[:, prefix:] > 1e-3).any(dim=1).all()  # the patches of every image got their part


def test_classes_have_maps_of_their_own(pair, images):
    model, _ = pair()
    first, second = (attribute(model, images, torch.full((3,), index)) for index in (0, 3))
    assert ((first - second).abs().amax(dim=1) > 0.01 * first[:, 1:].amax(dim=1)).all()


def test_a_batch_equals_its_images_one_by_one(pair, images):
    model, _ = pair()
    one_by_one = [attribute(model, images[i : i + 1], CLASSES[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(attribute(model, images, CLASSES), torch.cat(one_by_one))


def test_a_batch_walked_together_is_the_same(request, pair, images):
    model, _ = pair()
    expected = attribute(model, images, CLASSES)
    request.getfixturevalue("walked_together")
    torch.testing.assert_close(attribute(model, images, CLASSES), expected)


def test_works_in_inference_mode(pair, images):
    model, _ = pair()
    expected = attribute(model, images, CLASSES)
    with torch.inference_mode():
        torch.testing.assert_close(attribute(model, images.clone(), CLASSES), expected)


def test_weights_are_left_alone(pair, images):
    model, _ = pair()
    model.encoder.norm.weight.requires_grad_(False)
    before = [parameter.requires_grad for parameter in model.parameters()]
    attribute(model, images, CLASSES)
    assert [parameter.requires_grad for parameter in model.parameters()] == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_each_block_needs_its_gradient(pair, images):
    model, _ = pair()
    with record(model, gradients=True) as trace:
        gradients = trace.gradients(model(images)[:, 0])
    with pytest.raises(ValueError, match="shorter"):
        generic_attribution(trace.blocks, gradients[:-1], model.readout(16))

"""The one call for every method: shapes, what it leaves alone, and what it refuses."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from vit.models.classifier import Classifier
from vit.models.encoder import image_encoder
from vit.saliency.attribution import generic_attribution
from vit.saliency.explain import explain, explain_batch
from vit.saliency.methods import METHODS as EVERY_METHOD
from vit.saliency.record import record
from vit.saliency.rollout import RolloutOptions, rollout

SIZES = {"image_size": (10, 21), "patch_size": (5, 7), "embed_dim": 22, "depth": 3, "num_heads": 2}
FEW = {"rise": {"masks": 12}, "smoothgrad": {"samples": 3}, "integrated_gradients": {"steps": 3}}
ROTARY = {"rotary": {"kind": "centred", "theta": 100.0}, "learned_positions": False, "embed_dim": 24}
METHODS = [(name, FEW.get(name, {})) for name in EVERY_METHOD]
METHODS += [("rollout", {"head_fusion": "max", "discard_ratio": 0.5}), ("legrad", {"refine": True})]


@pytest.fixture
def build(randomise):
    def make(num_classes=5, *, pool="class", **options):
        return randomise(Classifier(image_encoder(**{**SIZES, **options}), num_classes, pool=pool))

    return make


@pytest.fixture
def images():
    return torch.randn(3, 3, 15, 28)


@pytest.mark.parametrize(("method", "options"), METHODS)
@pytest.mark.parametrize("size", [(10, 21), (15, 28), (5, 7), (40, 14)])
@pytest.mark.parametrize(
    "model_options",
    [
        {},
        {"pool": "mean", "class_token": False},
        {"pool": "class+mean", "dist_token": True, "num_registers": 3},
        {"pool": "attention", "num_registers": 2},
        ROTARY,
    ],
)
def test_a_map_has_the_size_of_its_image(build, method, options, size, model_options):
    model = build(**model_options)
    images = torch.randn(2, 3, *size)
    maps = explain(model, images, method=method, **options)
    assert maps.shape == (2, *size)
    assert maps.dtype == torch.float32
    assert not maps.requires_grad
    assert maps.isfinite().all()


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_pixels_are_bilinear_between_patches(build, images, method, options):
    model = build()
    grid = explain_batch(model, images, method=method, **options).maps
    assert grid.shape == (3, 3, 4)
    expected = F.interpolate(grid[:, None], (15, 28), mode="bilinear", align_corners=False)[:, 0]
    maps = explain(model, images, method=method, **options)
    torch.testing.assert_close(maps, expected)
    torch.testing.assert_close(maps[:, 7, 3], grid[:, 1, 0])  # the middle pixel of a patch


@pytest.mark.parametrize("options", [{}, {"head_fusion": "min", "residual": 0.3, "discard_ratio": 0.4}])
@pytest.mark.parametrize("class_token", [True, False])
def test_rollout_is_the_relevance_of_the_patches(build, images, options, class_token):
    model = build(pool="mean", class_token=class_token, num_registers=2)
    with torch.no_grad(), record(model) as trace:
        model.encoder(images)
    settings, readout = RolloutOptions(**options), model.readout(12 + 2 + class_token)
    relevance = rollout(trace.blocks, readout, settings, kept_columns=int(class_token), start_block=1)
    expected = relevance[:, 2 + class_token :].reshape(3, 3, 4)
    maps = explain_batch(model, images, method="rollout", start_block=1, **options).maps
    torch.testing.assert_close(maps, expected)


def test_attribution_is_the_relevance_of_the_patches(build, images):
    model = build(num_registers=2)
    with record(model, gradients=True) as trace:
        gradients = trace.gradients(model(images)[:, 3])
    relevance = generic_attribution(trace.blocks, gradients, model.readout(15), start_block=1)
    maps = explain_batch(model, images, method="attribution", target=3, start_block=1).maps
    torch.testing.assert_close(maps, relevance[:, 3:].reshape(3, 3, 4))


@pytest.mark.parametrize(("method", "options"), METHODS)
@pytest.mark.parametrize("model_options", [{}, {"pool": "attention"}, ROTARY])
def test_logits_are_those_of_the_model(build, images, method, options, model_options):
    model = build(**model_options)
    torch.testing.assert_close(explain_batch(model, images, method=method, **options).logits, model(images).detach())


def test_no_target_means_the_predicted_class(build, images):
    model = build()
    predicted = model(images).argmax(dim=1)
    maps = explain(model, images, method="attribution")
    assert torch.equal(maps, explain(model, images, method="attribution", target=predicted))
    others = (predicted + 1) % 5
    assert not torch.allclose(maps, explain(model, images, method="attribution", target=others))


def test_one_target_serves_the_batch(build, images):
    model = build()
    every = explain(model, images, method="attribution", target=torch.tensor([2, 2, 2]))
    assert torch.equal(explain(model, images, method="attribution", target=2), every)


@pytest.mark.parametrize("target", [None, 2, torch.tensor([0, 1, 2])])
def test_rollout_knows_no_class(build, images, target):
    model = build()
    assert torch.equal(explain(model, images, target=target), explain(model, images))


@pytest.mark.parametrize(("method", "options"), METHODS)
@pytest.mark.parametrize("pool", ["class+mean", "attention"])
def test_a_batch_equals_its_images_one_by_one(build, images, method, options, pool):
    model = build(pool=pool)
    one_by_one = torch.cat([explain(model, image[None], method=method, **options) for image in images])
    maps = explain(model, images, method=method, **options)
    torch.testing.assert_close(maps, one_by_one, rtol=1e-4, atol=1e-5 * maps.max().item())


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_the_model_is_left_as_it_was(build, images, method, options):
    model = build(drop_path=0.5)
    expected = explain(model, images, method=method, **options)
    model.train()
    model.encoder.blocks[1].eval()
    model.head.weight.requires_grad_(False)
    model.head.bias.grad = torch.ones(5)

    def state():
        modules = [(module.training, len(module._forward_hooks)) for module in model.modules()]
        return modules, [(p.requires_grad, p.grad is None, p._version) for p in model.parameters()]

    before = state()
    # Drop path would change the maps: they are of the model in evaluation.
    torch.testing.assert_close(explain(model, images, method=method, **options), expected)
    with pytest.raises(ValueError, match="pixels"):
        explain(model, images[..., :-1], method=method, **options)
    assert state() == before
    assert (model.head.bias.grad == 1).all()


@pytest.mark.parametrize(("method", "options"), METHODS)
@pytest.mark.parametrize("surroundings", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(build, images, method, options, surroundings):
    model = build()
    expected = explain(model, images, method=method, target=torch.tensor([4, 0, 2]), **options)
    with surroundings():
        maps = explain(model, images.clone(), method=method, target=torch.tensor([4, 0, 2]), **options)
        torch.testing.assert_close(maps, expected)


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_works_under_autocast(build, images, method, options):
    model = build()
    exact = explain(model, images, method=method, target=1, **options)
    with torch.autocast("cpu", torch.bfloat16):
        explanation = explain_batch(model, images, method=method, target=1, **options)
        maps = explain(model, images, method=method, target=1, **options)
    assert maps.dtype == explanation.maps.dtype == explanation.logits.dtype == torch.float32
    similarity = torch.corrcoef(torch.stack([maps.flatten(), exact.flatten()]))[0, 1]
    assert similarity > 0.95


def test_gradients_work_compiled(build, images):
    model = build()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    for method in ("attribution", "legrad", "grad_cam", "input_x_gradient"):
        expected = explain(model, images, method=method)
        torch.testing.assert_close(explain(compiled, images, method=method), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "rolout"}, "method is 'rolout'; allowed are default, rollout, .* \\(did you mean 'rollout'\\?\\)"),
        (
            {"method": "rollout", "discard_ration": 0.5},
            "'rollout' has no option 'discard_ration' \\(did you mean 'discard_ratio'\\?\\)",
        ),
        ({"method": "rollout", "discard_ratio": 0.5, "kept_columns": 4}, "'rollout' has no option 'kept_columns'"),
        (
            {"method": "attribution", "head_fusion": "max"},
            "'attribution' has no option 'head_fusion'; it takes start_block",
        ),
        ({"method": "rollout", "head_fusion": "median"}, "'median'; allowed are mean, max, min"),
        ({"method": "rollout", "start_block": 3}, "start_block is 3; the model has blocks 0 to 2"),
        ({"method": "attribution", "target": 5}, "classes 0 to 4"),
        (
            {"method": "last_attention", "start_block": 1},
            "'last_attention' has no option 'start_block'; it takes head_fusion",
        ),
        ({"method": "last_attention", "head_fusion": "max"}, "'max'; allowed are mean, median"),
        ({"method": "legrad", "start_block": 3}, "start_block is 3; the model has blocks 0 to 2"),
        ({"method": "gradient_rollout", "residual": 1.5}, "residual is 1.5"),
        ({"method": "attribution", "target": -1}, "classes 0 to 4"),
        ({"method": "attribution", "target": torch.tensor([0, 1])}, "one for each of the 3 images"),
        ({"method": "attribution", "target": torch.tensor([[0], [1], [2]])}, "one for each of the 3 images"),
    ],
)
def test_what_can_not_be_is_refused(build, images, options, message):
    with pytest.raises(ValueError, match=message):
        explain(build(), images, **options)


def test_a_size_that_the_patches_do_not_divide_is_refused(build):
    with pytest.raises(ValueError, match=r"16 x 28 pixels .* possible heights: 15 or 20"):
        explain(build(), torch.randn(1, 3, 16, 28))


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_without_a_head_what_explains_a_class_is_refused(build, images, method):
    model = build(0)
    if EVERY_METHOD[method].needs_class:
        with pytest.raises(ValueError, match=f"{method} explains a class, but the model has no head; try .*'rollout'"):
            explain(model, images, method=method)
        return
    explanation = explain_batch(model, images, method=method)
    torch.testing.assert_close(explanation.logits, model(images).detach())
    assert explanation.maps.shape == (3, 3, 4)


@pytest.mark.parametrize("method", [name for name, method in EVERY_METHOD.items() if method.needs_class])
def test_classes_have_maps_of_their_own(build, images, method):
    model = build()
    first, second = (explain(model, images, method=method, target=index, **FEW.get(method, {})) for index in (1, 3))
    assert ((first - second).abs().amax(dim=(1, 2)) > 0.01 * first.abs().amax(dim=(1, 2))).all()


@pytest.mark.parametrize("method", [name for name, method in EVERY_METHOD.items() if method.family != "baseline"])
def test_maps_change_when_blocks_are_randomised_from_the_top(build, images, method):
    """The cascading randomisation of Adebayo et al. 2018: a map that stays shows the image and not the model."""
    model, options = build(), FEW.get(method, {})
    maps = [explain_batch(model, images, method=method, target=1, **options).maps]
    for block in reversed(model.encoder.blocks):
        for weight in block.parameters():
            torch.nn.init.normal_(weight, std=0.5)
        maps.append(explain_batch(model, images, method=method, target=1, **options).maps)
    for before, after in pairwise(maps):
        likeness = torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1]
        assert likeness < 0.99


def test_noise_is_of_the_image_and_the_seed(build, images):
    model = build()
    maps = explain_batch(model, images, method="random").maps
    assert torch.equal(explain_batch(model, images.flip(0), method="random").maps, maps.flip(0))
    assert len(maps.unique()) == maps.numel()
    assert not torch.equal(explain_batch(model, images, method="random", seed=1).maps, maps)


def test_the_centre_is_highest_in_the_middle(build):
    maps = explain_batch(build(), torch.randn(2, 3, 15, 21), method="centre").maps
    assert (maps.flatten(1).argmax(dim=1) == 4).all()  # of 3 x 3 patches


def test_an_error_within_a_method_is_not_taken_for_an_option(build, images, monkeypatch):
    def broken(model, images, target):
        raise TypeError("attribute() got an unexpected keyword argument 'baselines'")

    methods = {**EVERY_METHOD, "rollout": replace(EVERY_METHOD["rollout"], maps=broken)}
    monkeypatch.setattr("vit.saliency.explain.METHODS", methods)
    monkeypatch.setattr("vit.saliency.methods.METHODS", methods)
    with pytest.raises(TypeError, match="baselines"):
        explain(build(), images, method="rollout")

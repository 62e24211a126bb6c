"""Models in memory are loaded as they are: with all that they know of themselves, and without being changed."""

from functools import partial

import pytest
import timm
import torch
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import ParallelScalingBlock, ResPostBlock
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionVit

from vit.checkpoints.load import load, load_with_report
from vit.foundation import UserError
from vit.models.classifier import Classifier, Preprocessing
from vit.models.encoder import image_encoder

TIMM = {
    "plain": {},
    "eleven heads, large epsilon": {"num_heads": 11, "norm_layer": partial(nn.LayerNorm, eps=1e-2)},
    "non-square": {"img_size": (14, 35)},
    "non-square, dynamic": {"img_size": (14, 35), "dynamic_img_size": True},
    "as many patches as a square": {"img_size": (7, 28)},
    "distilled": {"distilled": True},
    "mean, class token, registers": {"global_pool": "avg", "reg_tokens": 3, "no_embed_class": True},
    "mean, no norm behind": {"global_pool": "avg", "fc_norm": False},
    "no norm at all": {"final_norm": False},
    "attention pooling": {"global_pool": "map", "class_token": False, "act_layer": "gelu_tanh"},
    "quick gelu": {"act_layer": "quick_gelu", "pre_norm": True},
    "swiglu": {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU},
    "mean, no head": {"global_pool": "avg", "num_classes": 0},
}
UNFIT = {
    "relu": ({"act_layer": nn.ReLU}, "the activation ReLU; known are gelu"),
    "max": ({"global_pool": "avgmax"}, "'avgmax' pooling"),
    "prefix in the mean": (
        {"global_pool": "avg", "pool_include_prefix": True},
        "a pooling that includes prefix tokens",
    ),
    "post-norm blocks": ({"block_fn": ResPostBlock, "init_values": None}, "blocks of ResPostBlock"),
    "parallel blocks": ({"block_fn": ParallelScalingBlock}, "blocks of ParallelScalingBlock"),
    "no positions": ({"pos_embed": "none"}, "no positions"),
    "gate behind": ({"mlp_layer": timm.layers.GluMlp, "act_layer": nn.SiLU}, "a gated MLP"),
}


def assert_close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TIMM)
@torch.no_grad()
def test_timm(timm_vit, name):
    reference = timm_vit(**TIMM[name]).double()
    model, report = load_with_report(reference)
    images = torch.randn(2, 3, *reference.patch_embed.img_size, dtype=torch.float64)
    assert_close(model.double().eval()(images), reference(images))
    assert (report.assumed, report.source) == ([], type(reference).__name__)


@pytest.mark.parametrize("name", UNFIT)
def test_timms_other_computations_are_refused(timm_vit, name):
    options, told = UNFIT[name]
    with pytest.raises(UserError) as caught:
        load(timm_vit(**options))
    assert told in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5


def test_norms_of_different_epsilons_are_refused(timm_vit):
    reference = timm_vit()
    reference.norm.eps = 1e-3
    with pytest.raises(UserError, match=r"epsilons of 1e-06, 0\.001"):
        load(reference)


def test_what_timm_keeps_of_the_training_comes_along():
    options = {"embed_dim": 24, "depth": 1, "num_heads": 2, "img_size": 32}
    model = load(timm.create_model("vit_base_patch16_siglip_224", **options))
    assert model.preprocessing == Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3, "bicubic", "crop", 0.9)
    reference = timm.create_model("vit_base_patch16_224", num_classes=2, **options)
    reference.pretrained_cfg = reference.pretrained_cfg | {"label_names": ["crow", "gull"]}
    assert load(reference).labels == ("crow", "gull")
    reference.reset_classifier(3)  # its record still has the names of the two
    assert load(reference).labels == ()


@torch.no_grad()
def test_torchvision(randomise):
    reference = randomise(
        TorchvisionVit(28, 7, 2, 3, 24, 40, num_classes=5, norm_layer=partial(nn.LayerNorm, eps=1e-2))
    )
    model, report = load_with_report(reference)
    images = torch.randn(2, 3, 28, 28)
    assert_close(model.eval()(images), reference(images))
    assert model.encoder.architecture["norm_eps"] == 1e-2
    assert "num_heads" not in "".join(report.assumed)


def ours(randomise, pool="class", **options):
    shape = {"image_size": (14, 21), "patch_size": (7, 7), "embed_dim": 22, "depth": 2, "num_heads": 11, **options}
    prepared = Preprocessing((28, 21), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear", "crop", 0.9)
    return randomise(Classifier(image_encoder(**shape), 2, pool=pool, labels=("a", "b"), preprocessing=prepared))


@pytest.mark.parametrize(
    ("pool", "options"),
    [
        ("class", {}),
        ("class+mean", {"num_registers": 2, "act": "quick_gelu", "norm_eps": 1e-2}),
        ("class+dist", {"dist_token": True, "post_norm": True}),
        ("attention", {"class_token": False}),
        ("mean", {"final_norm": False, "embed_norm": True, "patch_bias": False}),
    ],
)
def test_our_own(randomise, pool, options):
    reference = ours(randomise, pool, **options)
    model = load(reference).eval()
    images = torch.randn(2, 3, 14, 21)
    assert torch.equal(model(images), reference(images))
    assert (model.labels, model.preprocessing) == (reference.labels, reference.preprocessing)
    other_size = torch.randn(2, 3, 7, 28)
    assert torch.equal(load(reference.encoder).eval().encoder(other_size), reference.encoder(other_size))


def test_a_loaded_model_shares_nothing_with_the_one_it_was_loaded_from(randomise, timm_vit):
    for reference in (ours(randomise), timm_vit(), ours(randomise).encoder):
        before = {name: value.clone() for name, value in reference.state_dict().items()}
        model = load(reference)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(7.0)
        assert all(torch.equal(value, before[name]) for name, value in reference.state_dict().items())


def test_wrapped_models_are_found(timm_vit):
    reference = timm_vit()
    images = torch.randn(2, 3, 14, 14)
    expected = reference(images)
    for wrapped in (nn.DataParallel(reference), torch.compile(reference), torch.compile(nn.DataParallel(reference))):
        model, report = load_with_report(wrapped)
        assert_close(model.eval()(images), expected)
        assert report.assumed == []


@pytest.mark.parametrize("options", [{}, {"distilled": True}])
@torch.no_grad()
def test_half_precision_becomes_single_before_anything_is_computed(timm_vit, options):
    reference = timm_vit(**options, dynamic_img_size=True).half()
    model = load(reference).eval()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    larger = load(reference, image_size=(21, 28)).eval()
    reference = reference.float()
    images = torch.randn(2, 3, 14, 14)
    assert_close(model(images), reference(images))
    if not options:
        images = torch.randn(2, 3, 21, 28)
        assert_close(larger(images), reference(images))


def test_a_model_without_weights_is_refused(timm_vit):
    with pytest.raises(UserError, match="on the meta device"):
        load(timm_vit().to("meta"))


def test_an_unknown_module_is_told_by_its_keys(timm_vit):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = timm_vit(embed_dim=192, num_heads=3)

    _, report = load_with_report(Own())
    assert report.source == "Own"
    assert "num_heads=3" in report.assumed
    with pytest.raises(UserError, match="Linear is not a Vision Transformer of a known kind"):
        load(nn.Linear(2, 3))

"""torchvision's checkpoints give torchvision's logits, at other sizes with its own resizing of positions."""

import pytest
import torch
from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer, interpolate_embeddings

from vit.checkpoints.load import load, load_with_report
from vit.foundation import UserError

SIZES = {"image_size": 14, "patch_size": 7, "num_layers": 3, "num_heads": 2, "hidden_dim": 22, "mlp_dim": 46}
MODELS = {
    "plain": {},
    "one deep, many heads": {"num_layers": 1, "num_heads": 11},
    "deeper, small patches": {"num_layers": 5, "image_size": 10, "patch_size": 2, "hidden_dim": 15, "num_heads": 3},
}


@pytest.fixture
def vision_transformer(randomise):
    def build(**keywords):
        return randomise(VisionTransformer(**{**SIZES, "num_classes": 5, **keywords}))

    return build


@pytest.fixture
def file(tmp_path):
    def write(state):
        torch.save(state, tmp_path / "weights.pth")
        return tmp_path / "weights.pth"

    return write


def assert_close(ours, theirs):
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def old_names(state):
    """As torchvision before 0.14 wrote them."""
    return {
        name.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): state[name] for name in state
    }


@pytest.mark.parametrize("named", [lambda state: state, old_names], ids=["new names", "old names"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_logits_equal_torchvision(vision_transformer, file, name, named):
    reference = vision_transformer(**MODELS[name]).double()
    state = named(reference.state_dict())
    heads = MODELS[name].get("num_heads", SIZES["num_heads"])
    model, report = load_with_report(file(state), num_heads=heads)
    images = torch.randn(3, 3, *(reference.image_size,) * 2, dtype=torch.float64)
    assert_close(model.double().eval()(images), reference(images))
    assert (report.layout, report.matched, report.dropped) == ("torchvision", len(state), [])
    assert report.assumed == ["norm_eps=1e-06", "act=gelu", "pos_interpolation=bicubic_corners"]


@pytest.mark.parametrize("size", [28, 7, 35])
@torch.no_grad()
def test_other_sizes_equal_torchvision(vision_transformer, file, size):
    trained = vision_transformer(image_size=21)
    reference = vision_transformer(image_size=size).double()
    path = file(trained.state_dict())
    reference.load_state_dict(interpolate_embeddings(size, 7, trained.state_dict()))
    images = torch.randn(2, 3, size, size, dtype=torch.float64)
    for options in ({}, {"image_size": (size, size)}):  # resized at every forward pass; when loaded
        assert_close(load(path, num_heads=2, **options).double().eval()(images), reference(images))


@pytest.mark.parametrize("way", ["file", "live"])
@torch.no_grad()
def test_a_head_behind_a_representation_layer_is_left_out_if_that_is_said(vision_transformer, file, way):
    reference = vision_transformer(representation_size=13).double()
    source = file(reference.state_dict()) if way == "file" else reference
    with pytest.raises(UserError, match="head reads a representation layer") as caught:
        load(source, num_heads=2)
    assert "pool='class'" in str(caught.value)
    assert "--model.pool class" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5
    model, report = load_with_report(source, num_heads=2, pool="class")
    assert report.dropped == ["heads.* (4 tensors, the head reads a representation layer)"]
    images = torch.randn(2, 3, 14, 14, dtype=torch.float64)
    assert model.num_classes == 0
    reference.heads = torch.nn.Identity()
    assert_close(model.double().eval()(images), reference(images))


def test_a_convolutional_stem_is_refused(vision_transformer, file):
    stem = [ConvStemConfig(8, 3, 2), ConvStemConfig(8, 3, 2)]
    reference = vision_transformer(image_size=16, patch_size=4, conv_stem_configs=stem)
    with pytest.raises(UserError, match="convolutional stem, which does not fit") as caught:
        load(file(reference.state_dict()), num_heads=2)
    assert len(str(caught.value).splitlines()) <= 5

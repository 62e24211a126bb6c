"""What the user says of a checkpoint: it completes what the checkpoint says, and contradicts nothing."""

import pytest
import torch
from safetensors.torch import save_file

from vit.checkpoints.folder import write_folder
from vit.checkpoints.load import load, load_with_report
from vit.foundation import UserError
from vit.models.classifier import Classifier
from vit.models.encoder import image_encoder


@pytest.fixture
def folder(tmp_path, randomise):
    """A model folder of ours."""
    encoder = image_encoder(
        image_size=(14, 21), patch_size=(7, 7), embed_dim=24, depth=2, num_heads=3, act="quick_gelu", norm_eps=1e-5
    )
    write_folder(randomise(Classifier(encoder, 2, labels=("a", "b"))), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def bare(tmp_path, timm_vit):
    save_file(timm_vit().state_dict(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def refusal(source, **options):
    with pytest.raises(UserError) as caught:
        load(source, **options)
    assert len(str(caught.value).splitlines()) <= 5
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("num_heads", 12, 3),
        ("act", "gelu", "quick_gelu"),
        ("norm_eps", 1e-6, 1e-05),
        ("trained_size", (21, 21), (14, 21)),
    ],
)
def test_what_contradicts_the_checkpoint_is_refused(folder, name, given, said):
    told = refusal(folder, **{name: given})
    assert f"{name} is {given}, but {folder} says {said}" in told
    assert f"{name} is {given}, but Classifier says {said}" in refusal(load(folder), **{name: given})


def test_what_a_library_says_is_not_contradicted(timm_vit):
    assert "num_heads is 11, but VisionTransformer says 2" in refusal(timm_vit(), num_heads=11)


def test_what_agrees_with_the_checkpoint_is_taken(folder):
    agreed = {"num_heads": 3, "act": "quick_gelu", "norm_eps": 1e-5, "pos_interpolation": "bicubic_antialias"}
    model, report = load_with_report(folder, **agreed, trained_size=(14, 21))
    assert report.notes == []
    images = torch.randn(2, 3, 14, 21)
    assert torch.equal(model.eval()(images), load(folder).eval()(images))


def test_another_way_to_resize_positions_is_noted(folder):
    model, report = load_with_report(folder, pos_interpolation="bicubic", image_size=(28, 28))
    assert report.notes == ["positions are resized by bicubic, as asked; the checkpoint says bicubic_antialias"]
    assert report.resized == ["positions from 2 x 3 to 4 x 4 by bicubic"]
    assert model.encoder.embed.pos_interpolation == "bicubic"


@pytest.mark.parametrize("name", ["image_size", "patch_size", "trained_size"])
def test_a_size_is_one_number_or_two(bare, name):
    size = 14 if name != "patch_size" else 2
    for given in (size, [size, size], (size, size), torch.Size((size, size))):
        model = load(bare, num_heads=2, **{name: given})
        assert model.encoder.architecture["patch_size" if name == "patch_size" else "image_size"] == (size, size)
    for wrong in (0, -14, 14.0, "14", True, (14,), (14, 14, 14), (14, 0), (14.0, 14), ("14", "14"), {14: 14}):
        told = refusal(bare, num_heads=2, **{name: wrong})
        assert f"{name} is {wrong!r}; allowed are a number of pixels, 1 or more, or two" in told

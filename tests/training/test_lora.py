"""LoRA: peft's adapters on our encoder, and the plain model that they are merged into."""

from pathlib import Path

import peft
import pytest
import torch
from PIL import Image

import cli
import vit
from vit.checkpoints.sources.lightning import merge_adapters
from vit.foundation import UserError
from vit.models.classifier import Classifier
from vit.models.encoder import image_encoder
from vit.training.lora import add_lora, merged
from vit.training.optim import choose_trained

SIZES = {"image_size": (10, 21), "patch_size": (5, 7), "embed_dim": 22, "depth": 3, "num_heads": 2}
IMAGES = torch.randn(2, 3, 10, 21, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["class", "mean"])
def plain(request, randomise):
    return randomise(Classifier(image_encoder(**SIZES), 5, pool=request.param), std=0.2)


@torch.no_grad()
def move(model, std=0.1):
    """As training would: B begins at zero."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.normal_(std=std)
    return model


def test_adapters_begin_as_nothing(plain):
    before = plain(IMAGES)
    add_lora(plain, rank=3, alpha=6)
    torch.testing.assert_close(plain(IMAGES), before)


def test_only_adapters_and_the_head_learn(plain):
    choose_trained(plain, "lora", lora_rank=3, lora_alpha=6)
    learning = {name for name, parameter in plain.named_parameters() if parameter.requires_grad}
    assert {"head.weight", "head.bias"} <= learning
    assert all("lora_" in name for name in learning - {"head.weight", "head.bias"})
    assert len(learning) == 2 + 3 * 4 * 2  # A and B of four matrices of each of three blocks
    move(plain)(IMAGES).square().sum().backward()
    for name, parameter in plain.named_parameters():  # the last block's queries too, of which only some are read
        assert (parameter.grad is not None and bool(parameter.grad.abs().max() > 0)) == (name in learning), name


def test_the_merged_model_is_a_plain_one_that_computes_the_same(plain):
    names = plain.state_dict().keys()
    head_before = plain.head.weight.clone()
    choose_trained(plain, "lora", lora_rank=3, lora_alpha=6)
    move(plain)
    expected = plain(IMAGES)
    found = merged(plain)
    assert found.state_dict().keys() == names
    assert not torch.equal(found.head.weight, head_before)
    torch.testing.assert_close(found(IMAGES), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(plain(IMAGES), expected)  # which goes on learning


def test_it_is_the_papers_sum(plain):
    """W + alpha / rank B A, worked out from peft's own parts."""
    weight = plain.encoder.blocks[1].attn.qkv.weight.clone()
    add_lora(plain, rank=3, alpha=6)
    layer = move(plain).encoder.blocks[1].attn.qkv
    assert isinstance(layer, peft.tuners.lora.LoraLayer)
    expected = weight + 6 / 3 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(merged(plain).encoder.blocks[1].attn.qkv.weight, expected)


def test_adapters_in_half_precision_are_added_in_float32(plain):
    add_lora(plain, rank=3, alpha=6)
    layer = move(plain).encoder.blocks[1].attn.qkv
    half = {name: value.to(torch.bfloat16) for name, value in plain.state_dict().items()}
    a, b = (half[f"encoder.blocks.1.attn.qkv.lora_{which}.default.weight"].double() for which in "AB")
    expected = half["encoder.blocks.1.attn.qkv.base_layer.weight"].double() + layer.scaling["default"] * b @ a
    found = merge_adapters(half, layer.scaling["default"])["encoder.blocks.1.attn.qkv.weight"]
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-6)


def test_without_adapters_nothing_is_copied(plain):
    assert merged(plain) is plain


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_checkpoint_of_training_is_loaded_as_the_model_folder_is(tmp_path, ema):
    for split in ("train", "val"):
        for label in ("a", "b"):
            (tmp_path / "photos" / split / label).mkdir(parents=True)
            Image.effect_noise((20, 20), 90).convert("RGB").save(tmp_path / "photos" / split / label / "1.png")
    run, assets = tmp_path / "run", str(Path(vit.__file__).parent / "assets" / "birdscenes")
    argv = ["train", "--config", "classify/lora", "--data.root", str(tmp_path / "photos"), "--run", str(run),
            "--optim.lr", "1e-2", "--optim.ema", str(ema), "--data.num_workers", "0", "--trainer.max_epochs", "1",
            "--model.pretrained", assets, "--optim.lora_rank", "3", "--optim.lora_alpha", "7"]  # fmt: skip
    assert cli.main(argv) == 0
    images = torch.randn(2, 3, *vit.load(run / "model").preprocessing.image_size)
    with torch.no_grad():
        expected, found, begun = (
            vit.load(source).eval().encoder(images)
            for source in (run / "model", run / "checkpoints" / "last.ckpt", assets)
        )
    assert (expected - begun).abs().max() > 1e-2
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_checkpoint_without_the_scale_of_its_adapters_is_refused(plain, tmp_path):
    choose_trained(plain, "lora", lora_rank=3, lora_alpha=6)
    torch.save({"state_dict": {f"model.{name}": value for name, value in plain.state_dict().items()}},
               tmp_path / "old.ckpt")  # fmt: skip
    with pytest.raises(UserError, match="does not say how its adapters count; give its model folder"):
        vit.load(tmp_path / "old.ckpt")

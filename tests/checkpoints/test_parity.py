"""Loaded weights give the numbers of the library that wrote them: timm, tiny and random, in float64."""

from functools import partial

import pytest
import timm
import torch
from timm.layers import SwiGLUPacked
from torch import nn

from vit.checkpoints.canonical import HEADS_BY_WIDTH

# Keywords of timm's model; options of `vit.load` that no file can tell.
MODELS = {
    "plain": ({}, {}),
    "one deep, many heads": ({"depth": 1, "num_heads": 11}, {}),
    "deeper, small patches": ({"depth": 5, "img_size": 10, "patch_size": 2, "embed_dim": 15, "num_heads": 3}, {}),
    "non-square patches": ({"img_size": (10, 14), "patch_size": (5, 7)}, {}),
    "non-square image": ({"img_size": (14, 35)}, {"image_size": (14, 35)}),
    "two channels": ({"in_chans": 2}, {}),
    "distilled": ({"distilled": True}, {}),
    "registers": ({"reg_tokens": 4, "no_embed_class": True}, {}),
    "class token without a position": ({"no_embed_class": True}, {}),
    "mean of patches": ({"class_token": False, "global_pool": "avg", "fc_norm": False}, {}),
    "mean of patches, registers": (
        {"class_token": False, "global_pool": "avg", "fc_norm": False, "reg_tokens": 3, "no_embed_class": True},
        {},
    ),
    "layer scale": ({"init_values": 1e-5}, {}),
    "qk-norm": ({"qk_norm": True}, {}),
    "no qkv bias": ({"qkv_bias": False}, {}),
    "swiglu": ({"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}, {}),
    "uneven mlp": ({"mlp_ratio": 2.25}, {}),  # 49 hidden of 22: 22 * (49 / 22) is below 49
    "tanh gelu": ({"act_layer": "gelu_tanh"}, {"act": "gelu_tanh"}),
    "quick gelu": ({"act_layer": "quick_gelu"}, {"act": "quick_gelu"}),
    "large epsilon": ({"norm_layer": partial(nn.LayerNorm, eps=1e-2), "qk_norm": True}, {"norm_eps": 1e-2}),
    "no head": ({"num_classes": 0}, {}),
    "all at once": (
        {"reg_tokens": 4, "no_embed_class": True, "init_values": 0.1, "qk_norm": True, "mlp_layer": SwiGLUPacked}
        | {"act_layer": nn.SiLU, "depth": 2},
        {},
    ),
}


def assert_close(ours, theirs):
    """To the rounding of one sum in single precision: that of the class token and its position."""
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_tokens_and_logits_equal_timm(timm_vit, as_ours, name):
    keywords, options = MODELS[name]
    reference = timm_vit(**keywords).double()
    model = as_ours(reference, **options).double()
    images = torch.randn(3, reference.in_chans, *reference.patch_embed.img_size, dtype=torch.float64)
    tokens = reference.forward_features(images)
    assert_close(model.encoder(images), tokens)
    # A distilled model of timm averages two heads; ours has the first.
    logits = reference.head(tokens[:, 0]) if name == "distilled" else reference(images)
    assert logits.std() > 0.1
    assert_close(model(images), logits)


@pytest.mark.parametrize("keywords", [{}, {"class_token": True, "reg_tokens": 2, "no_embed_class": True}])
@torch.no_grad()
def test_mean_pooling_equals_timm(timm_vit, as_ours, keywords):
    reference = timm_vit(global_pool="avg", fc_norm=False, **keywords).double()
    model = as_ours(reference, pool="mean").double()
    images = torch.randn(3, 3, 14, 14, dtype=torch.float64)
    pooled = reference.forward_head(reference.forward_features(images), pre_logits=True)
    assert_close(model(images), pooled)


@pytest.mark.parametrize("size", [(28, 28), (7, 7), (21, 35), (49, 7)])
@pytest.mark.parametrize("name", ["plain", "distilled", "registers", "mean of patches"])
@torch.no_grad()
def test_other_image_sizes_equal_timm(timm_vit, as_ours, name, size):
    reference = timm_vit(dynamic_img_size=True, img_size=21, **MODELS[name][0]).double()
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    tokens = reference.forward_features(images)
    assert_close(as_ours(reference).double().encoder(images), tokens)  # resized at every forward pass
    assert_close(as_ours(reference, image_size=size).double().encoder(images), tokens)  # resized when loaded


def test_reading_the_class_token_alone_changes_nothing(timm_vit, as_ours):
    reference = timm_vit(init_values=0.1).double()
    model = as_ours(reference).double()
    images = torch.randn(3, 3, 14, 14, dtype=torch.float64)
    assert model.read == 1
    assert_close(model.encoder(images, read=1), reference.forward_features(images)[:, :1])


@pytest.mark.parametrize("name", ["plain", "swiglu", "mean of patches, registers", "all at once"])
def test_gradients_equal_timm(timm_vit, as_ours, name):
    reference = timm_vit(**MODELS[name][0]).double()
    model = as_ours(reference).double()
    images = torch.randn(3, 3, 14, 14, dtype=torch.float64)
    for each in (model, reference):
        nn.functional.cross_entropy(each(images), torch.tensor([3, 0, 2])).backward()
    theirs = dict(reference.named_parameters())
    compared = 0
    for ours, parameter in model.named_parameters():
        name = ours.removeprefix("encoder.").removeprefix("embed.")
        gradient = theirs[name].grad
        if name == "pos_embed":
            gradient = gradient[:, -4:]
        assert gradient.any()
        assert_close(parameter.grad, gradient)
        compared += 1
    assert compared == len(theirs)


def test_published_models_have_the_heads_of_the_table():
    """Every pretrained ViT and DeiT of timm whose width the table has, one block deep to be quick."""
    checked = set()
    vits = timm.list_models("vit_*", module="vision_transformer", pretrained=True)
    for name in vits + timm.list_models("deit*", module="deit", pretrained=True):
        with torch.device("meta"):
            model = timm.create_model(name, depth=1)
        if hasattr(model.blocks[0], "attn"):  # parallel blocks are of another kind
            heads = model.blocks[0].attn.num_heads
            assert HEADS_BY_WIDTH.get(model.embed_dim, heads) == heads, name
            checked.add(model.embed_dim)
    assert checked >= {192, 384, 768, 1024, 1280, 1408}

"""Blocks against timm's (pre-norm) and torch's (post-norm), stochastic depth, and reading the first tokens alone."""

from functools import partial

import pytest
import timm.layers
import timm.models.vision_transformer
import torch
from torch import nn

from vit.layers.blocks import Block, DropPath

B, N, D, H = 3, 7, 22, 2


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("init_values", [None, 1e-5])
@pytest.mark.parametrize("mlp", ["mlp", "swiglu"])
def test_pre_norm_equals_timm(randomise, qk_norm, init_values, mlp):
    options = {"mlp_ratio": 3.0, "qkv_bias": True, "qk_norm": qk_norm, "init_values": init_values}
    theirs = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU} if mlp == "swiglu" else {}
    norm_layer = partial(nn.LayerNorm, eps=1e-3)
    reference = randomise(timm.models.vision_transformer.Block(D, H, **options, **theirs, norm_layer=norm_layer))
    ours = Block(D, H, **options, mlp=mlp, norm_eps=1e-3).eval()
    ours.load_state_dict(reference.state_dict())
    x = torch.randn(B, N, D)
    torch.testing.assert_close(ours(x), reference(x), rtol=1e-5, atol=1e-5)


def test_post_norm_equals_torch(randomise):
    reference = nn.TransformerEncoderLayer(
        D, H, dim_feedforward=3 * D, dropout=0.0, activation="gelu", layer_norm_eps=1e-3, batch_first=True
    )
    randomise(reference)
    ours = Block(D, H, mlp_ratio=3.0, norm_eps=1e-3, post_norm=True).eval()
    names = {
        "attn.qkv.weight": "self_attn.in_proj_weight",
        "attn.qkv.bias": "self_attn.in_proj_bias",
        "attn.proj.weight": "self_attn.out_proj.weight",
        "attn.proj.bias": "self_attn.out_proj.bias",
        "mlp.fc1.weight": "linear1.weight",
        "mlp.fc1.bias": "linear1.bias",
        "mlp.fc2.weight": "linear2.weight",
        "mlp.fc2.bias": "linear2.bias",
    }
    theirs = reference.state_dict()
    ours.load_state_dict({name: theirs[names.get(name, name)] for name in ours.state_dict()})
    x = torch.randn(B, N, D)
    torch.testing.assert_close(ours(x), reference(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("read", [1, 3])
def test_first_tokens_are_the_same_alone(randomise, post_norm, read, masked):
    block = randomise(Block(D, H, init_values=0.1, post_norm=post_norm))
    x = torch.randn(B, N, D)
    mask = torch.rand(B, 1, N, N) > 0.5
    mask[..., 4] = True
    mask = mask if masked else None
    full = block(x, mask=mask)
    alone = block(x, mask=mask, read=read)
    assert alone.shape == (B, read, D)
    torch.testing.assert_close(alone, full[:, :read], rtol=1e-5, atol=1e-5)


def test_key_mask_serves_every_row_that_is_read(randomise):
    block = randomise(Block(D, H))
    x = torch.randn(B, N, D)
    padding = torch.tensor([True, True, False, True, True, True, False])[None, None, None]
    torch.testing.assert_close(block(x, mask=padding, read=2), block(x, mask=padding)[:, :2], rtol=1e-5, atol=1e-5)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    drop = DropPath(0.3).train()
    ones = torch.ones(20_000, 2, 3)
    dropped = drop(ones)
    assert (dropped == dropped[:, :1, :1]).all()
    kept = dropped[:, 0, 0] != 0
    torch.testing.assert_close(dropped[kept], ones[kept] / 0.7)
    # Four standard errors of a share of 0.7 among 20,000.
    assert kept.float().mean() == pytest.approx(0.7, abs=4 * (0.7 * 0.3 / 20_000) ** 0.5)
    assert dropped.mean() == pytest.approx(1.0, abs=0.02)


def test_drop_path_is_the_identity_in_evaluation():
    x = torch.randn(B, N, D)
    assert DropPath(0.9).eval()(x) is x
    assert DropPath(0.0).train()(x) is x


def test_dropped_branches_leave_the_stream_alone(randomise):
    block = randomise(Block(D, H, drop_path=1 - 1e-9)).train()
    x = torch.randn(B, N, D)
    torch.testing.assert_close(block(x), x)


@pytest.mark.parametrize("rate", [1.0, -0.1, 1.5])
def test_impossible_drop_rates_are_refused(rate):
    with pytest.raises(ValueError, match=f"{rate}; allowed are 0 to below 1"):
        DropPath(rate)


def test_unknown_mlp_is_refused():
    with pytest.raises(ValueError, match="'glu'; allowed are mlp and swiglu"):
        Block(D, H, mlp="glu")

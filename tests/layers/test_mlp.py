"""The feed-forward layers and their activations against timm, torch and transformers."""

import pytest
import timm.layers
import torch
from torch import nn
from transformers.activations import ACT2FN

from vit.layers.mlp import ACTIVATIONS, Mlp, SwiGLU

B, N, D = 2, 7, 11


@pytest.mark.parametrize(
    ("ours", "theirs"), [("gelu", "gelu"), ("quick_gelu", "quick_gelu"), ("gelu_tanh", "gelu_pytorch_tanh")]
)
def test_activations_equal_transformers(ours, theirs):
    x = torch.linspace(-7, 7, 101)
    torch.testing.assert_close(ACTIVATIONS[ours](x), ACT2FN[theirs](x))


def test_activations_differ():
    x = torch.linspace(-3, 3, 101)
    exact, tanh, quick = (ACTIVATIONS[name](x) for name in ("gelu", "gelu_tanh", "quick_gelu"))
    assert (exact - tanh).abs().max() > 1e-4
    assert (exact - quick).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("act", "act_layer"),
    [("gelu", nn.GELU), ("gelu_tanh", timm.layers.GELUTanh), ("quick_gelu", timm.layers.QuickGELU)],
)
def test_mlp_equals_timm(randomise, act, act_layer):
    reference = randomise(timm.layers.Mlp(D, 29, act_layer=act_layer))
    ours = Mlp(D, 29, act)
    ours.load_state_dict(reference.state_dict())
    x = torch.randn(B, N, D)
    torch.testing.assert_close(ours(x), reference(x))


def test_swiglu_equals_timm(randomise):
    reference = randomise(timm.layers.SwiGLUPacked(D, 34))
    ours = SwiGLU(D, 34)
    ours.load_state_dict(reference.state_dict())
    x = torch.randn(B, N, D)
    torch.testing.assert_close(ours(x), reference(x))


def test_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="act is 'relu'; allowed are gelu, gelu_tanh, quick_gelu"):
        Mlp(D, 29, "relu")


def test_odd_swiglu_is_refused():
    with pytest.raises(ValueError, match="hidden_dim 29"):
        SwiGLU(D, 29)

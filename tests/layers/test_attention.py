"""Attention against the textbook's example, torch's MultiheadAttention and timm's Attention."""

import math
from functools import partial

import pytest
import timm.layers
import torch
from torch import nn

from vit.layers import attention
from vit.layers.attention import Attention, KeyValues, attend, attention_weights, causal_mask

B, N, M, D, H = 3, 7, 5, 22, 2


def pair_with_torch(*, bias=True):
    """Ours and torch's attention, with the same random weights."""
    reference = nn.MultiheadAttention(D, H, bias=bias, batch_first=True)
    ours = Attention(D, H, qkv_bias=bias)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.normal_(std=0.5)
        ours.qkv.weight.copy_(reference.in_proj_weight)
        ours.proj.weight.copy_(reference.out_proj.weight)
        if bias:
            ours.qkv.bias.copy_(reference.in_proj_bias)
            ours.proj.bias.copy_(reference.out_proj.bias)
        else:
            ours.proj.bias.zero_()
    return ours.double(), reference.double()


def tokens(count):
    return torch.randn(B, count, D, dtype=torch.float64)


def test_textbook_example():
    # Scores 112 and 96 with d_k = 64 become 14 and 12; their softmax is 0.88 and 0.12.
    q = torch.ones(1, 64)
    k = torch.stack([torch.full((64,), 112 / 64), torch.full((64,), 96 / 64)])
    assert (q @ k.T).tolist() == [[112, 96]]
    first, second = attention_weights(q, k)[0].tolist()
    assert (round(first, 2), round(second, 2)) == (0.88, 0.12)
    assert first == pytest.approx(1 / (1 + math.exp(-2)), rel=1e-6)
    assert second == pytest.approx(1 / (1 + math.exp(2)), rel=1e-6)


def test_masked_keys_get_no_weight():
    q, k = torch.randn(B, H, N, 11), torch.randn(B, H, M, 11)
    mask = torch.tensor([True, False, True, True, False])
    weights = attention_weights(q, k, mask)
    assert (weights[..., ~mask] == 0).all()
    torch.testing.assert_close(weights[..., mask], attention_weights(q, k[:, :, mask]))


@pytest.mark.parametrize("bias", [True, False])
def test_self_attention_equals_torch(bias):
    ours, reference = pair_with_torch(bias=bias)
    x = tokens(N)
    torch.testing.assert_close(ours(x), reference(x, x, x)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_cross_attention_equals_torch(bias):
    ours, reference = pair_with_torch(bias=bias)
    x, context = tokens(N), tokens(M)
    torch.testing.assert_close(ours(x, context), reference(x, context, context)[0], rtol=0, atol=1e-12)


def test_true_in_a_mask_means_attend():
    ours, reference = pair_with_torch()
    x, context = tokens(N), tokens(M)
    attend = torch.rand(B, N, M) > 0.4
    attend[..., 2] = True
    hidden = (~attend).repeat_interleave(H, dim=0)  # torch's own mask is True where a key is hidden
    expected = reference(x, context, context, attn_mask=hidden)[0]
    torch.testing.assert_close(ours(x, context, mask=attend[:, None]), expected, rtol=0, atol=1e-12)


def test_causal_attention_equals_torch():
    ours, reference = pair_with_torch()
    x = tokens(N)
    hidden = torch.ones(N, N, dtype=torch.bool).triu(1)
    torch.testing.assert_close(ours(x, is_causal=True), reference(x, x, x, attn_mask=hidden)[0], rtol=0, atol=1e-12)


def test_single_precision_equals_torch():
    ours, reference = pair_with_torch()
    x = tokens(N).float()
    torch.testing.assert_close(ours.float()(x), reference.float()(x, x, x)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("masked", ["no", "mask", "causal"])
def test_training_in_half_precision_has_the_gradients_of_the_textbook(masked, monkeypatch):
    exact = [torch.randn(2, H, N, 16).bfloat16().double().requires_grad_() for _ in "qkv"]
    mask = torch.rand(2, 1, N, N) < 0.7
    mask[..., 0] = True  # each query sees a key
    chosen = {"mask": {"mask": mask}, "causal": {"is_causal": True}, "no": {}}[masked]
    upstream = torch.randn(2, H, N, 16, dtype=torch.float64)
    textbook = {"mask": mask, "causal": causal_mask(N, N), "no": None}[masked]
    expected = attention_weights(exact[0], exact[1], textbook) @ exact[2]
    expected.backward(upstream)

    def forbidden(*_, **__):
        raise AssertionError("the fused kernel")

    halves = [each.detach().bfloat16().requires_grad_() for each in exact]
    with monkeypatch.context() as patch:
        patch.setattr(attention.F, "scaled_dot_product_attention", forbidden)
        found = attend(*halves, **chosen, training=True)
        with pytest.raises(AssertionError, match="the fused kernel"):
            attend(*halves, **chosen)
        with pytest.raises(AssertionError, match="the fused kernel"):
            attend(*(each.float() for each in halves), **chosen, training=True)
        patch.setattr(attention, "MATRIX_TOKENS", N - 1)
        with pytest.raises(AssertionError, match="the fused kernel"):
            attend(*halves, **chosen, training=True)
    found.backward(upstream.bfloat16())
    for half, single in zip([found, *(x.grad for x in halves)], [expected, *(x.grad for x in exact)], strict=True):
        assert (half.double() - single).norm() < 0.01 * single.norm()


def test_cross_attention_to_oneself_is_self_attention():
    ours, _ = pair_with_torch()
    x = tokens(N)
    torch.testing.assert_close(ours(x, x), ours(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_qk_norm_equals_timm(randomise, qkv_bias):
    norm_layer = partial(nn.LayerNorm, eps=1e-3)
    reference = randomise(timm.layers.Attention(D, H, qkv_bias=qkv_bias, qk_norm=True, norm_layer=norm_layer))
    ours = Attention(D, H, qkv_bias=qkv_bias, qk_norm=True, norm_eps=1e-3)
    ours.load_state_dict(reference.state_dict())
    x = torch.randn(B, N, D)
    torch.testing.assert_close(ours(x), reference(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_heads", [5, 0, -2])
def test_heads_that_do_not_divide_are_refused(num_heads):
    with pytest.raises(ValueError, match=rf"22 is not a multiple of num_heads {num_heads}; try 1, 2, 11, 22 heads"):
        Attention(22, num_heads)


@pytest.mark.parametrize(("queries", "keys"), [(4, 4), (2, 5), (1, 3)])
def test_causal_mask_ends_at_each_query_of_the_last(queries, keys):
    expected = [[key <= keys - queries + query for key in range(keys)] for query in range(queries)]
    assert causal_mask(queries, keys).tolist() == expected


def test_cached_causal_attention_equals_the_whole():
    ours, _ = pair_with_torch()
    x, cache = tokens(N), KeyValues()
    parts = []
    for part in x.split([3, 1, 1, 2], dim=1):
        seen = cache.num_tokens
        parts.append(ours(part, mask=causal_mask(part.shape[1], seen + part.shape[1]), cache=cache))
    assert cache.num_tokens == N
    torch.testing.assert_close(torch.cat(parts, dim=1), ours(x, is_causal=True), rtol=0, atol=1e-12)


def test_cached_context_needs_no_second_look():
    ours, _ = pair_with_torch()
    x, context, cache = tokens(N), tokens(M), KeyValues()
    first = ours(x[:, :4], context, cache=cache)
    kept = cache.k
    second = ours(x[:, 4:], context[:, :0], cache=cache)
    assert cache.k is kept  # not even copied
    torch.testing.assert_close(torch.cat([first, second], dim=1), ours(x, context), rtol=0, atol=1e-12)


def test_rows_of_a_cache_are_chosen_in_order():
    ours, _ = pair_with_torch()
    x, cache, rows = tokens(N), KeyValues(), torch.tensor([2, 2, 0])
    cache.select(rows)  # there is nothing in it yet
    ours(x[:, :-1], cache=cache)
    cache.select(rows)
    torch.testing.assert_close(ours(x[rows, -1:], cache=cache), ours(x)[rows, -1:], rtol=0, atol=1e-12)

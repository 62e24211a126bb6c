"""The decoder against torch's, its causal mask, its cache, and padding before and after a text."""

import pytest
import torch
from torch import nn

from vit.layers.attention import attention_weights
from vit.models.decoder import Decoder, DecoderCache

B, T, M, V = 3, 7, 5, 11
TINY = {"vocab_size": V, "max_tokens": 13, "embed_dim": 22, "depth": 3, "num_heads": 2}

# Ours to torch's names, of one layer.
NAMES = {
    "attn.qkv.weight": "self_attn.in_proj_weight",
    "attn.qkv.bias": "self_attn.in_proj_bias",
    "attn.proj.weight": "self_attn.out_proj.weight",
    "attn.proj.bias": "self_attn.out_proj.bias",
    "cross_attn.qkv.weight": "multihead_attn.in_proj_weight",
    "cross_attn.qkv.bias": "multihead_attn.in_proj_bias",
    "cross_attn.proj.weight": "multihead_attn.out_proj.weight",
    "cross_attn.proj.bias": "multihead_attn.out_proj.bias",
    "mlp.fc1.weight": "linear1.weight",
    "mlp.fc1.bias": "linear1.bias",
    "mlp.fc2.weight": "linear2.weight",
    "mlp.fc2.bias": "linear2.bias",
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "cross_norm.weight": "norm2.weight",
    "cross_norm.bias": "norm2.bias",
    "norm2.weight": "norm3.weight",
    "norm2.bias": "norm3.bias",
}


def pair_with_torch(randomise, *, dim, depth, heads, post_norm):
    """torch's decoder and ours with its weights, float64."""
    layer = nn.TransformerDecoderLayer(
        dim, heads, 3 * dim, dropout=0.0, activation="gelu", layer_norm_eps=1e-3, batch_first=True,
        norm_first=not post_norm,
    )  # fmt: skip
    reference = nn.TransformerDecoder(layer, depth, norm=None if post_norm else nn.LayerNorm(dim, eps=1e-3))
    randomise(reference, std=0.3)
    ours = Decoder(V, 13, dim, depth, heads, mlp_ratio=3.0, norm_eps=1e-3, post_norm=post_norm)
    for block, theirs in zip(ours.blocks, reference.layers, strict=True):
        state = theirs.state_dict()
        block.load_state_dict({name: state[NAMES[name]] for name in block.state_dict()})
    if not post_norm:
        ours.norm.load_state_dict(reference.norm.state_dict())
    return reference.double().eval(), ours.double().eval()


@pytest.fixture
def decoder(randomise):
    return randomise(Decoder(**TINY, context_dim=17).double(), std=0.3)


@pytest.fixture
def context():
    return torch.randn(B, M, 17, dtype=torch.float64)


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize(("dim", "depth", "heads", "length"), [(22, 3, 2, 7), (12, 1, 3, 1), (30, 2, 5, 13)])
def test_equals_torch(randomise, dim, depth, heads, length, post_norm):
    reference, ours = pair_with_torch(randomise, dim=dim, depth=depth, heads=heads, post_norm=post_norm)
    tokens, context = (torch.randn(B, count, dim, dtype=torch.float64) for count in (length, M))
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)  # torch's own mask is True where a key is hidden
    expected = reference(tokens, context, tgt_mask=hidden)
    torch.testing.assert_close(ours.decode(tokens, context), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("post_norm", [False, True])
def test_equals_torch_with_padding_of_text_and_context(randomise, post_norm):
    reference, ours = pair_with_torch(randomise, dim=22, depth=3, heads=2, post_norm=post_norm)
    tokens, context = (torch.randn(B, count, 22, dtype=torch.float64) for count in (T, M))
    mask = torch.arange(T) < torch.tensor([7, 4, 1])[:, None]
    context_mask = torch.rand(B, M) > 0.4
    context_mask[:, 2] = True
    expected = reference(
        tokens, context, tgt_mask=torch.ones(T, T, dtype=torch.bool).triu(1), tgt_key_padding_mask=~mask,
        memory_key_padding_mask=~context_mask,
    )  # fmt: skip
    found = ours.decode(tokens, context, mask=mask, context_mask=context_mask)
    torch.testing.assert_close(found[mask], expected[mask], rtol=1e-6, atol=1e-6)


def test_a_token_is_not_seen_by_those_before_it(decoder, context):
    """ "I am a student": whatever stands in the place of "student", "I am a" stays the same, to the last bit."""
    vocabulary = {"I": 0, "am": 1, "a": 2, "student": 3, "bird": 4}
    first, second = (
        torch.tensor([[vocabulary[word] for word in text.split()]]) for text in ("I am a student", "I am a bird")
    )
    one, other = (decoder(ids, context[:1]) for ids in (first, second))
    assert torch.equal(one[:, :3], other[:, :3])
    assert not torch.allclose(one[:, 3], other[:, 3])


@pytest.mark.parametrize("place", range(T))
def test_each_token_is_seen_from_its_place_on(decoder, context, place):
    ids = torch.randint(V, (B, T))
    changed = ids.clone()
    changed[:, place] = (ids[:, place] + 1) % V
    differs = (decoder(ids, context) != decoder(changed, context)).any(dim=2)
    assert differs.tolist() == [[False] * place + [True] * (T - place)] * B


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("steps", [[1] * T, [3, 1, 2, 1], [T]])
def test_cached_equals_uncached(randomise, context, post_norm, steps):
    decoder = randomise(Decoder(**TINY, context_dim=17, post_norm=post_norm, qk_norm=True).double(), std=0.3)
    ids = torch.randint(V, (B, T))
    cache, found, seen = DecoderCache(3), [], 0
    for count in steps:
        found.append(decoder(ids[:, seen : seen + count], context, cache=cache))
        seen += count
        assert (cache.num_tokens, cache.num_context_tokens) == (seen, M)
    torch.testing.assert_close(torch.cat(found, dim=1), decoder(ids, context), rtol=1e-12, atol=1e-12)


def test_the_context_is_projected_once(decoder, context):
    cache = DecoderCache(3)
    ids = torch.randint(V, (B, 2))
    decoder(ids[:, :1], context, cache=cache)
    again = decoder(ids[:, 1:], torch.full_like(context, torch.nan), cache=cache)
    torch.testing.assert_close(again[:, 0], decoder(ids, context)[:, 1])


def test_rows_of_a_cache_can_be_chosen_and_repeated(decoder, context):
    ids, rows = torch.randint(V, (B, 4)), torch.tensor([2, 0, 2, 2])
    cache = DecoderCache(3)
    decoder(ids[:, :3], context, cache=cache)
    cache.select(rows)
    found = decoder(ids[rows, 3:], context[rows], cache=cache)
    torch.testing.assert_close(found[:, 0], decoder(ids, context)[rows, 3])


@pytest.mark.parametrize("cached", [False, True])
def test_padding_before_a_text_changes_nothing(decoder, context, cached):
    text = torch.randint(V, (B, 3))
    padded = torch.cat([torch.randint(V, (B, 4)), text], dim=1)
    mask = torch.tensor([False] * 4 + [True] * 3).expand(B, -1)
    expected = decoder(text, context)
    if cached:
        cache = DecoderCache(3)
        decoder(padded[:, :5], context, mask=mask[:, :5], cache=cache)
        found = decoder(padded[:, 5:], context, mask=mask, cache=cache)
        torch.testing.assert_close(found, expected[:, 1:])
    else:
        torch.testing.assert_close(decoder(padded, context, mask=mask)[:, 4:], expected)


def test_every_token_sees_something(decoder, context):
    """Padding in front too: a row of attention without a key would be NaN where it is computed to be looked at."""
    mask = torch.arange(T).expand(B, T) >= torch.tensor([0, 3, 6])[:, None]
    for attention in decoder.attentions():
        attention.recording = "qk"
    decoder(torch.randint(V, (B, T)), context, mask=mask)
    for attention in decoder.attentions():
        weights = attention_weights(attention.recorded.q, attention.recorded.k, attention.recorded.mask)
        assert weights.isfinite().all()
        assert (weights.triu(1) == 0).all()


def test_padding_after_a_text_changes_nothing(decoder, context):
    text = torch.randint(V, (B, 3))
    padded = torch.cat([text, torch.randint(V, (B, 4))], dim=1)
    expected = decoder(text, context)
    torch.testing.assert_close(decoder(padded, context)[:, :3], expected)
    mask = torch.tensor([True] * 3 + [False] * 4).expand(B, -1)
    torch.testing.assert_close(decoder(padded, context, mask=mask)[:, :3], expected)


def test_padding_of_the_context_is_not_seen(decoder, context):
    ids = torch.randint(V, (B, T))
    mask = torch.tensor([True, True, False, True, False]).expand(B, -1)
    expected = decoder(ids, context[:, [0, 1, 3]])
    torch.testing.assert_close(decoder(ids, context, context_mask=mask), expected)


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_gradient_reaches_every_parameter_and_is_finite(post_norm, padded, context):
    decoder = Decoder(**TINY, context_dim=17, post_norm=post_norm, init_values=0.1, qk_norm=True)
    mask = torch.arange(T) >= torch.tensor([0, 3, 6])[:, None] if padded else None
    logits = decoder(torch.arange(T).expand(B, -1), context.float(), mask=mask)
    (logits * torch.randn(V)).sum().backward()
    missing = [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []
    assert all(p.grad.isfinite().all() for p in decoder.parameters())


def test_architecture_makes_the_same_decoder():
    decoder = Decoder(**TINY, context_dim=17, post_norm=True, mlp_ratio=2.0, drop_path=0.1)
    again = Decoder(**decoder.architecture)
    shapes = {name: value.shape for name, value in decoder.state_dict().items()}
    assert {name: value.shape for name, value in again.state_dict().items()} == shapes
    assert again.architecture == decoder.architecture


def test_texts_that_are_too_long_are_refused(decoder, context):
    cache = DecoderCache(3)
    decoder(torch.zeros(B, 13, dtype=torch.int64), context, cache=cache)
    with pytest.raises(ValueError, match="14 tokens; this decoder was made for at most 13"):
        decoder(torch.zeros(B, 1, dtype=torch.int64), context, cache=cache)

"""Maps of words against the paper's equations: plain N x N matrices in float64, autograd through explicit maps."""

import pytest
import torch
import torch.nn.functional as F

from vit.models.captioner import Captioner
from vit.models.decoder import Decoder
from vit.models.encoder import image_encoder
from vit.saliency import walk
from vit.saliency.captions import beyond_the_caption, explain_captions
from vit.saliency.record import record

PAD, START, END = 0, 1, 2
DEPTH, BLOCKS, N = 3, 2, 5  # of the encoder, of the decoder; a class token and 2 x 2 patches
IDS = torch.tensor([[4, 5, 6, END], [7, END, PAD, PAD], [3, 8, END, PAD]])


@pytest.fixture(params=[False, True], ids=["pre-norm", "post-norm"])
def model(randomise, request):
    encoder = image_encoder(image_size=(10, 14), patch_size=(5, 7), embed_dim=24, depth=DEPTH, num_heads=2)
    decoder = Decoder(9, 8, 14, BLOCKS, 2, context_dim=24, post_norm=request.param)
    return randomise(Captioner(encoder, decoder, start=START, end=END, pad=PAD).double(), std=0.3)


@pytest.fixture
def images():
    return torch.randn(3, 3, 10, 14, dtype=torch.float64)


def textbook(model, images, monkeypatch, start_block=0):
    """Chefer et al. 2021, equations 5 to 10, word by word."""
    maps = []

    def explicit(q, k, v, attn_mask=None, is_causal=False):
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        if is_causal:
            scores = scores + torch.full(scores.shape[-2:], -torch.inf, dtype=scores.dtype).triu(1)
        maps.append(scores.softmax(dim=-1))
        return maps[-1] @ v

    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", explicit)
        logits = model(images, torch.cat([torch.full((3, 1), START), IDS[:, :-1]], dim=1))
    found = []
    for place in range(IDS.shape[1]):
        said = logits.log_softmax(dim=-1)[range(3), place, IDS[:, place]]
        gradients = torch.autograd.grad(said.sum(), maps, retain_graph=True)
        weighed = [(a * g).clamp(min=0).mean(dim=1) for a, g in zip(maps, gradients, strict=True)]
        ii, tt = torch.eye(N).double().expand(3, N, N), torch.eye(4).double().expand(3, 4, 4)
        ti = torch.zeros(3, 4, N).double()
        for own in weighed[start_block:DEPTH]:
            ii = ii + own @ ii
        for own, cross in zip(weighed[DEPTH::2], weighed[DEPTH + 1 :: 2], strict=True):
            tt, ti = tt + own @ tt, ti + own @ ti
            ti = ti + normalised(tt).transpose(1, 2) @ cross @ normalised(ii)
        found.append(ti[:, place, 1:])
    return torch.stack(found, dim=1).unflatten(2, (2, 2)).detach()


def normalised(relevance):
    identity = torch.eye(relevance.shape[-1]).double()
    rest = relevance - identity
    return torch.nan_to_num(rest / rest.sum(dim=-1, keepdim=True)) + identity


@pytest.mark.parametrize("start_block", [0, 2])
def test_maps_are_those_of_the_equations(model, images, monkeypatch, start_block):
    found = explain_captions(model, images, IDS, start_block=start_block)
    expected = textbook(model, images, monkeypatch, start_block)
    assert found.mask.tolist() == (IDS != PAD).tolist()
    real = found.mask
    largest = expected[real].amax(dim=(1, 2), keepdim=True)
    assert (largest > 1e-4).all()  # not equal for being nothing
    # Ours walks in float32, where what speaks for a word and against it may nearly cancel out.
    torch.testing.assert_close(found.maps[real].double() / largest, expected[real] / largest, rtol=0, atol=1e-3)


def test_tiles_and_batches_change_nothing(model, images, monkeypatch):
    whole = explain_captions(model, images, IDS)
    monkeypatch.setattr(walk, "TILE_NUMBERS", 7)
    torch.testing.assert_close(explain_captions(model, images, IDS).maps, whole.maps)
    alone = explain_captions(model, images[1:2], IDS[1:2, :2])
    torch.testing.assert_close(alone.maps[0], whole.maps[1, :2])
    with torch.inference_mode():
        torch.testing.assert_close(explain_captions(model, images, IDS).maps, whole.maps)


def test_words_that_are_not_given_are_generated(model, images):
    generated = model.generate(images)
    found = explain_captions(model, images)
    assert torch.equal(found.ids, generated.ids)
    sums = found.log_probs.masked_fill(~generated.mask, 0).sum(dim=1)
    torch.testing.assert_close(sums.double(), generated.log_prob.double(), rtol=1e-4, atol=1e-4)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_record_of_a_captioner_has_its_encoder_then_its_decoder(model, images):
    with record(model) as trace:
        model(images, IDS)
    shapes = [(block.q.shape[2], block.k.shape[2]) for block in trace.blocks]
    assert shapes == [(N, N)] * DEPTH + [(4, 4)] * BLOCKS + [(4, N)] * BLOCKS


def test_a_block_that_is_not_there_is_refused(model, images):
    with pytest.raises(ValueError, match="start_block is 3; the model has blocks 0 to 2"):
        explain_captions(model, images, IDS, start_block=3)


def test_what_all_words_of_a_caption_share_is_taken_away():
    maps = torch.tensor([[[[6.0, 2.0]], [[0.5, 1.5]], [[9.0, 9.0]]], [[[0.0, 0.0]], [[4.0, 0.0]], [[9.0, 9.0]]]])
    mask = torch.tensor([[True, True, False], [True, True, False]])
    # Shares 0.75 0.25 and 0.25 0.75, their mean 0.5 0.5; of the second, 0 0 and 1 0, their mean 0.5 0.
    expected = torch.tensor([[[[0.25, 0.0]], [[0.0, 0.25]], [[0.0, 0.0]]], [[[0.0, 0.0]], [[0.5, 0.0]], [[0.0, 0.0]]]])
    torch.testing.assert_close(beyond_the_caption(maps, mask), expected)

"""The captioner: its loss against the definition, what padding does to it, and that it learns to name what it sees."""

import math

import pytest
import torch

from vit.models.captioner import Captioner
from vit.models.decoder import Decoder
from vit.models.encoder import image_encoder
from vit.models.generation import GenerationOptions

PAD, START, END = 0, 1, 2
V, T = 9, 5
IDS = torch.tensor([[START, 4, 5, 6, END], [START, 7, END, PAD, PAD], [START, 3, 8, END, PAD]])


def captioner(dim=14, context_dim=24, **options):
    encoder = image_encoder(image_size=(10, 14), patch_size=(5, 7), embed_dim=24, depth=2, num_heads=2)
    decoder = Decoder(V, 8, dim, 2, 2, context_dim=context_dim)
    return Captioner(encoder, decoder, **{"start": START, "end": END, "pad": PAD, **options})


@pytest.fixture
def model(randomise):
    return randomise(captioner().double(), std=0.3)


@pytest.fixture
def images():
    return torch.randn(3, 3, 10, 14, dtype=torch.float64)


def test_loss_is_the_mean_of_each_real_tokens_own(model, images):
    log_probs = model.decoder(IDS[:, :-1], model.context(images)).log_softmax(dim=-1)
    each = [
        -log_probs[row, place, IDS[row, place + 1]]
        for row in range(3)
        for place in range(T - 1)
        if IDS[row, place + 1] != PAD
    ]
    assert len(each) == 4 + 2 + 3
    expected = sum(each) / len(each)
    assert model.loss(images, IDS).item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_decoder_is_told_where_each_patch_is(model, images):
    places = model.context(images) - model.encoder(images)
    assert not places[:, 0].any()  # of the class token
    # 2 x 2 patches in rows; of 24 numbers 6 sines and 6 cosines of the column, then of the row, the first of 1 radian.
    sine, cosine = math.sin(1), math.cos(1)
    first = places[0, 1:][:, [0, 6, 12, 18]].tolist()
    expected = [[0, 1, 0, 1], [sine, cosine, 0, 1], [0, 1, sine, cosine], [sine, cosine, sine, cosine]]
    assert [pytest.approx(row, abs=1e-6) for row in expected] == first
    untold = captioner(context_positions=False).double()
    assert torch.equal(untold.context(images), untold.encoder(images))


def test_label_smoothing_spreads_the_target(model, images):
    log_probs = model(images, IDS[:, :-1]).log_softmax(dim=-1)
    real = IDS[:, 1:] != PAD
    uniform = -log_probs.mean(dim=-1)[real].mean()
    expected = 0.9 * model.loss(images, IDS) + 0.1 * uniform
    assert model.loss(images, IDS, label_smoothing=0.1).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("more", [1, 3])
def test_padding_changes_nothing(model, images, more):
    padded = torch.cat([IDS, torch.full((3, more), PAD)], dim=1)
    torch.testing.assert_close(model.loss(images, padded), model.loss(images, IDS))


def test_loss_of_a_caption_looks_at_its_own_image(model, images):
    model.loss(images.requires_grad_(), IDS[:1].expand(3, -1)).backward()
    assert images.grad.flatten(1).any(dim=1).all()
    alone = torch.stack([model.loss(images[n : n + 1], IDS[:1]) for n in range(3)])
    torch.testing.assert_close(model.loss(images, IDS[:1].expand(3, -1)), alone.mean())


@pytest.mark.parametrize("context_dim", [24, None])
def test_gradient_reaches_every_parameter(images, context_dim):
    model = captioner(dim=14 if context_dim else 24, context_dim=context_dim)
    model.loss(images.float(), IDS.clamp(0, V - 1)).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []


def test_it_learns_to_say_what_it_sees():
    """Dark images are "3 4", bright ones "5 6 7": after some steps it says so, by every way of generating."""
    torch.manual_seed(0)
    model = captioner()
    images = torch.randn(8, 3, 10, 14) * 0.1 + torch.tensor([-1.0, 1.0] * 4)[:, None, None, None]
    texts = [[3, 4, END], [5, 6, 7, END]] * 4
    ids = torch.tensor([[START, *text] + [PAD] * (4 - len(text)) for text in texts])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(80):
        optimizer.zero_grad()
        loss = model.loss(images, ids)
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    model.eval()
    for options in (GenerationOptions(max_tokens=6), GenerationOptions(max_tokens=6, beams=3)):
        found = model.generate(images, options)
        assert [row[mask].tolist() for row, mask in zip(found.ids, found.mask, strict=True)] == texts
        assert (found.log_prob > -0.6).all()


def test_works_under_autocast(images):
    model, images = captioner().eval(), images.float()
    exact = model.loss(images, IDS)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(images, IDS)
        found = model.generate(images, GenerationOptions(max_tokens=4, beams=2))
    loss.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)
    assert found.log_prob.dtype == torch.float32


def test_generating_needs_no_gradient(model, images):
    assert not model.generate(images, GenerationOptions(max_tokens=2)).log_prob.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context_dim": None}, "tokens are 24 wide, but the decoder's context is 14"),
        ({"end": PAD}, "must be three of the ids 0 to 8"),
        ({"end": V}, "must be three of the ids 0 to 8"),
        ({"start": -1}, "must be three of the ids 0 to 8"),
    ],
)
def test_parts_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        captioner(**options)

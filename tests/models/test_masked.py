"""Masked image models against transformers' ViTMAE and SimMIM, with their weights and their noise."""

import pytest
import torch
from transformers import ViTConfig, ViTForMaskedImageModeling, ViTMAEConfig, ViTMAEForPreTraining
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from vit.models.encoder import image_encoder
from vit.models.masked import (
    Guess,
    MaskedAutoencoder,
    SimMIM,
    hide,
    patchify,
    random_hidden,
    sincos_positions,
    unpatchify,
)

B, D, H, DEPTH, DD = 3, 12, 2, 3, 8
PATCH, GRID = 5, 4  # an image of 20 x 20
P = GRID * GRID
SHARED = {
    "hidden_size": D,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": H,
    "intermediate_size": 2 * D,
    "image_size": PATCH * GRID,
    "patch_size": PATCH,
    "layer_norm_eps": 1e-3,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def encoder(**options):
    sizes = {"image_size": (20, 20), "patch_size": (5, 5), "embed_dim": D, "depth": DEPTH, "num_heads": H}
    return image_encoder(**{**sizes, "mlp_ratio": 2.0, "norm_eps": 1e-3, **options})


def copy_blocks(stack, layers):
    """The weights of transformers' layers into our blocks; whatever release names them how."""
    for block, layer in zip(stack.blocks, layers, strict=True):
        theirs = dict(layer.named_parameters())

        def find(*endings, theirs=theirs):
            (name,) = [name for name in theirs if name.endswith(endings)]
            return theirs.pop(name)

        with torch.no_grad():
            for kind in ("weight", "bias"):
                q, k, v = (find(f"{name}.{kind}", f"{name[0]}_proj.{kind}") for name in ("query", "key", "value"))
                getattr(block.attn.qkv, kind).copy_(torch.cat([q, k, v]))
                getattr(block.norm1, kind).copy_(find(f"layernorm_before.{kind}"))
                getattr(block.norm2, kind).copy_(find(f"layernorm_after.{kind}"))
                out = (f"attention.output.dense.{kind}", f"o_proj.{kind}", f"out_proj.{kind}")
                getattr(block.attn.proj, kind).copy_(find(*out))
                getattr(block.mlp.fc1, kind).copy_(find(f"intermediate.dense.{kind}", f"fc1.{kind}"))
                getattr(block.mlp.fc2, kind).copy_(find(f"output.dense.{kind}", f"fc2.{kind}"))
        assert not theirs, theirs.keys()


def copy_embedding(embed, theirs):
    embed.patch_embed.proj.load_state_dict(theirs.patch_embeddings.projection.state_dict())
    with torch.no_grad():
        positions = theirs.position_embeddings
        embed.cls_token.copy_(theirs.cls_token + positions[:, :1])
        embed.pos_embed.copy_(positions[:, 1:])


def layers_of(model):
    """The blocks of an encoder of transformers."""
    inner = getattr(model, "encoder", model)
    return getattr(inner, "layer", None) or inner.layers


@pytest.fixture
def mae_pair(randomise):
    """ViTMAE with all weights random, and ours with the same."""

    def build(normalised=True):
        config = ViTMAEConfig(
            **SHARED, decoder_hidden_size=DD, decoder_num_hidden_layers=2, decoder_num_attention_heads=4,
            decoder_intermediate_size=2 * DD, mask_ratio=0.7, norm_pix_loss=normalised,
        )  # fmt: skip
        theirs = randomise(ViTMAEForPreTraining(config), std=0.3)
        ours = MaskedAutoencoder(
            encoder(), mask_ratio=0.7, decoder_dim=DD, decoder_depth=2, decoder_heads=4, normalised=normalised,
            norm_eps=1e-3, mlp_ratio=2.0,
        ).eval()  # fmt: skip
        copy_embedding(ours.encoder.embed, theirs.vit.embeddings)
        copy_blocks(ours.encoder, layers_of(theirs.vit))
        ours.encoder.norm.load_state_dict(theirs.vit.layernorm.state_dict())
        copy_blocks(ours.decoder, theirs.decoder.decoder_layers)
        ours.decoder.norm.load_state_dict(theirs.decoder.decoder_norm.state_dict())
        ours.decoder.embed.proj.load_state_dict(theirs.decoder.decoder_embed.state_dict())
        ours.head.load_state_dict(theirs.decoder.decoder_pred.state_dict())
        with torch.no_grad():
            ours.decoder.embed.mask_token.copy_(theirs.decoder.mask_token)
            ours.decoder.embed.pos_embed.copy_(theirs.decoder.decoder_pos_embed)
        return theirs, ours

    return build


@pytest.mark.parametrize("normalised", [True, False])
def test_mae_equals_transformers(mae_pair, normalised):
    theirs, ours = mae_pair(normalised)
    images, noise = torch.randn(B, 3, 20, 20), torch.rand(B, P)
    expected = theirs(images, noise=noise)
    hidden = hide(noise, 0.7)
    assert torch.equal(hidden, expected.mask.bool())
    found = ours(images, hidden)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.patches, expected.logits, rtol=1e-5, atol=1e-5)


def test_the_encoder_of_mae_never_sees_hidden_patches(mae_pair):
    _, ours = mae_pair()
    images = torch.randn(B, 3, 20, 20)
    hidden = ours.hide(images, torch.Generator().manual_seed(3))
    pixels = unpatchify(hidden[..., None].expand(-1, -1, 75).float(), (5, 5), (GRID, GRID)).bool()
    changed = torch.where(pixels, torch.randn_like(images), images)
    assert torch.equal(ours(images, hidden).patches, ours(changed, hidden).patches)
    assert not torch.equal(ours(images, hidden).loss, ours(changed, hidden).loss)
    counted = []
    hook = ours.encoder.blocks[0].register_forward_hook(lambda _, inputs, output: counted.append(output.shape[1]))
    ours(images, hidden)
    hook.remove()
    assert counted == [1 + int(P * 0.3)]


def test_simmim_equals_transformers(randomise):
    theirs = randomise(ViTForMaskedImageModeling(ViTConfig(**SHARED, encoder_stride=PATCH)), std=0.3)
    ours = SimMIM(encoder()).eval()
    copy_embedding(ours.encoder.embed, theirs.vit.embeddings)
    copy_blocks(ours.encoder, layers_of(theirs.vit))
    ours.encoder.norm.load_state_dict(theirs.vit.layernorm.state_dict())
    with torch.no_grad():
        ours.mask_token.copy_(theirs.vit.embeddings.mask_token)
        # Theirs has the pixels of a channel together, ours the channels of a pixel.
        weight, bias = theirs.decoder[0].weight[:, :, 0, 0], theirs.decoder[0].bias
        ours.head.weight.copy_(weight.unflatten(0, (3, PATCH, PATCH)).permute(1, 2, 0, 3).flatten(0, 2))
        ours.head.bias.copy_(bias.unflatten(0, (3, PATCH, PATCH)).permute(1, 2, 0).flatten())
    images, hidden = torch.randn(B, 3, 20, 20), torch.rand(B, P) > 0.5
    expected = theirs(images, bool_masked_pos=hidden)
    found = ours(images, hidden)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=1e-5)
    pictures = unpatchify(found.patches, (5, 5), (GRID, GRID))
    torch.testing.assert_close(pictures, expected.reconstruction, rtol=1e-5, atol=1e-5)


def test_simmim_does_not_see_hidden_patches(randomise):
    ours = randomise(SimMIM(encoder(embed_norm=True)), std=0.3)
    images, hidden = torch.randn(B, 3, 20, 20), torch.rand(B, P) > 0.5
    pixels = unpatchify(hidden[..., None].expand(-1, -1, 75).float(), (5, 5), (GRID, GRID)).bool()
    changed = torch.where(pixels, torch.randn_like(images), images)
    assert torch.equal(ours(images, hidden).patches, ours(changed, hidden).patches)


def test_loss_is_over_hidden_patches_alone(mae_pair):
    """The mean over the hidden patches of the mean over their pixels: worked patch by patch."""
    _, ours = mae_pair()
    images = torch.randn(B, 3, 20, 20)
    hidden = hide(torch.rand(B, P), 0.7)
    found = ours(images, hidden)
    errors = []
    for image, row, guess in zip(images, hidden, found.patches, strict=True):
        for place in row.nonzero().flatten().tolist():
            y, x = place // GRID * PATCH, place % GRID * PATCH
            patch = image[:, y : y + PATCH, x : x + PATCH]
            target = (patch - patch.mean()) / (patch.var() + 1e-6) ** 0.5
            errors.append((guess[place].view(PATCH, PATCH, 3).permute(2, 0, 1) - target).square().mean())
    assert found.loss.item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-5)


@pytest.mark.parametrize(("size", "patch"), [((10, 21), (5, 7)), ((6, 4), (2, 4))])
def test_patches_come_row_by_row_and_go_back(size, patch):
    images = torch.arange(2 * 3 * size[0] * size[1]).view(2, 3, *size).float()
    patches = patchify(images, patch)
    grid = (size[0] // patch[0], size[1] // patch[1])
    assert patches.shape == (2, grid[0] * grid[1], patch[0] * patch[1] * 3)
    torch.testing.assert_close(patches[:, 0].view(2, *patch, 3), images[:, :, : patch[0], : patch[1]].movedim(1, 3))
    assert torch.equal(unpatchify(patches, patch, grid), images)


def test_pictures_keep_what_is_visible_and_show_a_perfect_guess(mae_pair, monkeypatch):
    _, ours = mae_pair()
    images, hidden = torch.randn(B, 3, 20, 20), hide(torch.rand(B, P), 0.7)
    pictures = ours.reconstruct(images, hidden)
    seen = ~hidden
    assert torch.equal(patchify(pictures, (5, 5))[seen], patchify(images, (5, 5))[seen])
    assert not torch.allclose(pictures, images)
    targets = patchify(images, (5, 5))
    normalised = (targets - targets.mean(2, keepdim=True)) / (targets.var(2, keepdim=True) + 1e-6).sqrt()
    monkeypatch.setattr(ours, "forward", lambda *_: Guess(torch.tensor(0.0), normalised))
    torch.testing.assert_close(ours.reconstruct(images, hidden), images)


def test_hidden_are_the_highest_numbers():
    noise = torch.tensor([[0.3, 0.1, 0.9, 0.5], [0.0, 0.0, 0.0, 0.0]])
    assert hide(noise, 0.5).tolist() == [[False, False, True, True], [False, False, True, True]]
    assert hide(noise, 0.75).tolist()[0] == [True, False, True, True]


@pytest.mark.parametrize(("ratio", "cell", "count"), [(0.75, 1, 12), (0.6, 1, 10), (0.5, 2, 8)])
def test_random_masks_have_their_share_and_follow_the_generator(ratio, cell, count):
    def draw(seed):
        return random_hidden(200, (4, 4), ratio, cell=cell, generator=torch.Generator().manual_seed(seed))

    first = draw(1)
    torch.rand(7)
    assert torch.equal(draw(1), first)
    assert not torch.equal(draw(2), first)
    assert (first.sum(dim=1) == count).all()
    assert (first.float().mean(dim=0) - count / 16).abs().max() < 0.15  # no place is special
    squares = first.view(200, 4, 4).unfold(1, cell, cell).unfold(2, cell, cell).flatten(3).float().mean(dim=3)
    assert set(squares.flatten().tolist()) == {0.0, 1.0}


def test_positions_are_those_of_mae():
    rows_first = build_2d_sinusoidal_position_embedding(3, 5, D)
    theirs = rows_first.roll(D // 2, dims=1)  # as ViTMAE has them: the columns' waves first
    torch.testing.assert_close(sincos_positions((3, 5), D)[0], theirs, rtol=0, atol=1e-6)


def test_other_sizes_and_prefix_tokens():
    model = MaskedAutoencoder(
        encoder(num_registers=3, class_token=False), decoder_dim=DD, decoder_depth=2, decoder_heads=2
    )
    for size in ((20, 20), (10, 30)):
        images = torch.randn(2, 3, *size)
        hidden = model.hide(images)
        guess = model(images, hidden)
        assert guess.patches.shape == (2, hidden.shape[1], 75)
        assert guess.loss.isfinite()
        assert model.reconstruct(images, hidden).shape == images.shape


@pytest.mark.parametrize("recipe", [MaskedAutoencoder, SimMIM])
def test_gradient_reaches_every_parameter(recipe):
    model = recipe(encoder(num_registers=2, embed_dim=16))
    images = torch.randn(B, 3, 20, 20)
    model(images, model.hide(images)).loss.backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []


@pytest.mark.parametrize("recipe", [MaskedAutoencoder, SimMIM])
def test_it_learns_to_guess(recipe):
    """Stripes, dark first or bright first: what is hidden follows from what is not."""
    model = recipe(encoder(embed_dim=24), mask_ratio=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    stripes = (torch.arange(20) * 1.2).sin() * torch.tensor([-1.0, 1.0])[:, None]
    images = stripes[:, None, None].expand(2, 3, 20, 20).repeat(4, 1, 1, 1)
    losses = []
    for step in range(50):
        loss = model(images, model.hide(images, torch.Generator().manual_seed(step))).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("recipe", [MaskedAutoencoder, SimMIM])
def test_works_under_autocast(recipe):
    model = recipe(encoder(embed_dim=16))
    images = torch.randn(B, 3, 20, 20)
    hidden = model.hide(images)
    exact = model(images, hidden).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(images, hidden).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)


def test_building_a_model_draws_nothing_that_is_hidden():
    with torch.device("meta"):  # as checkpoints are loaded
        assert MaskedAutoencoder(encoder(embed_dim=16)).head.weight.is_meta


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match=r"mask ratio of 0\.99 leaves 0 of 16 visible; it must leave 1 to 15"):
        MaskedAutoencoder(encoder(), mask_ratio=0.99)
    with pytest.raises(ValueError, match=r"mask ratio of 0\.0 leaves 16 of 16 visible"):
        SimMIM(encoder(), mask_ratio=0.0)
    with pytest.raises(ValueError, match="3 x 3 patches don't divide a grid of 4 x 4"):
        SimMIM(encoder(), cell=3)
    with pytest.raises(ValueError, match="multiple of 4, not 6"):
        MaskedAutoencoder(encoder(), decoder_dim=6, decoder_heads=2)
    hidden = torch.zeros(2, P, dtype=torch.bool)
    hidden[0, 0] = True
    with pytest.raises(ValueError, match="15 to 16 patches are visible"):
        MaskedAutoencoder(encoder(embed_dim=16))(torch.randn(2, 3, 20, 20), hidden)

"""The encoder: what does not depend on the batch, on how much is read, or on the weights a model starts from."""

import pytest
import torch

from vit.models.encoder import ImageEmbed, image_encoder
from vit.saliency.record import record

SIZES = {"image_size": (10, 21), "patch_size": (5, 7), "embed_dim": 22, "depth": 3, "num_heads": 2}
N = 2 * 3  # patches

PREFIXES = [
    ({"class_token": False}, 0),
    ({}, 1),
    ({"dist_token": True}, 2),
    ({"class_token": False, "num_registers": 3}, 3),
    ({"num_registers": 4}, 5),
    ({"dist_token": True, "num_registers": 5}, 7),
]
BLOCKS = [{}, {"init_values": 0.1, "qk_norm": True}, {"mlp": "swiglu"}, {"post_norm": True, "qkv_bias": False}]


@pytest.mark.parametrize(("prefix", "count"), PREFIXES)
def test_prefix_tokens_are_counted(randomise, prefix, count):
    encoder = randomise(image_encoder(**SIZES, **prefix))
    assert encoder.num_prefix_tokens == count
    assert encoder(torch.randn(2, 3, 10, 21)).shape == (2, count + N, 22)


def test_prefix_tokens_stand_in_order_before_the_patches():
    embed = ImageEmbed((10, 21), (5, 7), 22, dist_token=True, num_registers=2)
    with torch.no_grad():
        embed.cls_token.fill_(1)
        embed.dist_token.fill_(2)
        embed.reg_token.fill_(3)
        embed.patch_embed.proj.weight.zero_()
        embed.patch_embed.proj.bias.fill_(4)
        embed.pos_embed.copy_(torch.arange(6.0)[None, :, None].expand(1, 6, 22))
    assert embed(torch.randn(1, 3, 10, 21))[0, :, 0].tolist() == [1, 2, 3, 3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("read", [1, 4])
def test_first_tokens_are_the_same_alone(randomise, block, read):
    encoder = randomise(image_encoder(**SIZES, **block))
    images = torch.randn(3, 3, 10, 21)
    mask = torch.rand(3, 1, 1 + N, 1 + N) > 0.4
    mask[..., 0] = True
    for allowed in (None, mask):
        full = encoder(images, mask=allowed)
        alone = encoder(images, mask=allowed, read=read)
        assert alone.shape == (3, read, 22)
        torch.testing.assert_close(alone, full[:, :read], rtol=1e-5, atol=1e-5)


def test_masked_tokens_change_nothing(randomise):
    encoder = randomise(image_encoder(**SIZES, class_token=False))
    tokens = torch.randn(2, N, 22)
    seen = torch.tensor([True, True, False, True, True, False])
    others = torch.where(seen[:, None], tokens, torch.randn(2, N, 22))
    mask = seen[None, None, None]
    first, second = (encoder.encode(x, mask=mask)[:, seen] for x in (tokens, others))
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("size", [(10, 21), (15, 14)])
def test_a_batch_equals_its_images_one_by_one(randomise, size):
    encoder = randomise(image_encoder(**SIZES, num_registers=2))
    images = torch.randn(5, 3, *size)
    one_by_one = torch.cat([encoder(image[None]) for image in images])
    torch.testing.assert_close(encoder(images), one_by_one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prefix", [prefix for prefix, _ in PREFIXES])
@pytest.mark.parametrize("block", BLOCKS)
def test_gradient_reaches_every_parameter(randomise, prefix, block):
    encoder = randomise(image_encoder(**SIZES, **prefix, **block), std=0.1).train()
    (encoder(torch.randn(2, 3, 10, 21)) * torch.randn(22)).sum().backward()
    without = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_stochastic_depth_rises_from_nothing():
    encoder = image_encoder(**{**SIZES, "depth": 5}, drop_path=0.2)
    rates = [getattr(block.drop_path, "rate", 0.0) for block in encoder.blocks]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])


def test_new_weights_are_small_and_biases_zero():
    encoder = image_encoder(**{**SIZES, "embed_dim": 64}, num_registers=2)
    for name, parameter in encoder.named_parameters():
        if "norm" in name:
            assert (parameter == (1 if name.endswith("weight") else 0)).all()
        elif name.endswith("bias"):
            assert (parameter == 0).all()
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.4), name


def test_architecture_makes_the_same_model():
    options = {"dist_token": True, "num_registers": 2, "mlp_ratio": 3.0, "qk_norm": True, "init_values": 0.5}
    encoder = image_encoder(**SIZES, **options, drop_path=0.3)
    again = image_encoder(**encoder.architecture)
    shapes = {name: value.shape for name, value in encoder.state_dict().items()}
    assert {name: value.shape for name, value in again.state_dict().items()} == shapes
    assert again.architecture == encoder.architecture


def test_sizes_that_the_patches_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="possible heights: 10 or 15"):
        image_encoder(**{**SIZES, "image_size": (11, 21)})
    with pytest.raises(ValueError, match="widths: 14 or 21"):
        image_encoder(**SIZES)(torch.zeros(1, 3, 10, 20))


def test_unknown_position_filter_is_refused():
    with pytest.raises(ValueError, match="'nearest'; allowed are bicubic_antialias, bicubic"):
        image_encoder(**SIZES, pos_interpolation="nearest")


@pytest.mark.parametrize("read", [None, 1])
def test_activation_checkpointing_keeps_less_and_changes_no_gradient(randomise, read):
    encoder = randomise(image_encoder(**SIZES, drop_path=0.5)).train()
    images = torch.randn(4, 3, 10, 21)

    def gradients(checkpointing):
        encoder.activation_checkpointing = checkpointing
        encoder.zero_grad()
        torch.manual_seed(5)  # the same branches are dropped, also when a block is computed again
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor
        ):
            encoder(images, read=read).square().sum().backward()
        return [parameter.grad.clone() for parameter in encoder.parameters()], len(kept)

    (plain, many), (again, few) = gradients(False), gradients(True)
    assert few < many / 2
    for one, two in zip(plain, again, strict=True):
        assert torch.equal(one, two)


def test_recording_works_with_activation_checkpointing(randomise):
    encoder = randomise(image_encoder(**SIZES)).train()
    encoder.activation_checkpointing = True
    images = torch.randn(2, 3, 10, 21)
    with record(encoder, gradients=True) as trace:
        gradients = trace.gradients(encoder(images)[:, 0].sum())
    assert [block.q.shape for block in trace.blocks] == [(2, 2, 7, 11)] * 3
    assert all(gradient.abs().max() > 0 for gradient in gradients)

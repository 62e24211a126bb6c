"""Patches against timm's PatchEmbed, and the sizes that an error suggests."""

import pytest
import timm.layers
import torch

from vit.layers.patches import PatchEmbed, adapt_channels, resize_patches


@pytest.mark.parametrize("bias", [True, False])
def test_non_square_patches_of_a_non_square_image_equal_timm(randomise, bias):
    reference = randomise(timm.layers.PatchEmbed((15, 28), (5, 7), in_chans=2, embed_dim=11, bias=bias))
    ours = PatchEmbed((5, 7), 2, 11, bias=bias)
    ours.load_state_dict(reference.state_dict())
    images = torch.randn(3, 2, 15, 28)
    assert ours.grid(15, 28) == (3, 4)
    assert ours(images).shape == (3, 12, 11)
    torch.testing.assert_close(ours(images), reference(images))


def test_patches_come_row_by_row():
    embed = PatchEmbed((2, 3), 1, 1, bias=False)
    torch.nn.init.ones_(embed.proj.weight)
    image = torch.arange(6.0).reshape(2, 3).repeat_interleave(2, 0).repeat_interleave(3, 1)  # constant in a patch
    assert embed(image[None, None]).flatten().tolist() == [6 * value for value in range(6)]


def test_error_names_sizes_that_do_divide():
    embed = PatchEmbed((5, 7), 3, 11)
    with pytest.raises(ValueError, match=r"16 x 13 pixels .* 5 x 7; possible heights: 15 or 20; widths: 7 or 14"):
        embed(torch.zeros(1, 3, 16, 13))
    assert embed(torch.zeros(1, 3, 20, 14)).shape == (1, 8, 11)


@pytest.mark.parametrize("size", [(4, 7), (0, 7), (5, 0)])
def test_images_smaller_than_a_patch_are_refused(size):
    with pytest.raises(ValueError, match="possible heights: 5"):
        PatchEmbed((5, 7), 3, 11).grid(*size)


@pytest.mark.parametrize(
    ("old", "new"),
    [((16, 16), (14, 14)), ((16, 16), (32, 32)), ((8, 8), (5, 7)), ((5, 7), (7, 5)), ((14, 14), (3, 29))],
)
def test_resized_patches_equal_timm(old, new):
    weight = torch.randn(3, 2, *old)
    expected = timm.layers.resample_patch_embed(weight, list(new))
    assert expected.shape == (3, 2, *new)
    torch.testing.assert_close(resize_patches(weight, new), expected, rtol=1e-4, atol=1e-4)  # timm's are float32


@pytest.mark.parametrize(("old", "new"), [((4, 4), (8, 8)), ((5, 3), (11, 7))])
def test_a_larger_image_with_larger_patches_gets_the_same_tokens(old, new):
    """What the pseudo-inverse is for (FlexiViT, section 3.4): the product of patch and weights stays."""
    weight = torch.randn(3, 2, *old, dtype=torch.float64)
    patches = torch.randn(5, 2, *old, dtype=torch.float64)
    larger = torch.nn.functional.interpolate(patches, new, mode="bicubic", antialias=True)
    tokens = torch.einsum("bchw,dchw->bd", larger, resize_patches(weight, new))
    torch.testing.assert_close(tokens, torch.einsum("bchw,dchw->bd", patches, weight))


def test_patches_of_the_same_size_stay():
    weight = torch.randn(3, 2, 4, 5)
    assert resize_patches(weight, (4, 5)) is weight
    assert adapt_channels(weight, 2) is weight


@pytest.mark.parametrize("in_chans", [1, 2, 4, 7])
def test_other_channels_equal_timm(in_chans):
    weight = torch.randn(5, 3, 4, 4)
    expected = timm.models.adapt_input_conv(in_chans, weight)
    torch.testing.assert_close(adapt_channels(weight, in_chans), expected)


def test_a_grey_image_is_one_of_three_like_channels():
    weight, grey = torch.randn(5, 3, 4, 4), torch.randn(2, 1, 4, 4)
    colours = torch.einsum("bchw,dchw->bd", grey.expand(-1, 3, -1, -1), weight)
    torch.testing.assert_close(torch.einsum("bchw,dchw->bd", grey, adapt_channels(weight, 1)), colours)


@pytest.mark.parametrize("in_chans", [3, 4])
def test_what_was_grey_sees_the_mean_of_the_channels(in_chans):
    weight, images = torch.randn(5, 1, 4, 4), torch.randn(2, in_chans, 4, 4)
    expected = torch.einsum("bchw,dchw->bd", images.mean(dim=1, keepdim=True), weight)
    torch.testing.assert_close(torch.einsum("bchw,dchw->bd", images, adapt_channels(weight, in_chans)), expected)


@pytest.mark.parametrize(("colours", "in_chans"), [(2, 3), (4, 3), (3, 0), (1, 0)])
def test_channels_without_a_rule_are_refused(colours, in_chans):
    with pytest.raises(ValueError, match=f"of {colours} channels can't be converted to {in_chans}"):
        adapt_channels(torch.randn(5, colours, 4, 4), in_chans)

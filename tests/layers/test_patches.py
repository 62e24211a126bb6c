"""Patches against timm's PatchEmbed, and the sizes that an error suggests."""

import pytest
import timm.layers
import torch

from vit.layers.patches import PatchEmbed


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
    with pytest.raises(ValueError, match=r"16 x 13 pixels .* 5 x 7; heights that can: 15 or 20; widths: 7 or 14"):
        embed(torch.zeros(1, 3, 16, 13))
    assert embed(torch.zeros(1, 3, 20, 14)).shape == (1, 8, 11)


@pytest.mark.parametrize("size", [(4, 7), (0, 7), (5, 0)])
def test_images_smaller_than_a_patch_are_refused(size):
    with pytest.raises(ValueError, match="heights that can: 5"):
        PatchEmbed((5, 7), 3, 11).grid(*size)

"""Which grid a bare file's positions are of: the size that is given tells, what stays ambiguous is told or refused."""

import pytest
import torch
from safetensors.torch import save_file

from vit.checkpoints.load import load, load_with_report
from vit.foundation import UserError

NONE = "no other token"
ALL = "all other tokens"


@pytest.fixture
def file(tmp_path):
    def write(model):
        save_file(model.state_dict(), tmp_path / "weights.safetensors")
        return tmp_path / "weights.safetensors"

    return write


def refusal(source, **options):
    with pytest.raises(UserError) as caught:
        load(source, num_heads=2, **options)
    assert len(str(caught.value).splitlines()) <= 5
    return str(caught.value)


def grids(report):
    return [text for text in report.assumed if text.startswith("positions")]


@torch.no_grad()
def assert_same(model, reference, size):
    images = torch.randn(2, 3, *size)
    expected = reference(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(model.eval()(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("grid", "options"),
    [
        ((2, 4), {}),  # 9 positions, as of 3 x 3 patches
        ((4, 2), {}),
        ((4, 6), {}),
        ((6, 8), {}),
        ((14, 16), {}),
        ((2, 7), {"distilled": True}),  # 16 positions
        ((2, 6), {"reg_tokens": 4}),  # 17 positions, as of the class token and 4 x 4 patches
        ((2, 2), {"reg_tokens": 4}),  # 9 positions
    ],
)
def test_the_size_that_is_given_is_the_grids_if_it_fits(timm_vit, file, grid, options):
    size = (7 * grid[0], 7 * grid[1])
    reference = timm_vit(img_size=size, **options)
    model, report = load_with_report(file(reference), num_heads=2, image_size=size)
    assert_same(model, reference, size)
    assert report.resized == []
    assert grids(report) == [f"positions of {grid[0]} x {grid[1]} patches and {ALL}"]
    by_its_own_size = load(file(reference), num_heads=2, trained_size=size)
    assert_same(by_its_own_size, reference, size)
    assert by_its_own_size.preprocessing.image_size == size


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 3}])
def test_a_class_token_without_a_position_is_assumed_aloud(timm_vit, file, options):
    reference = timm_vit(img_size=21, no_embed_class=True, **options)
    for more in ({}, {"image_size": (21, 21)}):
        model, report = load_with_report(file(reference), num_heads=2, **more)
        assert_same(model, reference, (21, 21))
        assert grids(report) == [f"positions of 3 x 3 patches and {NONE}"]
    model, report = load_with_report(file(reference), num_heads=2, trained_size=(21, 21), image_size=(28, 14))
    assert model.encoder.grid == (4, 2)
    assert report.resized == ["positions from 3 x 3 to 4 x 2 by bicubic_antialias"]
    assert grids(report) == []


def test_what_is_usual_needs_no_word(timm_vit, file):
    for options in ({}, {"distilled": True}, {"class_token": False, "global_pool": "avg"}):
        _, report = load_with_report(file(timm_vit(**options)), num_heads=2)
        assert grids(report) == []


def test_a_square_and_a_grid_of_as_many_patches_ask_which(timm_vit, file):
    size = (28, 63)
    reference = timm_vit(img_size=size)
    path = file(reference)
    told = refusal(path, image_size=size)
    assert "37 positions may be those of 6 x 6 patches or of 4 x 9" in told
    assert "trained_size" in told
    assert "[42, 42]" in told
    assert "[28, 63]" in told
    model, report = load_with_report(path, num_heads=2, image_size=size, trained_size=size)
    assert_same(model, reference, size)
    assert (report.resized, grids(report)) == ([], [])
    square = timm_vit(img_size=42, dynamic_img_size=True)
    model, report = load_with_report(file(square), num_heads=2, image_size=size, trained_size=(42, 42))
    assert_same(model, square, size)
    assert report.resized == ["positions from 6 x 6 to 4 x 9 by bicubic_antialias"]
    assert load(file(square), num_heads=2).encoder.grid == (6, 6)


def test_a_grid_that_is_not_square_is_resized_from_the_size_of_training(timm_vit, file):
    reference = timm_vit(img_size=(14, 35), dynamic_img_size=True)
    path = file(reference)
    assert "11 positions, which is not a square grid" in refusal(path, image_size=(28, 28))
    assert "--trained_size [height, width]" in refusal(path, image_size=(28, 28))
    assert_same(load(path, num_heads=2, trained_size=(14, 35), image_size=(28, 28)), reference, (28, 28))


def test_a_size_of_training_that_the_positions_are_not_of_is_refused(timm_vit, file):
    told = refusal(file(timm_vit()), trained_size=(14, 35))
    assert "trained_size is (14, 35), which is 2 x 5 patches" in told
    assert "2 x 2" in told

"""Google's .npz files give what timm's own reader makes of them, at other sizes what Google's code does."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy.ndimage import zoom
from torch import nn

from vit.checkpoints.load import load, load_with_report
from vit.foundation import UserError

D, H, HIDDEN, CLASSES, PATCH, GRID = 22, 2, 46, 5, 7, 3


CHANCE = np.random.default_rng(0)


def values(*shape):
    return CHANCE.normal(0, 0.5, shape).astype(np.float32)


def block(root, numbers, *, stacked=()):
    """The arrays of a block; `numbers` are those of attention, MLP and second norm, in the order of their making."""
    attention, mlp, norm = numbers
    arrays = {}
    for part in ("query", "key", "value"):
        arrays[f"MultiHeadDotProductAttention_{attention}/{part}/kernel"] = values(*stacked, D, H, D // H)
        arrays[f"MultiHeadDotProductAttention_{attention}/{part}/bias"] = values(*stacked, H, D // H)
    arrays[f"MultiHeadDotProductAttention_{attention}/out/kernel"] = values(*stacked, H, D // H, D)
    arrays[f"MultiHeadDotProductAttention_{attention}/out/bias"] = values(*stacked, D)
    for index, (wide, narrow) in enumerate([(D, HIDDEN), (HIDDEN, D)]):
        arrays[f"MlpBlock_{mlp}/Dense_{index}/kernel"] = values(*stacked, wide, narrow)
        arrays[f"MlpBlock_{mlp}/Dense_{index}/bias"] = values(*stacked, narrow)
    for number in norm:
        arrays[f"LayerNorm_{number}/scale"] = values(*stacked, D)
        arrays[f"LayerNorm_{number}/bias"] = values(*stacked, D)
    return {f"{root}{name}": value for name, value in arrays.items()}


def stem(grid=GRID, prefix=1):
    cls = {"cls": values(1, 1, D)} if prefix else {}
    return {
        **cls,
        "embedding/kernel": values(PATCH, PATCH, 3, D),
        "embedding/bias": values(D),
        "Transformer/encoder_norm/scale": values(D),
        "Transformer/encoder_norm/bias": values(D),
    }, values(1, prefix + grid * grid, D)


def vision_transformer(*, head=True, pre_logits=False, depth=3):
    """As the repository vision_transformer writes it, also after fine-tuning."""
    arrays, positions = stem()
    arrays["Transformer/posembed_input/pos_embedding"] = positions
    for index in range(depth):
        arrays |= block(f"Transformer/encoderblock_{index}/", (1, 3, (0, 2)))
    if pre_logits:
        arrays |= {"pre_logits/kernel": values(D, D), "pre_logits/bias": values(D)}
    return {**arrays, "head/kernel": values(D, CLASSES), "head/bias": values(CLASSES)} if head else arrays


def big_vision(root, *, pool, stacked=False, depth=2):
    arrays, positions = stem(prefix=int(pool == "tok"))
    arrays["pos_embedding"] = positions[:, int(pool == "tok") :]  # there it is added before the class token comes
    if stacked:
        arrays |= block("Transformer/encoderblock/", (0, 0, (0, 1)), stacked=(depth,))
    else:
        for index in range(depth):
            arrays |= block(f"Transformer/encoderblock_{index}/", (0, 0, (0, 1)))
    if pool == "map":
        arrays |= {"MAPHead_0/probe": values(1, 1, D), **block("MAPHead_0/", (0, 0, (0,)))}
    arrays |= {"head/kernel": values(D, CLASSES), "head/bias": values(CLASSES)}
    return {f"{root}{name}": value for name, value in arrays.items()}


@pytest.fixture
def file(tmp_path):
    def write(arrays):
        np.savez(tmp_path / "weights.npz", **arrays)
        return tmp_path / "weights.npz"

    return write


@pytest.fixture
def read_by_timm(timm_vit):
    """timm's model with what its own reader takes from a file, in float64."""
    keywords = {"img_size": GRID * PATCH, "mlp_ratio": HIDDEN / D + 1e-6, "act_layer": "gelu_tanh"}

    def read(path, **more):
        reference = timm_vit(**{**keywords, "norm_layer": partial(nn.LayerNorm, eps=1e-6), **more})
        with torch.no_grad():
            reference.load_pretrained(str(path))
        return reference.double()

    return read


def assert_close(ours, theirs):
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def images(batch=3, size=(GRID * PATCH,) * 2):
    return torch.randn(batch, 3, *size, dtype=torch.float64)


@pytest.mark.parametrize("root", ["", "opt/target/"])
@pytest.mark.parametrize("depth", [1, 3, 11])
@torch.no_grad()
def test_logits_equal_timm(file, read_by_timm, root, depth):
    arrays = vision_transformer(depth=depth)
    path = file({f"{root}{name}": value for name, value in arrays.items()})
    reference = read_by_timm(path, depth=depth)
    model, report = load_with_report(path)
    x = images()
    assert_close(model.double().eval()(x), reference(x))
    assert (report.layout, report.matched, report.dropped) == ("Google", len(reference.state_dict()), [])
    assert report.assumed == ["norm_eps=1e-06", "act=gelu_tanh", "pos_interpolation=bilinear_corners"]


@torch.no_grad()
def test_exact_gelu_can_be_asked_for_as_timm_takes_it(file, read_by_timm):
    path = file(vision_transformer())
    x = images()
    assert_close(load(path, act="gelu").double().eval()(x), read_by_timm(path, act_layer="gelu")(x))


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize(("pool", "theirs"), [("gap", "avg"), ("map", "map"), ("tok", "token")])
@torch.no_grad()
def test_big_vision_equals_timm(file, read_by_timm, pool, theirs, stacked):
    path = file(big_vision("params/", pool=pool, stacked=stacked))
    options = {"class_token": pool == "tok", "no_embed_class": True, "fc_norm": False, "depth": 2}
    reference = read_by_timm(path, global_pool=theirs, **options)
    x = images()
    assert_close(load(path).double().eval()(x), reference(x))


@torch.no_grad()
def test_the_image_tower_of_siglip(file, read_by_timm):
    text = {"params/t": values(1), "params/txt/head/kernel": values(3, 3)}
    path = file({**big_vision("params/img/", pool="map"), **text})
    model, report = load_with_report(path)
    x = images()
    reference = read_by_timm(path, global_pool="map", class_token=False, depth=2)
    assert_close(model.double().eval()(x), reference(x))
    assert report.dropped == ["params/t ... (2 tensors, not of the image encoder)"]


@torch.no_grad()
def test_a_head_behind_a_representation_layer_is_left_out(file, read_by_timm):
    path = file(vision_transformer(pre_logits=True))
    model, report = load_with_report(path)
    x = images()
    assert_close(model.double().eval()(x), read_by_timm(path, num_classes=0)(x))
    told = "the head reads a representation layer"
    assert report.dropped == [f"pre_logits/* (2 tensors, {told})", f"head/* (2 tensors, {told})"]


@pytest.mark.parametrize("grid", [(5, 5), (2, 2), (4, 7)])
@torch.no_grad()
def test_other_sizes_equal_google(file, read_by_timm, grid):
    """checkpoint.py of vision_transformer: scipy's zoom of order 1, the class token's position kept."""
    arrays = vision_transformer()
    model = load(file(arrays)).double().eval()
    name = "Transformer/posembed_input/pos_embedding"
    positions = arrays[name][0, 1:].reshape(GRID, GRID, D)
    resized = zoom(positions, (grid[0] / GRID, grid[1] / GRID, 1), order=1).reshape(1, -1, D)
    arrays[name] = np.concatenate([arrays[name][:, :1], resized], axis=1)
    size = (grid[0] * PATCH, grid[1] * PATCH)
    x = images(2, size)
    assert_close(model(x), read_by_timm(file(arrays), img_size=size)(x))


def test_a_hybrid_is_refused(file):
    with pytest.raises(UserError, match="a hybrid, which does not fit: its patches come from a ResNet"):
        load(file({**vision_transformer(), "conv_root/kernel": values(7, 7, 3, 64), "gn_root/scale": values(64)}))


@pytest.mark.parametrize(
    "spoil",
    [
        {"Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel": values(3)},
        {"Transformer/encoderblock_0/MlpBlock_3": values(3, 3)},
        {"embedding/kernel": values(3, 3)},
        {"cls": values(3)},
        {"Transformer/encoderblock/LayerNorm_0/scale": values(2, D)},
    ],
)
def test_other_shapes_and_names_are_refused(file, spoil):
    with pytest.raises(UserError) as caught:
        load(file({**vision_transformer(), **spoil}), num_heads=2)
    assert len(str(caught.value).splitlines()) <= 5
    assert "does not fit" in str(caught.value)

"""The .pth files of facebookresearch give the logits and tokens of timm's models, whose weights are named as there.

At other sizes positions are resized here by torch alone, as the original code does it.
"""

import math
from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

from vit.checkpoints.load import load, load_with_report


@pytest.fixture
def file(tmp_path):
    def write(content):
        torch.save(content, tmp_path / "weights.pth")
        return tmp_path / "weights.pth"

    return write


@pytest.fixture
def dinov2(timm_vit):
    """timm's model, and its weights as DINOv2's hub has them."""

    def build(*, registers=0, giant=False, **more):
        options = {"init_values": 0.1, "num_classes": 0, "img_size": 21, **more}
        if giant:
            options |= {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
        if registers:
            options |= {"reg_tokens": registers, "no_embed_class": True}
        reference = timm_vit(**options)
        state = dict(reference.state_dict())
        if registers:  # there the class token has a position of its own
            state["register_tokens"] = state.pop("reg_token")
            position = torch.randn(1, 1, 22)
            state["cls_token"] = state["cls_token"] - position
            state["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
        if giant:
            state = {name.replace(".fc1.", ".w12.").replace(".fc2.", ".w3."): state[name] for name in state}
        return reference.double(), {**state, "mask_token": torch.randn(1, 22)}

    return build


def chunked(state, size=2):
    """Blocks in chunks, as in the checkpoints that DINOv2's training writes."""
    result = {}
    for name, value in state.items():
        start, *rest = name.split(".")
        if start == "blocks":
            rest = [str(int(rest[0]) // size), *rest]
        result[".".join([start, *rest])] = value
    return result


def assert_close(ours, theirs):
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def images(*size, batch=2):
    return torch.randn(batch, 3, *size, dtype=torch.float64)


@pytest.mark.parametrize("wrap", [dict, chunked, lambda state: {"teacher": {f"backbone.{k}": state[k] for k in state}}])
@pytest.mark.parametrize("options", [{}, {"registers": 4}, {"giant": True}, {"giant": True, "registers": 3}])
@torch.no_grad()
def test_tokens_equal_dinov2(dinov2, file, options, wrap):
    reference, state = dinov2(**options)
    model, report = load_with_report(file(wrap(state)), num_heads=2)
    x = images(21, 21)
    assert_close(model.double().encoder(x), reference.forward_features(x))
    assert report.layout == "facebookresearch"
    assert len(report.dropped) == 1
    assert "mask_token (stands for hidden patches while pretraining)" in report.dropped[0]


@torch.no_grad()
def test_timm_takes_dinov2_to_be_the_same(dinov2):
    """The names that are made here are those that timm knows of DINOv2's files."""
    reference, state = dinov2(giant=True, registers=4)
    x = images(21, 21)
    expected = reference.forward_features(x)
    for parameter in reference.parameters():
        parameter.zero_()
    reference.load_state_dict(checkpoint_filter_fn(dict(state), reference))
    assert_close(reference.forward_features(x), expected)


def resized_by_dino(positions, grid, new_grid, *, offset, antialias=False):
    """interpolate_pos_encoding of dino and dinov2: (1, 1 + N, D) -> (1, 1 + new N, D)."""
    prefix, patches = positions[:, :1], positions[:, 1:]
    side = math.sqrt(patches.shape[1])
    patches = patches.reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
    if offset:
        scale = tuple((new + offset) / side for new in new_grid)
        patches = F.interpolate(patches, scale_factor=scale, mode="bicubic", antialias=antialias)
    else:
        patches = F.interpolate(patches, size=new_grid, mode="bicubic", antialias=antialias)
    assert patches.shape[2:] == new_grid
    return torch.cat([prefix, patches.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


@pytest.mark.parametrize("grid", [(5, 5), (2, 2), (4, 7)])
@pytest.mark.parametrize("registers", [0, 4])
@torch.no_grad()
def test_other_sizes_equal_dinov2(dinov2, timm_vit, file, registers, grid):
    """The first models are resized with an offset, those with registers with antialiasing."""
    trained, state = dinov2(registers=registers)
    path = file(state)
    size = (grid[0] * 7, grid[1] * 7)
    options = {"reg_tokens": registers, "no_embed_class": True} if registers else {}
    reference = timm_vit(init_values=0.1, num_classes=0, img_size=size, **options)
    positions = resized_by_dino(
        state["pos_embed"], 3, grid, offset=0.0 if registers else 0.1, antialias=bool(registers)
    )
    weights = {**trained.state_dict(), "pos_embed": positions[:, 1:] if registers else positions}
    reference.load_state_dict(weights)
    x = images(*size)
    expected = reference.double().forward_features(x)
    for more in ({}, {"image_size": size}):
        assert_close(load(path, num_heads=2, **more).double().encoder(x), expected)


def dino_checkpoint(state, other):
    """A whole checkpoint of DINO's training: a student and a teacher, each with a projection head."""
    head = {"head.mlp.0.weight": torch.randn(3, 22), "head.last_layer.weight_g": torch.randn(3, 1)}
    teacher = {f"backbone.{name}": state[name] for name in state} | head
    student = {f"module.backbone.{name}": other[name] for name in other} | {f"module.{k}": head[k] for k in head}
    return {"student": student, "teacher": teacher, "epoch": 7, "args": Namespace(arch="vit_small", lr=0.1)}


@pytest.mark.parametrize("kept", ["teacher", "student"])
@torch.no_grad()
def test_whole_checkpoints_of_dino(timm_vit, file, kept):
    reference, other = timm_vit(num_classes=0), timm_vit(num_classes=0)
    content = dino_checkpoint(reference.state_dict(), other.state_dict())
    if kept == "student":
        del content["teacher"]
        reference = other
    model, report = load_with_report(file(content), num_heads=2)
    x = images(14, 14)
    assert_close(model.double().encoder(x), reference.double().forward_features(x))
    told = "projection head of DINO"
    assert report.dropped == [f"head.mlp.0.weight ({told})", f"head.last_layer.weight_g ({told})"]
    taken = ["of student, teacher in the file, teacher was used, which is averaged"] if kept == "teacher" else []
    assert report.notes == taken
    assert "pos_interpolation=bicubic_offset" in report.assumed


@torch.no_grad()
def test_a_backbone_of_dino_alone(timm_vit, file):
    """Its keys are timm's; the resizing must be told."""
    trained = timm_vit(num_classes=0, img_size=21)
    path = file(trained.state_dict())
    model, report = load_with_report(path, num_heads=2, pos_interpolation="bicubic_offset")
    reference = timm_vit(num_classes=0, img_size=(28, 14))
    positions = resized_by_dino(trained.pos_embed, 3, (4, 2), offset=0.1)
    reference.load_state_dict({**trained.state_dict(), "pos_embed": positions})
    x = images(28, 14)
    assert_close(model.double().encoder(x), reference.double().forward_features(x))
    assert report.layout == "timm"


@torch.no_grad()
def test_mae_of_pretraining(timm_vit, file):
    reference = timm_vit(num_classes=0)
    decoder = {"mask_token": torch.randn(1, 1, 16), "decoder_pos_embed": torch.randn(1, 5, 16)}
    decoder |= {"decoder_embed.weight": torch.randn(16, 22), "decoder_blocks.0.norm1.weight": torch.randn(16)}
    model, report = load_with_report(file({"model": {**reference.state_dict(), **decoder}}), num_heads=2)
    x = images(14, 14)
    assert_close(model.double().encoder(x), reference.double().forward_features(x))
    assert "decoder_* (3 tensors, decoder of MAE)" in report.dropped
    assert model.encoder.embed.pos_interpolation == "bicubic"


@torch.no_grad()
def test_mae_fine_tuned(timm_vit, file):
    reference = timm_vit(global_pool="avg", fc_norm=True)
    model, report = load_with_report(file({"model": reference.state_dict(), "epoch": 3}), num_heads=2)
    x = images(14, 14)
    assert_close(model.double().eval()(x), reference.double()(x))
    assert (model.pool, report.matched) == ("mean", len(reference.state_dict()))

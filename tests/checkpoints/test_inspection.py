"""What `vit info` tells of a checkpoint, also of one that is refused."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import cli
from vit.checkpoints.folder import write_folder
from vit.checkpoints.inspection import inspect
from vit.foundation import UserError
from vit.models.neighbours import Neighbours


@pytest.fixture
def state(timm_vit):
    return timm_vit(embed_dim=192, num_heads=3, depth=2).state_dict()  # a width that tells the number of heads


@pytest.fixture
def file(tmp_path):
    def write(tensors):
        save_file(tensors, tmp_path / "weights.safetensors")
        return str(tmp_path / "weights.safetensors")

    return write


def test_all_of_a_bare_file(file, state):
    path = file(state)
    found = inspect(path)
    told = dict(found.rows)
    assert found.refusal is None
    assert told["sha256"] == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert told["parameters"] == f"{sum(value.numel() for value in state.values()) - 192:,}"  # the class position
    assert told["tensors"] == f"{len(state)} in it, {len(state)} of the model's"
    assert told["tokens"] == "5 = 1 prefix + 2 x 2 patches"
    assert told["assumed (5)"] == (
        "norm_eps=1e-06, act=gelu, pos_interpolation=bicubic_antialias, num_heads=3, pool=class"
    )
    assert "assumed" in told["preprocessing"]
    assert (told["source"], told["classes"], told["labels"]) == ("timm (by the names of its tensors)", "5", "none")
    assert told["as torchvision"] == "can be exported"
    assert not any(subject.startswith(("resized", "missing", "unexpected", "left out")) for subject in told)


def test_a_model_folder_says_all_itself(tmp_path, build):
    write_folder(build(pool="class+mean"), tmp_path)
    told = dict(inspect(str(tmp_path)).rows)
    assert told["labels"] == "鳥, crow, épervier, bee eater"
    assert told["preprocessing"] == "(30, 30), the whole photo squashed, bicubic"
    assert told["mean, std"] == "(0.5, 0.4, 0.3), (0.2, 0.3, 0.25)"
    assert told["as timm"] == "can't represent a head that reads class+mean"
    assert not any(subject.startswith("assumed") for subject in told)


@pytest.mark.parametrize(("count", "vote"), [(12, 10), (4, 4)])
def test_neighbours_are_told(tmp_path, build, count, vote):
    model = build()
    model.neighbours = Neighbours(torch.randn(count, model.num_features), torch.eye(4).repeat(count // 4, 1), share=0.3)
    write_folder(model, tmp_path)
    told = dict(inspect(str(tmp_path)).rows)
    assert told["neighbours"] == f"{vote} of {count} training photographs vote, with a share of 30%"
    assert f"The {vote} of {count} training photographs" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_what_loading_would_do(file, state):
    told = dict(inspect(file(state), image_size=(28, 21), classes=9).rows)
    assert told["resized (1)"] == "positions from 2 x 2 to 4 x 3 by bicubic_antialias"
    assert told["tokens"].startswith("13 =")
    assert told["at --classes"] == (
        "head.weight and head.bias, for 5 classes, are left out; a new head has 9 x 192 random weights"
    )


def test_a_refused_checkpoint_is_told_key_by_key(file, state):
    for name in ("blocks.1.norm1.weight", "blocks.0.mlp.fc1.bias", "norm.bias", "norm.weight", "blocks.0.ls1.gamma"):
        state.pop(name, None)
    state |= {f"blocks.0.strange{number}": torch.ones(3) for number in range(6)}
    state["blocks.1.attn.proj.bias"] = torch.ones(7)
    found = inspect(file(state))
    told = dict(found.rows)
    missing = ["blocks.0.mlp.fc1.bias", "blocks.1.norm1.weight", "norm.bias", "norm.weight"]
    assert told["missing (4)"] == ", ".join(f"encoder.{name}" for name in missing)
    assert told["unexpected (6)"] == ", ".join(f"encoder.blocks.0.strange{number}" for number in range(6))
    assert told["of another shape (1)"] == "encoder.blocks.1.attn.proj.bias"
    assert (told["embed_dim"], told["depth"]) == ("192", "2")
    assert "4 missing" in str(found.refusal)


def test_unknown_weights_are_told_as_far_as_they_go(file):
    found = inspect(file({"0.weight": torch.ones(2, 3), "0.bias": torch.ones(2)}))
    assert dict(found.rows)["tensors"] == "2 in it"
    assert "not a Vision Transformer" in str(found.refusal)


def test_what_can_t_be_read_is_refused(tmp_path):
    with pytest.raises(UserError, match="There is no checkpoint at"):
        inspect(str(tmp_path / "none.safetensors"))


@pytest.mark.parametrize("fits", [True, False])
def test_in_a_pipe_each_subject_has_a_line(file, state, capsys, fits):
    if not fits:
        state["strange"] = torch.ones(3)
    assert cli.main(["info", file(state)]) == (0 if fits else 1)
    printed = capsys.readouterr()
    lines = dict(line.split("  ", 1) for line in printed.out.splitlines())
    assert lines["embed_dim"].strip() == "192"
    assert ("unexpected (1)" in lines) != fits
    assert ("does not fit" in printed.err) != fits
    assert "\x1b" not in printed.out

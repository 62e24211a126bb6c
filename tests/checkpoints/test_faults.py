"""Hostile and broken checkpoints on the command line: exit 1 in five lines that name the file, and nothing was run."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import cli
from vit.checkpoints.folder import write_folder

FORCE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture
def state(timm_vit):
    """Weights that load, were it not for what is done to them."""
    return timm_vit(embed_dim=192, num_heads=3, depth=1).state_dict()


@pytest.fixture
def refused(capsys):
    """The answer of a command line to a checkpoint."""

    def run(path, *words):
        assert cli.main([*words, str(path)] if words else ["info", str(path)]) == 1
        text = capsys.readouterr().err
        assert len(text.splitlines()) <= 5
        assert str(path) in text
        assert "Traceback" not in text
        return text

    return run


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("place", ["beside", "hyper_parameters", "callbacks", "state_dict"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("suffix", [".pth", ".ckpt"])
def test_code_anywhere_in_a_pickle(tmp_path, monkeypatch, state, refused, suffix, zipped, place, forced):
    path, marker = tmp_path / f"weights{suffix}", tmp_path / "marker"
    content = {"state_dict": dict(state), "hyper_parameters": {}, "callbacks": {}, "pytorch-lightning_version": "2.6"}
    (content if place == "beside" else content[place])["extra"] = Payload(marker)
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    torch.load(path, weights_only=False)
    assert marker.exists()  # the payload works
    marker.unlink()
    if forced:
        monkeypatch.setenv(FORCE, "1")
    assert "executed" in refused(path)
    assert not marker.exists()


def test_code_in_an_npz(tmp_path, refused):
    path, marker = tmp_path / "weights.npz", tmp_path / "marker"
    np.savez(path, **{"embedding/kernel": np.zeros((2, 2, 3, 4)), "cls": np.array([Payload(marker)], dtype=object)})
    np.load(path, allow_pickle=True)["cls"]
    assert marker.exists()
    marker.unlink()
    assert "executed" in refused(path)
    assert not marker.exists()


@pytest.mark.parametrize("names", [("_instantiator",), ("_class_path",), ("_instantiator", "_class_path")])
def test_modules_that_a_lightning_checkpoint_names(tmp_path, monkeypatch, capsys, state, names):
    """The weights are read, and what is named is not imported: there is nothing to refuse."""
    marker = tmp_path / "marker"
    code = f"import pathlib\npathlib.Path({str(marker)!r}).touch()\ndef make(*_): ...\n"
    (tmp_path / "hostile_module.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    content = {"state_dict": dict(state), "hyper_parameters": dict.fromkeys(names, "hostile_module.make")}
    torch.save(content | dict.fromkeys(names, "hostile_module.make"), tmp_path / "last.ckpt")
    assert cli.main(["info", str(tmp_path / "last.ckpt")]) == 0
    assert "hostile_module" not in sys.modules
    assert not marker.exists()
    __import__("hostile_module")
    del sys.modules["hostile_module"]
    assert marker.exists()  # it would have shown


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".ckpt", ".npz", ".bin"])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "The file is empty"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 88240600\n", "git lfs pull"),
    ],
)
def test_what_is_no_checkpoint(tmp_path, refused, suffix, content, told):
    (tmp_path / f"weights{suffix}").write_bytes(content)
    assert told in refused(tmp_path / f"weights{suffix}")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_truncated_file(tmp_path, state, refused, suffix):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    path.write_bytes(path.read_bytes()[:-1000])
    assert "damaged" in refused(path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_flipped_bit_in_a_model_folder(tmp_path, build, capsys, name):
    write_folder(build(), tmp_path / "model")
    path = tmp_path / "model" / name
    content = bytearray(path.read_bytes())
    place = content.index(b'"crow"') + 1 if name == "config.json" else len(content) // 2
    content[place] ^= 1
    path.write_bytes(content)
    for verb in (["info", str(tmp_path / "model")], ["export", str(tmp_path / "model"), "--to", "timm", "--out", "x"]):
        assert cli.main(verb) == 1
        text = capsys.readouterr().err
        assert str(path) in text
        assert "sha256" in text
        assert len(text.splitlines()) <= 5


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda state: {"a.weight": torch.ones(2, 3)}, "1 tensors"),
        (lambda state: {**state, "norm.weight": state["norm.weight"] * torch.nan}, "NaN or infinite weights in 1 of"),
        (lambda state: {**state, "head.weight": torch.ones(5, 7)}, "1 of another shape: head.weight"),
        (lambda state: {**state, "head.bias": torch.ones(7)}, "1 of another shape: head.bias"),
        (lambda state: {**state, "other": torch.ones(7)}, "1 unexpected: other"),
        (lambda state: {name: value for name, value in state.items() if "norm1" not in name}, "2 missing: "),
    ],
    ids=["unrelated", "NaN", "head", "bias of the head", "a key more", "two keys less"],
)
def test_weights_that_do_not_fit(tmp_path, state, refused, spoil, told):
    save_file(spoil(state), tmp_path / "weights.safetensors")
    text = refused(tmp_path / "weights.safetensors")
    assert told in text
    assert "does not fit: " not in text or "tensors match" in text

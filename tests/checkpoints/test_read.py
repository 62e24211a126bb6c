"""Checkpoint files as people have them: wrapped, prefixed, broken, and hostile."""

import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vit.checkpoints.read import read_tensors
from vit.foundation import UserError

FORCE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
FORMATS = {"zip": True, "legacy": False}  # of torch.save


@pytest.fixture
def tensors():
    return {"cls_token": torch.randn(1, 1, 3), "blocks.0.norm1.weight": torch.randn(5), "head.bias": torch.randn(2)}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


def refusal(path):
    """What the user reads; at most five lines that name the file."""
    with pytest.raises(UserError) as caught:
        read_tensors(path)
    text = str(caught.value)
    assert str(path) in text
    assert len(text.splitlines()) <= 5
    return text


def assert_same(found, tensors):
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], value) for name, value in tensors.items())


def prefixed(tensors, prefix):
    return {prefix + name: value for name, value in tensors.items()}


def test_safetensors(tmp_path, tensors):
    save_file(tensors, tmp_path / "weights.safetensors")
    assert_same(read_tensors(tmp_path / "weights.safetensors"), tensors)


@pytest.mark.parametrize("zipped", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_plain_state_dict(tmp_path, tensors, zipped, suffix):
    torch.save(tensors, tmp_path / f"weights{suffix}", _use_new_zipfile_serialization=zipped)
    assert_same(read_tensors(tmp_path / f"weights{suffix}"), tensors)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: {"state_dict": tensors},
        lambda tensors: {"model": tensors, "epoch": 7, "lr": 1e-3, "optimizer": {"state": {}}},
        lambda tensors: {"model_state_dict": tensors},
        lambda tensors: {"model": {"state_dict": tensors}},
        lambda tensors: {"state_dict": tensors, "epoch": torch.tensor(7)},
        lambda tensors: {"loss": torch.tensor(0.5), "model": tensors},
        lambda tensors: prefixed(tensors, "module."),
        lambda tensors: prefixed(tensors, "_orig_mod."),
        lambda tensors: {"state_dict": prefixed(tensors, "module._orig_mod.")},
        lambda tensors: {"model": prefixed(tensors, "_orig_mod.module.")},
        lambda tensors: {**tensors, "note": "trained on Monday"},
    ],
)
def test_wrapped_and_prefixed(path, tensors, wrap):
    torch.save(wrap(tensors), path)
    assert_same(read_tensors(path), tensors)


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture(params=["legacy", "zip", "plain pickle", "torch.save of numpy"])
def hostile(request, tmp_path, path, tensors):
    """A file that makes `marker` when it is unpickled, and the marker."""
    marker = tmp_path / "marker"
    content = {**tensors, "extra": Payload(marker)}
    if request.param == "plain pickle":
        path.write_bytes(pickle.dumps({"cls_token": Payload(marker)}))
        pickle.loads(path.read_bytes())
    elif request.param == "torch.save of numpy":
        torch.save({"cls_token": np.array([Payload(marker)], dtype=object)}, path)
        torch.load(path, weights_only=False)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=FORMATS[request.param])
        torch.load(path, weights_only=False)
    assert marker.exists()  # the payload works
    marker.unlink()
    return path, marker


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("forced", [False, True])
def test_code_in_a_pickle_is_never_run(monkeypatch, hostile, forced):
    path, marker = hostile
    if forced:
        monkeypatch.setenv(FORCE, "1")
    text = refusal(path)
    assert not marker.exists()
    assert "executed" in text
    assert os.environ.get(FORCE) == ("1" if forced else None)


@pytest.mark.parametrize("hostile", ["zip"], indirect=True)
def test_code_in_a_pickle_is_never_run_by_a_process_that_was_told_to(hostile):
    path, marker = hostile
    program = f"import vit; vit.load({str(path)!r})"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, FORCE: "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "UserError" in done.stderr
    assert not marker.exists()


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".ckpt", ".pkl"])
def test_code_under_another_name_is_never_run(hostile, suffix):
    path, marker = hostile
    renamed = path.rename(path.with_suffix(suffix))
    assert "Allowed are .safetensors, .pth, .pt, .bin files" in refusal(renamed)
    assert not marker.exists()


def test_a_class_named_in_hyperparameters_is_never_imported(monkeypatch, tmp_path, path, tensors):
    (tmp_path / "hostile_module.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    hyperparameters = {"_class_path": "hostile_module.Model", "_instantiator": "hostile_module.make"}
    torch.save({"state_dict": tensors, "hyper_parameters": hyperparameters}, path)
    assert_same(read_tensors(path), tensors)
    assert "hostile_module" not in sys.modules
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "The file is empty"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"\n  <HTML>not found</HTML>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 88240600\n", "git lfs pull"),
        (b"\x00\x01garbage" * 50, "damaged"),
        (b"hello world", "damaged"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path, suffix, content, told):
    (tmp_path / f"weights{suffix}").write_bytes(content)
    assert told in refusal(tmp_path / f"weights{suffix}")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("form", ["safetensors", *FORMATS])
def test_truncated_files_are_refused(tmp_path, tensors, form, share):
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    if form == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=FORMATS[form])
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "damaged" in refusal(path) or share == 0


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", FORMATS)
def test_damage_is_refused_or_harmless(path, tensors, form):
    """Whatever three wrong bytes do: tensors, or an answer for users, never a traceback."""
    torch.save(tensors, path, _use_new_zipfile_serialization=FORMATS[form])
    whole = path.read_bytes()
    chance = random.Random(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[chance.randrange(len(whole))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            read_tensors(path)
        except UserError:
            refused += 1
    assert refused > 30


@pytest.mark.parametrize("content", [[torch.zeros(3)], torch.zeros(3), {}, {"state_dict": None}, {"epoch": 3}, "text"])
def test_files_without_named_tensors_are_refused(path, content):
    torch.save(content, path)
    assert "holds no tensors" in refusal(path)


def test_a_pickled_module_is_refused(path):
    torch.save({"model": torch.nn.Linear(2, 3)}, path)
    assert "executed" in refusal(path)
    assert "state_dict()" in refusal(path)


def test_a_missing_file_is_named(tmp_path):
    assert "No checkpoint at" in refusal(tmp_path / "nothing.pth")
    (tmp_path / "folder.pth").mkdir()
    assert "No checkpoint at" in refusal(tmp_path / "folder.pth")

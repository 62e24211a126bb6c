"""Checkpoint files as people have them: wrapped, prefixed, broken, and hostile."""

import json
import os
import pickle
import random
import subprocess
import sys
import zipfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vit.checkpoints.read import read_file, read_tensors
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


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (("model", "model_ema"), "model_ema"),
        (("state_dict", "state_dict_ema"), "state_dict_ema"),
        (("ema", "model"), "ema"),
        (("student", "teacher"), "teacher"),
        (("model", "student"), "model"),
        (("student",), "student"),
    ],
)
def test_averaged_weights_come_first(path, tensors, names, taken):
    content = {name: {key: torch.zeros_like(value) for key, value in tensors.items()} for name in names}
    torch.save({**content, taken: tensors, "args": Namespace(lr=0.1), "optimizer": {"state": {}}}, path)
    stored = read_file(path)
    assert_same(stored.tensors, tensors)
    averaged = taken not in ("model", "student")
    expected = f"of {', '.join(sorted(names))} in the file, {taken} was used{', which is averaged' * averaged}"
    assert stored.notes == ((expected,) if len(names) > 1 else ())


def test_wrappers_without_tensors_are_passed_over(path, tensors):
    torch.save({"ema": {"decay": 0.99}, "teacher": None, "model": tensors}, path)
    assert_same(read_tensors(path), tensors)


@pytest.fixture
def shards(tmp_path, tensors):
    """Weights in two files, and their index."""
    names = list(tensors)
    folder = tmp_path / "sharded"
    folder.mkdir()
    files = {"model-1-of-2.safetensors": names[:1], "model-2-of-2.safetensors": names[1:]}
    for file, inside in files.items():
        save_file({name: tensors[name] for name in inside}, folder / file)
    index = {
        "metadata": {"total_size": sum(value.numel() * 4 for value in tensors.values())},
        "weight_map": {name: file for file, inside in files.items() for name in inside},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder / "model.safetensors.index.json"


def change(index, **changed):
    index.write_text(json.dumps({**json.loads(index.read_text()), **changed}))


def test_several_files_with_an_index(shards, tensors):
    assert_same(read_tensors(shards), tensors)
    change(shards, metadata={})
    assert_same(read_tensors(shards), tensors)


def test_several_files_of_torch(shards, tensors, tmp_path):
    for file in shards.parent.glob("*.safetensors"):
        torch.save(read_tensors(file), file.with_suffix(".bin"))
    index = shards.with_name("pytorch_model.bin.index.json")
    index.write_text(shards.read_text().replace(".safetensors", ".bin"))
    assert_same(read_tensors(index), tensors)


def test_the_shards_of_transformers(tmp_path):
    from transformers import ViTConfig, ViTModel

    model = ViTModel(ViTConfig(hidden_size=22, num_hidden_layers=2, num_attention_heads=2, intermediate_size=30))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    found = read_tensors(tmp_path / "model.safetensors.index.json")
    assert sum(value.numel() for value in found.values()) == sum(value.numel() for value in model.state_dict().values())


def test_a_missing_shard_is_named(shards):
    (shards.parent / "model-2-of-2.safetensors").unlink()
    assert "needs 2 files, of which 1 are missing: model-2-of-2.safetensors" in refusal(shards)


def test_shards_of_another_version_are_refused(shards, tensors):
    save_file({"other": torch.ones(2)}, shards.parent / "model-1-of-2.safetensors")
    with pytest.raises(UserError, match=r"does not hold what .* says: 2 tensors differ"):
        read_tensors(shards)
    save_file({next(iter(tensors)): torch.ones(2)}, shards.parent / "model-1-of-2.safetensors")
    assert "says 40 bytes, but its files hold 36" in refusal(shards)


@pytest.mark.parametrize(
    "place",
    ["../outside.safetensors", "/outside.safetensors", "{folder}/outside.safetensors", "..", "inner/x.safetensors"],
)
def test_an_index_names_files_of_its_folder_alone(shards, tensors, place):
    outside = shards.parent.parent / "outside.safetensors"
    save_file(tensors, outside)
    change(shards, metadata={}, weight_map=dict.fromkeys(tensors, place.format(folder=outside.parent)))
    assert "is not an index of weights" in refusal(shards)


def test_a_link_out_of_the_folder_is_not_followed(shards, tensors):
    outside = shards.parent.parent / "outside.safetensors"
    save_file(tensors, outside)
    (shards.parent / "link.safetensors").symlink_to(outside)
    change(shards, metadata={}, weight_map=dict.fromkeys(tensors, "link.safetensors"))
    with pytest.raises(UserError, match=r"is a link to .*outside\.safetensors, outside of its folder"):
        read_tensors(shards)


def test_links_within_a_hubs_cache_are_followed(tmp_path, shards, tensors):
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "a1b2"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(shards.parent.iterdir()):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(blobs / str(number))
    assert_same(read_tensors(snapshot / shards.name), tensors)


@pytest.mark.parametrize(
    "content",
    ["", "[" * 100_000, "[]", "null", "{}",
     '{"weight_map": {}}', '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "<html>",
     '{"weight_map": {"a": "weights.pth"}}', '{"weight_map": {"a": "x\\u0000.safetensors"}}',
     '{"metadata": [], "weight_map": {"a": "x.safetensors"}}',
     '{"metadata": {"total_size": "big"}, "weight_map": {"a": "x.safetensors"}}'],
)  # fmt: skip
def test_what_is_no_index_is_refused(shards, content):
    shards.write_text(content)
    assert "is not an index of weights" in refusal(shards)


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


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("suffix", "told"),
    [
        (".npz", ""),
        (".ckpt", "executed"),
        (".npy", "Allowed are .safetensors, .pth, .pt, .bin, .ckpt, .npz files"),
        (".pkl", "Allowed are .safetensors, .pth, .pt, .bin, .ckpt, .npz files"),
    ],
)
@pytest.mark.parametrize("forced", [False, True])
def test_code_under_another_name_is_never_run(monkeypatch, hostile, suffix, told, forced):
    path, marker = hostile
    if forced:
        monkeypatch.setenv(FORCE, "1")
    renamed = path.rename(path.with_suffix(suffix))
    assert told in refusal(renamed)
    assert not marker.exists()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_code_in_an_npz_is_never_run(tmp_path, save):
    path, marker = tmp_path / "weights.npz", tmp_path / "marker"
    save(path, **{"embedding/kernel": np.zeros((2, 2)), "cls": np.array([Payload(marker)], dtype=object)})
    with np.load(path, allow_pickle=True) as archive:
        _ = archive["cls"]
    assert marker.exists()  # the payload works
    marker.unlink()
    assert "nothing in it was executed" in refusal(path)
    assert not marker.exists()


def test_npz(tmp_path):
    arrays = {"a/kernel": np.arange(6, dtype=">f4").reshape(2, 3), "step": np.array(7), "name": np.array("text")}
    np.savez(tmp_path / "weights.npz", **arrays)
    found = read_tensors(tmp_path / "weights.npz")
    assert_same(found, {"a/kernel": torch.arange(6.0).reshape(2, 3), "step": torch.tensor(7)})


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


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damage_of_an_npz_is_refused_or_harmless(tmp_path, save):
    path = tmp_path / "weights.npz"
    save(path, **{"a/kernel": np.arange(35.0).reshape(5, 7), "b": np.arange(9, dtype=np.float32)})
    whole = path.read_bytes()
    chance = random.Random(0)
    refused = 0
    for turn in range(200):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[chance.randrange(len(whole))] = chance.randrange(256)
        path.write_bytes(damaged[: chance.randrange(len(whole))] if turn % 4 == 0 else damaged)
        try:
            read_tensors(path)
        except UserError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("content", [[torch.zeros(3)], torch.zeros(3), {}, {"state_dict": None}, {"epoch": 3}, "text"])
def test_files_without_named_tensors_are_refused(path, content):
    torch.save(content, path)
    assert "holds no tensors" in refusal(path)


@pytest.mark.parametrize("names", [("model",), ("model", "state_dict")])
def test_a_file_that_holds_itself_is_refused(path, tensors, names):
    content = dict(tensors)
    inner = content
    for name in names[:-1]:
        inner[name] = {}
        inner = inner[name]
    inner[names[-1]] = content
    torch.save(content, path)
    assert "more than 8 deep" in refusal(path)


def test_tensors_that_say_more_than_the_file_holds_are_refused(path, tensors):
    """A number that is expanded to a matrix costs a file nothing, and its reader all its time."""
    torch.save({**tensors, "pos_embed": torch.zeros(1).expand(1024, 1024)}, path)
    assert "pos_embed" in refusal(path)
    torch.save({**tensors, "pos_embed": torch.eye(3).to_sparse()}, path)
    assert "pos_embed" in refusal(path)
    torch.save({**tensors, "pos_embed": torch.zeros(3, device="meta")}, path)
    assert "pos_embed" in refusal(path)
    shared = torch.randn(3, 5)
    small = torch.zeros(1).expand(3)  # nobody waits for it
    torch.save({"a": shared, "b": shared.T, "c": small}, path)
    assert_same(read_tensors(path), {"a": shared, "b": shared.T, "c": small})


@pytest.mark.parametrize("suffix", [".pth", ".npz"])
def test_an_archive_that_unpacks_to_much_more_is_refused(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/data/0", bytes(80 * 2**20))
    assert path.stat().st_size < 2**20
    assert "unpacks to 80 MB" in refusal(path)


def test_a_pickled_module_is_refused(path):
    torch.save({"model": torch.nn.Linear(2, 3)}, path)
    assert "executed" in refusal(path)
    assert "state_dict()" in refusal(path)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "model.safetensors.index.json"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    assert "There is no checkpoint at" in refusal(tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    assert "There is no checkpoint at" in refusal(tmp_path / "nothing.pth")
    (tmp_path / "folder.pth").mkdir()
    assert "There is no checkpoint at" in refusal(tmp_path / "folder.pth")
    for allowed in (".npz", ".index.json", "a model folder", "timm:NAME", "hf:OWNER/NAME"):
        assert allowed in refusal(tmp_path / "absent.pth")

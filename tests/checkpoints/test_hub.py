"""Weights by name, where there is no network: a quick answer that says what to do."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import save_file
from torch import nn

from vit.checkpoints.hub import refuse_unreachable
from vit.checkpoints.load import load, load_with_report
from vit.foundation import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def connections(monkeypatch, tmp_path):
    """An empty cache and no network; the list of the addresses that were tried."""
    tried = []

    def refuse(address, *_, **__):
        tried.append(address)
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tried


def refusal(name):
    with pytest.raises(UserError) as caught:
        load(name)
    assert len(str(caught.value).splitlines()) <= 5
    return str(caught.value)


def test_no_network_is_told_at_once(connections):
    began = time.monotonic()
    text = refusal("timm:vit_small_patch16_224")
    assert time.monotonic() - began < 2
    assert "vit_small_patch16_224 is not in the cache" in text
    assert "Network is unreachable" in text
    assert connections == [("huggingface.co", 443)]


@pytest.mark.parametrize("name", ["timm:vit_small_patch16_224", "hf:owner/name"])
@pytest.mark.parametrize("words", ["info {}", "predict {} photos --out x.csv", "train --model.pretrained {} --run r"])
def test_the_command_line_tells_it_before_it_imports_what_is_slow(connections, tmp_path, words, name):
    code = f"""
import sys, cli
cli.main({words.format(name).split()!r})
print([module for module in ("torch", "timm", "transformers", "lightning") if module in sys.modules])"""
    where = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "cache")}
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **where}, cwd=ROOT
    )
    assert f"{name} is not in the cache" in ended.stderr
    assert ended.stdout == "[]\n"


def test_what_may_be_cached_is_for_the_others_to_see(connections, tmp_path):
    (tmp_path / "cache" / "models--timm--any").mkdir(parents=True)
    refuse_unreachable("timm:vit_small_patch16_224")
    refuse_unreachable("hf:timm/any")
    assert connections == []
    with pytest.raises(UserError, match="hf:timm/another is not in the cache"):
        refuse_unreachable("hf:timm/another")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("vit_smal_patch16_224", "vit_small_patch16_224"),
        ("vit_small_patch16_224.augreg_in1", "vit_small_patch16_224.augreg_in1k"),
        ("deit_tinny_patch16_224", "deit_tiny_patch16_224"),
        ("VIT_small_patch16_224", "vit_small_patch16_224"),
    ],
)
def test_unknown_name_gets_the_nearest(connections, name, nearest):
    text = refusal(f"timm:{name}")
    assert f"no pretrained model {name!r} (did you mean '{nearest}" in text
    assert connections == []


@pytest.mark.parametrize("name", ["", "qqq", "vit_base_patch16_gap_224"])
def test_a_name_without_weights_is_refused(connections, name):
    assert f"no pretrained model {name!r}" in refusal(f"timm:{name}")
    assert connections == []


def test_the_cache_comes_first(connections, monkeypatch, tmp_path, timm_vit):
    reference = timm_vit(embed_dim=192, num_heads=3, depth=1, num_classes=7)
    save_file(reference.state_dict(), tmp_path / "cached.safetensors")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: str(tmp_path / "cached.safetensors"))
    model, report = load_with_report("timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    assert connections == []
    assert report.matched == len(reference.state_dict())
    expected = timm.get_pretrained_cfg("vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    assert (model.preprocessing.mean, model.preprocessing.std) == (expected.mean, expected.std) == ((0.5,) * 3,) * 2
    assert (model.preprocessing.crop_pct, model.preprocessing.resize_mode) == (expected.crop_pct, "crop")
    assert model.preprocessing.interpolation == expected.interpolation


def test_a_download_that_fails_is_told(connections, monkeypatch):
    def fail(*_):
        raise OSError("Connection reset by peer")

    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: socket.socket())
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    assert "Connection reset by peer" in refusal("timm:vit_small_patch16_224")


PARTS = ("config.json", "preprocessor_config.json", "model.safetensors")


@pytest.fixture
def repository(tmp_path, randomise):
    """The files of a repository of transformers: config, preprocessing, weights in several files."""
    import transformers

    transformers.logging.disable_progress_bar()
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 40}
    config = transformers.ViTConfig(**sizes, image_size=14, patch_size=7)
    randomise(transformers.ViTForImageClassification(config)).save_pretrained(tmp_path / "hub", max_shard_size="10KB")
    prepared = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "size": 14, "resample": 3}
    (tmp_path / "hub" / "preprocessor_config.json").write_text(json.dumps(prepared))
    return tmp_path / "hub"


@pytest.fixture
def served(monkeypatch, repository):
    """A hub that has the repository; the list of the files that were asked of it."""
    asked = []

    def serve(name, file):
        asked.append(file)
        if name != "birds/vit":
            raise RepositoryNotFoundError("404", response=httpx_response())
        if not (repository / file).is_file():
            raise EntryNotFoundError(f"no {file}")
        return str(repository / file)

    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: socket.socket())
    monkeypatch.setattr("huggingface_hub.hf_hub_download", serve)
    return asked


def httpx_response():
    response = type("Response", (), {"headers": {}, "request": None, "status_code": 404})
    return response()


def test_a_repository_that_is_not_cached_is_told_at_once(connections):
    began = time.monotonic()
    text = refusal("hf:birds/vit")
    assert time.monotonic() - began < 2
    assert "hf:birds/vit is not in the cache, and huggingface.co can't be reached" in text
    assert connections == [("huggingface.co", 443)]


def test_a_hub_that_is_switched_off_is_not_asked(connections, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refusal("hf:birds/vit")
    assert connections == []


@pytest.mark.parametrize("name", ["", "a/b/c", "birds/../vit", "birds vit", "https://huggingface.co/birds/vit"])
def test_what_is_no_name_of_a_repository_is_refused(connections, name):
    assert "Give hf:OWNER/NAME." in refusal(f"hf:{name}")
    assert connections == []


def test_a_repository_is_downloaded_and_read_as_a_folder(connections, served, repository):
    model, report = load_with_report("hf:birds/vit")
    shards = sorted(path.name for path in repository.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert served == [*("config.json", "preprocessor_config.json", "processor_config.json"),
                      *("model.safetensors", "model.safetensors.index.json"), *shards]  # fmt: skip
    assert report.source == "hf:birds/vit"
    assert (report.layout, report.assumed) == ("transformers ViT", [])
    assert model.preprocessing.mean == (0.1, 0.2, 0.3)
    images = torch.randn(2, 3, 14, 14)
    assert torch.equal(load(repository).eval()(images), model.eval()(images))


def test_a_repository_in_the_cache_needs_no_network(connections, tmp_path, repository):
    snapshot = tmp_path / "cache" / "models--birds--vit" / "snapshots" / "abc"
    (snapshot.parent.parent / "refs").mkdir(parents=True)
    (snapshot.parent.parent / "refs" / "main").write_text("abc")
    repository_files = list(repository.iterdir())
    shutil.copytree(repository, snapshot)
    _, report = load_with_report("hf:birds/vit")
    assert connections == []
    assert report.matched > 10
    next(path for path in snapshot.iterdir() if path.name.startswith("model-")).unlink()
    assert "not in the cache" in refusal("hf:birds/vit")  # not all of it
    assert len(repository_files) > 4


def test_a_repository_of_timm_is_read_as_one(connections, served, repository, timm_vit):
    for path in repository.iterdir():
        path.unlink()
    options = {"embed_dim": 24, "num_heads": 2, "img_size": 28, "patch_size": 14}
    reference = timm_vit(**options, act_layer="quick_gelu", pre_norm=True, norm_layer=partial(nn.LayerNorm, eps=1e-5))
    config = {"architecture": "vit_base_patch16_clip_quickgelu_224", "pretrained_cfg": {"mean": [0.1, 0.2, 0.3]}}
    (repository / "config.json").write_text(json.dumps({**config, "model_args": options}))
    save_file(reference.state_dict(), repository / "model.safetensors")
    model = load("hf:birds/vit").eval()
    images = torch.randn(2, 3, 28, 28)
    torch.testing.assert_close(model(images), reference(images), rtol=1e-5, atol=1e-5)
    assert model.preprocessing.mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    ("missing", "told"), [("config.json", "has no config.json"), ("model.safetensors.index.json", "has none of model")]
)
def test_a_repository_without_its_parts_is_refused(connections, served, repository, missing, told):
    (repository / missing).unlink()
    assert told in refusal("hf:birds/vit")


def test_a_repository_that_is_not_there_is_refused(connections, served):
    assert "hf:birds/swan is not on huggingface.co" in refusal("hf:birds/swan")


def test_no_socket_is_opened_for_what_is_here(connections, repository, timm_vit, tmp_path):
    save_file(timm_vit().state_dict(), tmp_path / "timm.safetensors")
    load(repository)
    load(tmp_path / "timm.safetensors", num_heads=2)
    load(timm_vit())
    assert connections == []


@pytest.mark.parametrize(
    ("variables", "tried"),
    [
        ({"https_proxy": "http://proxy.example:3128"}, ("proxy.example", 3128)),
        ({"https_proxy": "proxy.example:3128"}, ("proxy.example", 3128)),  # as many write it
        ({"https_proxy": "http://proxy.example"}, ("proxy.example", 80)),
        ({"all_proxy": "http://proxy.example:3128"}, ("proxy.example", 3128)),
        ({"https_proxy": "http://proxy.example:3128", "no_proxy": "huggingface.co"}, ("huggingface.co", 443)),
    ],
)
def test_the_proxy_that_is_set_is_tried(connections, monkeypatch, variables, tried):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    refusal("timm:vit_small_patch16_224")
    assert connections == [tried]

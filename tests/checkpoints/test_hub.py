"""Weights by name, where there is no network: a quick answer that says what to do."""

import socket
import time

import huggingface_hub.constants
import pytest
import timm
from safetensors.torch import save_file

from vit.checkpoints.load import load, load_with_report
from vit.foundation import UserError


@pytest.fixture
def connections(monkeypatch, tmp_path):
    """An empty cache and no network; the list of the addresses that were tried."""
    tried = []

    def refuse(address, *_, **__):
        tried.append(address)
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
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
    assert f"no pretrained model {name!r}; did you mean '{nearest}" in text
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

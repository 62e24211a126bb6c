"""The model folder gives back the same model, or says what is wrong with it."""

import json

import pytest
import torch
from safetensors.torch import load_file

from vit.checkpoints.folder import write_folder
from vit.checkpoints.load import load, load_with_report
from vit.foundation import UserError
from vit.models.classifier import Classifier, Preprocessing
from vit.models.encoder import image_encoder

LABELS = ("鳥", "crow", "épervier", "bee eater")
MODELS = [
    {},
    {"dist_token": True, "num_registers": 4, "qk_norm": True, "init_values": 0.1},
    {"dist_token": True, "mlp": "swiglu", "qkv_bias": False, "pos_interpolation": "bicubic"},
    {"post_norm": True, "final_norm": False, "act": "quick_gelu", "norm_eps": 1e-3, "mlp_ratio": 2.25},
]


def build(pool="class", **options):
    encoder = image_encoder(
        image_size=(10, 21), patch_size=(5, 7), embed_dim=22, depth=2, num_heads=11, in_chans=3, **options
    )
    prepared = Preprocessing((10, 21), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear", "crop", 0.9)
    return Classifier(encoder, 4, pool=pool, labels=LABELS, preprocessing=prepared)


@pytest.fixture
def folder(tmp_path, randomise):
    write_folder(randomise(build()), tmp_path / "model")
    return tmp_path / "model"


def refusal(folder):
    with pytest.raises(UserError) as caught:
        load(folder)
    assert str(folder) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5
    return str(caught.value)


@pytest.mark.parametrize(
    ("pool", "options"),
    [
        ("mean", {"class_token": False, "num_registers": 3}),
        *((pool, options) for pool in ("class", "mean", "class+mean") for options in MODELS),
    ],
)
def test_round_trip_is_exact(tmp_path, randomise, pool, options):
    model = randomise(build(pool, **options))
    write_folder(model, tmp_path)
    again, report = load_with_report(tmp_path)
    images = torch.randn(3, 3, 10, 21)
    assert torch.equal(again.eval()(images), model(images))
    other_size = torch.randn(3, 3, 15, 14)
    assert torch.equal(again(other_size), model(other_size))
    assert again.labels == LABELS
    assert again.pool == pool
    assert again.preprocessing == model.preprocessing
    assert model.encoder.architecture.items() <= again.encoder.architecture.items()
    assert (report.assumed, report.resized, report.dropped) == ([], [], [])


def test_model_without_a_head(tmp_path, randomise):
    model = randomise(Classifier(build().encoder, 0))
    write_folder(model, tmp_path)
    images = torch.randn(3, 3, 10, 21)
    assert torch.equal(load(tmp_path).eval()(images), model(images))


def test_timm_reads_the_weights(tmp_path, randomise, timm_vit):
    model = randomise(build(dist_token=False))
    write_folder(model, tmp_path)
    reference = timm_vit(img_size=(10, 21), patch_size=(5, 7), depth=2, num_heads=11, num_classes=4)
    reference.load_state_dict(load_file(tmp_path / "model.safetensors"))
    images = torch.randn(3, 3, 10, 21)
    torch.testing.assert_close(reference(images), model(images), rtol=1e-5, atol=1e-5)


def test_a_folder_can_be_written_over(folder, randomise):
    model = randomise(build("mean"))
    write_folder(model, folder)
    images = torch.randn(2, 3, 10, 21)
    assert torch.equal(load(folder).eval()(images), model(images))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_options_go_before_the_config(folder):
    model, report = load_with_report(folder, image_size=(15, 14), pool="mean", act="quick_gelu")
    assert model.encoder.architecture["act"] == "quick_gelu"
    assert (model.encoder.grid, model.preprocessing.image_size) == ((3, 2), (15, 14))
    assert model.preprocessing.mean == (0.1, 0.2, 0.3)
    assert report.resized == ["positions from 2 x 3 to 3 x 2 by bicubic_antialias"]
    assert sorted(report.dropped) == ["head.bias", "head.weight"]


@pytest.mark.parametrize("place", [3, 0.3, 0.6, -1])
@pytest.mark.parametrize("bit", [0, 6])
def test_one_flipped_bit_is_noticed(folder, place, bit):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[int(place * len(content)) if isinstance(place, float) else place] ^= 1 << bit
    path.write_bytes(content)
    assert "sha256" in refusal(folder)
    assert "model.safetensors is damaged" in refusal(folder)


def test_weights_of_another_model_are_noticed(folder, tmp_path, randomise):
    write_folder(randomise(build()), tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").rename(folder / "model.safetensors")
    assert "sha256" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert f"is no model folder: it has no {name}" in refusal(folder)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: text[:50],
        lambda text: "[]",
        lambda text: "null",
        lambda text: "<html>not found</html>",
        lambda text: json.dumps({"weights_sha256": json.loads(text)["weights_sha256"]}),
    ],
    ids=["empty", "cut short", "a list", "null", "web page", "nothing else"],
)
def test_a_config_that_is_none_is_refused(folder, spoil):
    path = folder / "config.json"
    path.write_text(spoil(path.read_text()))
    assert "config.json is not the config of a model folder" in refusal(folder)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("architecture", {"embed_dim": 33}, "does not fit"),
        ("architecture", {"depth": 3}, "missing: encoder.blocks.2"),
        ("architecture", {"num_heads": 3}, "not a multiple of num_heads 3"),
        ("architecture", {"colour": "red"}, "colour"),
        ("preprocessing", {"colour": "red"}, "colour"),
        ("labels", ["one"], "1 labels for 4 classes"),
        ("pool", "max", "'max'; allowed are class"),
        ("pool", None, "pool"),
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_refused(folder, key, value, told):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config[key] = {**config[key], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(config))
    assert told in refusal(folder)


def test_a_write_that_fails_leaves_the_folder_as_it_was(monkeypatch, folder, randomise):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("vit.checkpoints.folder.save_file", fail)
    with pytest.raises(OSError, match="No space"):
        write_folder(randomise(build()), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

"""The model folder of a captioner: what is written is what comes back, and what is damaged or changed is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import vit
from datamodules.vocabulary import Vocabulary
from vit.checkpoints.captioner import TOKENIZER, is_captioner, load_captioner, write_captioner
from vit.checkpoints.card import Training
from vit.checkpoints.folder import CARD, CONFIG, OURS, WEIGHTS, digest_of, sha256, write_folder
from vit.foundation import UserError
from vit.models.captioner import Captioner
from vit.models.classifier import Classifier, Preprocessing
from vit.models.decoder import Decoder
from vit.models.encoder import image_encoder

WORDS = Vocabulary.train(["a robin over water", "an owl, in a forest"])


@pytest.fixture
def model(randomise):
    encoder = image_encoder(image_size=(10, 14), patch_size=(5, 7), embed_dim=24, depth=2, num_heads=2, num_registers=3)
    decoder = Decoder(len(WORDS), 8, 14, 2, 2, context_dim=24, post_norm=True)
    prepared = Preprocessing((10, 14), mean=(0.1, 0.2, 0.3), interpolation="bilinear")
    captioner = Captioner(
        encoder, decoder, start=WORDS.start, end=WORDS.end, pad=WORDS.pad, tokenizer=WORDS.json, preprocessing=prepared
    )
    return randomise(captioner, std=0.3)


@pytest.fixture
def folder(model, tmp_path):
    about = Training("scenes", {"train": 7}, metrics={"exact match": "25.0%"}, epoch=3)
    write_captioner(model, tmp_path / "model", about)
    return tmp_path / "model"


@pytest.mark.parametrize("load", [load_captioner, vit.load])
def test_it_comes_back_to_the_bit(model, folder, load):
    found = load(folder).eval()
    images = torch.randn(2, 3, 10, 14)
    assert torch.equal(found.generate(images).ids, model.generate(images).ids)
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in model.state_dict().items())
    assert (found.start, found.end, found.pad) == (model.start, model.end, model.pad)
    assert found.preprocessing == model.preprocessing
    assert found.tokenizer == WORDS.json
    assert all(parameter.requires_grad for parameter in found.parameters())


def test_folders_of_before_decoders_were_told_places_mean_what_they_did(model, folder):
    config = json.loads((folder / CONFIG).read_text())
    for name in ("context_positions", "config_sha256"):
        del config[OURS][name]
    config[OURS]["config_sha256"] = digest_of(config)
    (folder / CONFIG).write_text(json.dumps(config))
    found, images = load_captioner(folder).eval(), torch.randn(2, 3, 10, 14)
    assert torch.equal(found.context(images), model.encoder(images))


def test_it_is_told_from_a_classifier(folder, tmp_path):
    write_folder(
        Classifier(image_encoder(image_size=(8, 8), patch_size=(4, 4), embed_dim=8, depth=1, num_heads=2), 0),
        tmp_path / "classifier",
    )
    assert is_captioner(folder)
    assert not is_captioner(tmp_path / "classifier")
    assert not is_captioner(tmp_path / "none")
    with pytest.raises(UserError, match="is not the model folder of a captioner"):
        load_captioner(tmp_path / "classifier")
    from vit.checkpoints.load import load_with_report

    with pytest.raises(UserError, match="holds a captioner, which generates sentences and has no classes"):
        load_with_report(folder)


def test_the_card_tells_what_is_known(folder):
    card = (folder / CARD).read_text()
    assert "| exact match | 25.0% |" in card
    assert "`scenes`: images 7 train" in card
    assert sha256(folder / WEIGHTS) in card


@pytest.mark.parametrize("name", [WEIGHTS, TOKENIZER])
def test_a_flipped_bit_is_refused(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is damaged: its sha256"):
        load_captioner(folder)


def test_a_changed_config_or_a_missing_file_is_refused(folder):
    config = json.loads((folder / CONFIG).read_text())
    config[OURS]["tokens"]["end"] = 1
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match="was changed since it was written"):
        load_captioner(folder)
    (folder / TOKENIZER).unlink()
    config[OURS].pop("config_sha256")
    config[OURS]["config_sha256"] = digest_of(config)
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
        load_captioner(folder)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("decoder", {"depth": 3}, "does not describe a captioner"),
        ("architecture", {"image_size": "big"}, "does not describe a captioner"),
        ("tokens", {"start": 1, "end": 1, "pad": 1}, "must be three of the ids"),
    ],
)
def test_a_signed_config_of_no_model_is_refused(folder, part, value, message):
    rewrite(folder, **{part: value})
    with pytest.raises(UserError, match=message):
        load_captioner(folder)


def test_weights_that_do_not_fit_are_refused(folder):
    weights = load_file(folder / WEIGHTS)
    save_file({name: value for name, value in weights.items() if name != "decoder.head.bias"}, folder / WEIGHTS)
    rewrite(folder, weights_sha256=sha256(folder / WEIGHTS))
    with pytest.raises(UserError, match=r"1 missing: decoder\.head\.bias"):
        load_captioner(folder)
    save_file({**weights, "decoder.head.bias": weights["decoder.head.bias"] * torch.nan}, folder / WEIGHTS)
    rewrite(folder, weights_sha256=sha256(folder / WEIGHTS))
    with pytest.raises(UserError, match="NaN or infinite weights in 1 of"):
        load_captioner(folder)


def rewrite(folder, **parts):
    """The config with other parts, signed as if it had been written so."""
    ours = {**json.loads((folder / CONFIG).read_text())[OURS], **parts}
    ours.pop("config_sha256")
    (folder / CONFIG).write_text(json.dumps({OURS: {**ours, "config_sha256": digest_of({OURS: ours})}}))


@pytest.mark.parametrize("name", [WEIGHTS, TOKENIZER])
def test_a_link_out_of_the_folder_is_not_followed(folder, name):
    (folder / name).rename(folder.parent / name)
    (folder / name).symlink_to(folder.parent / name)
    with pytest.raises(UserError, match=f"{name} is a link to"):
        load_captioner(folder)

"""The model folder gives back the same model, here, in timm and in transformers, or says what is wrong with it."""

import copy
import json
import os

import pytest
import timm
import torch
from transformers import AutoModelForImageClassification

from vit.checkpoints.card import Training
from vit.checkpoints.folder import digest_of, write_folder
from vit.checkpoints.load import load, load_with_report
from vit.foundation import UserError
from vit.models.classifier import Classifier, Preprocessing
from vit.models.encoder import image_encoder
from vit.models.neighbours import Neighbours

LABELS = ("鳥", "crow", "épervier", "bee eater")
MODELS = [
    {},
    {"dist_token": True, "num_registers": 4, "qk_norm": True, "init_values": 0.1},
    {"dist_token": True, "mlp": "swiglu", "qkv_bias": False, "pos_interpolation": "bicubic"},
    {"post_norm": True, "final_norm": False, "act": "quick_gelu", "norm_eps": 1e-3, "mlp_ratio": 2.25},
]


def oblong(pool="class", **options):
    encoder = image_encoder(
        image_size=(10, 21), patch_size=(5, 7), embed_dim=22, depth=2, num_heads=11, in_chans=3, **options
    )
    prepared = Preprocessing((10, 21), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear", "crop", 0.9)
    return Classifier(encoder, 4, pool=pool, labels=LABELS, preprocessing=prepared)


@pytest.fixture
def folder(tmp_path, randomise):
    write_folder(randomise(oblong()), tmp_path / "model")
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
    model = randomise(oblong(pool, **options))
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
    model = randomise(Classifier(oblong().encoder, 0))
    write_folder(model, tmp_path)
    images = torch.randn(3, 3, 10, 21)
    assert torch.equal(load(tmp_path).eval()(images), model(images))


CROP = Preprocessing((30, 30), (0.5, 0.4, 0.3), (0.2, 0.3, 0.25), "bilinear", "crop", 0.875)


@pytest.fixture
def cards():
    """What the lines of a model card for each library find in a photograph, by label."""

    def run(folder, photo):
        answers = {}
        for part in (folder / "README.md").read_text(encoding="utf-8").split("\nWith ")[1:]:
            code = part.split("```python\n")[1].split("```")[0]
            found: dict = {}
            exec(code.replace("FOLDER", str(folder)).replace("photo.jpg", str(photo)), found)
            answers[part.split(":")[0]] = found["probabilities"]
        return answers

    return run


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{}, {"prepared": CROP, "pool": "mean", "num_registers": 3, "init_values": 0.1}])
def test_the_lines_of_the_model_card_give_our_probabilities(tmp_path, build, ask, photo, cards, options):
    model = build(**options)
    write_folder(model, tmp_path / "model")
    found = cards(tmp_path / "model", photo)
    assert list(found) == ["vitscope", "timm", "transformers, which needs timm"]
    for probabilities in found.values():
        assert probabilities == pytest.approx(ask(model, photo), abs=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_other_libraries_take_a_folder_as_one_of_theirs(tmp_path, build):
    """New classes, features, labels: what their own users do with a pretrained model."""
    model = build(pool="class+dist", dist_token=True)
    write_folder(model, tmp_path)
    images = torch.randn(2, 3, 30, 30)
    theirs = AutoModelForImageClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(theirs.eval()(images).logits, model(images), rtol=1e-5, atol=1e-5)
    assert theirs.config.id2label == dict(enumerate(LABELS))
    assert theirs.config.label2id == {label: index for index, label in enumerate(LABELS)}
    source = f"local-dir:{tmp_path}"
    assert timm.create_model(source, pretrained=True, num_classes=7).eval()(images).shape == (2, 7)
    features = timm.create_model(source, pretrained=True, num_classes=0).eval()(images)
    expected = model.encoder(images)
    torch.testing.assert_close(features, (expected[:, 0] + expected[:, 1]) / 2, rtol=1e-5, atol=1e-5)


def test_what_timm_has_no_place_for_is_told(tmp_path, build):
    write_folder(build(pool="class+mean"), tmp_path)
    assert set(json.loads((tmp_path / "config.json").read_text())) == {"vitscope"}
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "vitscope alone loads it: timm and transformers have no place for a head that reads class+mean" in card
    assert "With timm" not in card


def test_the_model_card_tells_the_run(tmp_path, build):
    training = Training(
        data="garden",
        images={"train": 1200, "val": 300},
        classes={"crow": 700, "鳥": 500},
        start="vit_small.safetensors",
        metrics={"top-1": "87.6%"},
        epoch=7,
    )
    write_folder(build(), tmp_path, training)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    told = ["`garden`: images 1,200 train, 300 val", "`vit_small.safetensors`", "| top-1 | 87.6% |", "epoch 7"]
    told += ["| 0 | 鳥 | 500 |", "| 1 | crow | 700 |", "| 2 | épervier |  |", "## Licence", "Intended use"]
    told += [json.loads((tmp_path / "config.json").read_text())["vitscope"]["weights_sha256"]]
    for text in told:
        assert text in card
    assert str(tmp_path) not in card


def test_a_folder_can_be_written_over(folder, randomise):
    model = randomise(oblong("mean"))
    write_folder(model, folder)
    images = torch.randn(2, 3, 10, 21)
    assert torch.equal(load(folder).eval()(images), model(images))
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def sign(path, change):
    """Changes our part of a config as someone does who knows how it is signed."""
    config = json.loads(path.read_text(encoding="utf-8"))
    ours = config["vitscope"]
    del ours["config_sha256"]
    change(ours)
    ours["config_sha256"] = digest_of(config)
    path.write_text(json.dumps(config), encoding="utf-8")


def test_options_go_before_the_config(folder):
    model, report = load_with_report(folder, image_size=(15, 14), pool="mean")
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
    write_folder(randomise(oblong()), tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").rename(folder / "model.safetensors")
    assert "sha256" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert f"is not a model folder: {name}" in refusal(folder)


@pytest.mark.parametrize("bit", [0, 2, 6])
def test_no_flipped_bit_of_the_config_changes_the_model(folder, randomise, bit):
    """It is refused, or changes nothing: of a name that nobody reads, of a space."""
    path, images = folder / "config.json", torch.randn(1, 3, 10, 21)
    expected, content, refused = load(folder).eval(), path.read_bytes(), 0
    for place in range(0, len(content), 17):
        spoiled = bytearray(content)
        spoiled[place] ^= 1 << bit
        path.write_bytes(spoiled)
        try:
            found = load(folder).eval()
        except UserError:
            refused += 1
            continue
        assert torch.equal(found(images), expected(images))
        assert (found.labels, found.preprocessing) == (expected.labels, expected.preprocessing)
    assert refused > 0.5 * len(content) / 17


def test_the_first_format_is_refused_by_name(folder):
    (folder / "config.json").write_text(json.dumps({"format": "vitscope", "architecture": {}}))
    assert "has the first format" in refusal(folder)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: text[:50],
        lambda text: "[]",
        lambda text: "null",
        lambda text: "<html>not found</html>",
        lambda text: json.dumps({"vitscope": {"pool": "class"}}),
        lambda text: json.dumps({"vitscope": []}),
    ],
    ids=["empty", "cut short", "a list", "null", "web page", "nothing else", "of another kind"],
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

    def change(ours):
        ours[key] = {**ours[key], **value} if isinstance(value, dict) else value

    sign(folder / "config.json", change)
    assert told in refusal(folder)


def test_a_change_by_hand_is_noticed(folder):
    path = folder / "config.json"
    path.write_text(path.read_text(encoding="utf-8").replace("0.9", "0.8"), encoding="utf-8")
    assert "config.json was changed since it was written" in refusal(folder)


def test_a_write_that_fails_leaves_the_folder_as_it_was(monkeypatch, folder, randomise):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("vit.checkpoints.targets.target.save_file", fail)
    with pytest.raises(OSError, match="No space"):
        write_folder(randomise(oblong()), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_transformers_computes_in_float32_whatever_the_weights_are_kept_in():
    """The shipped checkpoint is of half precision, in which transformers would otherwise compute."""
    from transformers import AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained("vit/assets/birdscenes")
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_link_out_of_the_folder_is_not_followed(folder, name):
    (folder / name).rename(folder.parent / name)
    (folder / name).symlink_to(folder.parent / name)
    assert f"{name} is a link to" in refusal(folder)


@pytest.mark.parametrize("below", ["", "image_encoder"])
def test_a_folder_in_a_hubs_cache_is_all_links(folder, tmp_path, below):
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "a1b2" / below
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(folder.iterdir()):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(blobs / str(number))
    assert load(snapshot).labels == LABELS
    (tmp_path / "alias").symlink_to(snapshot)
    assert load(tmp_path / "alias").labels == LABELS


def test_a_config_that_is_no_file_or_bottomless_is_refused(folder):
    (folder / "config.json").write_text("[" * 100_000)
    assert "nested too deep" in refusal(folder)
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    assert "not a regular file" in refusal(folder)


def test_the_card_says_what_a_learned_query_asks(tmp_path, randomise):
    """Not the registers, nor the class token: see Classifier._pool."""
    write_folder(randomise(oblong("attention", num_registers=3)), tmp_path)
    assert "a learned query asks of the patches' tokens" in (tmp_path / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def remembering(tmp_path, randomise):
    """A model with neighbours, and its folder."""
    model = randomise(oblong())
    model.neighbours = Neighbours(torch.randn(7, 22), torch.eye(4)[[0, 1, 2, 3, 0, 1, 2]], share=0.3, count=4)
    write_folder(model, tmp_path / "model")
    return model, tmp_path / "model"


def test_neighbours_are_kept(remembering):
    model, folder = remembering
    again, report = load_with_report(folder)
    images = torch.randn(3, 3, 10, 21)
    assert torch.equal(again.eval()(images), model(images))
    assert again.neighbours.settings() == {"share": 0.3, "count": 4, "temperature": 0.03}
    assert report.dropped == []
    assert "The 4 of 7 training photographs" in (folder / "README.md").read_text()


def test_timm_reads_the_network_without_the_neighbours(remembering):
    model, folder = remembering
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    model.neighbours = None
    images = torch.randn(3, 3, 10, 21)
    torch.testing.assert_close(theirs(images), model(images), rtol=1e-4, atol=1e-4)


def test_a_live_model_is_loaded_with_neighbours_of_its_own(remembering):
    model, _ = remembering
    again = load(model).eval()
    images = torch.randn(3, 3, 10, 21)
    assert torch.equal(again(images), model(images))
    again.neighbours.features.zero_()
    assert model.neighbours.features.any()


@pytest.mark.parametrize("wrapper", [torch.nn.DataParallel, torch.compile])
def test_a_wrapped_model_keeps_its_neighbours(remembering, wrapper):
    model, _ = remembering
    again = load(wrapper(model)).eval()
    images = torch.randn(3, 3, 10, 21)
    assert torch.equal(again(images), model(images))


def test_neighbours_are_loaded_in_full_precision_as_the_weights_are(remembering):
    model, _ = remembering
    neighbours = load(copy.deepcopy(model).bfloat16()).neighbours
    assert neighbours.features.dtype == torch.float32
    torch.testing.assert_close(neighbours.features.norm(dim=1), torch.ones(7))


def test_what_other_libraries_call_neighbours_is_no_matter_of_ours():
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3, depth=1)
    theirs.neighbours = [2, 3]
    assert load(theirs).neighbours is None


def test_neighbours_go_with_the_head(remembering):
    _, folder = remembering
    model, report = load_with_report(folder, pool="mean")
    assert model.neighbours is None
    assert "the nearest training photographs" in report.dropped


def test_missing_or_damaged_neighbours(remembering):
    _, folder = remembering
    path = folder / "neighbours.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "is damaged" in refusal(folder)
    path.unlink()
    assert "is missing" in refusal(folder)


@pytest.mark.parametrize(
    "told", [{"share": 2}, {"share": "much"}, {"count": 0}, {"count": None}, {"temperature": -1}, {"sha256": 3}, None]
)
def test_invalid_settings_of_neighbours(remembering, told):
    _, folder = remembering
    config = json.loads((folder / "config.json").read_text())
    ours = config["vitscope"]
    ours["neighbours"] = ours["neighbours"] | told if told else "all"
    ours["config_sha256"] = digest_of({**config, "vitscope": {k: v for k, v in ours.items() if k != "config_sha256"}})
    (folder / "config.json").write_text(json.dumps(config))
    refusal(folder)


def test_neighbours_of_another_model(remembering, tmp_path):
    model, folder = remembering
    model.neighbours = Neighbours(torch.randn(7, 5), torch.eye(4)[[0, 1, 2, 3, 0, 1, 2]])
    write_folder(model, folder)
    assert "5 features and 4 classes" in refusal(folder)


def test_a_later_model_without_neighbours_leaves_none_behind(remembering):
    model, folder = remembering
    model.neighbours = None
    write_folder(model, folder)
    assert not (folder / "neighbours.safetensors").exists()
    assert load(folder).neighbours is None

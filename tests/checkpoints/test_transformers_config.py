"""What transformers writes beside its weights comes along: labels and preprocessing; and what is wrong is told."""

import json
import logging
import math

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from datamodules.transforms import eval_transform
from vit.checkpoints.load import load, load_with_report
from vit.checkpoints.transformers_config import KINDS, TOWERS
from vit.checkpoints.transformers_processor import PROCESSORS
from vit.foundation import UserError

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
SIZES |= {"image_size": 28, "patch_size": 7}
LABELS = ("鳥", "crow", "épervier", "bee eater")
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.25]


@pytest.fixture(autouse=True, scope="module")
def _quiet():
    transformers.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)


@pytest.fixture
def folder(tmp_path, randomise):
    """A folder as transformers writes it; with `processor`, a dict, as preprocessor_config.json."""

    def write(kind="ViT", processor=None, head="ForImageClassification", **options):
        labels = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}
        config = getattr(transformers, f"{kind}Config")(**{**SIZES, **labels, **options})
        model = randomise(getattr(transformers, f"{kind}{head}")(config))
        model.save_pretrained(tmp_path / "model")
        if processor is not None:
            (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(processor))
        return tmp_path / "model"

    return write


def refusal(source, **options):
    with pytest.raises(UserError) as caught:
        load(source, **options)
    assert len(str(caught.value).splitlines()) <= 5
    assert max(map(len, str(caught.value).splitlines())) < 400
    return str(caught.value)


def change(path, name="config.json", **entries):
    content = json.loads((path / name).read_text())
    content |= entries
    (path / name).write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))
    return path


def test_labels_come_in_the_order_of_the_outputs(folder):
    path = folder()
    assert load(path).labels == LABELS
    shuffled = {"3": "bee eater", "1": "crow", "0": "鳥", "2": "épervier"}
    assert load(change(path, id2label=shuffled)).labels == LABELS


@pytest.mark.parametrize("labels", [..., None, {str(index): f"LABEL_{index}" for index in range(4)}])
def test_placeholders_are_no_labels(folder, labels):
    assert load(change(folder(), id2label=labels)).labels == ()


def test_what_a_config_leaves_out_is_the_librarys_default(folder):
    shape = load(change(folder(), num_attention_heads=..., layer_norm_eps=..., hidden_act=...)).encoder.architecture
    assert (shape["num_heads"], shape["norm_eps"], shape["act"]) == (12, 1e-12, "gelu")


def test_a_model_without_a_head_has_no_labels(folder):
    model = load(folder(head="Model"))
    assert (model.num_classes, model.labels) == (0, ())


def test_pooler_weights_are_left_out_with_notice(folder):
    _, report = load_with_report(folder(head="Model"))
    assert report.dropped == ["pooler.* (2 tensors, a layer behind the class token, for pretraining)"]


PIXELS = {
    "ViT": ("ViT", {"size": {"height": 28, "width": 28}}),
    "ViT, other filter": ("ViT", {"size": {"height": 28, "width": 28}, "resample": 3}),
    "ViT, not rescaled": ("ViT", {"size": {"height": 28, "width": 28}, "do_rescale": False, "image_mean": [9, 8, 7]}),
    "ViT, to twice as much": ("ViT", {"size": {"height": 28, "width": 28}, "rescale_factor": 2 / 255}),
    "ViT, not normalised": ("ViT", {"size": {"height": 28, "width": 28}, "do_normalize": False}),
    "Siglip": ("Siglip", {"size": {"height": 28, "width": 28}}),
    "CLIP": ("CLIP", {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}),
    "CLIP, 28": ("CLIP", {"size": 28, "crop_size": 28}),
    "Bit": ("Bit", {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}}),
    "DeiT, whole": ("DeiT", {"size": {"height": 28, "width": 28}, "do_center_crop": False}),
}


@pytest.mark.parametrize("name", PIXELS)
def test_a_photo_becomes_the_librarys_pixels(folder, name):
    kind, options = PIXELS[name]
    processor = getattr(transformers, f"{kind}ImageProcessorPil")(**{"image_mean": MEAN, "image_std": STD, **options})
    processor.save_pretrained(path := folder())
    model, report = load_with_report(path)
    assert report.notes == []
    prepared = model.preprocessing
    transform = eval_transform(
        prepared.image_size,
        prepared.mean,
        prepared.std,
        crop_pct=prepared.crop_pct,
        resize_mode=prepared.resize_mode,
        interpolation=prepared.interpolation,
    )
    photo = Image.effect_noise((64, 48), 80).resize((96, 72), Image.Resampling.BICUBIC)  # 4:3, with detail
    photo = np.stack([np.asarray(photo), np.asarray(photo)[::-1], np.asarray(photo)[:, ::-1]], axis=-1)
    theirs = processor(Image.fromarray(photo), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(transform(photo), theirs.float(), rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


SQUARE = {"height": 28, "width": 28}
OLD = {"do_resize": True, "do_normalize": True, "image_mean": MEAN, "image_std": STD, "resample": 3}


@pytest.mark.parametrize(
    ("kind", "processor", "expected"),
    [
        ("ViT", {"size": 28, "feature_extractor_type": "ViTFeatureExtractor"}, ((28, 28), "squash", 1.0)),
        ("ViT", {"size": 28, "feature_extractor_type": "CLIPFeatureExtractor"}, ((28, 28), "crop", 1.0)),
        ("ViT", {"size": SQUARE, "image_processor_type": "ViTImageProcessorFast"}, ((28, 28), "squash", 1.0)),
        ("ViT", {"size": {"shortest_edge": 40}, "crop_size": 28, "do_center_crop": True}, ((28, 28), "crop", 28 / 40)),
        ("Dinov2", {"size": {"shortest_edge": 32}, "crop_size": SQUARE}, ((28, 28), "crop", 28 / 32)),
        ("Dinov2", {"size": {"shortest_edge": 24}, "crop_size": 21}, ((21, 21), "crop", 21 / 24)),
    ],
)
def test_sizes_are_read_in_all_their_forms(folder, kind, processor, expected):
    model, report = load_with_report(folder(kind, {**OLD, **processor}))
    prepared = model.preprocessing
    assert (prepared.image_size, prepared.resize_mode, pytest.approx(prepared.crop_pct)) == expected
    assert (prepared.mean, prepared.std, prepared.interpolation) == (tuple(MEAN), tuple(STD), "bicubic")
    assert report.notes == []


def test_a_crop_is_of_the_side_that_was_told(folder):
    """385 / (385 / 438) is 437.99999999999994, of which 437 pixels would be left."""
    processor = {**OLD, "size": {"shortest_edge": 438}, "crop_size": 385}
    assert math.floor(385 / load(folder("Dinov2", processor)).preprocessing.crop_pct) == 438


@pytest.mark.parametrize(
    ("processor", "told"),
    [
        (None, "no preprocessor_config.json; images are prepared as ViTImageProcessor does"),
        ({"size": 32, "crop_size": 28, "do_center_crop": True}, "squashes photos to 32 x 32 before it crops"),
        ({"size": {"shortest_edge": 28}}, "keep the photo's shape"),
        ({"size": 28, "crop_size": 35, "do_center_crop": True}, "adds a black edge"),
        ({"size": 30}, "30 x 30, which the patches don't divide"),
        ({"size": 35}, "makes images of 35 x 35, its model takes 28 x 28"),
        ({"size": 28, "resample": 1}, "lanczos, is not known here"),
        ({"size": 28, "do_resize": False}, "are not resized"),
        ({"size": 28, "image_processor_type": "BlipImageProcessor"}, "Blip, is not known here"),
    ],
)
def test_what_has_no_place_in_our_preprocessing_is_told(folder, processor, told):
    model, report = load_with_report(folder(processor=processor and {**OLD, **processor}))
    assert told in "; ".join(report.notes)
    assert model.preprocessing.image_size == (28, 28)


def test_a_processor_of_images_and_text_has_that_of_images_inside(folder):
    path = folder()
    inner = {**OLD, "image_processor_type": "ViTImageProcessor", "size": 28}
    (path / "processor_config.json").write_text(json.dumps({"image_processor": inner, "tokenizer": 3}))
    model, report = load_with_report(path)
    assert (model.preprocessing.mean, report.notes) == (tuple(MEAN), [])


def test_an_image_size_that_is_asked_for_goes_before_the_processors(folder):
    processor = {**OLD, "size": {"shortest_edge": 24}, "crop_size": 21}
    assert load(folder("Dinov2", processor), image_size=(14, 35)).preprocessing.image_size == (14, 35)


def test_other_problems_than_classes_are_told(folder):
    _, report = load_with_report(change(folder(processor={**OLD, "size": 28}), problem_type="regression"))
    assert report.notes == ["trained for regression, so its outputs are not logits of classes, one of which is correct"]


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ({"num_attention_heads": "three"}, "num_attention_heads is 'three', not a number"),
        ({"num_attention_heads": True}, "num_attention_heads is True"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0; allowed are 1 to 1000000"),
        ({"num_attention_heads": 5}, "5"),
        ({"layer_norm_eps": "1e-6"}, "layer_norm_eps is '1e-6'"),
        ({"layer_norm_eps": -1}, "layer_norm_eps is -1"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; known are gelu"),
        ({"hidden_act": None}, "hidden_act is None"),
        ({"hidden_size": 32}, "32 channels of tokens, 3 of images, patches of 7 x 7, but the weights are of 24, 3,"),
        ({"hidden_size": ...}, "768 channels of tokens"),
        ({"num_channels": 1}, "1 of images"),
        ({"patch_size": 14}, "patches of 14 x 14"),
        ({"patch_size": [7, 7, 7]}, "patch_size is [7, 7, 7]; allowed are one number"),
        ({"image_size": 224}, "image_size 224 x 224 is 1024 patches, its weights have 17 positions"),
        ({"image_size": "28"}, "image_size is '28'"),
        ({"image_size": 1e9}, "image_size is 1000000000.0"),
        ({"num_hidden_layers": 3}, "says 3 layers, but the weights have 2"),
        ({"num_hidden_layers": 10**6}, "says 1000000 layers, but the weights have 2"),
        ({"num_hidden_layers": 10**30}, "allowed are 1 to 1000000"),
        ({"id2label": {"0": "a", "1": "b"}}, "2 labels for 4 classes"),
        ({"id2label": {"1": "a", "2": "b", "3": "c", "4": "d"}}, "not for the numbers 0 to 3"),
        ({"id2label": ["a", "b", "c", "d"]}, "not a name for each number"),
        ({"id2label": {"0": 1, "1": 2, "2": 3, "3": 4}}, "not a name for each number"),
        ({"model_type": "swin"}, "model_type is 'swin'; known are vit, deit"),
        ({"model_type": "bert"}, "reads text, and is for `vit explain"),
        ({"model_type": None}, "model_type is None, not a name"),
        ({"model_type": ["vit"]}, "model_type is ['vit']"),
        ({"model_type": "beit"}, "'beit', which is not possible here: its attention adds learned relative positions"),
        ({"model_type": "dinov3_vit"}, "says that they are rotary positions"),
        ({"model_type": "siglip2"}, "NaFlex"),
        ({"model_type": "clip", "vision_config": 3}, "vision_config is 3, not an object"),
    ],
)  # fmt: skip
def test_a_config_that_is_malformed_or_of_another_model_is_refused(folder, entries, told):
    assert told in refusal(change(folder(), **entries))


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ({"size": "28"}, "size of its images is '28'"),
        ({"size": {"longest_edge": 28}}, "size of its images is {'longest_edge': 28}"),
        ({"size": {"shortest_edge": 28, "longest_edge": 99}}, "size of its images"),
        ({"size": {"height": 28}}, "size of its images"),
        ({"size": {"height": -28, "width": 28}}, "size of its images"),
        ({"size": 28, "do_center_crop": True, "crop_size": "28"}, "crop_size of its images is '28'"),
        ({"image_mean": [0.5, 0.5]}, "image_mean is [0.5, 0.5]; allowed are 3 numbers"),
        ({"image_mean": "a"}, "image_mean is 'a'"),
        ({"image_mean": [0.5, 0.5, float("nan")]}, "image_mean is"),
        ({"image_std": [0.5, 0.5, 0]}, "image_std is [0.5, 0.5, 0.0]; allowed are numbers above 0"),
        ({"rescale_factor": 0}, "rescale_factor is 0"),
        ({"image_mean": [0.5, 0.5, 10**400]}, "image_mean is"),
        ({"resample": "bicubic"}, "resample is 'bicubic', not a number"),
    ],
)
def test_a_processor_that_is_malformed_is_refused(folder, entries, told):
    assert told in refusal(folder(processor={**OLD, "size": 28, **entries}))


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_a_processor_that_is_no_object_is_refused(folder, text):
    path = folder()
    (path / "preprocessor_config.json").write_text(text)
    assert "preprocessor_config.json" in refusal(path)


def test_weights_are_found_in_each_of_their_forms(folder):
    path = folder(processor={**OLD, "size": 28})
    images = torch.randn(2, 3, 28, 28)
    expected = load(path).eval()(images)
    reference = transformers.ViTForImageClassification.from_pretrained(path)
    (path / "model.safetensors").unlink()
    assert "has none of model.safetensors, model.safetensors.index.json" in refusal(path)
    torch.save(reference.state_dict(), path / "pytorch_model.bin")
    assert torch.equal(load(path).eval()(images), expected)
    (path / "pytorch_model.bin").write_bytes(b"")  # is not looked at, where there is something better
    reference.save_pretrained(path, max_shard_size="10KB")
    assert len(list(path.glob("model-*.safetensors"))) > 1
    assert torch.equal(load(path).eval()(images), expected)


@pytest.mark.parametrize("kind", ["Beit", "Data2VecVision"])
def test_beit_is_refused_by_name(folder, kind):
    path = folder(kind, head="Model", use_relative_position_bias=True)
    assert "relative positions" in refusal(path)
    text = refusal(path / "model.safetensors")
    assert "relative positions, such as BEiT" in text
    model = getattr(transformers, f"{kind}Model").from_pretrained(path)
    assert "relative positions" in refusal(model)


def test_the_librarys_own_defaults_are_ours():
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    for name, kind in KINDS.items():
        theirs = CONFIG_MAPPING[name]()
        told = ("layer_norm_eps", "hidden_act", "patch_size", "hidden_size", "num_hidden_layers")
        told += ("num_attention_heads", "num_channels", "image_size")
        assert [getattr(kind, each) for each in told] == [getattr(theirs, each) for each in told], name
    for name, tower in TOWERS.items():
        assert CONFIG_MAPPING[name]().vision_config.model_type == tower


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_librarys_own_processors_are_ours(name):
    ours = PROCESSORS[name]
    theirs = getattr(transformers, f"{name}ImageProcessor" + ("" if name == "DINOv3ViT" else "Pil"))()
    assert (list(ours.mean), list(ours.std), ours.resample) == (
        list(theirs.image_mean), list(theirs.image_std), int(theirs.resample),
    )  # fmt: skip
    crops = bool(getattr(theirs, "do_center_crop", False))
    side = theirs.size["height"] if "height" in theirs.size else theirs.size["shortest_edge"]
    assert ours.crop_pct == (theirs.crop_size["height"] / side if crops else None)
    assert ours.square == (theirs.default_to_square is not False)

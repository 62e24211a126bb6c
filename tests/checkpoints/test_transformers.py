"""Loaded weights give the numbers of transformers: its own classes, tiny and random, in float64."""

import logging

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from vit.checkpoints.load import load_with_report
from vit.foundation import UserError

SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 40}
SIZES |= {"image_size": 21, "patch_size": 7, "num_labels": 5}
TEXT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 99}
TEXT |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
DECODER = {"decoder_hidden_size": 16, "decoder_num_attention_heads": 2, "decoder_num_hidden_layers": 1}
DECODER |= {"decoder_intermediate_size": 20, "mask_ratio": 0.0}
UNEVEN = {"num_attention_heads": 6, "num_hidden_layers": 1, "image_size": 10, "patch_size": 5}
NON_SQUARE = {"image_size": (10, 21), "patch_size": (5, 7)}
SWIGLU = {"use_swiglu_ffn": True, "intermediate_size": 99}


def vision(name, **options):
    return getattr(transformers, f"{name}Config")(**{**SIZES, **options})


def both(name, **options):
    sizes = {key: value for key, value in {**SIZES, **options}.items() if key != "num_labels"}
    config = getattr(transformers, f"{name}Config")
    return config(vision_config=sizes, text_config=TEXT, projection_dim=12, num_labels=5)


# name: (class, config, whether logits are what it gives)
MODELS = {
    "ViT": ("ViTModel", vision("ViT"), False),
    "ViT for classification": ("ViTForImageClassification", vision("ViT"), True),
    "ViT, uneven": ("ViTForImageClassification", vision("ViT", **UNEVEN), True),
    "ViT, non-square": ("ViTForImageClassification", vision("ViT", **NON_SQUARE), True),
    "ViT without qkv bias, large epsilon": (
        "ViTForImageClassification",
        vision("ViT", qkv_bias=False, layer_norm_eps=1e-2, hidden_act="gelu_new"),
        True,
    ),
    "ViT with two channels": ("ViTForImageClassification", vision("ViT", num_channels=2), True),
    "DeiT": ("DeiTModel", vision("DeiT"), False),
    "DeiT for classification": ("DeiTForImageClassification", vision("DeiT"), True),
    "DeiT with teacher": ("DeiTForImageClassificationWithTeacher", vision("DeiT", **NON_SQUARE), True),
    "ViTMAE": ("ViTMAEModel", vision("ViTMAE", **DECODER), False),
    "ViTMAE for pretraining": ("ViTMAEForPreTraining", vision("ViTMAE", **DECODER), False),
    "ViTMSN": ("ViTMSNForImageClassification", vision("ViTMSN"), True),
    "Dinov2": ("Dinov2Model", vision("Dinov2"), False),
    "Dinov2 for classification": ("Dinov2ForImageClassification", vision("Dinov2", **UNEVEN), True),
    "Dinov2 with SwiGLU": ("Dinov2ForImageClassification", vision("Dinov2", **SWIGLU), True),
    "Dinov2WithRegisters": ("Dinov2WithRegistersModel", vision("Dinov2WithRegisters", num_register_tokens=3), False),
    "Dinov2WithRegisters for classification": (
        "Dinov2WithRegistersForImageClassification",
        vision("Dinov2WithRegisters", **SWIGLU),
        True,
    ),
    "CLIP": ("CLIPVisionModel", vision("CLIPVision"), False),
    "CLIP, uneven": ("CLIPVisionModel", vision("CLIPVision", **UNEVEN, hidden_act="gelu"), False),
    "CLIP with projection": ("CLIPVisionModelWithProjection", vision("CLIPVision", projection_dim=12), False),
    "CLIP with text": ("CLIPModel", both("CLIP"), False),
    "CLIP for classification": ("CLIPForImageClassification", both("CLIP"), True),
    "SigLIP": ("SiglipVisionModel", vision("SiglipVision"), False),
    "SigLIP, uneven": ("SiglipVisionModel", vision("SiglipVision", **UNEVEN), False),
    "SigLIP without head": ("SiglipVisionModel", vision("SiglipVision", vision_use_head=False), False),
    "SigLIP with text": ("SiglipModel", both("Siglip"), False),
    "SigLIP for classification": ("SiglipForImageClassification", both("Siglip"), True),
}
WAYS = ("folder", "file", "live", "live names in a file")


@pytest.fixture(autouse=True, scope="module")
def _quiet():
    transformers.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)


@pytest.fixture
def reference(randomise):
    def build(name):
        kind, config, _ = MODELS[name]
        return randomise(getattr(transformers, kind)(config)).double()

    return build


def tower_config(config):
    return getattr(config, "vision_config", config)


def as_ours(model, tmp_path, way="folder", **options):
    """Ours of a model of transformers, and the report."""
    config = tower_config(model.config)
    if way == "live":
        return _double(load_with_report(model, **options))
    told = {"num_heads": config.num_attention_heads, "norm_eps": config.layer_norm_eps}
    told |= {"act": {"gelu": "gelu", "quick_gelu": "quick_gelu"}.get(config.hidden_act, "gelu_tanh")}
    told |= {} if isinstance(config.image_size, int) else {"image_size": config.image_size}
    if way == "folder":
        model.save_pretrained(tmp_path / "model")
        return _double(load_with_report(tmp_path / "model", **options))
    if way == "file":
        model.save_pretrained(tmp_path / "model")
        return _double(load_with_report(tmp_path / "model" / "model.safetensors", **{**told, **options}))
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, tmp_path / "live.safetensors")
    return _double(load_with_report(tmp_path / "live.safetensors", **{**told, **options}))


def _double(loaded):
    return loaded[0].eval().double(), loaded[1]


def answers(model, images, **options):
    """Of a model of transformers: the tokens before any pooling, the pooled vector, the logits; None where it has none.

    ViT's pooled vector has gone through a layer that is of no use; the class token stands for it.
    """
    logits = None
    if type(model).__name__.endswith(("ForImageClassification", "WithTeacher")):
        logits = model(images, **options).logits
    homes = ("vit", "deit", "dinov2", "dinov2_with_registers", "vision_model")
    inner = next((getattr(model, name) for name in homes if hasattr(model, name)), model)
    if type(inner).__name__ == "ViTMAEModel":  # it shuffles the patches; here it is told to leave them in order
        patches = inner.embeddings.patch_embeddings(images).shape[1]
        options |= {"noise": torch.arange(patches).expand(len(images), -1)}
    output = inner(images, **options)
    tokens, pooled = output.last_hidden_state, getattr(output, "pooler_output", None)
    if hasattr(inner, "embeddings") and hasattr(inner.embeddings, "cls_token"):
        pooled = tokens[:, 0]
    return tokens, pooled, logits


def assert_close(ours, theirs):
    """To the rounding of the positions of prefix tokens, which are added in single precision."""
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def assert_same_answers(model, reference, images, **options):
    tokens, pooled, logits = answers(reference, images, **options)
    if type(reference).__name__.startswith("CLIP") and logits is None:
        tokens = model.encoder.norm(tokens)  # the library's norm comes after the class token is taken
    assert_close(model.encoder(images), tokens)
    if logits is not None:
        assert logits.std() > 0.05
        assert_close(model(images), logits)
    elif pooled is not None:
        assert_close(model(images), pooled)


def images_for(reference, *size):
    config = tower_config(reference.config)
    own = config.image_size if isinstance(config.image_size, tuple | list) else (config.image_size,) * 2
    return torch.randn(2, config.num_channels, *(size or own), dtype=torch.float64)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_tokens_pooled_output_and_logits_are_equal(reference, tmp_path, name, way):
    theirs = reference(name)
    model, report = as_ours(theirs, tmp_path, way)
    assert_same_answers(model, theirs, images_for(theirs))
    assert report.layout.startswith("transformers ")
    assert model.num_classes == (5 if MODELS[name][2] else 0)
    if way in ("folder", "live"):
        assert report.assumed == []


@pytest.mark.parametrize("size", [(35, 35), (14, 14), (14, 42)])
@pytest.mark.parametrize(
    "name",
    [
        *("ViT for classification", "DeiT with teacher, square", "ViTMAE", "ViTMSN", "Dinov2 with SwiGLU", "Dinov2"),
        *("Dinov2WithRegisters", "CLIP", "SigLIP", "SigLIP for classification", "CLIP for classification"),
    ],
)
@torch.no_grad()
def test_other_image_sizes_are_equal(randomise, tmp_path, name, size):
    kind, config, _ = MODELS.get(name) or ("DeiTForImageClassificationWithTeacher", vision("DeiT"), True)
    theirs = randomise(getattr(transformers, kind)(config)).double()
    resizes_always = "Dinov2" in name
    options = {} if resizes_always else {"interpolate_pos_encoding": True}
    images = images_for(theirs, *size)
    at_every_pass, _ = as_ours(theirs, tmp_path)
    assert_same_answers(at_every_pass, theirs, images, **options)
    when_loaded, report = as_ours(theirs, tmp_path, "live", image_size=size)
    assert_same_answers(when_loaded, theirs, images, **options)
    assert len(report.resized) == 1


@torch.no_grad()
def test_dinov2_takes_its_positions_for_a_square_whatever_its_config_says(randomise, tmp_path):
    theirs = randomise(transformers.Dinov2Model(vision("Dinov2", image_size=(14, 56)))).double()  # 16 positions: 4 x 4
    model, _ = as_ours(theirs, tmp_path)
    assert model.encoder.grid == (4, 4)
    assert_same_answers(model, theirs, images_for(theirs, 14, 56))


@pytest.mark.parametrize(
    ("kind", "config", "told"),
    [
        ("ViTForImageClassification", "ViT", "norm_eps=1e-12, pos_interpolation=bicubic, act=gelu, num_heads=3"),
        ("Dinov2Model", "Dinov2", "norm_eps=1e-06, pos_interpolation=bicubic, act=gelu, num_heads=3"),
        ("CLIPVisionModel", "CLIPVision", "norm_eps=1e-05, pos_interpolation=bicubic, act=quick_gelu, num_heads=3"),
        ("SiglipVisionModel", "SiglipVision", "norm_eps=1e-06, pos_interpolation=bicubic, act=gelu_tanh, num_heads=3"),
    ],
)
@torch.no_grad()
def test_a_file_alone_is_taken_as_the_library_would(randomise, tmp_path, kind, config, told):
    wide = {"hidden_size": 192, "num_attention_heads": 3, "num_hidden_layers": 1}
    theirs = randomise(getattr(transformers, kind)(vision(config, **wide)), std=0.1)
    theirs.save_pretrained(tmp_path)
    model, report = load_with_report(tmp_path / "model.safetensors")
    assert sorted(report.assumed) == sorted(told.split(", "))
    assert_same_answers(model.double().eval(), theirs.double(), images_for(theirs))


@pytest.mark.parametrize("name", ["CLIP", "SigLIP"])
@torch.no_grad()
def test_files_of_earlier_versions_are_read(reference, tmp_path, name):
    """They have the tower's name before all of its tensors, also where there is no other, and count the positions."""
    theirs = reference(name).float()
    theirs.save_pretrained(tmp_path)
    tensors = {f"vision_model.{key}": value for key, value in load_file(tmp_path / "model.safetensors").items()}
    positions = torch.arange(len(tensors["vision_model.embeddings.position_embedding.weight"]))[None]
    save_file({**tensors, "vision_model.embeddings.position_ids": positions}, tmp_path / "model.safetensors")
    model, report = load_with_report(tmp_path)
    assert report.dropped == ["embeddings.position_ids (counts from 0 up)"]
    assert_same_answers(model.double().eval(), theirs.double(), images_for(theirs))


@pytest.mark.parametrize("way", ["folder", "live"])
@torch.no_grad()
def test_timms_models_in_transformers_are_read_as_timms(randomise, tmp_path, way):
    options = {"img_size": 14, "patch_size": 7, "embed_dim": 24, "depth": 2, "num_heads": 2}
    labels = {0: "crow", 1: "gull"}
    theirs = transformers.TimmWrapperForImageClassification(
        transformers.TimmWrapperConfig(
            architecture="vit_base_patch16_clip_quickgelu_224", model_args=options, id2label=labels
        )
    )
    randomise(theirs).save_pretrained(tmp_path)
    model, report = load_with_report(tmp_path if way == "folder" else theirs)
    images = torch.randn(2, 3, 14, 14)
    assert_close(model.eval()(images), theirs(images).logits)
    assert (report.layout, model.labels, report.assumed) == ("timm", ("crow", "gull"), [])


@pytest.mark.parametrize("name", ["ViT for classification", "Dinov2 with SwiGLU", "CLIP for classification", "SigLIP"])
def test_a_missing_or_strange_tensor_is_refused_by_its_name(reference, tmp_path, name):
    theirs = reference(name).float()
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for missing in [*list(tensors)[::5], next(key for key in tensors if "k_proj.weight" in key or "key.weight" in key)]:
        rest = {key: value for key, value in tensors.items() if key != missing}
        save_file(rest, tmp_path / "model.safetensors")
        if missing.startswith(("classifier.weight", "vision_model.post", "head.")):
            continue  # of a head that is not there at all, or that is not read, there is another test
        with pytest.raises(UserError) as caught:
            load_with_report(tmp_path)
        assert len(str(caught.value).splitlines()) <= 5
    save_file({**tensors, "strange.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"strange\.weight"):
        load_with_report(tmp_path)

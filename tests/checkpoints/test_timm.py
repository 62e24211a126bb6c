"""timm's families beyond the plain model, and what its folders and hub records tell that weights don't."""

import json
import re
from functools import partial

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import SwiGLUPacked
from timm.layers.attention_pool import AttentionPoolPrr
from torch import nn

from vit.checkpoints import canonical
from vit.checkpoints.load import load, load_with_report
from vit.checkpoints.modules import timm_facts
from vit.checkpoints.sources.timm import TIMM
from vit.foundation import UserError

# Keywords of timm's model; options of `vit.load`, which a bare file does not tell.
FAMILIES = {
    "DeiT, both heads": ({"distilled": True}, {}),
    "DeiT III": ({"init_values": 0.1, "no_embed_class": True}, {}),
    "CLIP": ({"pre_norm": True, "norm_layer": partial(nn.LayerNorm, eps=1e-5)}, {}),
    "CLIP of OpenAI": (
        {"pre_norm": True, "norm_layer": partial(nn.LayerNorm, eps=1e-5), "act_layer": "quick_gelu"},
        {"act": "quick_gelu"},
    ),
    "SigLIP": ({"class_token": False, "global_pool": "map"}, {}),
    "SigLIP 2": (
        {"class_token": False, "global_pool": "map", "act_layer": "gelu_tanh", "num_classes": 0},
        {"act": "gelu_tanh"},
    ),
    "attention pool, class token, registers": (
        {"global_pool": "map", "reg_tokens": 3, "no_embed_class": True, "mlp_ratio": 2.25},
        {},
    ),
    "mean, normed behind": ({"global_pool": "avg", "fc_norm": True}, {}),
    "mean, normed behind, registers": (
        {"global_pool": "avg", "class_token": False, "fc_norm": True, "reg_tokens": 4, "no_embed_class": True},
        {},
    ),
    "mean, normed before": ({"global_pool": "avg", "class_token": False, "fc_norm": False}, {}),
    "MAE": ({"num_classes": 0}, {}),
    "registers with positions": ({"reg_tokens": 3}, {}),
    "registers with positions, mean, no class token": (
        {"class_token": False, "reg_tokens": 6, "global_pool": "avg", "fc_norm": False},
        {},
    ),
}


@pytest.fixture
def file(tmp_path):
    def write(model):
        save_file(model.state_dict(), tmp_path / "timm.safetensors")
        return tmp_path / "timm.safetensors"

    return write


def assert_close(ours, theirs):
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def images(*size, chans=3):
    return torch.randn(2, chans, *size, dtype=torch.float64)


@pytest.mark.parametrize("shape", [{}, {"depth": 1, "num_heads": 11}, {"img_size": (10, 14), "patch_size": (5, 7)}])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_logits_equal_timm(timm_vit, file, name, shape):
    keywords, options = FAMILIES[name]
    reference = timm_vit(**keywords, **shape)
    model, report = load_with_report(file(reference), num_heads=shape.get("num_heads", 2), **options)
    x = images(*reference.patch_embed.img_size)
    assert_close(model.double().eval()(x), reference.double()(x))
    assert report.dropped == []
    assert ("norm_eps=1e-05" in report.assumed) == name.startswith("CLIP")


@pytest.mark.parametrize("size", [(28, 28), (7, 7), (21, 35)])
@pytest.mark.parametrize("name", ["DeiT, both heads", "DeiT III", "CLIP", "SigLIP", "mean, normed behind, registers"])
@torch.no_grad()
def test_other_sizes_equal_timm(timm_vit, file, name, size):
    keywords, options = FAMILIES[name]
    reference = timm_vit(**keywords, dynamic_img_size=True, img_size=21)
    path = file(reference)
    expected = reference.double()(x := images(*size))
    for more in ({}, {"image_size": size}):
        assert_close(load(path, num_heads=2, **options, **more).double().eval()(x), expected)


# Architectures of timm, made tiny: the name alone tells epsilon, activation, pooling.
TINY = {"img_size": 14, "patch_size": 7, "embed_dim": 22, "depth": 2, "num_heads": 2}
ARCHITECTURES = {
    "vit_base_patch16_224": {},
    "vit_base_patch16_clip_quickgelu_224": {},
    "vit_large_patch14_clip_224": {"img_size": [14, 21]},
    "vit_base_patch32_siglip_256": {},
    "vit_base_patch16_siglip_gap_224": {},
    "vit_giant_patch14_dinov2": {"embed_dim": 24},
    "vit_base_patch16_reg4_gap_256": {"in_chans": 2},
    "deit_base_distilled_patch16_224": {},
    "deit3_base_patch16_224": {"global_pool": "avg", "fc_norm": False},
    "vit_base_patch16_gap_224": {"act_layer": "gelu_tanh", "qk_norm": True},
}


@pytest.fixture
def folder(tmp_path, randomise):
    """A folder of timm's, and its model."""

    def write(architecture, arguments, **config):
        model = randomise(timm.create_model(architecture, num_classes=5, **arguments))
        save_file(model.state_dict(), tmp_path / "model.safetensors")
        prepared = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 0.9, "interpolation": "bilinear"}
        content = {
            "architecture": architecture,
            "num_classes": 5,
            "global_pool": model.global_pool,
            "label_names": ["a", "b", "c", "d", "é"],
            "model_args": arguments,
            "pretrained_cfg": {**prepared, "crop_mode": "center", **config.pop("pretrained_cfg", {})},
        }
        (tmp_path / "config.json").write_text(json.dumps({**content, **config}))
        return tmp_path, model

    return write


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_a_folder_tells_what_the_weights_do_not(folder, architecture):
    arguments = {**TINY, **ARCHITECTURES[architecture]}
    path, reference = folder(architecture, arguments)
    model, report = load_with_report(path)
    assert report.assumed == []
    x = images(*reference.patch_embed.img_size, chans=reference.patch_embed.proj.in_channels)
    assert_close(model.double().eval()(x), reference.double()(x))
    assert model.labels == ("a", "b", "c", "d", "é")
    prepared = model.preprocessing
    assert prepared.image_size == tuple(reference.patch_embed.img_size)
    assert prepared.mean[:2] == (0.1, 0.2)
    assert (prepared.crop_pct, prepared.resize_mode, prepared.interpolation) == (0.9, "crop", "bilinear")


def test_a_folder_is_read_as_timm_reads_it(folder):
    path, _ = folder("vit_base_patch16_clip_quickgelu_224", TINY)
    reference = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    x = torch.randn(2, 3, 14, 14)
    torch.testing.assert_close(load(path).eval()(x), reference(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_an_attention_pool_that_is_not_read_is_left_out(folder, tmp_path):
    """timm gives its models of SigLIP that read the mean the same file as the others."""
    folder("vit_base_patch32_siglip_256", TINY)
    weights = (tmp_path / "model.safetensors").read_bytes()
    path, _ = folder("vit_base_patch32_siglip_gap_256", TINY)
    (tmp_path / "model.safetensors").write_bytes(weights)
    model, report = load_with_report(path)
    assert model.pool == "mean"
    assert len(report.dropped) == 11
    assert all(name.startswith("attn_pool.") for name in report.dropped)


@pytest.mark.parametrize(
    ("told", "prepared", "noted"),
    [
        ({"crop_mode": "squash", "crop_pct": 1.0}, ("squash", "bilinear"), ""),
        ({"crop_mode": "squash", "crop_pct": 0.95}, ("squash", "bilinear"), "'squash' with crop_pct 0.95"),
        ({"crop_mode": "border"}, ("squash", "bilinear"), "'border'"),
        ({"interpolation": "lanczos"}, ("crop", "bicubic"), "'lanczos'; here it is bicubic"),
    ],
)
def test_preprocessing_that_has_no_place_here_is_told(folder, told, prepared, noted):
    path, _ = folder("vit_base_patch16_224", TINY, pretrained_cfg=told)
    model, report = load_with_report(path)
    assert (model.preprocessing.resize_mode, model.preprocessing.interpolation) == prepared
    assert noted in "".join(report.notes)
    assert bool(report.notes) == bool(noted)


def refusal(source, **options):
    with pytest.raises(UserError) as caught:
        load(source, **options)
    assert len(str(caught.value).splitlines()) <= 5
    return str(caught.value)


AVERAGE = {"global_pool": "avg"}


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"global_pool": "max"}, "'max' pooling"),
        ({"global_pool": "avgmax"}, "'avgmax' pooling"),
        ({"model_args": {**TINY, "global_pool": "avg", "pool_include_prefix": True}}, "includes prefix tokens"),
        ({"architecture": "vit_small_patch16_18x2_224"}, "blocks of ParallelThingsBlock"),
        ({"architecture": "vit_base_patch16_xp_224"}, "blocks of ParallelScalingBlock"),
        ({"architecture": "vit_base_patch16_rpn_224", **AVERAGE}, "blocks of ResPostBlock"),
        ({"architecture": "aimv2_large_patch14_224", **AVERAGE}, "blocks of Block, Attention, SwiGLU"),
        ({"architecture": "test_vit4", **AVERAGE}, "layer norms with epsilons of no kind"),
        ({"architecture": "swin_tiny_patch4_window7_224", "model_args": {}}, "but of its swin_transformer"),
        ({"architecture": "eva02_tiny_patch14_224", "model_args": {}}, "or no layer scale"),
        ({"architecture": "vit_small_patch16_rope_ape_224", "model_args": {}}, "learned positions beside rotary ones"),
        ({"architecture": "vit_small_patch16_rope_mixed_224", "model_args": {}}, "its own kind, RotaryEmbeddingMixed"),
        ({"architecture": "beit_base_patch16_224", "model_args": {}}, "but of its beit"),
        ({"architecture": "vit_bse_patch16_224"}, "did you mean 'vit_base_patch16_224'"),
        ({"model_args": {"checkpoint_path": "weights.pth"}}, "'checkpoint_path' is not an argument"),
        ({"model_args": {"embed_dim": "wide"}}, "not the config of a timm model"),
        ({"model_args": ["depth"]}, "not the config of a timm model"),
        ({"architecture": 3}, "not the config of a timm model"),
        ({"pretrained_cfg": {"mean": 3}}, "does not say how images are prepared"),
    ],
)
def test_configs_that_do_not_fit_are_refused(folder, config, told):
    path, _ = folder("vit_base_patch16_224", TINY)
    content = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**content, **config}))
    assert told in refusal(path)


# Other classes, of which some have all the keys of a Vision Transformer.
OTHERS = {
    "beit_base_patch16_224": "relative positions, such as BEiT",
    "beitv2_base_patch16_224": "relative positions, such as BEiT",
    "vit_relpos_small_patch16_224": "relative positions",
    "samvit_base_patch16": "relative positions",
    "swin_tiny_patch4_window7_224": "a Swin Transformer",
    "swinv2_tiny_window8_256": "a Swin Transformer",
    "eva02_tiny_patch14_224": "such as EVA",
    "eva_giant_patch14_224": "such as EVA",
    "vit_small_patch16_rope_mixed_224": "with learned frequencies",
    "vit_pe_core_base_patch16_224": "a Perception Encoder",
    "vit_base_patch16_rope_ape_224": "rotary positions and the same keys",
    "eva02_base_patch14_224": "such as EVA",
    "vit_base_r50_s16_224": "a hybrid",
    "vit_small_patch16_18x2_224": "parallel blocks",
    "vit_base_patch16_xp_224": "parallel blocks",
    "cait_s24_224": "a CaiT",
    "convnext_tiny": "a ConvNeXt",
    "resnet18": "a ResNet",
    "mixer_b16_224": "an MLP-Mixer",
}


@pytest.mark.parametrize("name", OTHERS)
def test_models_that_do_not_fit_are_refused_by_name(tmp_path, name):
    with torch.device("meta"):
        state = timm.create_model(name, pretrained=False).state_dict()
    # Only what is told by name is looked at: nothing of a size that would take time.
    save_file({key: torch.zeros([min(n, 3) for n in value.shape]) for key, value in state.items()}, tmp_path / "x.pth")
    (tmp_path / "x.pth").rename(tmp_path / "x.safetensors")
    text = refusal(tmp_path / "x.safetensors")
    assert OTHERS[name] in text
    assert "does not fit" in text


def test_norms_behind_the_branches_are_not_taken_for_norms_before(tmp_path, randomise):
    """A file alone does not tell the two apart; a config does, or who loads it."""
    options = {**TINY, "num_classes": 5, "qkv_bias": False, "class_token": False, "global_pool": "avg"}
    reference = randomise(timm.create_model("vit_base_patch16_224", **options))
    path = tmp_path / "model.safetensors"
    save_file(reference.state_dict(), path)
    text = refusal(path, num_heads=2)
    assert "vit_base_patch16_rpn_224" in text
    assert "post_norm=False" in text
    (x,) = images(14, 14)[None]
    expected = reference.double()(x)
    assert_close(load(path, num_heads=2, post_norm=False).double().eval()(x), expected)
    assert_close(load(reference.float()).double().eval()(x), expected)


@pytest.mark.parametrize("options", [{}, {"init_values": 0.1}, {"class_token": False, "global_pool": "avg"}])
def test_a_model_without_positions_is_not_called_a_rotary_one(timm_vit, file, options):
    told = refusal(file(timm_vit(pos_embed="none", **options)), num_heads=2)
    assert "has no pos_embed: either it has no positions at all, as timm's models with pos_embed='none'" in told


@torch.no_grad()
def test_positions_that_fit_two_grids_are_told_apart_by_the_image_size_or_an_assumption_that_is_told(timm_vit, file):
    reference = timm_vit(reg_tokens=4).double()  # 1 + 4 prefix tokens and 2 x 2 patches: 9 positions, as of 3 x 3
    path = file(reference.float())
    x = images(14, 14)
    assert_close(load(path, num_heads=2, image_size=(14, 14)).double().eval()(x), reference.double()(x))
    model, report = load_with_report(path, num_heads=2)
    assert model.encoder.grid == (3, 3)
    assert any("positions of 3 x 3 patches and no other token" in line for line in report.lines())


# What a bare file of timm's published models leaves to be assumed otherwise than it is: names, and what.
ASSUMED_OTHERWISE = (
    (r"clip_quickgelu", {"act"}),
    (r"siglip", {"act"}),  # SigLIP 2's
    (r"siglip(_gap)?_384$", {"act", "image_size"}),  # of patches of 14 pixels, which don't divide 384
    (r"vit_base_patch16_gap_224", {"num_heads"}),  # of no published weights
)
REFUSED_AS_BARE_FILES = r"aimv2|beit3|radio|intern300m|test_vit|_rpn_|_xp_|x2_224|vit_d(little|wee|pwee)|_pwee_"


def test_what_the_names_and_shapes_of_each_of_timms_models_tell():
    """Of all its vit_* and deit*: they tell what the model says of itself, or it is refused, or it is listed here."""
    names = [name for module in ("vision_transformer", "deit") for name in timm.list_models(module=module)]
    wrong = {}
    for name in names:
        with torch.device("meta"):
            model = timm.create_model(name, depth=1)
        if re.search(REFUSED_AS_BARE_FILES, name):
            continue
        facts = timm_facts(model)
        converted = TIMM.convert(model.state_dict())
        keywords, _ = canonical.architecture(converted.tensors, {}, {**TIMM.assumes, **converted.assumed})
        differing = {key for key, value in facts.encoder.items() if keywords[key] != value}
        if facts.pool != canonical.pooling(converted.tensors) and "distilled" not in name:
            differing.add("pool")
        listed = [keys for pattern, keys in ASSUMED_OTHERWISE if re.search(pattern, name)]
        if not differing <= set().union(*listed):
            wrong[name] = differing
    assert len(names) > 150
    assert wrong == {}


@pytest.mark.parametrize(
    ("name", "heads"),
    [("vit_giant_patch14_dinov2", 24), ("vit_giantopt_patch16_siglip_256", 16), ("vit_so400m_patch14_siglip_224", 16)],
)
def test_heads_of_the_largest(name, heads):
    with torch.device("meta"):
        reference = timm.create_model(name, depth=1)
    converted = TIMM.convert(reference.state_dict())
    keywords, told = canonical.architecture(converted.tensors, {}, {**TIMM.assumes, **converted.assumed})
    assert keywords["num_heads"] == reference.blocks[0].attn.num_heads == heads
    assert f"num_heads={heads}" in told


def test_a_pooling_of_another_kind_is_refused_by_its_names(timm_vit, file):
    reference = timm_vit(global_pool="prr")
    assert "'prr' pooling" in refusal(reference)
    # Without norms it has no weights, so nothing tells: the pooling that is taken is told as an assumption.
    assert "pool=class" in load_with_report(file(reference), num_heads=2)[1].assumed
    reference.attn_pool = AttentionPoolPrr(22, 2, post_norm=True)
    path = file(reference)
    assert "attn_pool." in refusal(path, num_heads=2)
    assert "attn_pool." in refusal(path, num_heads=2, pool="class")
    model, report = load_with_report(path, num_heads=2, pool="mean")
    assert model.num_classes == 0
    assert any(name.startswith("attn_pool.") for name in report.dropped)


def test_attention_pooling_beside_swiglu_is_refused(timm_vit, file):
    """timm gives the pool's MLP the activation of the gate, which its weights don't tell."""
    reference = timm_vit(global_pool="map", class_token=False, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU)
    assert "attention pooling beside SwiGLU" in refusal(reference)
    path = file(reference)
    assert "attention pooling beside SwiGLU" in refusal(path, num_heads=2)
    x = torch.randn(2, 3, 14, 14)
    found = load(path, num_heads=2, pool="mean").eval()(x)
    torch.testing.assert_close(found, reference.forward_features(x).mean(dim=1), rtol=1e-5, atol=1e-5)

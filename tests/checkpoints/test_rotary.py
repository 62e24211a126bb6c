"""Models with rotary positions give the numbers of the libraries that wrote them: timm's Eva, transformers' DINOv3."""

import logging

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file

from vit.checkpoints import canonical
from vit.checkpoints.export import export
from vit.checkpoints.folder import write_folder
from vit.checkpoints.load import load, load_with_report
from vit.checkpoints.modules import rotary_facts
from vit.checkpoints.sources import locate
from vit.foundation import UserError
from vit.models.encoder import image_encoder
from vit.models.masked import SimMIM
from vit.saliency.record import record

TINY = {"img_size": 21, "patch_size": 7, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 5}
NAMES = {
    "vit_small_patch16_dinov3": {},
    "vit_small_patch16_dinov3_qkvb": {"global_pool": "token"},
    "vit_small_plus_patch16_dinov3": {"num_heads": 1, "depth": 1},
    "vit_base_patch16_rope_reg1_gap_256": {},
    "vit_mediumd_patch16_rope_reg1_gap_256": {"num_heads": 2},
    "vit_small_patch16_rope_224": {"qk_norm": True},
}
NON_SQUARE = {"img_size": (14, 35)}


@pytest.fixture(autouse=True, scope="module")
def _quiet():
    transformers.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)


@pytest.fixture
def reference(randomise):
    def build(name, **options):
        return randomise(timm.create_model(name, **{**TINY, **NAMES[name], **options}))

    return build


def images(*size):
    return torch.randn(2, 3, *size, dtype=torch.float64)


def assert_close(ours, theirs):
    """Both compute the angles in single precision."""
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [{}, NON_SQUARE])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_tokens_and_logits_equal_timm(reference, name, shape):
    theirs = reference(name, **shape)
    model, report = load_with_report(theirs)
    assert report.assumed == []
    x = images(*theirs.patch_embed.img_size)
    theirs, model = theirs.double(), model.double().eval()
    assert_close(model.encoder(x), theirs.forward_features(x))
    assert_close(model(x), theirs(x))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_bare_file_is_taken_for_the_published_model(reference, tmp_path, name):
    theirs = reference(name)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    heads = theirs.blocks[0].attn.num_heads
    pool = {"avg": "mean"}.get(theirs.global_pool)
    model, report = load_with_report(tmp_path / "model.safetensors", num_heads=heads, image_size=(21, 21), pool=pool)
    assert any(told.startswith("rotary=") for told in report.assumed)
    x = images(21, 21)
    assert_close(model.double().eval().encoder(x), theirs.double().forward_features(x))
    assert "image_size=(224, 224)" in load_with_report(tmp_path / "model.safetensors", num_heads=heads)[1].assumed


@pytest.mark.parametrize("size", [(14, 42), (35, 28)])
@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_base_patch16_rope_reg1_gap_256"])
@torch.no_grad()
def test_other_sizes_equal_timm(reference, name, size):
    theirs = reference(name, dynamic_img_size=True)
    x = images(*size)
    expected = theirs.double()(x)
    for options in ({}, {"image_size": size}):
        assert_close(load(theirs.float(), **options).double().eval()(x), expected)


def test_what_the_names_of_each_of_timms_models_with_rotary_positions_tell():
    """They tell what the model says of itself, or it is refused."""
    told = 0
    for name in timm.list_models("vit*rope*", module="eva") + timm.list_models("vit*dinov3*", module="eva"):
        with torch.device("meta"):
            model = timm.create_model(name, depth=1)
        source, tensors, _ = locate(model.state_dict())
        if "mixed" in name or "ape" in name:
            with pytest.raises(UserError):
                rotary_facts(model)
            assert source is None or source.name == "timm"  # whose converter refuses it by name
            continue
        facts, converted = rotary_facts(model), source.convert(tensors)
        keywords, _ = canonical.architecture(
            converted.tensors, converted.known, {**source.assumes, **converted.assumed}, image_size=(224, 224)
        )
        expected = {"rotary_order": "", **facts.encoder, "image_size": (224, 224)}
        assert {key: keywords.get(key, "") for key in expected} == expected, name
        told += 1
    assert told >= 14


def dinov3(**options):
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
    sizes |= {"image_size": 21, "patch_size": 7, "num_register_tokens": 3}
    return transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**{**sizes, **options}))


CONFIGS = {
    "plain": {},
    "SwiGLU": {"use_gated_mlp": True, "hidden_act": "silu"},
    "no biases, no registers": {"query_bias": False, "value_bias": False, "num_register_tokens": 0},
    "another base, one head": {"rope_theta": 31.0, "num_attention_heads": 1, "layer_norm_eps": 1e-3},
    "non-square": {"image_size": (14, 35)},
}


@pytest.mark.parametrize("way", ["folder", "live"])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_tokens_equal_transformers(randomise, tmp_path, name, way):
    theirs = randomise(dinov3(**CONFIGS[name])).eval()
    theirs.save_pretrained(tmp_path)
    model, report = load_with_report(tmp_path if way == "folder" else theirs)
    assert (report.layout, report.assumed) == ("transformers DINOv3", [])
    model, theirs = model.double().eval(), theirs.double()
    for size in ((21, 21), (14, 42)):
        x = images(*size)
        output = theirs(x)
        assert_close(model.encoder(x), output.last_hidden_state)
        assert_close(model(x), output.pooler_output)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_model_folder_is_timms_and_transformers_too(reference, randomise, tmp_path, name):
    model = randomise(load(reference(name)), std=0.3).eval()  # biases of keys, too, as training makes them
    model.labels = tuple("abcde")
    write_folder(model, tmp_path)
    x = torch.randn(2, 3, 21, 21)
    again, report = load_with_report(tmp_path)
    torch.testing.assert_close(again.eval()(x), model(x), rtol=0, atol=0)
    assert report.assumed == []
    with pytest.raises(UserError, match=r"the file alone does not describe them\.\nGive its folder"):
        load(tmp_path / "model.safetensors")  # its names are those of published weights, in another order
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    torch.testing.assert_close(theirs(x), model(x), rtol=1e-4, atol=1e-5)
    wrapped = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(wrapped(x).logits, model(x), rtol=1e-4, atol=1e-5)
    for target in ("transformers", "torchvision"):
        with pytest.raises(UserError, match="rotary positions"):
            export(model, target, tmp_path / target)


@torch.no_grad()
def test_a_head_on_the_class_token_and_the_mean_is_ours_alone(reference, tmp_path):
    model = load(reference("vit_small_patch16_dinov3", num_classes=0), pool="class+mean").eval()
    with pytest.raises(UserError, match=r"a head that reads class\+mean beside rotary positions"):
        export(model, "timm", tmp_path / "timm")
    write_folder(model, tmp_path)
    x = torch.randn(2, 3, 21, 21)
    torch.testing.assert_close(load(tmp_path).eval()(x), model(x), rtol=0, atol=0)


@torch.no_grad()
def test_what_is_recorded_is_turned(reference):
    """The products of the recorded queries and keys are the scores; and reading the first token alone changes none."""
    theirs = reference("vit_small_patch16_dinov3", global_pool="token").double()
    model = load(theirs.float()).double().eval()
    x = images(21, 21)
    with record(model.encoder) as trace:
        tokens = model.encoder(x)
    recorded = trace.blocks[0]
    block = theirs.double().blocks[0]
    rope = theirs.rope.get_embed(shape=[3, 3])
    embedded, _ = theirs._pos_embed(theirs.patch_embed(x))
    q, k, _ = block.attn.qkv(block.norm1(embedded)).unflatten(2, (3, 3, 8)).permute(2, 0, 3, 1, 4)
    turned = timm.layers.apply_rot_embed_cat
    expected = [torch.cat([each[:, :, :5], turned(each[:, :, 5:], rope, half=True)], dim=2) for each in (q, k)]
    assert_close(recorded.q @ recorded.k.mT, expected[0] @ expected[1].mT)
    for read in (1, 3, 7):
        torch.testing.assert_close(model.encoder(x, read=read), tokens[:, :read])


def test_what_rotary_positions_do_not_go_with():
    sizes = {"image_size": (14, 14), "patch_size": (7, 7), "depth": 1, "num_heads": 2}
    with pytest.raises(ValueError, match="multiple of 4"):
        image_encoder(**sizes, embed_dim=12, rotary={"kind": "centred", "theta": 100.0})
    with pytest.raises(ValueError, match="'round'; allowed are centred, counted"):
        image_encoder(**sizes, embed_dim=16, rotary={"kind": "round", "theta": 100.0})
    encoder = image_encoder(**sizes, embed_dim=16, rotary={"kind": "centred", "theta": 100.0})
    with pytest.raises(ValueError, match="rotary positions"):
        SimMIM(encoder)
    with pytest.raises(ValueError, match="turned"):
        encoder.encode(torch.zeros(1, 5, 16))


@torch.no_grad()
def test_a_file_of_transformers_alone_is_taken_as_the_library_would(randomise, tmp_path):
    theirs = randomise(dinov3(hidden_size=64, num_attention_heads=1)).eval()
    theirs.save_pretrained(tmp_path)
    model, report = load_with_report(tmp_path / "model.safetensors", image_size=(14, 21))
    told = {"norm_eps=1e-05", "act=gelu", "num_heads=1", "rotary={'kind': 'centred', 'theta': 100.0}"}
    assert set(report.assumed) == told
    x = images(14, 21)
    assert_close(model.double().eval().encoder(x), theirs.double()(x).last_hidden_state)

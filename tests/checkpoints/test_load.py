"""Loading is strict: every key is accounted for, and what the file does not say is told or asked."""

import pytest
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed, resample_patch_embed

from vit.checkpoints.content import read
from vit.checkpoints.load import _converted, load, load_with_report
from vit.checkpoints.sources import SOURCES
from vit.foundation import UserError
from vit.models.classifier import Classifier
from vit.models.encoder import image_encoder


@pytest.fixture
def state(timm_vit):
    return timm_vit(dynamic_img_size=True, init_values=0.1).state_dict()


@pytest.fixture
def file(tmp_path):
    """Writes tensors to a file, and gives its path."""

    def write(tensors, name="weights.safetensors"):
        save_file({name: value.contiguous() for name, value in tensors.items()}, tmp_path / name)
        return tmp_path / name

    return write


def refusal(source, **options):
    with pytest.raises(UserError) as caught:
        load(source, **{"num_heads": 2, **options})
    assert len(str(caught.value).splitlines()) <= 5
    return str(caught.value)


def test_every_key_is_reported(file, state):
    model, report = load_with_report(file(state), num_heads=2)
    assert report.matched == len(state) == len(model.state_dict())
    assert (report.resized, report.dropped) == ([], [])
    assert report.assumed == ["norm_eps=1e-06", "act=gelu", "pos_interpolation=bicubic_antialias", "pool=class"]
    assert f"{len(state)} tensors loaded" in report.lines()[0]
    assert "assumed: norm_eps=1e-06" in report.lines()[1]


def test_what_the_user_says_is_not_assumed(file, state):
    told = {"num_heads": 11, "act": "quick_gelu", "norm_eps": 1e-3, "pos_interpolation": "bicubic"}
    model, report = load_with_report(file(state), pool="class", **told)
    assert report.assumed == []
    assert told.items() <= model.encoder.architecture.items()
    block = model.encoder.blocks[0]
    assert (block.attn.num_heads, block.norm1.eps) == (11, 1e-3)
    assert model.encoder.embed.pos_interpolation == "bicubic"


def test_published_widths_need_no_head_count(file, timm_vit):
    model, report = load_with_report(file(timm_vit(embed_dim=192, num_heads=3, depth=1).state_dict()))
    assert model.encoder.blocks[0].attn.num_heads == 3
    assert "num_heads=3" in report.assumed


def test_a_width_that_nobody_published_asks_for_the_heads(file, state):
    with pytest.raises(
        UserError, match=r"its width, 22, does not tell\.\nGive the number: --num_heads, which .* --model.num_heads"
    ):
        load(file(state))


def test_the_loaded_model_can_be_trained(file, state):
    model = load(file({name: value.half() for name, value in state.items()}), num_heads=2, drop_path=0.2)
    assert all(p.requires_grad and p.is_leaf and p.dtype == torch.float32 for p in model.parameters())
    model.train()(torch.randn(2, 3, 14, 14)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.encoder.blocks[2].drop_path.rate == 0.2


@pytest.mark.parametrize("interpolation", ["bicubic", "bicubic_antialias"])
@pytest.mark.parametrize("size", [(35, 21), (7, 14)])
def test_positions_are_resized_as_timm_does(file, state, size, interpolation):
    model, report = load_with_report(file(state), num_heads=2, image_size=size, pos_interpolation=interpolation)
    grid = [size[0] // 7, size[1] // 7]
    antialias = interpolation == "bicubic_antialias"
    expected = resample_abs_pos_embed(state["pos_embed"], grid, [2, 2], num_prefix_tokens=1, antialias=antialias)
    torch.testing.assert_close(model.encoder.embed.pos_embed.data, expected[:, 1:])
    torch.testing.assert_close(model.encoder.embed.cls_token.data, state["cls_token"] + expected[:, :1])
    assert report.resized == [f"positions from 2 x 2 to {grid[0]} x {grid[1]} by {interpolation}"]
    assert model.preprocessing.image_size == model.encoder.architecture["image_size"] == size


def test_a_square_grid_is_resized_to_as_many_patches_if_it_is_told_to_be_one(file, timm_vit):
    state = timm_vit(img_size=28).state_dict()
    assert "4 x 4 patches or of 2 x 8" in refusal(file(state), image_size=(14, 56))
    model, report = load_with_report(file(state), num_heads=2, image_size=(14, 56), trained_size=28)
    assert report.resized == ["positions from 4 x 4 to 2 x 8 by bicubic_antialias"]
    assert model.encoder.grid == (2, 8)


def test_a_grid_that_is_not_square_asks_for_the_size(file, timm_vit):
    path = file(timm_vit(img_size=(14, 35)).state_dict())
    assert "11 positions, which is not a square grid" in refusal(path)
    assert "--model.trained_size" in refusal(path)
    assert "not a square grid" in refusal(path, image_size=(14, 28))  # which it was not trained for


@pytest.mark.parametrize(("patch", "size"), [((14, 14), (28, 28)), ((5, 7), (10, 14)), ((4, 3), None)])
@torch.no_grad()
def test_patches_are_resized_as_timm_does(file, timm_vit, patch, size):
    trained = timm_vit(img_size=24, patch_size=8)
    model, report = load_with_report(file(trained.state_dict()), num_heads=2, patch_size=patch, image_size=size)
    size = size or (24, 24)
    reference = timm_vit(img_size=size, patch_size=patch)
    grid = [size[0] // patch[0], size[1] // patch[1]]
    state = trained.state_dict()
    state["patch_embed.proj.weight"] = resample_patch_embed(state["patch_embed.proj.weight"], list(patch))
    state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], grid, [3, 3], num_prefix_tokens=1)
    reference.load_state_dict(state)
    images = torch.randn(2, 3, *size)
    torch.testing.assert_close(model.eval()(images), reference(images), rtol=1e-4, atol=1e-4)
    told = f"patches from 8 x 8 to {patch[0]} x {patch[1]} pixels by the pseudo-inverse of bicubic_antialias"
    assert told in report.resized
    assert model.encoder.architecture["patch_size"] == patch
    assert model.preprocessing.image_size == size


def test_patches_that_do_not_divide_the_trained_size_ask_for_another(file, state):
    assert "possible heights: 12 or 18" in refusal(file(state), patch_size=(6, 6))


@pytest.mark.parametrize(
    ("in_chans", "told", "mean"),
    [
        (1, "channels from 3 to 1, summed", (0.449,)),
        (4, "channels from 3 to 4, taken in turn, times 3/4", (0.485, 0.456, 0.406, 0.485)),
    ],
)
def test_other_channels(file, state, in_chans, told, mean):
    model, report = load_with_report(file(state), num_heads=2, in_chans=in_chans)
    assert report.resized == [told]
    assert model.preprocessing.mean == pytest.approx(mean, abs=1e-3)
    assert len(model.preprocessing.std) == in_chans
    weight = state["patch_embed.proj.weight"]
    expected = weight.sum(dim=1) if in_chans == 1 else weight[:, 0] * 3 / 4
    torch.testing.assert_close(model.encoder.embed.patch_embed.proj.weight[:, -1], expected)
    assert model.eval()(torch.randn(2, in_chans, 14, 14)).shape == (2, 5)


def test_channels_without_a_rule_are_refused(file, timm_vit):
    path = file(timm_vit(in_chans=2).state_dict())
    assert "of 2 channels can't be converted to 3; only one of 3 or of 1 can" in refusal(path, in_chans=3)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, ["pool=class"]),
        ({"num_classes": 0}, []),  # there is no head that learned to read anything
        ({"global_pool": "avg"}, ["pool=mean"]),
        ({"class_token": False, "global_pool": "avg", "fc_norm": False}, ["pool=mean"]),
        ({"class_token": False, "global_pool": "map"}, []),  # its weights tell
        ({"distilled": True}, []),
    ],
)
def test_a_pooling_that_nothing_tells_is_assumed_aloud(file, timm_vit, options, told):
    _, report = load_with_report(file(timm_vit(**options).state_dict()), num_heads=2)
    assert [text for text in report.assumed if "pool" in text] == told


def test_a_head_of_two_vectors_beside_three_asks_which(file, timm_vit):
    """Class and distillation token, or class token and mean: the shapes are the same."""
    reference = timm_vit(distilled=True)
    state = reference.state_dict()
    state["head.weight"] = torch.cat([state["head.weight"], state.pop("head_dist.weight")], dim=1) / 2
    state["head.bias"] = (state["head.bias"] + state.pop("head_dist.bias")) / 2
    assert "--model.pool" in refusal(file(state))
    images = torch.randn(2, 3, 14, 14)
    model, report = load_with_report(file(state), num_heads=2, pool="class+dist")
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), reference(images), rtol=1e-5, atol=1e-5)
    assert not any("pool" in text for text in report.assumed)
    assert load(file(state), num_heads=2, pool="class+mean").num_classes == 5
    assert load(file(state), num_heads=2, pool="mean").num_classes == 0


def test_single_precision_is_not_copied(file, state):
    content = read(file(state))
    _, converted = _converted(content)
    assert all(converted.tensors[name] is value for name, value in content.tensors.items())


@pytest.mark.parametrize("prefix", ["backbone.", "model.", "encoder.", "teacher.backbone.", "model.vit.", "net.model."])
def test_a_model_within_a_larger_one(file, state, prefix):
    inside = {f"{prefix}{name}": value for name, value in state.items()}
    model, report = load_with_report(file(inside), num_heads=2)
    assert (report.matched, report.dropped) == (len(state), [])
    outside = {f"{prefix.split('.')[0]}_2.weight": torch.ones(3), "criterion.temperature": torch.ones(1)}
    again, report = load_with_report(file({**inside, **outside}), num_heads=2)
    images = torch.randn(2, 3, 14, 14)
    assert torch.equal(again.eval()(images), model.eval()(images))
    assert [text.split(" ", 1)[1] for text in report.dropped] == [f"... (2 tensors beside {prefix.split('.')[0]})"]


def test_of_two_models_the_teacher_is_taken(file, state):
    both = {f"student.{name}": torch.zeros_like(value) for name, value in state.items()}
    both |= {f"teacher.{name}": value for name, value in state.items()}
    model, report = load_with_report(file(both), num_heads=2)
    assert torch.equal(model.head.weight, state["head.weight"])
    assert f"({len(state)} tensors beside teacher)" in report.dropped[0]


def test_averaged_weights_within_a_larger_model_are_taken(file, state):
    """As timm's ModelEmaV2 has them, a container of its own, beside the model of a LightningModule."""
    both = {f"model.{name}": torch.zeros_like(value) for name, value in state.items()}
    both |= {f"model_ema.module.{name}": value for name, value in state.items()}
    model, report = load_with_report(file(both), num_heads=2)
    assert torch.equal(model.head.weight, state["head.weight"])
    assert f"({len(state)} tensors beside model_ema)" in report.dropped[0]


def test_at_most_one_source_recognises_a_checkpoint(timm_vit):
    """Whatever the order of the registry, the source is the same."""
    assert [source.name for source in SOURCES if source.recognises(timm_vit().state_dict())] == ["timm"]
    ours = Classifier(image_encoder(image_size=(14, 14), patch_size=(7, 7), embed_dim=22, depth=1, num_heads=2), 3)
    assert [source.name for source in SOURCES if source.recognises(ours.state_dict())] == ["vit's checkpoints"]


@pytest.mark.parametrize("pool", ["mean", "class+mean"])
def test_another_pooling_drops_the_head(file, state, pool):
    model, report = load_with_report(file(state), num_heads=2, pool=pool)
    assert sorted(report.dropped) == ["head.bias", "head.weight"]
    assert "left out: head" in "\n".join(report.lines())
    assert (model.pool, model.num_classes) == (pool, 0)
    assert report.matched == len(state) - 2


@pytest.mark.parametrize("options", [{"pool": "class"}, {"pool_blocks": 2}])
def test_the_norm_behind_a_pooling_becomes_the_encoders(file, timm_vit, options):
    reference = timm_vit(global_pool="avg")
    model, report = load_with_report(file(reference.state_dict()), num_heads=2, **options)
    assert sorted(report.dropped) == ["head.bias", "head.weight"]
    assert report.notes == ["fc_norm, which normed what the head read, is here the encoder's final norm"]
    assert model.encoder.architecture["final_norm"]
    images = torch.randn(2, 3, 14, 14)
    with torch.no_grad():
        expected = reference.fc_norm(reference.forward_features(images))
        torch.testing.assert_close(model.eval().encoder(images), expected, rtol=1e-5, atol=1e-5)


def test_the_same_pooling_keeps_the_head(file, state):
    model, report = load_with_report(file(state), num_heads=2, pool="class")
    assert report.dropped == []
    assert model.num_classes == 5


def test_without_a_class_token_the_mean_is_read(file, timm_vit):
    state = timm_vit(class_token=False, global_pool="avg", fc_norm=False).state_dict()
    assert load(file(state), num_heads=2).pool == "mean"
    assert "no class token; try pool='mean'" in refusal(file(state), pool="class")


@pytest.mark.parametrize(
    ("rename", "count"),
    [(("blocks.1.norm1.weight", None), "1 missing: encoder.blocks.1.norm1.weight"),
     (("blocks.0.mlp.fc1.weight", None), "blocks.0.mlp.fc1.weight"),
     (("norm.weight", "fc_norm.weight"), "2 missing: encoder.norm.weight, fc_norm.bias"),
     ((None, "head_dist.weight"), "1 unexpected: head_dist.weight"),
     ((None, "blocks.7.norm1.weight"), "blocks.7.norm1.weight"),
     ((None, "blocks.some.thing"), "blocks.some.thing"),
     ((None, "blocks.99999999.norm1.weight"), "blocks.99999999.norm1.weight")],
)  # fmt: skip
def test_keys_that_do_not_fit_are_counted_and_named(file, state, rename, count):
    old, new = rename
    value = state.pop(old) if old else torch.ones(3)
    if new:
        state[new] = value
    text = refusal(file(state))
    assert count in text
    assert "does not fit" in text
    assert "match" in text


# What is said in place of the name, where the others are taken for something else without it.
SAID = {
    "head.weight": "1 unexpected: head.bias",
    "cls_token": "5 positions, which is not a square grid",
    "patch_embed.proj.weight": "is not a Vision Transformer of a known kind",
    "blocks.0.attn.qkv.weight": "is not a Vision Transformer of a known kind",
    "blocks.0.attn.qkv.bias": "2 unexpected: encoder.blocks.1.attn.qkv.bias, encoder.blocks.2.attn.qkv.bias",
    "blocks.0.ls1.gamma": "5 unexpected: encoder.blocks.0.ls2.gamma, encoder.blocks.1.ls1.gamma",
}


def test_any_missing_key_is_refused(file, state):
    for name in state:
        text = refusal(file({key: value for key, value in state.items() if key != name}))
        assert SAID.get(name, name) in text


@pytest.mark.parametrize(
    "spoil",
    [
        lambda value: value.flatten()[:-1],
        lambda value: value[None],
        lambda value: value.unsqueeze(-1),
        lambda value: torch.tensor(1.0),
        lambda value: torch.ones(0),
        lambda value: torch.cat([value, value]),
    ],
    ids=["flat", "one dimension more", "one behind", "scalar", "empty", "twice as long"],
)
def test_any_key_of_another_shape_is_refused(file, state, spoil):
    for name, value in state.items():
        if spoil(value).shape != value.shape:
            assert not name.startswith("head.") or "head" in refusal(file({**state, name: spoil(value)}))
            refusal(file({**state, name: spoil(value)}))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(file, state, bad):
    state["blocks.1.attn.proj.weight"][3, 5] = bad
    text = refusal(file(state))
    assert f"NaN or infinite weights in 1 of {len(state)} tensors" in text
    assert "blocks.1.attn.proj.weight" in text


def test_unrelated_weights_are_refused(file):
    path = file(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2)).state_dict())
    text = refusal(path)
    assert "4 tensors" in text
    assert "0.bias, 0.weight, 1.bias" in text
    assert str(path) in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 5}, "22 is not a multiple of num_heads 5; try 1, 2, 11, 22 heads"),
        ({"num_heads": 0}, "not a multiple of num_heads 0"),
        ({"act": "relu"}, "'relu'; allowed are gelu"),
        ({"pool": "max"}, "'max'; allowed are class, mean"),
        ({"pos_interpolation": "nearest"}, "'nearest'; allowed are bicubic"),
        ({"image_size": (15, 14)}, "possible heights: 14 or 21"),
        ({"drop_path": 1.5}, "1.5; allowed are 0 to below 1"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_impossible_options_are_refused(file, state, options, message):
    path = file(state)
    text = refusal(path, **options)
    assert message in text
    assert str(path) in text

"""What is written for timm, transformers and torchvision is read by them, and says what ours says of a photograph."""

from dataclasses import replace

import pytest
import timm
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from vit.checkpoints.export import export
from vit.checkpoints.load import load_with_report
from vit.checkpoints.targets import TARGETS
from vit.foundation import UserError
from vit.models.classifier import Preprocessing
from vit.models.neighbours import Neighbours

CROP = Preprocessing((30, 30), (0.5, 0.4, 0.3), (0.2, 0.3, 0.25), "bilinear", "crop", 0.875)
OBLONG = Preprocessing((24, 36), (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
OBLONG_CROP = Preprocessing((24, 36), (0.5, 0.4, 0.3), (0.2, 0.3, 0.25), "bicubic", "crop", 0.9)
REGISTERS = {"num_registers": 3}

# Options of a model -> for each library a word of what it has no place for, or nothing where it has a place.
PLACES = {
    "plain": ({}, {}),
    "crop": ({"prepared": CROP}, {}),
    "not square": ({"prepared": OBLONG}, {"torchvision": "not square"}),
    "crop that is not square": ({"prepared": OBLONG_CROP}, {"torchvision": "not square", "transformers": "not square"}),
    "patches that are not square": ({"patch_size": (5, 6)}, {"torchvision": "not square"}),
    "other widths": ({"num_heads": 4, "mlp_ratio": 49 / 24, "depth": 1}, {}),
    "no qkv bias": ({"qkv_bias": False}, {}),
    "another epsilon": ({"norm_eps": 1e-5}, {}),
    "an epsilon of nobody else": ({"norm_eps": 1e-3}, {"timm": "norm_eps 0.001"}),
    "the epsilon of transformers": ({"norm_eps": 1e-12}, {}),
    "quick gelu": ({"act": "quick_gelu"}, {"torchvision": "act quick_gelu"}),
    "tanh gelu": ({"act": "gelu_tanh"}, {"torchvision": "act gelu_tanh"}),
    "layer scale": ({"init_values": 0.1}, {"torchvision": "layer scale"}),
    "registers": (REGISTERS, {"torchvision": "registers"}),
    "registers, mean": ({**REGISTERS, "pool": "mean"}, {"torchvision": "registers"}),
    "registers, layer scale": ({**REGISTERS, "init_values": 0.1}, {"torchvision": "layer scale"}),
    "registers, not square": (
        {**REGISTERS, "prepared": OBLONG},
        {"torchvision": "registers", "transformers": "not square"},
    ),
    "registers, an odd MLP": (
        {**REGISTERS, "mlp_ratio": 49 / 24},
        {"torchvision": "registers", "transformers": "width 49"},
    ),
    "mean": ({"pool": "mean"}, {"torchvision": "reads mean"}),
    "mean, no class token": (
        {"pool": "mean", "class_token": False},
        {"torchvision": "reads mean", "transformers": "class token"},
    ),
    "normed mean": (
        {"pool": "mean", "final_norm": False, "fc_norm": True},
        {"torchvision": "behind the pooling", "transformers": "behind the pooling"},
    ),
    "normed before and after": (
        {"fc_norm": True},
        dict.fromkeys(("timm", "torchvision", "transformers"), "pooling"),
    ),
    "class beside mean": ({"pool": "class+mean"}, {"torchvision": "class+mean", "timm": "class+mean"}),
    "class beside mean, registers": (
        {"pool": "class+mean", **REGISTERS},
        {"torchvision": "registers", "timm": "class+mean"},
    ),
    "distilled": ({"pool": "class+dist", "dist_token": True}, {"torchvision": "distillation"}),
    "distilled, class token read": ({"dist_token": True}, {"torchvision": "distillation", "timm": "distillation"}),
    "distilled, registers": (
        {"pool": "class+dist", "dist_token": True, **REGISTERS},
        dict.fromkeys(("timm", "torchvision", "transformers"), "registers"),
    ),
    "attention pool": (
        {"pool": "attention", "class_token": False},
        {"torchvision": "attention", "transformers": "attention"},
    ),
    "attention pool, class token": (
        {"pool": "attention", **REGISTERS},
        {"torchvision": "attention", "transformers": "attention"},
    ),
    "qk-norm": ({"qk_norm": True}, {"torchvision": "qk-norm", "transformers": "qk_norm"}),
    "CLIP": (
        {"embed_norm": True, "patch_bias": False, "norm_eps": 1e-5, "act": "quick_gelu"},
        {"torchvision": "norm before", "transformers": "embed_norm"},
    ),
    "no bias of patches": ({"patch_bias": False}, {"timm": "patches"}),
    "SwiGLU as DINOv2's": (
        {"mlp": "swiglu", "mlp_ratio": 2 * 64 / 24, "init_values": 0.1},  # (24 * 4 * 2 / 3 + 7) // 8 * 8 = 64
        {"torchvision": "SwiGLU"},
    ),
    "SwiGLU, no layer scale": (
        {"mlp": "swiglu", "mlp_ratio": 2 * 64 / 24},
        {"torchvision": "SwiGLU", "timm": "SwiGLU without layer scale"},
    ),
    "SwiGLU, attention pool": (
        {"mlp": "swiglu", "mlp_ratio": 2 * 64 / 24, "init_values": 0.1, "pool": "attention"},
        {"torchvision": "SwiGLU", "transformers": "attention", "timm": "attention pooling beside SwiGLU"},
    ),
    "post-norm": (
        {"post_norm": True},
        dict.fromkeys(("timm", "torchvision", "transformers"), "post_norm"),
    ),
}


@pytest.fixture(scope="module")
def run_card():
    """What the Python lines of a folder's model card for a library find in a photograph, by label."""

    def run(folder, library, photo):
        code = (folder / "README.md").read_text(encoding="utf-8").split(f"With {library}")[1]
        code = code.split("```python\n")[1].split("```")[0].replace("FOLDER", str(folder))
        found: dict = {}
        exec(code.replace("photo.jpg", str(photo)), found)
        return found["probabilities"]

    return run


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", [target.name for target in TARGETS])
@pytest.mark.parametrize("name", PLACES)
def test_the_same_probabilities_or_a_refusal_by_name(tmp_path, build, ask, photo, run_card, name, target):
    options, no_place = PLACES[name]
    model = build(**options)
    if target in no_place:
        with pytest.raises(UserError, match=f"{target} can't represent all of this model") as caught:
            export(model, target, tmp_path)
        assert no_place[target] in str(caught.value).splitlines()[0]
        assert len(str(caught.value).splitlines()) <= 5
        assert list(tmp_path.iterdir()) == []
        return
    assert "README.md" in export(model, target, tmp_path)
    assert run_card(tmp_path, target, photo) == pytest.approx(ask(model, photo), abs=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_transformers_takes_its_own_classes(tmp_path, build):
    """Without timm, and without the lines of the card."""
    model = build(prepared=CROP)
    export(model, "transformers", tmp_path)
    images = torch.randn(2, 3, 30, 30)
    theirs, info = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert type(theirs).__name__ == "ViTForImageClassification"
    assert not any(info.values())  # no key missing, unexpected or of another shape
    torch.testing.assert_close(theirs.eval()(images).logits, model(images), rtol=1e-5, atol=1e-5)
    assert theirs.config.id2label == dict(enumerate(model.labels))
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(processor).__name__ == "PilBackend"  # not torchvision's resize, which is not the one of our evaluation
    assert (processor.size["shortest_edge"], processor.crop_size["height"]) == (34, 30)


def test_an_epsilon_that_matters_is_refused_by_timm(tmp_path, build):
    model = build(norm_eps=1e-12).train()
    model.encoder.eval()
    with torch.no_grad():  # tokens that hardly vary: there epsilon decides
        model.encoder.embed.patch_embed.proj.weight.mul_(1e-4)
        for name in ("cls_token", "pos_embed"):
            getattr(model.encoder.embed, name).mul_(1e-4)
    random = torch.get_rng_state()
    with pytest.raises(UserError, match="norm_eps 1e-12"):
        export(model, "timm", tmp_path)
    assert (model.training, model.encoder.training) == (True, False)  # tried, and left as it was
    assert all(module.eps == 1e-12 for module in model.modules() if isinstance(module, torch.nn.LayerNorm))
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("target", [target.name for target in TARGETS])
def test_a_model_without_a_head(tmp_path, build, target):
    model = build(num_classes=0)
    if target != "timm":
        with pytest.raises(UserError, match=r"a model without a head\.\nIt can be exported to timm\."):
            export(model, target, tmp_path)
        return
    export(model, target, tmp_path)
    images = torch.randn(2, 3, 30, 30)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    torch.testing.assert_close(theirs(images), model(images), rtol=1e-5, atol=1e-5)


@pytest.fixture
def remembering(build):
    """Of a model's keywords, it with neighbours, which have nearly all of the say."""

    def make(**options):
        model = build(**options)
        with torch.no_grad():
            features = model.features(torch.randn(4, 3, 30, 30))
        model.neighbours = Neighbours(features, torch.eye(4)[[2, 2, 2, 2]], share=0.99)
        return model

    return make


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", [target.name for target in TARGETS])
def test_a_model_is_written_without_its_neighbours(tmp_path, remembering, ask, photo, run_card, target):
    model = remembering()
    export(model, target, tmp_path)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "have a share of 99%" not in card
    assert "without them" in card
    assert model.neighbours is not None
    model.neighbours = None
    assert run_card(tmp_path, target, photo) == pytest.approx(ask(model, photo), abs=1e-5)


def test_neighbours_do_not_hide_an_epsilon_that_matters(tmp_path, remembering):
    """The head's probabilities move by more than 1e-5, the mixture's by less."""
    model = remembering(norm_eps=1e-12)
    with torch.no_grad():  # as above
        model.encoder.embed.patch_embed.proj.weight.mul_(3e-3)
        for name in ("cls_token", "pos_embed"):
            getattr(model.encoder.embed, name).mul_(3e-3)
    with pytest.raises(UserError, match="norm_eps 1e-12"):
        export(model, "timm", tmp_path)


def test_an_unknown_target_is_named(tmp_path, build):
    with pytest.raises(
        UserError, match=r"no target 'tim' \(did you mean 'timm'\?\); allowed are timm, transformers, torch"
    ):
        export(build(), "tim", tmp_path)


@pytest.mark.parametrize("target", ["timm", "transformers"])
def test_what_is_written_comes_back(tmp_path, build, ask, photo, target):
    model = build(init_values=0.1, num_registers=2, prepared=CROP)
    export(model, target, tmp_path)
    again, report = load_with_report(tmp_path)
    again.eval()
    assert (report.notes, report.assumed) == ([], [])
    assert ask(again, photo) == pytest.approx(ask(model, photo), abs=1e-6)
    assert again.labels == model.labels
    # transformers keeps the size that is cropped, 34 = int(30 / 0.875), not the share
    crop_pct = {"timm": 0.875, "transformers": 30 / 34}[target]
    assert again.preprocessing == replace(model.preprocessing, crop_pct=crop_pct)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{}, REGISTERS, {"pool": "class+dist", "dist_token": True}])
@pytest.mark.parametrize("target", ["timm", "transformers"])
def test_classes_that_do_not_exclude_each_other_stay_so(tmp_path, build, ask, photo, run_card, target, options):
    model = build(**options)
    model.multilabel = True
    export(model, target, tmp_path)
    expected = ask(model, photo)
    assert sum(expected.values()) != pytest.approx(1, abs=1e-2)
    assert run_card(tmp_path, target, photo) == pytest.approx(expected, abs=1e-5)
    alone = pipeline("image-classification", model=str(tmp_path))
    assert {found["label"]: found["score"] for found in alone(str(photo))} == pytest.approx(expected, abs=1e-5)
    for source in (tmp_path, alone.model):
        again, report = load_with_report(source)
        assert (again.multilabel, again.labels) == (True, model.labels)
        assert "trained for" not in "".join(report.notes)

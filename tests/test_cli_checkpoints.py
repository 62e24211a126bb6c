"""Verbs with checkpoints of all kinds: other channels than three, other patches, a size that is told, heads without
labels, files without a word on what they hold; and what `vit info` tells of them."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.verbs import Vit, photo, rows
from vit.checkpoints.folder import write_folder
from vit.checkpoints.load import load
from vit.models.classifier import IMAGENET_MEAN, IMAGENET_STD, Classifier
from vit.models.encoder import image_encoder
from vit.saliency.explain import explain_batch


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Four photographs in two classes."""
    root = tmp_path_factory.mktemp("photos")
    colours = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    for number, pixels in enumerate(colours):
        path = root / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    return root


@pytest.fixture
def folder(tmp_path, randomise):
    """A model folder of a model with so many channels."""

    def write(in_chans, labels=("a", "b")):
        encoder = image_encoder(
            image_size=(16, 16), patch_size=(8, 8), embed_dim=16, depth=1, num_heads=2, in_chans=in_chans
        )
        write_folder(randomise(Classifier(encoder, 2, labels=labels)), tmp_path / f"model{in_chans}")
        return tmp_path / f"model{in_chans}"

    return write


@pytest.fixture
def bare(tmp_path, timm_vit):
    def write(**options):
        reference = timm_vit(**options)
        save_file(reference.state_dict(), tmp_path / "weights.safetensors")
        return tmp_path / "weights.safetensors", reference

    return write


VERBS = {
    "evaluate": "evaluate {model} --data.root {photos} --data.num_workers 0 --out {out}",
    "predict": "predict {model} {photos} --num_workers 0 --out {out}/labels.csv",
    "explain": "explain {model} {photos} --num_workers 0 --method rollout --out {out}",
    "score": "score {model} {photos} --num_workers 0 --methods rollout --out {out}",
    "train": "train --model.pretrained {model} --data.root {photos} --data.num_workers 0 --trainer.max_epochs 1"
    " --run {out}",
    "check": "check {photos} --model.pretrained {model} --num_workers 0 --batch_size 2 --out {out}",
    "tune": "tune --model.pretrained {model} --data.root {photos} --data.num_workers 0 --find lr --steps 10"
    " --out {out}",
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_grey_model_reads_photographs(vit, folder, photos, tmp_path, verb):
    model = folder(1)
    ran = vit(VERBS[verb].format(model=model, photos=photos, out=tmp_path / "out"))
    assert "bug" not in ran.told
    assert ran.code == 0 or verb == "check", ran.told  # which finds errors in so few photographs
    if verb not in ("check", "tune"):
        assert "channels from 1 to 3, taken in turn, times 1/3" in ran.told


@pytest.mark.parametrize("verb", VERBS)
def test_a_model_of_four_channels_does_not_read_photographs(vit, folder, photos, tmp_path, verb):
    ran = vit(VERBS[verb].format(model=folder(4), photos=photos, out=tmp_path / "out"))
    assert ran.code == 1
    assert "a projection of 4 channels can't be converted to 3" in ran.told
    assert not (tmp_path / "out").exists()


def test_a_model_of_three_channels_needs_no_word(vit, folder, photos, tmp_path):
    ran = vit(VERBS["predict"].format(model=folder(3), photos=photos, out=tmp_path / "out"))
    assert (ran.code, "channels from" in ran.told) == (0, False)


@torch.no_grad()
def test_a_grey_model_sees_the_mean_of_the_colours(folder):
    path = folder(1)
    grey, colour = load(path).eval(), load(path, in_chans=3).eval()
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(colour(images), grey(images.mean(dim=1, keepdim=True)), rtol=1e-5, atol=1e-5)


def test_the_patches_of_a_checkpoint_are_resized(vit, folder, photos, tmp_path):
    model = folder(3)
    line = VERBS["train"].format(model=model, photos=photos, out=tmp_path / "out")
    ran = vit(f"{line} --model.patch_size 4 --model.variant pico")
    assert ran.code == 0, ran.told
    assert "patches from 8 x 8 to 4 x 4 pixels" in ran.told
    assert "note: --model.variant pico is ignored, because the checkpoint decides" in ran.told
    assert load(tmp_path / "out" / "model").encoder.architecture["patch_size"] == (4, 4)
    line = VERBS["train"].format(model=model, photos=photos, out=tmp_path / "same")
    ran = vit(line)
    assert load(tmp_path / "same" / "model").encoder.architecture["patch_size"] == (8, 8)
    assert "patches from" not in ran.told
    assert "ignored" not in ran.told


def test_a_new_model_has_patches_of_16_pixels(vit, photos, tmp_path):
    line = f"train --data.root {photos} --data.num_workers 0 --model.variant pico --model.image_size 32"
    ran = vit(f"{line} --trainer.max_epochs 1 --run {tmp_path}/out")
    assert ran.code == 0, ran.told
    assert load(tmp_path / "out" / "model").encoder.architecture["patch_size"] == (16, 16)


SIZED = {
    "info": "info {model} --num_heads 2 --image_size [14,56]",
    "export": "export {model} --num_heads 2 --image_size [14,56] --to timm --out {out}",
    "train": "train --model.pretrained {model} --model.num_heads 2 --model.image_size [14,56] --data.root {photos}"
    " --data.num_workers 0 --trainer.max_epochs 1 --run {out}",
}


@pytest.mark.parametrize("verb", SIZED)
def test_which_size_a_checkpoint_was_trained_with_can_be_told(vit, bare, photos, tmp_path, verb):
    line = SIZED[verb].format(model=bare(img_size=28)[0], photos=photos, out=tmp_path / "out")
    ran = vit(line)
    assert ran.code == 1
    assert "may be those of 4 x 4 patches or of 2 x 8" in ran.told
    option = "--model.trained_size" if verb == "train" else "--trained_size"
    ran = vit(f"{line} {option} 28")
    assert ran.code == 0, ran.told
    assert verb == "export" or "positions from 4 x 4 to 2 x 8" in ran.told


@pytest.mark.parametrize("verb", ["explain", "score"])
def test_maps_of_a_checkpoint_whose_size_is_told(vit, timm_vit, photos, tmp_path, verb):
    reference = timm_vit(img_size=28, embed_dim=192, num_heads=3, depth=1)
    save_file(reference.state_dict(), tmp_path / "weights.safetensors")
    line = VERBS[verb].format(model=tmp_path / "weights.safetensors", photos=photos, out=tmp_path / "out")
    ran = vit(f"{line} --image_size [14,56]")
    assert ran.code == 1
    assert "--trained_size" in ran.told
    ran = vit(f"{line} --image_size [14,56] --trained_size [28,28]")
    assert ran.code == 0, ran.told


@pytest.mark.parametrize("options", ["--num_heads 1", "--act quick_gelu", "--norm_eps 1e-3"])
@pytest.mark.parametrize("verb", ["info {model}", "export {model} --to timm --out {out}"])
def test_options_do_not_contradict_a_folder(vit, folder, tmp_path, options, verb):
    ran = vit(f"{verb.format(model=folder(3), out=tmp_path / 'out')} {options}")
    name, value = options.removeprefix("--").split()
    assert ran.code == 1
    assert f"{name} is {value if name != 'norm_eps' else 0.001}, but {tmp_path}/model3 says" in ran.told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_a_head_without_labels_is_told_where_labels_stand(vit, folder, bare, photos, tmp_path, verb):
    model = folder(3, labels=())
    ran = vit(VERBS[verb].format(model=model, photos=photos, out=tmp_path / "out"))
    assert ran.code == 1
    assert "has a head of 2 classes, but no labels" in ran.told
    assert "label_names" in ran.told
    assert "id2label" in ran.told
    assert not (tmp_path / "out").exists()


@pytest.fixture
def weights(trained: Path, tmp_path: Path) -> list[Path]:
    """A model under timm's names in files without a word on its labels, heads or preprocessing."""
    tensors = load_file(trained / "model" / "model.safetensors")
    shutil.copy(trained / "model" / "model.safetensors", tmp_path / "vit.safetensors")
    torch.save({"state_dict": {f"module.{name}": value for name, value in tensors.items()}}, tmp_path / "vit.pth")
    return [tmp_path / "vit.safetensors", tmp_path / "vit.pth"]


def test_any_checkpoint_can_be_explained(vit: Vit, weights: Sequence[Path], trained: Path, tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "x.png", (32, 32), (16, 24, 24, 32))
    for source in [*weights, trained / "model"]:
        out = tmp_path / f"maps{source.suffix}"
        ran = vit(f"explain {source} {tmp_path}/photos --method attribution --num_workers 0 --out {out}")
        assert ran.code == 0, ran.err
        np.testing.assert_array_equal(np.load(out / "x.npy"), np.load(tmp_path / "maps.safetensors" / "x.npy"))
        assert rows(out / "index.csv")[0]["predicted"] in {"class 0", "class 1", "bright", "dark"}


def test_positions_are_resized_as_is_told(vit: Vit, weights: Sequence[Path], tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "x.png", (32, 32), (16, 24, 24, 32))
    found = {}
    for way in ("bicubic", "bilinear_corners"):
        line = f"{weights[0]} {tmp_path}/photos --image_size 32 --pos_interpolation {way} --num_workers 0"
        assert vit(f"explain {line} --method rollout --out {tmp_path}/{way}").code == 0
        found[way] = np.load(tmp_path / way / "x.npy")
        model = load(weights[0], image_size=(32, 32), pos_interpolation=way)
        pixels = np.asarray(Image.open(tmp_path / "photos" / "x.png"), np.float32) / 255
        image = torch.from_numpy((pixels - IMAGENET_MEAN) / IMAGENET_STD).float().permute(2, 0, 1)[None]
        expected = explain_batch(model, image, method="rollout").maps[0]
        np.testing.assert_allclose(found[way], expected, rtol=1e-5)
    assert np.abs(found["bicubic"] / found["bilinear_corners"] - 1).max() > 1e-4  # ten times what is allowed above


def test_info_tells_the_architecture_the_keys_and_what_was_assumed(
    vit: Vit, weights: Sequence[Path], trained: Path
) -> None:
    tensors = len(load_file(weights[0]))
    ran = vit("info", weights[0])
    assert ran.code == 0
    told = dict(line.split("  ", 1) for line in ran.out.splitlines())
    told = {subject.strip(): text.strip() for subject, text in told.items()}
    assert (told["checkpoint"], told["tensors"]) == (str(weights[0]), f"{tensors} in it, {tensors} of the model's")
    assert "num_heads=4" in next(line for line in ran.out.splitlines() if "assumed (" in line)
    assert (told["embed_dim"], told["depth"], told["patch_size"], told["pool"]) == ("128", "6", "(8, 8)", "class")
    assert told["parameters"] == f"{sum(value.numel() for value in load_file(weights[0]).values()) - 128:,}"

    ran = vit("info", trained / "model", "--image_size", "32", "--classes", "5")
    assert "assumed" not in ran.out
    assert "positions from 2 x 2 to 4 x 4" in ran.out
    assert "bright, dark" in ran.out
    assert "a new head has 5 x 128 random weights" in ran.out

"""Verbs with checkpoints of all kinds: other channels than three, other patches, a size that is told, heads without
labels."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import cli
from vit.checkpoints.folder import write_folder
from vit.checkpoints.load import load
from vit.models.classifier import Classifier
from vit.models.encoder import image_encoder


@pytest.fixture
def vit(capsys):
    """Runs `vit` with the words of a line; gives its exit code, and all that it printed, in one line."""

    def run(line, *words):
        capsys.readouterr()
        code = cli.main([*line.split(), *map(str, words)])
        out, err = capsys.readouterr()
        return code, " ".join((out + err).split())

    return run


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
    code, told = vit(VERBS[verb].format(model=model, photos=photos, out=tmp_path / "out"))
    assert "bug" not in told
    assert code == 0 or verb == "check", told  # which finds errors in so few photographs
    if verb not in ("check", "tune"):
        assert "channels from 1 to 3, taken in turn, times 1/3" in told


@pytest.mark.parametrize("verb", VERBS)
def test_a_model_of_four_channels_does_not_read_photographs(vit, folder, photos, tmp_path, verb):
    code, told = vit(VERBS[verb].format(model=folder(4), photos=photos, out=tmp_path / "out"))
    assert code == 1
    assert "a projection of 4 channels can't be converted to 3" in told
    assert not (tmp_path / "out").exists()


def test_a_model_of_three_channels_needs_no_word(vit, folder, photos, tmp_path):
    code, told = vit(VERBS["predict"].format(model=folder(3), photos=photos, out=tmp_path / "out"))
    assert (code, "channels from" in told) == (0, False)


@torch.no_grad()
def test_a_grey_model_sees_the_mean_of_the_colours(folder):
    path = folder(1)
    grey, colour = load(path).eval(), load(path, in_chans=3).eval()
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(colour(images), grey(images.mean(dim=1, keepdim=True)), rtol=1e-5, atol=1e-5)


def test_the_patches_of_a_checkpoint_are_resized(vit, folder, photos, tmp_path):
    model = folder(3)
    line = VERBS["train"].format(model=model, photos=photos, out=tmp_path / "out")
    code, told = vit(f"{line} --model.patch_size 4 --model.variant pico")
    assert code == 0, told
    assert "patches from 8 x 8 to 4 x 4 pixels" in told
    assert "note: --model.variant pico is ignored, because the checkpoint decides" in told
    assert load(tmp_path / "out" / "model").encoder.architecture["patch_size"] == (4, 4)
    line = VERBS["train"].format(model=model, photos=photos, out=tmp_path / "same")
    code, told = vit(line)
    assert load(tmp_path / "same" / "model").encoder.architecture["patch_size"] == (8, 8)
    assert "patches from" not in told
    assert "ignored" not in told


def test_a_new_model_has_patches_of_16_pixels(vit, photos, tmp_path):
    line = f"train --data.root {photos} --data.num_workers 0 --model.variant pico --model.image_size 32"
    code, told = vit(f"{line} --trainer.max_epochs 1 --run {tmp_path}/out")
    assert code == 0, told
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
    code, told = vit(line)
    assert code == 1
    assert "may be those of 4 x 4 patches or of 2 x 8" in told
    option = "--model.trained_size" if verb == "train" else "--trained_size"
    code, told = vit(f"{line} {option} 28")
    assert code == 0, told
    assert verb == "export" or "positions from 4 x 4 to 2 x 8" in told


@pytest.mark.parametrize("verb", ["explain", "score"])
def test_maps_of_a_checkpoint_whose_size_is_told(vit, timm_vit, photos, tmp_path, verb):
    reference = timm_vit(img_size=28, embed_dim=192, num_heads=3, depth=1)
    save_file(reference.state_dict(), tmp_path / "weights.safetensors")
    line = VERBS[verb].format(model=tmp_path / "weights.safetensors", photos=photos, out=tmp_path / "out")
    code, told = vit(f"{line} --image_size [14,56]")
    assert code == 1
    assert "--trained_size" in told
    code, told = vit(f"{line} --image_size [14,56] --trained_size [28,28]")
    assert code == 0, told


@pytest.mark.parametrize("options", ["--num_heads 1", "--act quick_gelu", "--norm_eps 1e-3"])
@pytest.mark.parametrize("verb", ["info {model}", "export {model} --to timm --out {out}"])
def test_options_do_not_contradict_a_folder(vit, folder, tmp_path, options, verb):
    code, told = vit(f"{verb.format(model=folder(3), out=tmp_path / 'out')} {options}")
    name, value = options.removeprefix("--").split()
    assert code == 1
    assert f"{name} is {value if name != 'norm_eps' else 0.001}, but {tmp_path}/model3 says" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_a_head_without_labels_is_told_where_labels_stand(vit, folder, bare, photos, tmp_path, verb):
    model = folder(3, labels=())
    code, told = vit(VERBS[verb].format(model=model, photos=photos, out=tmp_path / "out"))
    assert code == 1
    assert "has a head of 2 classes, but no labels" in told
    assert "label_names" in told
    assert "id2label" in told
    assert not (tmp_path / "out").exists()

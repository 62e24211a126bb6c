"""Linear probes: features are computed once, as evaluation sees the images; the head reads those of several blocks."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cli
import vit
from datamodules.image_folder import ImageFolder, find_splits
from tests.launcher import launch
from vit.checkpoints.export import export
from vit.checkpoints.folder import write_folder
from vit.foundation import UserError
from vit.models.classifier import IMAGENET_MEAN, IMAGENET_STD, Classifier
from vit.models.encoder import image_encoder
from vit.saliency.methods import METHODS, check_serves
from vit.training import finders
from vit.training import probe as fit_probe_module
from wiring import probing

SIZES = {"image_size": (16, 16), "patch_size": (8, 8), "embed_dim": 16, "depth": 3, "num_heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of two classes, one of them unreadable, and an encoder."""
    folder = tmp_path_factory.mktemp("probe")
    for label, brightness in (("bright", 160), ("dark", 60)):
        (folder / "photos" / label).mkdir(parents=True)
        for number in range(10):
            random = np.random.default_rng([brightness, number])
            pixels = random.integers(brightness - 60, brightness + 60, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / label / f"{number}.png")
    (folder / "photos" / "dark" / "x.png").write_bytes(b"<html>")
    torch.manual_seed(0)
    write_folder(Classifier(image_encoder(**SIZES), 0), folder / "pretrained")
    return folder


def options(folder: Path, run: str, *more: str) -> list[str]:
    return [
        "train", "--data.root", str(folder / "photos"), "--data.batch_size", "4", "--data.num_workers", "0",
        "--data.erase", "1", "--model.pretrained", str(folder / "pretrained"), "--model.pool", "class+mean",
        "--model.pool_blocks", "2", "--optim.trained", "head", "--optim.lr", "1e-2", "--trainer.max_epochs", "5",
        "--trainer.precision", "fp32", "--device", "cpu", "--run", str(folder / run), *more,
    ]  # fmt: skip


def told(run: Path, name: str = "val_top1") -> list[float]:
    """A column of a run's metrics, of the epochs."""
    with (run / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


@pytest.fixture(scope="module")
def probe(folder: Path) -> Path:
    assert cli.main(options(folder, "run")) == 0
    return folder / "run"


def photos(folder: Path, split: str) -> list[dict]:
    data = ImageFolder(
        str(folder / "photos"), image_size=(16, 16), mean=IMAGENET_MEAN, std=IMAGENET_STD, batch_size=100, num_workers=0
    )
    return list(data.dataloader(split))


def test_features_are_those_of_the_last_blocks_of_each_image_as_evaluation_sees_it(folder, probe):
    encoder = vit.load(folder / "pretrained").eval().encoder
    (batch,) = photos(folder, "train")
    tokens, found = encoder.embed(batch["image"]), []
    for block in encoder.blocks:
        tokens = block(tokens)
        normed = encoder.norm(tokens)
        found.append(torch.cat([normed[:, 0], normed[:, 1:].mean(dim=1)], dim=1))
    kept = probing._kept(probe / "features.safetensors")["train"]
    torch.testing.assert_close(kept["image"], torch.cat(found[1:], dim=1).detach())
    assert torch.equal(kept["target"], batch["target"])
    assert torch.equal(kept["index"], batch["index"])


def test_the_model_folder_gives_what_the_probe_was_judged_by(folder, probe):
    model = vit.load(probe / "model").eval()
    assert (model.pool, model.pool_blocks, model.head.in_features) == ("class+mean", 2, 2 * 2 * 16)
    (batch,) = photos(folder, "val")
    right = model(batch["image"]).argmax(dim=1) == batch["target"]
    assert float(right.float().mean()) == pytest.approx(max(told(probe)))
    assert max(told(probe)) == 1


def test_the_share_of_a_photo_that_evaluation_keeps(folder):
    assert cli.main(options(folder, "cropped", "--model.crop_pct", "0.5", "--trainer.max_epochs", "1")) == 0
    model = vit.load(folder / "cropped" / "model").eval()
    assert (model.preprocessing.resize_mode, model.preprocessing.crop_pct) == ("crop", 0.5)
    kept = probing._kept(folder / "cropped" / "features.safetensors")["val"]
    photo = Image.open(find_splits(folder / "photos", val_fraction=0.2, seed=0).splits["val"][0].path)
    assert photo.size == (24, 20)
    whole = photo.resize((38, 32), Image.Resampling.BICUBIC)  # its shorter side as long as 16 px / 0.5
    pixels = np.asarray(whole.crop((11, 8, 27, 24)), np.float32) / 255
    image = torch.from_numpy((pixels - IMAGENET_MEAN) / IMAGENET_STD).float().permute(2, 0, 1)[None]
    torch.testing.assert_close(model.features(image)[0], kept["image"][0], rtol=1e-3, atol=1e-3)


def test_unreadable_images_are_told(probe):
    assert "x.png" in (probe / "skipped.csv").read_text()


def test_a_probe_that_is_resumed_is_the_same_and_reads_no_image_again(folder, probe, monkeypatch):
    from vit.training.classification import ClassificationTask

    step, calls = ClassificationTask.training_step, []

    def stopping(task, batch, batch_idx):
        calls.append(batch_idx)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return step(task, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTask, "training_step", stopping)
        assert cli.main(options(folder, "again")) != 0
    monkeypatch.setattr(probing, "features_of", None)
    assert cli.main([*options(folder, "again"), "--resume"]) == 0
    for name in ("metrics.csv", "model/model.safetensors", "skipped.csv"):
        assert (folder / "again" / name).read_bytes() == (probe / name).read_bytes(), name


def test_features_of_other_images_are_not_gone_on_with(folder, probe, capsys, monkeypatch):
    shutil.copytree(probe, folder / "other")
    shutil.copytree(folder / "photos", folder / "fewer")
    next((folder / "fewer").rglob("*.png")).unlink()
    monkeypatch.setattr(probing, "features_of", None)
    assert cli.main([*options(folder, "other"), "--data.root", str(folder / "fewer"), "--resume"]) == 1
    assert "other images or labels" in capsys.readouterr().err


def test_there_is_nothing_to_mix(folder, capsys):
    assert cli.main(options(folder, "mixed", "--optim.mixup", "1")) != 0
    assert "there is nothing to mix" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["timm", "torchvision", "transformers"])
def test_other_libraries_have_no_place_for_such_a_head(probe, tmp_path, target):
    with pytest.raises(UserError, match="a head that reads 2 blocks"):
        export(vit.load(probe / "model"), target, tmp_path)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_such_a_model_is_explained_by_all_methods_but_one(probe, method):
    model = vit.load(probe / "model").eval()
    if method == "legrad":
        with pytest.raises(ValueError, match="this head reads several"):
            check_serves(method, model)
    else:
        assert vit.explain(model, torch.rand(2, 3, 24, 24), method=method).isfinite().all()


# Fine-tuning, its head begun as a probe

BEGUN = ["--optim.trained", "all", "--optim.head_init", "probe", "--optim.lr", "1e-9", "--trainer.max_epochs", "1"]


@pytest.fixture(scope="module")
def begun(folder: Path) -> Path:
    assert cli.main(options(folder, "begun", *BEGUN)) == 0
    return folder / "begun"


def test_fine_tuning_begins_where_the_probe_is(folder, begun):
    assert told(begun) == [1]  # after steps that moved next to nothing
    assert cli.main(options(folder, "chance", *BEGUN, "--optim.head_init", "random")) == 0
    assert told(begun, "val_loss")[0] < 0.6 * told(folder / "chance", "val_loss")[0]


def test_a_head_that_fits_is_kept(folder, begun, monkeypatch, capsys):
    def forbidden(*_):
        raise AssertionError("a probe")

    monkeypatch.setattr(fit_probe_module, "fit_probe", forbidden)
    assert cli.main(options(folder, "more", *BEGUN, "--model.pretrained", str(begun / "model"))) == 0
    assert cli.main(options(folder, "new", *BEGUN)) == 1
    assert "AssertionError: a probe" in capsys.readouterr().err


def test_a_begun_head_is_made_of_a_part_of_many_images(folder, monkeypatch):
    seen = []
    fit_probe = fit_probe_module.fit_probe

    def watched(task, features, targets, weight):
        seen.append(targets.tolist())
        fit_probe(task, features, targets, weight)

    monkeypatch.setattr(fit_probe_module, "fit_probe", watched)
    monkeypatch.setattr(probing, "MOST_IMAGES", 6)
    assert cli.main(options(folder, "part", *BEGUN)) == 0
    assert seen == [[0, 0, 0, 1, 1, 1]]
    with (folder / "part" / "metrics.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)][-1] == "5"  # of 4: it learned from all 17


def test_a_begun_head_takes_classes(folder, capsys):
    words = ["train", "--task", "pretrain", "--data.root", str(folder / "photos"), "--optim.head_init", "probe"]
    assert cli.main([*words, "--run", str(folder / "pretrain")]) == 1
    assert "--optim.head_init is 'probe', which this task does not use" in capsys.readouterr().err


def test_two_processes_begin_where_one_does(folder):
    """In the first fold they do not work together before training begins, in the second they share the images."""
    argv = [*BEGUN, "--folds", "2", "--data.batch_size"]
    assert cli.main(options(folder, "one", *argv, "4")) == 0
    together = options(folder, "two", *argv, "2", "--trainer.devices", "2")
    assert launch(cli.main, together, log=folder / "log") == [0, 0], (folder / "log.0").read_text()
    for fold in ("fold_1", "fold_2"):
        one, two = (told(folder / run / fold, "val_loss") for run in ("one", "two"))
        assert two == pytest.approx(one, abs=1e-4)


def test_rates_are_tried_from_where_the_run_would_begin(folder, monkeypatch):
    begun = []
    find_rate = finders.find_rate

    def watched(task, *arguments, **keywords):
        begun.append(float(task.model.head.weight.detach().abs().max()))
        return find_rate(task, *arguments, **keywords)

    monkeypatch.setattr(finders, "find_rate", watched)
    words = options(folder, "-", *BEGUN[:4])[1:]
    del words[words.index("--run") : words.index("--run") + 2]
    for head in ("random", "probe"):
        out = ["--find", "lr", "--steps", "10", "--out", str(folder / f"tune {head}"), "--optim.head_init", head]
        assert cli.main(["tune", *words, *out]) == 0
        assert (folder / f"tune {head}" / "lr.png").is_file()
    chance, probe = begun
    assert chance < 0.1 < probe  # new heads are normal with a deviation of 0.02

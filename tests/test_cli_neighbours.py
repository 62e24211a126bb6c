"""vit train --optim.neighbours: the model folder of a run has its training photographs, and every verb uses them."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cli
import vit
import wiring.training
from datamodules.image_folder import ImageFolder
from tests.launcher import launch
from vit.models.classifier import Classifier
from vit.models.encoder import image_encoder
from vit.models.neighbours import Neighbours
from vit.saliency.methods import METHODS
from vit.training import checkpoints
from vit.training import fit as fit_module
from wiring import probing


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, one of them unreadable, and a run on them."""
    home = tmp_path_factory.mktemp("neighbours")
    for split, count in (("train", 9), ("val", 4)):
        for number in range(count):
            path = home / "photos" / split / ("bright", "dark")[number % 2] / f"{split}{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 120, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels + np.uint8(100 * (number % 2))).save(path)
    (home / "photos" / "train" / "bright" / "train8.png").write_bytes(b"no image")
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        assert train(home, "run") == 0
    return home


def quick(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fit_module, "draw_curves", lambda *paths: None)
    patch.setattr(checkpoints, "verify", lambda path: None)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)


def options(home: Path, run: str, *words: str) -> list[str]:
    return [
        "train", "--config", "debug", "--device", "cpu", "--data.batch_size", "4", "--data.num_workers", "0",
        "--trainer.max_epochs", "1", "--trainer.precision", "fp32", "--data.root", str(home / "photos"),
        "--optim.neighbours", "0.4", "--run", str(home / run), *words,
    ]  # fmt: skip


def train(home: Path, run: str, *words: str) -> int:
    return cli.main(options(home, run, *words))


def batch(home: Path, model: Classifier, split: str) -> dict:
    use = model.preprocessing
    data = ImageFolder(
        str(home / "photos"), image_size=use.image_size, mean=use.mean, std=use.std, batch_size=100, num_workers=0
    )
    (found,) = data.dataloader(split)
    return found


def test_they_are_the_features_of_the_training_photographs_as_evaluation_sees_them(home: Path) -> None:
    model = vit.load(home / "run" / "model").eval()
    assert model.neighbours is not None
    assert model.neighbours.settings() == {"share": 0.4, "count": 10, "temperature": 0.03}
    read = batch(home, model, "train")
    with torch.no_grad():
        features = torch.nn.functional.normalize(model.features(read["image"]), dim=1)
    torch.testing.assert_close(model.neighbours.features, features)
    assert torch.equal(model.neighbours.targets.long().argmax(dim=1), read["target"])
    assert len(features) == 8  # of nine, of which one can't be read


def test_the_card_and_the_line_say_what_evaluate_measures(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(home, "again") == 0
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("with the nearest training photographs: top-1 ")
    words = ["evaluate", str(home / "again" / "model"), "--data.root", str(home / "photos"), "--split", "val",
             "--out", str(home / "val"), "--device", "cpu"]  # fmt: skip
    assert cli.main(words) == 0
    metrics = json.loads((home / "val" / "metrics.json").read_text())
    assert line.endswith(f"{metrics['top1']:.1%}")
    assert f"| top-1 | {metrics['top1']:.1%} |" in (home / "again" / "model" / "README.md").read_text()


def test_a_run_killed_before_they_were_found_gets_them_when_resumed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: object, **keywords: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(wiring.training, "with_neighbours", killed)
        assert train(home, "killed") == 130
    assert vit.load(home / "killed" / "model").neighbours is None
    assert train(home, "killed", "--resume") == 0
    found, expected = (vit.load(home / run / "model").neighbours for run in ("killed", "run"))
    assert found is not None
    assert expected is not None
    assert torch.equal(found.features, expected.features)


def test_neighbours_that_make_it_worse_are_left_out(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Worse:
        def metrics(self) -> dict[str, float]:
            return {"top1": -0.01}

    monkeypatch.setattr("vit.training.evaluation.evaluate", lambda *_, **__: Worse())
    assert train(home, "worse") == 0
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line == "the nearest training photographs do not help: top-1 -1.0%; the model has none"
    assert vit.load(home / "worse" / "model").neighbours is None


def test_folds_are_judged_with_them(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Better:
        def metrics(self) -> dict[str, float]:
            return {"top1": 1.25}  # no other part of the run can have it

    monkeypatch.setattr("vit.training.evaluation.evaluate", lambda *_, **__: Better())
    assert train(home, "folds", "--folds", "2") == 0
    assert capsys.readouterr().err.count("with the nearest training photographs: top-1 125.0%") == 2
    folds = json.loads((home / "folds" / "folds.json").read_text())["folds"]
    assert [fold["best"] for fold in folds] == [1.25, 1.25]


def test_a_linear_probe_has_those_that_it_was_fitted_to(home: Path) -> None:
    assert train(home, "probe", "--optim.trained", "head", "--optim.head_init", "probe") == 0
    model = vit.load(home / "probe" / "model").eval()
    assert model.neighbours is not None
    with torch.no_grad():
        features = torch.nn.functional.normalize(model.features(batch(home, model, "train")["image"]), dim=1)
    torch.testing.assert_close(model.neighbours.features, features)


@pytest.mark.parametrize("trained", ["all", "head"])
def test_they_are_a_part_of_many_photographs(home: Path, trained: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "MOST_IMAGES", 4)
    assert train(home, f"part_{trained}", "--optim.trained", trained) == 0
    neighbours = vit.load(home / f"part_{trained}" / "model").neighbours
    assert neighbours is not None
    assert 3 <= len(neighbours.features) <= 4  # of nine, of which one can't be read
    assert neighbours.targets.any(dim=0).all()


def test_several_labels_an_image(home: Path) -> None:
    with (home / "photos.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "labels", "split"])
        for path in sorted((home / "photos").rglob("*.png")):
            split, label = path.parts[-3:-1]
            rows.writerow([path.relative_to(home), label if path.stem.endswith("0") else f"{label}|photo", split])
    assert train(home, "several", "--data.root", str(home / "photos.csv")) == 0
    model = vit.load(home / "several" / "model")
    assert model.neighbours is not None
    assert model.labels == ("bright", "dark", "photo")
    assert model.neighbours.targets.sum(dim=0).tolist() == [4, 4, 7]


def test_two_processes_find_those_of_one(home: Path) -> None:
    words = options(home, "two", "--trainer.devices", "2", "--data.batch_size", "2")
    codes = launch(cli.main, words, log=home / "log")
    assert codes == [0, 0], (home / "log.0").read_text() + (home / "log.1").read_text()
    model = vit.load(home / "two" / "model").eval()
    assert model.neighbours is not None
    with torch.no_grad():
        features = torch.nn.functional.normalize(model.features(batch(home, model, "train")["image"]), dim=1)
    order = model.neighbours.features[:, 0].argsort()  # the processes' photographs come one process after the other
    torch.testing.assert_close(model.neighbours.features[order], features[features[:, 0].argsort()])


def test_training_anew_leaves_them_out(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(home, "more", "--model.pretrained", str(home / "run" / "model"), "--optim.neighbours", "0") == 0
    assert "note: the checkpoint's neighbours are left out" in capsys.readouterr().err
    assert vit.load(home / "more" / "model").neighbours is None
    assert not (home / "more" / "model" / "neighbours.safetensors").exists()


def test_an_export_says_that_it_has_none(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(home / "run" / "model"), "--to", "timm", "--out", str(home / "timm")]) == 0
    assert "note: timm has no place for the nearest training photographs" in capsys.readouterr().err
    assert vit.load(home / "timm").neighbours is None


@pytest.mark.parametrize("share", ["1", "-0.1", "nan"])
def test_a_share_that_can_not_be(home: Path, share: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(home, "no", "--optim.neighbours", share) != 0
    assert "optim.neighbours" in capsys.readouterr().err
    assert not (home / "no").exists()


def test_other_tasks_refuse_them(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(home, "no", "--task", "pretrain") == 1
    assert "--optim.neighbours is 0.4, which this task does not use" in capsys.readouterr().err


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.needs_class])
def test_maps_are_of_the_mixture(method: str) -> None:
    """A class that only neighbours speak for has a map; the head alone has the same logits for every image."""
    encoder = image_encoder(image_size=(32, 32), patch_size=(8, 8), embed_dim=16, depth=2, num_heads=2)
    model = Classifier(encoder, 2, labels=["a", "b"]).eval()
    model.head.weight.data.zero_()
    images = torch.randn(2, 3, 32, 32)
    flat = vit.explain(model, images, method=method, target=0)
    with torch.no_grad():
        model.neighbours = Neighbours(model.features(torch.randn(20, 3, 32, 32)), torch.eye(2)[[0, 1] * 10], share=0.9)
    found = vit.explain(model, images, method=method, target=0)
    assert found.isfinite().all()
    assert found.amax() - found.amin() > 0
    assert not torch.equal(found, flat)

"""Images of several labels: from the manifest over training to the evaluation, against scikit-learn."""

import csv
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score

import cli
import vit
from datamodules.sampling import labelled_batch, sample_loader
from tests.launcher import launch
from tests.training.noise import Noise, NoiseImages, noise_task
from vit import processes
from vit.training import fit as fit_module
from vit.training.fit import fit
from vit.training.multilabel import THRESHOLD, MacroF1, MeanAveragePrecision, MultiLabelTask, said
from vit.training.multilabel_evaluation import MultiLabelEvaluation
from vit.training.task import Judge

GENERATOR = torch.Generator().manual_seed(0)
SCORES = torch.rand(23, 5, generator=GENERATOR)
TARGETS = (torch.rand(23, 5, generator=GENERATOR) < 0.4).float()
TARGETS[:, 3] = 0  # a class that no image shows


def test_mean_average_precision_is_scikit_learns_whatever_the_batches():
    metric = MeanAveragePrecision(5)
    for rows in torch.arange(23).split(7):
        metric.update(SCORES[rows], TARGETS[rows])
    there = [0, 1, 2, 4]
    expected = average_precision_score(TARGETS[:, there], SCORES[:, there], average="macro")
    assert float(metric.compute()) == pytest.approx(expected)


def test_metrics_are_scikit_learns():
    found = MultiLabelEvaluation(SCORES, TARGETS, [str(n) for n in range(23)], tuple("abcde")).metrics()
    said, there = (SCORES >= 0.5).numpy(), [0, 1, 2, 4]
    assert found["f1_macro"] == pytest.approx(f1_score(TARGETS[:, there], said[:, there], average="macro"))
    assert found["f1_micro"] == pytest.approx(f1_score(TARGETS, said, average="micro"))
    assert found["exact_match"] == pytest.approx((said == TARGETS.numpy()).all(1).mean())
    assert found["map"] == pytest.approx(average_precision_score(TARGETS[:, there], SCORES[:, there]))
    for number, label in enumerate("abcde"):
        row = found["per_class"][label]
        assert row["images"] == int(TARGETS[:, number].sum())
        assert row["precision"] == pytest.approx(precision_score(TARGETS[:, number], said[:, number]))
        if row["images"]:
            assert row["recall"] == pytest.approx(recall_score(TARGETS[:, number], said[:, number]))


def test_macro_f1_of_training_is_that_of_the_evaluation_whatever_the_batches():
    # Two classes: said in images 0 and 1, there in 0, so 2·1/(2 + 1); said at the very threshold. Nothing of the third.
    scores = torch.tensor([[0.9, THRESHOLD, 0.1], [0.6, 0.2, 0.1], [0.3, 0.1, 0.8]])
    targets = torch.tensor([[1.0, 1, 0], [0, 0, 0], [0, 0, 0]])
    metric = MacroF1(3)
    for rows in torch.arange(3).split(2):
        metric.update(said(scores[rows]), targets[rows].long())
    assert float(metric.compute()) == pytest.approx((2 / 3 + 1) / 2)
    found = MultiLabelEvaluation(scores, targets, list("xyz"), tuple("abc")).metrics()
    assert found["f1_macro"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["f1_micro"] == pytest.approx(2 * 2 / (4 + 2))
    assert [found["per_class"][name]["recall"] for name in "abc"] == [1, 1, 0]


def test_the_task_counts_what_is_at_the_threshold():
    task = noise_task(MultiLabelTask)
    task.count_validation(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))  # logits of the probability 1/2
    task.count_training(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), torch.ones(1, 1))
    assert float(task.val_f1.compute()) == 1
    assert float(task.train_f1.compute()) == pytest.approx(2 / 3)


class LabelledNoise(NoiseImages):
    """Noise that shows none, one or both of two classes; or always none."""

    def __init__(self, length: int, seed: int, labelled: bool = True) -> None:
        super().__init__(length, seed)
        self.labelled = labelled

    def __getitem__(self, draw: Any) -> dict[str, Any]:
        bits = [draw.index % 2, 1 - draw.index // 2 % 2]
        return super().__getitem__(draw) | {"target": [float(self.labelled and bit) for bit in bits]}


class Several(Noise):
    def __init__(self, val: int, batch_size: int = 4, labelled: bool = True) -> None:
        super().__init__(batch_size=batch_size)
        self.train, self.val = LabelledNoise(20, 1), LabelledNoise(val, 2, labelled)

    def _loader(self, images: NoiseImages, **options: Any):
        return sample_loader(images, labelled_batch((8, 8), 2), batch_size=self.batch_size, num_workers=0, **options)


def several_task():
    task = noise_task(MultiLabelTask)
    task.model.multilabel = True
    return task


def test_what_is_not_a_number_is_worse_than_any():
    for higher in (True, False):
        judge = Judge("found", "found", higher_is_better=higher)
        scores = [judge.score({"found": value, "val_loss": 1.0}) for value in (math.nan, 0.0, 1e30)]
        assert scores[0] < min(scores[1:])
        assert judge.score({"found": math.nan, "val_loss": 2.0}) < scores[0]  # then the loss tells


def test_a_run_whose_validation_shows_no_class_has_a_model(tmp_path):
    found = fit(several_task(), Several(6, labelled=False), tmp_path, max_epochs=2, precision="fp32", device="cpu")
    assert math.isnan(found.best)
    assert found.best_epoch >= 1
    assert vit.load(tmp_path / "model").multilabel
    assert (tmp_path / "checkpoints" / "best.ckpt").is_file()


def run_of(folder, count):
    """A run of so many processes that validates one image."""
    data = Several(1, batch_size=4 // count)
    fit(several_task(), data, folder, max_epochs=1, precision="fp32", device="cpu", devices=count)


def run_of_two(folder):
    """A run whose second process validates no image, and a metric of which that process sees nothing."""
    fit_module.draw_curves = lambda *paths: None
    run_of(folder, 2)
    metric = MeanAveragePrecision(5)
    if processes.rank() == 0:
        metric.update(SCORES, TARGETS)
    torch.save(metric.compute(), folder / f"metric.{processes.rank()}")


def last_row(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))[-1]


def test_a_process_may_validate_no_image(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    run_of(one, 1)
    assert launch(run_of_two, two, log=tmp_path / "log") == [0, 0], (tmp_path / "log.1").read_text()
    found = last_row(two)
    for name, value in last_row(one).items():
        assert not value or float(found[name]) == pytest.approx(float(value), abs=1e-5), name
    there = [0, 1, 2, 4]
    expected = average_precision_score(TARGETS[:, there], SCORES[:, there], average="macro")
    for rank in range(2):
        assert float(torch.load(two / f"metric.{rank}")) == pytest.approx(expected)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A manifest of photos that are red, green, both or neither, some of double weight, and a run on it."""
    folder = tmp_path_factory.mktemp("several")
    lines = ["path,labels,split,weight"]
    for number in range(40):
        random = np.random.default_rng(number)
        red, green = number % 2, number // 2 % 2
        pixels = random.integers(0, 60, (20, 20, 3), dtype=np.uint8) + np.array([150 * red, 150 * green, 60], np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        labels = "|".join(name for name, there in (("red", red), ("green", green)) if there)
        lines.append(f"{number}.png,{labels},{'val' if number >= 28 else 'train'},{1 + number % 3 / 2}")
    (folder / "all.csv").write_text("\n".join(lines) + "\n")
    options = [
        "--data.root", str(folder / "all.csv"), "--data.batch_size", "4", "--data.num_workers", "0",
        "--data.color_jitter", "0", "--model.variant", "pico", "--model.patch_size", "8", "--model.image_size", "16",
        "--trainer.max_epochs", "6", "--trainer.precision", "fp32", "--device", "cpu", "--optim.lr", "3e-3",
        "--optim.mixup", "0.2", "--optim.mix_prob", "0.3", "--optim.class_weights", "balanced",
        "--optim.focal_gamma", "1",
    ]  # fmt: skip
    assert cli.main(["train", *options, "--run", str(folder / "run")]) == 0
    return folder


def test_training_learns_each_label_for_itself(run):
    with (run / "run" / "metrics.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert float(last["val_map"]) > 0.95
    assert float(last["val_f1"]) > 0.8


def test_the_model_folder_knows_and_probabilities_need_not_sum_to_one(run):
    model = vit.load(run / "run" / "model")
    assert (model.multilabel, model.labels) == (True, ("green", "red"))
    logits = torch.tensor([[2.0, 2.0]])
    assert torch.equal(model.probabilities(logits), logits.sigmoid())
    config = json.loads((run / "run" / "model" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    card = (run / "run" / "model" / "README.md").read_text()
    assert "sigmoid" in card
    assert "softmax" not in card


def test_evaluate_tells_average_precision_and_every_prediction(run, capsys):
    data = ["--data.root", str(run / "all.csv"), "--data.num_workers", "0", "--overwrite"]
    assert cli.main(["evaluate", str(run / "run" / "model"), *data, "--out", str(run / "val")]) == 0
    printed = capsys.readouterr()
    assert "map" in printed.out
    assert "confusion" not in printed.err
    assert json.loads((run / "val" / "metrics.json").read_text())["map"] > 0.95
    with (run / "val" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert {row["labels"] for row in rows} == {"", "red", "green", "green|red"}
    assert {(float(row["red"]) >= 0.5) == ("red" in row["predicted"]) for row in rows} == {True}


def test_predict_and_explain_take_it(run):
    photo, model = str(run / "31.png"), str(run / "run" / "model")  # red and green
    assert cli.main(["predict", model, photo, "--out", str(run / "p.csv"), "--overwrite"]) == 0
    with (run / "p.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["probability"]) + float(row["probability_2"]) > 1
    options = ["--method", "attribution", "--target", "red", "--overwrite"]
    assert cli.main(["explain", model, photo, *options, "--out", str(run / "maps")]) == 0
    with (run / "maps" / "index.csv").open(newline="") as file:
        (mapped,) = csv.DictReader(file)
    assert float(mapped["probability"]) == pytest.approx(float(row["probability"]), abs=1e-4)


def test_data_of_another_kind_is_refused(run, tmp_path, capsys):
    (tmp_path / "one.csv").write_text(f"path,label,split\n{run}/1.png,red,val\n{run}/2.png,green,train\n")
    options = ["--data.root", str(tmp_path / "one.csv"), "--out", str(tmp_path / "out")]
    assert cli.main(["evaluate", str(run / "run" / "model"), *options]) != 0
    assert "gives several labels per image, but the data has one label" in capsys.readouterr().err

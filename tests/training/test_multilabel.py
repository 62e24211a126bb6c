"""Images of several labels: from the manifest over training to the evaluation, against scikit-learn."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score

import cli
import vit
from vit.training.multilabel import MeanAveragePrecision
from vit.training.multilabel_evaluation import MultiLabelEvaluation

GENERATOR = torch.Generator().manual_seed(0)
SCORES = torch.rand(23, 5, generator=GENERATOR)
TARGETS = (torch.rand(23, 5, generator=GENERATOR) < 0.4).float()
TARGETS[:, 3] = 0  # a class that no image shows


def test_mean_average_precision_is_scikit_learns_whatever_the_batches():
    metric = MeanAveragePrecision()
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
    assert "gives several labels an image, and the data has one label" in capsys.readouterr().err

"""Numbers of a split, worked by hand."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image

from vit.foundation import UserError
from vit.models.classifier import Classifier
from vit.models.encoder import image_encoder
from vit.training.calibration import calibration
from vit.training.evaluation import evaluate, write_evaluation
from vit.training.multilabel_evaluation import MultiLabelEvaluation
from vit.training.single_label_evaluation import Evaluation

LABELS = ("crow", "heron", "robin")
CPU = torch.device("cpu")

# Four crows, of which three are seen as such, one heron, seen as a crow, and no robin.
PROBABILITIES = torch.tensor(
    [
        [0.90, 0.05, 0.05],
        [0.80, 0.10, 0.10],
        [0.70, 0.10, 0.20],
        [0.25, 0.15, 0.60],
        [0.50, 0.40, 0.10],
    ]
)
TARGETS = torch.tensor([0, 0, 0, 0, 1])


def evaluation(
    probabilities: torch.Tensor = PROBABILITIES, labels: tuple[str, ...] = LABELS, **keywords: Any
) -> Evaluation:
    names = [f"{index}.png" for index in range(len(probabilities))]
    return Evaluation(probabilities, TARGETS[: len(probabilities)], names, labels, **keywords)


def test_accuracy_counts_images_and_balanced_accuracy_classes() -> None:
    metrics = evaluation().metrics()
    assert metrics["top1"] == pytest.approx(3 / 5)
    # Recall is 3/4 of the crows and 0 of the herons; robins are not in the split, and have none.
    assert metrics["balanced_accuracy"] == pytest.approx((3 / 4 + 0) / 2)
    assert metrics["images"] == 5


def test_precision_and_recall_of_each_class() -> None:
    assert evaluation().metrics()["per_class"] == {
        "crow": {"images": 4, "precision": pytest.approx(3 / 4), "recall": pytest.approx(3 / 4)},
        "heron": {"images": 1, "precision": 0, "recall": 0},
        "robin": {"images": 0, "precision": 0, "recall": 0},
    }


def test_confusion_has_the_true_classes_in_its_rows() -> None:
    assert evaluation().confusion().tolist() == [[3, 0, 1], [1, 0, 0], [0, 0, 0]]


def test_calibration_error() -> None:
    # Every confidence falls into a bin of its own (fifteenths): the error is the mean distance from 1 or 0.
    expected = ((1 - 0.9) + (1 - 0.8) + (1 - 0.7) + 0.6 + 0.5) / 5
    assert evaluation().metrics()["ece"] == pytest.approx(expected, abs=1e-6)


def test_calibration_error_is_of_the_mean_of_a_bin() -> None:
    # 0.61 and 0.65 share the bin from 9/15 to 10/15: one of two is right, at a mean confidence of 0.63.
    probabilities = torch.tensor([[0.61, 0.20, 0.19], [0.20, 0.65, 0.15]])
    assert evaluation(probabilities).metrics()["ece"] == pytest.approx(0.63 - 0.5, abs=1e-6)


def test_calibration_bins_are_fifteenths() -> None:
    # 0.70 and 0.75 lie on either side of 11/15, so they don't make up for each other.
    probabilities = torch.tensor([[0.70, 0.20, 0.10], [0.15, 0.75, 0.10]])
    assert evaluation(probabilities).metrics()["ece"] == pytest.approx((0.3 + 0.75) / 2, abs=1e-6)


def test_calibration_of_four_bins() -> None:
    # (0.5, 0.75]: 0.6 and 0.75, one right: |0.5 - 0.675|; (0.75, 1]: 0.8 and 1.0, both right: |1 - 0.9|; a half of the
    # images each.
    confidence, correct = torch.tensor([0.6, 0.8, 0.75, 1.0]), torch.tensor([False, True, True, True])
    found = calibration(confidence, correct, bins=4)
    assert found.counts.tolist() == [0, 0, 2, 2]
    assert found.accuracy[2:].tolist() == [0.5, 1.0]
    assert found.confidence[2:].tolist() == pytest.approx([0.675, 0.9])
    assert found.error == pytest.approx(0.5 * 0.175 + 0.5 * 0.1)


def test_certainty_shares_the_bin_below_it_and_zero_the_one_above() -> None:
    # (14/15, 1]: 1.0 and 0.95, one right: |0.5 - 0.975|; 0 has the first bin, together with 0.05.
    confidence, correct = torch.tensor([1.0, 0.95, 0.0, 0.05]), torch.tensor([False, True, False, False])
    assert calibration(confidence, correct).error == pytest.approx(0.5 * 0.475 + 0.5 * 0.025)
    assert calibration(torch.tensor([0.0, 1.0]), torch.tensor([False, True])).error == 0


@pytest.mark.parametrize("confidence", [[0.5, 1.2], [0.5, float("nan")], [0.5], []])
def test_calibration_needs_probabilities(confidence: list[float]) -> None:
    with pytest.raises(ValueError, match=r"[Cc]onfidence"):
        calibration(torch.tensor(confidence), torch.tensor([True, False])[: 2 * len(confidence)])


# One certain and wrong, one nearly certain and right: whether they share a bin is seen.
SURE = torch.tensor([[0.0, 1.0, 0.0], [0.95, 0.0, 0.05], [0.6, 0.2, 0.2], [0.1, 0.5, 0.4], [0.8, 0.1, 0.1]])
SEVERAL = torch.tensor([[1.0, 0, 0], [1, 0, 1], [1, 1, 0], [0, 1, 1], [0, 0, 0]])


@pytest.mark.parametrize(
    "found",
    [
        Evaluation(SURE, TARGETS, list("vwxyz"), LABELS),
        MultiLabelEvaluation(SURE, SEVERAL, list("vwxyz"), LABELS),
    ],
    ids=["single", "several"],
)
def test_the_picture_tells_the_same_calibration_error(
    found: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles = []
    monkeypatch.setattr(Axes, "set", lambda self, **keywords: titles.append(keywords.get("title")))
    metrics, _ = write_evaluation(found, tmp_path)
    assert any(title and f"ECE {metrics['ece']:.3f}" in title for title in titles), titles


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_with_five_classes_or_fewer_the_top_five_hold_the_right_one(classes: int) -> None:
    probabilities = torch.full((2, classes), 1 / classes)
    labels = tuple(str(index) for index in range(classes))
    assert Evaluation(probabilities, torch.tensor([0, 1]), ["a", "b"], labels).metrics()["top5"] == 1


def test_top_five_of_seven() -> None:
    probabilities = torch.tensor([[0.3, 0.2, 0.15, 0.14, 0.11, 0.06, 0.04]]).expand(7, 7)
    found = Evaluation(probabilities, torch.arange(7), list("abcdefg"), tuple("ABCDEFG"))
    assert found.metrics()["top1"] == pytest.approx(1 / 7)
    assert found.metrics()["top5"] == pytest.approx(5 / 7)


def test_skipped_images_count_neither_as_right_nor_as_wrong() -> None:
    metrics = evaluation(skipped={"/p/x.png": "the file is empty", "/p/y.png": "no such file"}).metrics()
    assert metrics["skipped"] == 2
    assert {**metrics, "skipped": 0} == evaluation().metrics()


def tiny() -> Classifier:
    encoder = image_encoder(image_size=(7, 7), patch_size=(7, 7), embed_dim=10, depth=1, num_heads=2)
    return Classifier(encoder, 3, labels=LABELS)


def batch(indices: list[int], skipped: list[tuple[str, str]]) -> dict[str, Any]:
    images = torch.randn(len(indices), 3, 7, 7)
    return {
        "image": images,
        "target": TARGETS[indices],
        "index": torch.tensor(indices, dtype=torch.int64),
        "skipped": skipped,
    }


def test_evaluate_keeps_names_with_their_probabilities_when_images_are_skipped() -> None:
    model = tiny().eval()
    batches = [batch([3, 1], []), batch([], [("/p/2.png", "the file is empty")]), batch([4], [("/p/0.png", "damaged")])]
    found = evaluate(model, batches, ["0.png", "1.png", "2.png", "3.png", "4.png"], device=CPU, precision="fp32")
    assert found.names == ["1.png", "3.png", "4.png"]
    assert found.targets.tolist() == [0, 0, 1]
    expected = torch.cat([model(each["image"]) for each in (batches[0], batches[2])]).softmax(1)
    torch.testing.assert_close(found.probabilities, expected[[1, 0, 2]])
    assert found.skipped == {"/p/2.png": "the file is empty", "/p/0.png": "damaged"}
    assert found.labels == LABELS


def test_a_split_of_which_nothing_can_be_read_has_no_accuracy() -> None:
    batches = [batch([], [("/p/0.png", "the file is empty"), ("/p/1.png", "damaged")])]
    with pytest.raises(
        UserError, match=r"None of the 2 images could be read.\nThe first is /p/0.png: the file is empty"
    ):
        evaluate(tiny(), batches, ["0.png", "1.png"], device=CPU, precision="fp32")


def test_what_is_written(tmp_path: Path) -> None:
    found = evaluation(skipped={"/p/x.png": "the file is empty"})
    found.names[4] = "heron/café, 鳥.png"
    metrics, written = write_evaluation(found, tmp_path)
    assert sorted(written) == sorted(path.name for path in tmp_path.iterdir())
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")) == metrics
    assert metrics.keys() >= {"top1", "top5", "balanced_accuracy", "images", "skipped"}
    with (tmp_path / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["image", "label", "predicted", "probability", "correct"],
        ["0.png", "crow", "crow", "0.900000", "1"],
        ["1.png", "crow", "crow", "0.800000", "1"],
        ["2.png", "crow", "crow", "0.700000", "1"],
        ["3.png", "crow", "robin", "0.600000", "0"],
        ["heron/café, 鳥.png", "heron", "crow", "0.500000", "0"],
    ]
    for name in ("confusion.png", "reliability.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.format == "PNG"
            picture.load()

"""What scores come to, in tables, words and files; from numbers made by hand."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vit.saliency.score import Scores, Shown
from vit.saliency.score_report import class_lines, score_tables, summarise, write_scores

NAMES = [f"bird{number}.png" for number in range(8)]


@pytest.fixture
def scores() -> Scores:
    """Six images of eight. Crow, the first five, is read from the background; robin is one image alone."""
    energy = np.array([0.1, 0.2, 0.3, 0.2, 0.2, 0.8])
    picture = np.zeros((20, 30, 3), np.uint8)
    shown = [
        Shown(0.9, 0, picture, np.eye(2, 3, dtype=np.float32)),
        Shown(0.4, 5, picture, np.eye(2, 3, dtype=np.float32)),
    ]
    return Scores(
        methods=("rollout", "centre"),
        labels=("crow", "robin"),
        index=np.array([0, 1, 2, 4, 6, 7]),
        predicted=np.array([0, 0, 0, 0, 0, 1]),
        truth=np.array([0, 0, 1, 1, -1, 1]),
        probability=np.array([0.9, 0.8, 0.7, 0.6, 0.7, 0.9]),
        area=np.full(6, 0.25),
        object_worth=np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.6]),
        background_worth=np.array([0.4, 0.3, 0.4, 0.3, 0.4, 0.0]),
        values={
            "rollout": {"energy_inside": energy, "mean_iou": energy / 2, "insertion": energy},
            "centre": {"energy_inside": np.full(6, 0.3), "mean_iou": np.full(6, 0.3), "insertion": np.full(6, np.nan)},
        },
        overlaps={
            "rollout": (np.array([[1.0, 2.0]] * 3 + [[0.0, 1.0]] * 3), np.array([[4.0, 4.0]] * 3 + [[2.0, 4.0]] * 3)),
            "centre": (np.ones((6, 2)), np.full((6, 2), 2.0)),
        },
        extremes={"rollout": (shown, shown[::-1])},
        ranked_by="iou_at_equal_area",
    )


def test_parts_means_and_pooled_iou(scores: Scores) -> None:
    summary = summarise(scores)
    assert summary.images == {"all": 6, "correct": 3, "wrong": 2}
    assert summary.estimates["all"]["rollout"]["energy_inside"].plain.mean == pytest.approx(1.8 / 6)
    assert summary.estimates["correct"]["rollout"]["energy_inside"].plain.mean == pytest.approx(1.1 / 3)
    assert summary.estimates["wrong"]["rollout"]["energy_inside"].plain.mean == pytest.approx(0.25)
    # Of all pixels together: background 3 of 18, object 9 of 24; no mean of the images' own IoU.
    assert summary.estimates["all"]["rollout"]["mean_iou"].plain.mean == pytest.approx((3 / 18 + 9 / 24) / 2)
    assert summary.groups is None


def test_groups_are_those_of_the_images_that_were_scored(scores: Scores) -> None:
    groups = ["a", "a", "a", "never", "a", "never", "a", "b"]
    summary = summarise(scores, groups=groups)
    assert summary.groups == 2
    grouped = summary.estimates["all"]["rollout"]["energy_inside"].grouped
    assert grouped is not None
    assert grouped.mean == pytest.approx((0.2 + 0.8) / 2)
    assert (grouped.low, grouped.high) == pytest.approx((0.2, 0.8))
    titles = [table.title for table in score_tables(summary)]
    assert "localisation: means over 2 groups, 95% intervals below" in titles
    alone = summarise(scores, groups=[f"image {number}" for number in range(8)])
    assert not any("groups" in title for title, *_ in score_tables(alone))  # they would say the same once more
    assert "faithfulness: wrong predictions, means over 2 images, 95% intervals below" in titles


def test_it_says_in_words_what_is_read(scores: Scores) -> None:
    summary = summarise(scores)
    crow = summary.classes[0]
    assert crow.background_share.plain.mean == pytest.approx(1.8 / 2.3)
    assert crow.area.plain.mean == 0.25
    every, of_crow, of_robin = class_lines(summary)
    assert every.startswith("all (6 images): ")
    assert of_crow.startswith(
        "crow (5 images): READS THE BACKGROUND rather than the object. The background makes up 78% of"
    )
    assert "rollout has 20% (14%..26%) of its energy on the object, which covers 25% of the image" in of_crow
    assert of_robin == (
        "robin (1 images): too few images to tell; rollout has 80% of its energy on the object, which covers 25% "
        "of the image."
    )


def test_no_baseline_is_told_of_for_a_method(scores: Scores) -> None:
    scores = replace(
        scores, methods=("centre", "random"), values=dict.fromkeys(("centre", "random"), scores.values["centre"]),
        overlaps=dict.fromkeys(("centre", "random"), scores.overlaps["centre"]),
    )  # fmt: skip
    assert class_lines(summarise(scores)) == [
        "all (6 images): LEANS ON THE BACKGROUND. The background makes up 62% of the prediction (32%..79%); "
        "the object covers 25% of the image.",
        "crow (5 images): READS THE BACKGROUND rather than the object. The background makes up 78% of the prediction "
        "(76%..80%); the object covers 25% of the image.",
        "robin (1 images): too few images to tell; the object covers 25% of the image.",
    ]


@pytest.mark.parametrize(
    ("object_worth", "background_worth", "said"),
    [
        (
            -0.1,
            0.4,
            "makes up 133% of the prediction (133%..133%): more than all of it, because the object speaks against it;",
        ),
        (0.5, -0.1, "makes up -25% of the prediction (-25%..-25%): less than nothing, because it speaks against it;"),
        (0.1, -0.2, "rather than"),
    ],
)
def test_a_share_beyond_0_to_1_is_explained(
    scores: Scores, object_worth: float, background_worth: float, said: str
) -> None:
    scores = replace(scores, object_worth=np.full(6, object_worth), background_worth=np.full(6, background_worth))
    line = class_lines(summarise(scores))[1]
    if object_worth + background_worth > 0:
        assert said in line
    else:
        assert "prediction" not in line, "together they are worth nothing, so there is no share"


def test_bounds_that_are_not_known_are_said_to_be_so(scores: Scores) -> None:
    line = class_lines(summarise(scores, groups=["a video"] * 8))[1]
    assert "makes up 78% of the prediction (interval not known)" in line
    assert "20% (interval not known) of its energy" in line


def test_a_class_called_all_is_one_of_the_classes(scores: Scores, tmp_path: Path) -> None:
    scores = replace(scores, labels=("all", "robin"))
    summary = summarise(scores)
    lines = class_lines(summary)
    assert [line.split(":")[0] for line in lines] == ["all (6 images)", "all (5 images)", "robin (1 images)"]
    write_scores(scores, summary, NAMES, tmp_path, settings={})
    document = json.loads((tmp_path / "scores.json").read_text())
    assert {label: entry["images"] for label, entry in document["classes"].items()} == {"all": 5, "robin": 1}
    assert document["all_classes"]["images"] == 6
    assert document["all_classes"]["background_share"]["mean"] == pytest.approx(1.8 / 2.9)
    assert document["reads_background"] == ["all"]


def test_tables_have_a_row_of_means_and_one_of_bounds(scores: Scores) -> None:
    table = next(score_tables(summarise(scores)))
    assert table.columns == ["", "energy\ninside", "mIoU"]
    assert table.rows[0] == ["rollout", "0.300", "0.271"]
    assert table.rows[1][0] == ""
    low, _, high = table.rows[1][1].partition("..")
    assert 0.1 < float(low) < 0.3 < float(high) < 0.6


def test_files(scores: Scores, tmp_path: Path) -> None:
    summary = summarise(scores)
    write_scores(scores, summary, NAMES, tmp_path, settings={"model": "here"})
    document = json.loads((tmp_path / "scores.json").read_text())
    assert document["model"] == "here"
    assert document["reads_background"] == ["crow"]
    assert document["scores"]["all"]["rollout"]["energy_inside"]["mean"] == pytest.approx(0.3)
    assert document["scores"]["all"]["centre"]["insertion"]["mean"] is None, "JSON has no NaN"
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image"], row["method"]) for row in rows[:3]] == [
        ("bird0.png", "rollout"), ("bird0.png", "centre"), ("bird1.png", "rollout"),
    ]  # fmt: skip
    assert len(rows) == 12
    assert (rows[4]["label"], rows[4]["predicted"], rows[4]["correct"]) == ("robin", "crow", "0")
    assert (rows[8]["label"], rows[8]["correct"]) == ("", "")
    assert float(rows[0]["energy_inside"]) == 0.1
    assert rows[1]["insertion"] == ""
    assert (tmp_path / "best_worst.png").read_bytes().startswith(b"\x89PNG")

"""The demonstration: all verbs in a row, on generated scenes."""

import json
import re
import time

import numpy as np
import pytest

import cli

SMALL = ["--trainer.max_epochs", "1", "--data.train_scenes", "64", "--data.val_scenes", "32", "--data.num_workers", "0"]


def table(text: str) -> dict[str, list[float]]:
    """The rows of the table of all scenes: method -> pointing game, energy inside, IoU and those of segmentation."""
    rows = re.findall(r"^(rollout|centre|random)((?: +[\d.]+){6}) *$", text, flags=re.MULTILINE)
    return {name: [float(value) for value in values.split()] for name, values in rows[:3]}


def test_it_trains_evaluates_explains_and_scores(tmp_path, monkeypatch, capsys):
    typed = []

    def type_a_little(*words):
        typed.append(words[0])
        assert cli.run_command(cli.VERBS, [*words, *(SMALL if words[0] == "train" else [])]) == 0

    monkeypatch.setattr(cli, "type_command", type_a_little)
    assert cli.main(["demo", "--out", str(tmp_path / "demo")]) == 0
    assert typed == ["train", "evaluate", "explain"]
    scores = table(capsys.readouterr().out)
    assert scores.keys() == {"rollout", "centre", "random"}
    assert all(0 <= value <= 1 for row in scores.values() for value in row)
    assert len(list((tmp_path / "demo" / "maps").glob("*.npy"))) == 24
    assert np.load(next((tmp_path / "demo" / "maps").glob("*.npy"))).shape == (8, 8)
    for picture in ("run/curves.png", "test/confusion.png", "maps/contact_sheet.png"):
        assert (tmp_path / "demo" / picture).read_bytes().startswith(b"\x89PNG")


def test_a_step_that_fails_ends_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "DEMO_CHECKPOINT", tmp_path / "nothing")
    assert cli.main(["demo", "--out", str(tmp_path / "demo")]) == 1
    assert "`vit train` ended with exit code 1" in capsys.readouterr().err


@pytest.mark.stress
def test_it_is_right_and_its_maps_hit_the_birds(tmp_path, capsys):
    began = time.perf_counter()
    assert cli.main(["demo", "--out", str(tmp_path / "demo")]) == 0
    seconds = time.perf_counter() - began
    scores = table(capsys.readouterr().out)
    top1 = json.loads((tmp_path / "demo" / "test" / "metrics.json").read_text())["top1"]
    print(f"{seconds:.0f} s, top-1 {top1:.3f}, {scores}")
    assert top1 >= 0.9
    assert scores["rollout"][0] >= 0.65
    assert scores["rollout"][2] >= 0.30
    assert scores["rollout"][0] > 2 * scores["centre"][0]

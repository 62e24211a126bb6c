"""vit train --folds: a run a fold, their mean and spread, and going on."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cli
from vit.training import checkpoints
from vit.training import fit as fit_module
from vit.training.classification import ClassificationTask


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for label, brightness in (("bright", 160), ("dark", 100)):
        for number in range(6):
            path = root / ("val" if number == 5 else "train") / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            random = np.random.default_rng([brightness, number])
            Image.fromarray(random.integers(brightness - 60, brightness + 60, (20, 24, 3), dtype=np.uint8)).save(path)
    return root


def test_folds(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_module, "draw_curves", lambda *paths: None)
    monkeypatch.setattr(checkpoints, "verify", lambda path: None)
    words = ["train", "--config", "debug", "--data.root", str(photos), "--data.batch_size", "4", "--device", "cpu",
             "--trainer.max_epochs", "1", "--folds", "3", "--run", str(tmp_path / "run")]  # fmt: skip
    assert cli.main(words) == 0
    table = capsys.readouterr().out
    found = json.loads((tmp_path / "run" / "folds.json").read_text())
    last = [row["last"] for row in found["folds"]]
    assert [row["fold"] for row in found["folds"]] == [1, 2, 3]
    assert found["last"]["mean"] == pytest.approx(np.mean(last))
    assert found["last"]["std"] == pytest.approx(np.std(last, ddof=1))
    assert f"{np.mean(last):.1%}" in table
    for number in (1, 2, 3):
        card = (tmp_path / "run" / f"fold_{number}" / "model" / "README.md").read_text()
        assert "8" in card  # of twelve, train and val together
        assert (tmp_path / "run" / f"fold_{number}" / "config.yaml").is_file()

    # As if it had been killed in the third fold: the first two are not touched, the third is done anew.
    del found["folds"][2]
    (tmp_path / "run" / "folds.json").write_text(json.dumps(found))
    times = [(tmp_path / "run" / f"fold_{n}" / "metrics.csv").stat().st_mtime_ns for n in (1, 2)]
    assert cli.main([*words, "--resume"]) == 0
    assert capsys.readouterr().out == table
    assert [(tmp_path / "run" / f"fold_{n}" / "metrics.csv").stat().st_mtime_ns for n in (1, 2)] == times


@pytest.mark.parametrize("folds", [(), ("--folds", "2")])
def test_a_run_that_was_overwritten_is_not_gone_on_with(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    folds: tuple[str, ...],
) -> None:  # fmt: skip
    """The one that took its place was killed before its first checkpoint."""
    monkeypatch.setattr(fit_module, "draw_curves", lambda *paths: None)
    words = ["train", "--config", "debug", "--data.root", str(photos), "--data.batch_size", "4", "--device", "cpu",
             "--trainer.max_epochs", "1", *folds, "--run", str(tmp_path / "run")]  # fmt: skip
    assert cli.main(words) == 0
    (tmp_path / "run" / "fold_7").touch()  # no fold of ours
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert cli.main([*words, "--overwrite", "--data.root", str(photos / "photoz")]) == 1
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
    words += ["--optim.lr", "1e-2"]
    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTask, "training_step", None)
        assert cli.main([*words, "--overwrite"]) == 1
    left = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert not [name for name in left if name.startswith(("events", "metrics", "times", "last", "best", "folds"))]
    capsys.readouterr()
    assert cli.main([*words, "--resume"]) == (0 if folds else 1)
    if folds:  # there is a run to go on with, of which no fold is done
        rates = [(tmp_path / "run" / f"fold_{n}" / "metrics.csv").read_text().splitlines() for n in (1, 2)]
        assert all(len(lines) > 1 for lines in rates)
    else:
        assert "no checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--folds 1 --data.root photos", "--folds is 1; allowed are 2 or more"),
        ("--folds 3 --data.root birdscenes:demo", "Generated scenes have no folds"),
        ("--folds 3 --data.root photos --task pretrain", "--folds only works with --task classify"),
        ("--folds 3 --data.root photos --trainer.devices 2", "need a launcher"),
    ],
)
def test_folds_that_can_not_be(words: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--run", str(tmp_path / "run"), *words.split()]) == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_refused_cross_validation_leaves_nothing(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--config", "debug", "--device", "cpu", "--folds", "2", "--run", str(tmp_path / "run")]
    for mistake in (["--data.root", str(tmp_path / "none")],
                    ["--data.root", str(photos), "--optim.trained", "head", "--optim.mixup", "1"]):  # fmt: skip
        assert cli.main([*words, *mistake]) == 1
        out, err = capsys.readouterr()
        assert "fold 1" not in out + err
        assert not (tmp_path / "run").exists()

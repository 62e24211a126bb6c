"""Captioning from end to end, as it is typed: a CSV of captions to a model, its captions, their measures and maps."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import cli
import vit
from tests.training.test_fit import assert_same_run
from vit.models.captioner import Captioner
from vit.models.generation import Generated

ROOT = Path(__file__).parent.parent
SMALL = shlex.split(
    "--task caption --model.variant pico --model.image_size 16 --model.patch_size 8 --decoder.depth 1"
    " --data.batch_size 4 --data.num_workers 0 --data.hflip 0 --data.val_fraction 0.25 --optim.lr 3e-3"
    " --trainer.precision fp32 --device cpu"
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright and dark photos with a sentence or two each, and one that can't be read."""
    root = tmp_path_factory.mktemp("photos")
    rows = [["torn.png", "nothing at all", "train"]]
    for number in range(16):
        low = 10 + 140 * (number % 2)
        pixels = np.random.default_rng(number).integers(low, low + 80, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
        rows.append([f"{number}.png", "a bright picture, in light" if number % 2 else "a dark one", ""])
        if number == 3:
            rows.append(["3.png", "light", ""])
    (root / "torn.png").write_bytes(b"\x89PNG")
    with (root / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "caption", "split"], *rows])
    return root


def train(photos: Path, run: Path, *words: object, epochs: int = 3) -> int:
    options = [*SMALL, "--data.root", str(photos / "captions.csv"), "--trainer.max_epochs", str(epochs)]
    return cli.main(["train", *options, "--run", str(run), *map(str, words)])


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert train(photos, run, epochs=12) == 0
    return run


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_a_captioner_that_has_learned_what_is_said(trained: Path, photos: Path) -> None:
    assert isinstance(vit.load(trained / "model"), Captioner)
    rows = [row for row in read(trained / "metrics.csv") if row["val_exact"]]
    assert len(rows) == 12
    assert float(rows[-1]["val_exact"]) == 1.0
    assert float(rows[-1]["val_loss"]) < float(rows[0]["val_loss"])
    assert "torn.png" in (trained / "skipped.csv").read_text()
    assert "exact match" in (trained / "model" / "README.md").read_text()
    assert (trained / "curves.png").is_file()


def test_evaluate(trained: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", str(trained / "model"), "--data.root", str(photos / "captions.csv"), "--data.num_workers",
               "0", "--data.val_fraction", "0.25", "--out", str(tmp_path / "val")]  # fmt: skip
    assert cli.main([*command, "--decoding.beams", "2"]) == 0
    metrics = json.loads((tmp_path / "val" / "metrics.json").read_text())
    assert (metrics["exact_match"], metrics["words_right"], metrics["images"]) == (1.0, 1.0, 4)
    assert metrics["perplexity"] < 2
    assert "exact_match        1.0000" in capsys.readouterr().out
    assert all(row["exact"] == "1" for row in read(tmp_path / "val" / "captions.csv"))


def test_predict(trained: Path, photos: Path, tmp_path: Path) -> None:
    names = [str(photos / name) for name in ("0.png", "1.png", "torn.png")]
    command = ["predict", str(trained / "model"), *names, "--num_workers", "0", "--out"]
    assert cli.main([*command, str(tmp_path / "captions.csv")]) == 0
    rows = read(tmp_path / "captions.csv")
    assert [(row["image"], row["caption"]) for row in rows] == [
        ("0.png", "a dark one"), ("1.png", "a bright picture, in light"),
    ]  # fmt: skip
    assert all(0.3 < float(row["probability"]) <= 1 for row in rows)
    assert "torn.png" in (tmp_path / "skipped.csv").read_text()
    drawn = ["--decoding.temperature", "3", "--seed", "4"]
    for name in ("one", "two"):
        assert cli.main([*command, str(tmp_path / f"{name}.csv"), *drawn]) == 0
    assert (tmp_path / "one.csv").read_text() == (tmp_path / "two.csv").read_text()


def test_explain_has_a_map_for_each_word(trained: Path, photos: Path, tmp_path: Path) -> None:
    command = ["explain", str(trained / "model"), str(photos / "1.png"), str(photos / "torn.png"), "--num_workers", "0"]
    assert cli.main([*command, "--out", str(tmp_path / "maps")]) == 0
    rows = read(tmp_path / "maps" / "index.csv")
    assert [row["word"] for row in rows] == ["a", "bright", "picture", ",", "in", "light"]
    assert {row["caption"] for row in rows} == {"a bright picture, in light"}
    drawn = ["--decoding.temperature", "3", "--overwrite"]  # follows from nothing but the command
    said = []
    for _ in range(2):
        assert cli.main([*command, *drawn, "--out", str(tmp_path / "drawn")]) == 0
        said.append(read(tmp_path / "drawn" / "index.csv"))
        assert len(np.load(tmp_path / "drawn" / "1.npy")) == len(said[-1])
    assert said[0] == said[1]
    maps = np.load(tmp_path / "maps" / "1.npy")
    assert maps.shape == (6, 2, 2)
    assert [float(row["max"]) for row in rows] == pytest.approx(maps.max(axis=(1, 2)).tolist(), rel=1e-5)
    for name in ("1.png", "contact_sheet.png"):
        with Image.open(tmp_path / "maps" / name) as picture:
            assert picture.size[0] > 7 * 100
    assert "torn.png" in (tmp_path / "maps" / "skipped.csv").read_text()


def test_a_caption_without_words_has_a_row_and_no_map(
    trained: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(model: Captioner, images: Tensor, *_: object, **__: object) -> Generated:
        ids = torch.full((len(images), 1), model.end)
        return Generated(ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros(len(images)))

    monkeypatch.setattr(Captioner, "generate", silent)
    command = ["explain", str(trained / "model"), str(photos / "0.png"), "--num_workers", "0"]
    assert cli.main([*command, "--out", str(tmp_path / "maps")]) == 0
    (row,) = read(tmp_path / "maps" / "index.csv")
    assert (row["image"], row["caption"], row["word"], row["map"], row["flag"]) == ("0.png", "", "", "", "no words")
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["index.csv"]


def test_info(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(trained / "model")]) == 0
    told = capsys.readouterr().out
    assert "a captioner" in told
    assert "decoder: vocab_size" in told


def test_a_captioner_goes_on_learning_with_its_own_words(trained: Path, photos: Path, tmp_path: Path) -> None:
    start = ["--task", "caption", "--model.pretrained", trained / "model", "--data.root", photos / "captions.csv"]
    more = ["--data.num_workers", 0, "--data.hflip", 0, "--trainer.max_epochs", 1, "--trainer.precision", "fp32"]
    assert cli.main(["train", *map(str, [*start, *more, "--optim.lr", 0, "--run", tmp_path / "more"])]) == 0
    first, again = (vit.load(run / "model") for run in (trained, tmp_path / "more"))
    assert first.tokenizer == again.tokenizer
    rows = [row for row in read(tmp_path / "more" / "metrics.csv") if row["val_exact"]]
    assert float(rows[0]["val_exact"]) == 1.0


def test_a_run_that_was_killed_is_resumed_to_the_bit(photos: Path, tmp_path: Path, trained: Path) -> None:
    killed, expected = tmp_path / "killed", tmp_path / "expected"
    assert train(photos, expected, "--trainer.checkpoint_minutes", 0, epochs=4) == 0
    command = ["train", *SMALL, "--data.root", str(photos / "captions.csv"), "--trainer.max_epochs", "4"]
    command += ["--trainer.checkpoint_minutes", "0", "--run", str(killed)]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), *command], cwd=ROOT, stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # as here: the number of threads changes the last digits
    )  # fmt: skip
    while process.poll() is None and not (killed / "checkpoints" / "last.ckpt").is_file():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert cli.main([*command, "--resume"]) == 0
    assert_same_run(killed, expected)


CAPTION = ["train", "--task", "caption", "--run", "RUN"]
EXPLAIN = ["explain", "MODEL", "IMAGE", "--out", "RUN"]
PREDICT = ["predict", "MODEL", "IMAGE", "--out", "RUN/x.csv"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (CAPTION, "give a CSV with the columns image,caption"),
        ([*CAPTION, "--data.root", "ROOT", "--optim.trained", "head"], "which this task does not use"),
        ([*CAPTION, "--data.root", "ROOT", "--optim.mixup", "0.5"], "which this task does not use"),
        ([*CAPTION, "--data.root", "ROOT", "--data.balanced", "true"], "--data.balanced needs classes"),
        ([*CAPTION, "--data.root", "ROOT", "--decoder.num_heads", "7"], "num_heads"),
        ([*CAPTION, "--data.root", "ROOT", "--model.pretrained", "MODEL", "--model.image_size", "32"], "keeps its own"),
        ([*CAPTION, "--data.root", "LONG", "--model.pretrained", "MODEL"], "has a caption of 40 words; this model can"),
        (["train", "--data.root", "ROOT", "--decoder.depth", "2", "--run", "RUN"], "options need --task caption"),
        ([*EXPLAIN, "--method", "rollout"], "captions are explained by attribution"),
        ([*EXPLAIN, "--target", "3"], "--target has no effect with a captioner"),
        ([*EXPLAIN, "--start_block", "9"], "has blocks 0 to 5"),
        ([*CAPTION, "--data.root", "birdscenes:demo", "--model.crop_pct", "0.9"], "crop_pct is for photographs"),
        ([*PREDICT, "--decoding.max_tokens", "99"], "this model can write up to"),
        ([*PREDICT, "--decoding.beams", "2", "--decoding.temperature", "1"], "beams are searched, not sampled"),
        (["score", "MODEL", "IMAGE", "--masks", "IMAGE", "--out", "RUN"], "holds a captioner"),
    ],
)
def test_mistakes_are_told_in_few_lines(
    words: list[str], message: str, trained: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = tmp_path / "long.csv"
    rows = [f"{photos}/{number}.png,{'a ' * 40},{split}" for number, split in ((1, "train"), (2, "val"))]
    long.write_text("\n".join(["image,caption,split", *rows]))
    places: dict[str, Any] = {"ROOT": photos / "captions.csv", "LONG": long, "MODEL": trained / "model",
                              "IMAGE": photos / "1.png", "RUN": tmp_path / "run"}  # fmt: skip
    command = [str(places.get(word, word)).replace("RUN/", f"{places['RUN']}/") for word in words]
    assert cli.main(command) == 1
    told = capsys.readouterr().err.strip()
    assert message in told
    assert len(told.splitlines()) <= 6

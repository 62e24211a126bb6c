"""predict, evaluate and explain in two processes leave what one process leaves."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cli
from tests.launcher import launch
from vit.checkpoints.folder import write_folder
from vit.models.classifier import Classifier
from vit.models.encoder import image_encoder
from vit.saliency.export_log import LOG


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and eleven photographs of two classes, of which one can't be read."""
    home = tmp_path_factory.mktemp("sharded")
    torch.manual_seed(0)
    encoder = image_encoder(image_size=(16, 16), patch_size=(8, 8), embed_dim=16, depth=2, num_heads=2)
    write_folder(Classifier(encoder, 2, labels=["a", "b"]), home / "model")
    for number in range(11):
        path = home / "photos" / "val" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    (home / "photos" / "val" / "a" / "04.png").write_bytes(b"no image")
    return home


def vit(home: Path, line: str, *, count: int) -> str:
    """Runs a command line in so many processes; returns what the first of them printed."""
    words = [str(home / word) if word.startswith(("model", "photos", "one", "two")) else word for word in line.split()]
    common = ["--batch_size", "2"] if words[0] != "evaluate" else ["--data.batch_size", "2", "--data.num_workers", "0"]
    workers = ["--num_workers", "0"] if words[0] != "evaluate" else []
    codes = launch(cli.main, [*words, *common, *workers, "--device", "cpu"], log=home / "log", count=count)
    text = (home / "log.0").read_text()
    assert codes == [0] * count, text
    if count > 1:
        assert (home / "log.1").read_text() == ""
    return text


def both(home: Path, line: str) -> None:
    for name, count in (("one", 1), ("two", 2)):
        vit(home, f"{line} --out {name}", count=count)


def files(folder: Path) -> dict[str, bytes]:
    """What lies in a folder; the log has its lines as they came."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return found | {LOG: b"".join(sorted(found[LOG].splitlines()))} if LOG in found else found


def test_predict(home: Path) -> None:
    for name, count in (("one.csv", 1), ("two.csv", 2)):
        vit(home, f"predict model photos --out {name}", count=count)
    assert (home / "two.csv").read_bytes() == (home / "one.csv").read_bytes()
    with (home / "two.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 10


def test_evaluate(home: Path) -> None:
    for name, count in (("one_val", 1), ("two_val", 2)):
        printed = vit(home, f"evaluate model --data.root photos --split val --out {name}", count=count)
        assert "images             10  (1 skipped)" in printed
    one, two = files(home / "one_val"), files(home / "two_val")
    assert one == two
    assert "skipped.csv" in two


def test_explain(home: Path) -> None:
    for name, count in (("one_maps", 1), ("two_maps", 2)):
        vit(home, f"explain model photos --method rollout --out {name}", count=count)
    one, two = files(home / "one_maps"), files(home / "two_maps")
    assert one.keys() == two.keys()
    assert one == two
    assert two["index.csv"].count(b"\n") == 11


def test_explain_goes_on_after_a_kill_in_more_or_fewer_processes(home: Path) -> None:
    vit(home, "explain model photos --method rollout --out two_killed", count=1)
    whole = files(home / "two_killed")
    header, *rows = (home / "two_killed" / LOG).read_text().splitlines(keepends=True)
    # As two processes leave it that were killed: a log each, the second's with a torn line.
    (home / "two_killed" / LOG).write_text(header + "".join(rows[:2]))
    (home / "two_killed" / "export.1.jsonl").write_text(header + "".join(rows[2:4]) + rows[4][:20])
    for path in ("index.csv", "contact_sheet.png"):
        (home / "two_killed" / path).unlink()
    done = [home / "two_killed" / f"{stem}.png" for stem in ("val/a/00", "val/a/02", "val/a/06", "val/a/08")]
    before = [path.stat().st_mtime_ns for path in done]
    printed = vit(home, "explain model photos --method rollout --out two_killed --resume", count=2)
    assert "4 of 11 images already had their maps" in printed
    assert [path.stat().st_mtime_ns for path in done] == before
    assert files(home / "two_killed") == whole

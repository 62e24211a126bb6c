"""`vit check` as it is typed, and its report in a real browser."""

import csv
import os
import shutil
import subprocess

import pytest
from PIL import Image

from datamodules.scenes import DEMO_SPECIES, draw_scene

TINY = "--model.variant pico --model.patch_size 8 --model.image_size 16 --num_workers 0 --batch_size 2"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def photos(tmp_path):
    """Eleven images in train and one in val, of each of two classes."""
    for number in range(24):
        path = tmp_path / "photos" / ("val" if number < 2 else "train") / ("crow", "wren")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_scene(3, number, size=48, species=DEMO_SPECIES).image).save(path, quality=95)
    return tmp_path / "photos"


def test_good_data(vit, photos, tmp_path):
    code, out, err = vit(f"check {TINY} --max_epochs 7", photos, "--out", tmp_path / "check")
    assert code == 0, err
    assert "24 images of 2 classes; readable: train 22, val 2" in out
    assert "images/s" in out
    assert "7 epochs: about" in out
    assert "no problems found" in out
    assert sorted(path.name for path in (tmp_path / "check").iterdir()) == ["problems.csv", "report.html"]
    code, _, err = vit(f"check {TINY}", photos, "--out", tmp_path / "check")
    assert code == 1
    assert "already holds files" in err


def test_bad_data_then_the_fix_list(vit, photos, tmp_path):
    (photos / "train/crow/2.jpg").write_bytes(b"")
    (photos / "val/wren/copy.jpg").write_bytes((photos / "train/wren/3.jpg").read_bytes())
    before = {path: path.read_bytes() for path in photos.rglob("*.jpg")}
    good = tmp_path / "good.csv"
    code, out, err = vit(f"check {TINY}", photos, "--out", tmp_path / "a", "--fix_list", good)
    assert code == 1
    assert "2 errors" in err
    assert "23 of 25 images are in" in err
    lines = [line.split()[:3] for line in out.splitlines() if line.startswith("error")]
    assert lines == [["error", "unreadable", "images"], ["error", "same", "image"]]
    with (tmp_path / "a/problems.csv").open(newline="", encoding="utf-8") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    assert paths == ["train/crow/2.jpg", "train/wren/3.jpg"]
    code, out, err = vit(f"check {TINY}", good, "--out", tmp_path / "b")
    assert code == 0, out + err
    assert {path: path.read_bytes() for path in photos.rglob("*.jpg")} == before


def test_mistakes_in_the_words(vit, photos, tmp_path):
    for words, expected in (
        (["fotos"], "did you mean 'photos'"),
        (["photos", "--fix_list", "list.txt"], "must end in .csv"),
        (["photos", "--batch_size", "0"], "--batch_size is 0"),
        (["photos", "--model.variant", "smal"], "did you mean 'small'"),
    ):
        code, _, err = vit("check --out check", tmp_path / words[0], *words[1:])
        assert code == 1
        assert expected in err
        assert len(err.splitlines()) <= 5


def test_data_sets_by_name_are_not_checked(vit):
    code, _, err = vit("check --out check", "hf:photos")
    assert code == 1
    assert "vit check reads folders and manifests, and hf:photos is neither" in err


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")
def test_the_report_in_a_browser(vit, photos, tmp_path):
    (photos / "val/wren/copy.jpg").write_bytes((photos / "train/wren/3.jpg").read_bytes())
    (photos / "train/crow/<img src=x onerror=document.title='hacked'>.jpg").touch()
    vit(f"check {TINY}", photos, "--out", tmp_path / "check")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path}/user",
    ]
    page = f"file://{tmp_path}/check/report.html"
    done = subprocess.run(
        [BROWSER, *options, "--virtual-time-budget=2000", "--dump-dom", page],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert "<title>hacked" not in done.stdout
    assert "&lt;img src=x onerror" in done.stdout
    picture = tmp_path / "page.png"
    command = [BROWSER, *options, f"--screenshot={picture}", "--window-size=1000,1600", page]
    assert subprocess.run(command, capture_output=True, timeout=120, env=os.environ).returncode == 0
    colours = Image.open(picture).convert("RGB").getcolors(1 << 24)
    assert len(colours) > 500, "no pictures are to be seen"  # text and bars alone have few

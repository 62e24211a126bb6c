"""Data sets with planted faults, each a real file: what is found, what is kept, and what it costs."""

import csv
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.doctor.diagnosis import diagnose
from datamodules.doctor.listing import check_fix_list, list_data, write_fix_list
from datamodules.doctor.problems import KINDS
from datamodules.doctor.report import write_problems, write_report
from datamodules.doctor.scan import Scan, scan
from datamodules.image_folder import ImageFolder
from datamodules.scenes import DEMO_SPECIES, draw_scene
from vit.foundation import UserError

ROOT = Path(__file__).parents[3]


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def scene(number, size=64):
    return Image.fromarray(draw_scene(9, number, size=size, species=DEMO_SPECIES).image)


def checked(data, workers=0):
    listing = list_data(Path(data).absolute(), val_fraction=0.2, seed=0)
    found = Scan.empty(len(listing))
    assert sum(scan(listing.paths, found, workers)) == len(listing)
    return diagnose(listing, found)


def told(diagnosis, kind):
    """Names of the problem's images, or its paths, in order."""
    listing = diagnosis.listing
    return [
        listing.name(problem.image) if problem.image >= 0 else problem.path
        for problem in diagnosis.problems
        if problem.kind == kind
    ]


@pytest.fixture
def good(tmp_path):
    """Two classes without a fault: 12 images in train and 2 in val, each."""
    root = tmp_path / "data"
    for number in range(28):
        split = "train" if number < 24 else "val"
        save(root / split / ("crow", "wren")[number % 2] / f"{number:02}.png", scene(number))
    return root


def test_nothing_is_wrong_with_good_data(good):
    found = checked(good)
    assert found.problems == []
    assert found.errors == 0
    assert found.keep == list(range(28))
    assert found.counts.tolist() == [[12, 12], [2, 2], [0, 0]]
    assert found.resolutions == [0, 0, 28, 0, 0, 0, 0, 0, 0, 0]
    assert found.aspects == [0, 0, 0, 0, 28, 0, 0, 0, 0]
    assert "28 images of 2 classes; readable: train 24, val 4" in found.summary()[0]


def test_faults_of_single_images(good):
    crow = good / "train/crow"
    (crow / "empty.jpg").touch()
    save(crow / "cut.jpg", scene(100))
    (crow / "cut.jpg").write_bytes((crow / "cut.jpg").read_bytes()[:-300])
    os.mkfifo(crow / "pipe.jpg")
    (crow / "page.jpg").write_text("<html>not found</html>")
    save(crow / "blank.png", Image.new("RGB", (64, 64), (80, 90, 100)))
    save(crow / "tiny.png", scene(101).resize((40, 31)))
    save(crow / "giant.jpg", Image.linear_gradient("L").resize((7000, 8000), Image.Resampling.NEAREST))
    save(crow / "long.png", scene(102).resize((300, 60)))
    save(crow / "ink.jpg", scene(103).convert("CMYK"))
    save(crow / "grey16.png", Image.fromarray(np.asarray(scene(104).convert("L")).astype(np.uint16) * 257))
    save(crow / "moves.gif", scene(105).quantize(30), save_all=True, append_images=[scene(106).quantize(30)])
    found = checked(good)
    names = {kind: {Path(name).name for name in told(found, kind)} for kind in found.by_kind}
    assert names == {
        "unreadable": {"empty.jpg", "cut.jpg", "pipe.jpg", "page.jpg"},
        "blank": {"blank.png"},
        "tiny": {"tiny.png"},
        "giant": {"giant.jpg"},
        "aspect": {"long.png"},
        "mode": {"ink.jpg", "grey16.png", "moves.gif"},
        "frames": {"moves.gif"},
    }
    assert found.errors == 4
    kept = {Path(found.listing.name(image)).name for image in found.keep}
    assert {"empty.jpg", "cut.jpg", "pipe.jpg", "page.jpg", "blank.png"} & kept == set()
    assert {"tiny.png", "giant.jpg", "long.png", "ink.jpg"} <= kept
    details = {problem.detail for problem in found.problems}
    assert {"the file is empty", "JPEG CMYK", "PNG I;16", "7000 x 8000 pixels", "300 x 60 pixels"} <= details


def test_duplicates_across_splits_and_labels(good):
    same = (good / "train/crow/00.png").read_bytes()
    (good / "train/crow/copy.png").write_bytes(same)  # same split, same label
    (good / "val/wren/leak.png").write_bytes((good / "train/wren/01.png").read_bytes())
    (good / "train/wren/other.png").write_bytes((good / "train/crow/02.png").read_bytes())
    save(good / "val/crow/near.jpg", scene(4).resize((90, 90)), quality=60)
    save(good / "train/wren/near.jpg", scene(6), quality=60)
    save(good / "train/crow/again.jpg", scene(8), quality=60)
    found = checked(good, workers=2)
    assert {kind: sorted(told(found, kind)) for kind in found.by_kind} == {
        "leak": ["train/wren/01.png"],
        "conflict": ["train/crow/02.png", "train/wren/other.png"],
        "near leak": ["train/crow/04.png"],
        "near conflict": ["train/wren/near.jpg"],
        "duplicate": ["train/crow/00.png"],
        "near duplicate": ["train/crow/again.jpg"],
    }
    dropped = {found.listing.name(image) for image in set(range(len(found.listing))) - set(found.keep)}
    assert dropped == {
        "train/wren/01.png", "train/crow/02.png", "train/wren/other.png", "train/crow/04.png", "train/crow/00.png",
    }  # fmt: skip
    leak = next(problem for problem in found.problems if problem.kind == "near leak")
    assert leak.detail == "train/crow, and val/crow: val/crow/near.jpg"


def test_every_copy_in_train_of_a_val_image_is_told(good):
    for number in range(3):
        save(good / f"train/crow/near{number}.jpg", scene(24), quality=50 + 10 * number)
    assert told(checked(good), "near leak") == [f"train/crow/near{number}.jpg" for number in range(3)]


def test_faults_of_classes(good):
    save(good / "val/emu/1.png", scene(200))
    save(good / "train/jay/1.png", scene(201))
    save(good / "train/Crow/1.png", scene(202))
    save(good / "train/.hidden/1.png", scene(203))
    (good / "train/void").mkdir()
    (good / "train/kite").mkdir()
    (good / "train/kite/1.jpg").touch()
    for number in range(210, 230):
        save(good / "train/crow" / f"{number}.png", scene(number))
    found = checked(good)
    assert told(found, "classes") == ["emu", "kite"]
    assert told(found, "unmeasured") == ["Crow", "jay"]
    assert told(found, "few") == ["Crow", "jay"]
    assert told(found, "collision") == ["crow"]
    assert told(found, "ignored") == [".hidden", "void (no images)"]
    imbalance = [problem.detail for problem in found.problems if problem.kind == "imbalance"]
    assert imbalance == ["crow has 32 in train, Crow 1"]


def test_one_class(tmp_path):
    for number in range(12):
        save(tmp_path / "only" / f"{number}.png", scene(number))
    found = checked(tmp_path)
    assert [problem.detail for problem in found.problems if problem.kind == "classes"] == [
        "there is only one class, only"
    ]
    assert "held out by the seed" in found.summary()[0]


def test_an_empty_val_is_none(tmp_path):
    for number in range(24):
        save(tmp_path / "train" / "ab"[number % 2] / f"{number}.png", scene(number))
    (tmp_path / "val").mkdir()
    assert "held out by the seed" in checked(tmp_path).summary()[0]
    for label in "ab":
        save(tmp_path / "val" / label / "0.png", scene(ord(label)))
    assert "held out by the seed" not in checked(tmp_path).summary()[0]


def test_the_splits_are_those_of_training(tmp_path):
    for number in range(20):
        save(tmp_path / ("a", "b")[number % 2] / f"{number}.png", scene(number))
    listing = checked(tmp_path).listing
    trained = ImageFolder(str(tmp_path), image_size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)
    for split in ("train", "val"):
        ours = sorted(listing.name(image) for image in range(20) if listing.split(image) == split)
        assert ours == sorted(trained.names(split))


def test_a_manifest_and_its_faults(tmp_path):
    names = [f"{('crow', 'wren')[number % 2]}/{number:02}.png" for number in range(24)]
    for number, name in enumerate(names):
        save(tmp_path / name, scene(number))
    rows = [f"{name},{name[:4]}" for name in names]
    rows[2] = "crow/02.png,wren"  # the folder says otherwise
    rows += ["crow/04.png,crow", "gone.png,crow", "crow/06.png,", ",crow", "crow/08.png,wren"]
    (tmp_path / "m.csv").write_text("path,label\n" + "\n".join(rows))
    found = checked(tmp_path / "m.csv")
    assert told(found, "missing") == ["gone.png"]
    assert told(found, "label") == ["crow/06.png", ""]
    assert told(found, "duplicate") == ["crow/04.png"]
    assert sorted(told(found, "folder label")) == ["crow/02.png", "crow/08.png"]
    assert told(found, "conflict") == ["crow/08.png"] * 2
    details = [problem.detail for problem in found.problems]
    assert {"line 27: no such file", "line 28: no label", "line 29: no path"} <= set(details)
    assert len(found.listing) == 25
    (tmp_path / "n.csv").write_text("path,label\nno.png,a\n")
    with pytest.raises(UserError, match="no image that exists"):
        checked(tmp_path / "n.csv")


def test_the_fix_list_trains_and_is_without_fault(good, tmp_path):
    (good / "train/crow/bad.jpg").write_bytes(b"\xff\xd8\xff")
    (good / "val/wren/leak.png").write_bytes((good / "train/wren/01.png").read_bytes())
    before = {path: path.read_bytes() for path in good.rglob("*.*")}
    found = checked(good)
    path = tmp_path / "lists" / "good.csv"
    write_fix_list(path, found.listing, found.keep)
    again = checked(path)
    assert again.problems == []
    assert len(again.listing) == 28
    assert again.counts.tolist() == [[12, 11], [2, 3], [0, 0]]
    data = ImageFolder(str(path), image_size=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3)
    assert data.counts() == {"train": {"crow": 12, "wren": 11}, "val": {"crow": 2, "wren": 3}}
    assert {path: path.read_bytes() for path in good.rglob("*.*")} == before


def test_where_a_fix_list_may_be(good, tmp_path):
    (tmp_path / "there.csv").touch()
    (tmp_path / "folder.csv").mkdir()
    check_fix_list(tmp_path / "new.csv", good, overwrite=False)
    check_fix_list(tmp_path / "there.csv", good, overwrite=True)
    for name, data, overwrite, reason in (
        ("there.csv", good, False, "already exists"),
        ("folder.csv", good, True, "not a regular file"),
        ("there.csv", tmp_path / "there.csv", True, "the data itself"),
        ("data/train/crow/00.png", good, True, "must end in .csv"),
    ):
        with pytest.raises(UserError, match=reason):
            check_fix_list(tmp_path / name, data, overwrite=overwrite)


class Page(HTMLParser):
    """What a page holds: its tags with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_report_is_one_page_of_escaped_text(good, tmp_path):
    nasty = "<script>alert(1)</script>&\"'"  # no slash is allowed in a name
    nasty = nasty.replace("/", "∕")
    (good / "train/crow" / f"{nasty}.jpg").touch()
    (good / "train/crow" / os.fsdecode(b"\xff\xfe.jpg")).touch()
    save(good / "train" / nasty / "1.png", scene(50))
    (good / "val/wren/leak.png").write_bytes((good / "train/wren/01.png").read_bytes())
    found = checked(good)
    write_report(found, tmp_path / "report.html", ["<b>line</b>"])
    raw = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(raw)
    assert page.open == []
    tags = {tag for tag, _ in page.tags}
    assert "script" not in tags
    assert {"table", "img", "figure"} <= tags
    assert nasty in page.text
    assert "\\xff\\xfe.jpg" in page.text
    assert "<b>line</b>" in page.text
    for _, attributes in page.tags:
        assert not {"onload", "onerror", "onclick"} & attributes.keys()
        assert attributes.get("src", "data:image/jpeg;base64,").startswith("data:image/jpeg;base64,")
        assert attributes.get("href", "#").startswith("#")
    assert "http" not in raw.replace("http-equiv", "")
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 2  # both of the leak


def test_problems_as_a_table(good, tmp_path):
    (good / 'train/crow/a,"b"\n.jpg').touch()
    (good / "val/wren/leak.png").write_bytes((good / "train/wren/01.png").read_bytes())
    found = checked(good)
    write_problems(found, tmp_path / "problems.csv")
    with (tmp_path / "problems.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(found.problems) == 2
    assert rows[0]["path"] == 'train/crow/a,"b"\n.jpg'
    assert rows[0] | {"path": ""} == {
        "problem": "unreadable", "severity": "error", "path": "", "split": "train", "label": "crow",
        "detail": "the file is empty", "other": "",
    }  # fmt: skip
    assert rows[1]["problem"] == "leak"
    assert rows[1]["other"] == "val/wren/leak.png"


def test_kinds_are_told_in_full():
    for kind in KINDS.values():
        assert kind.severity in ("error", "warning", "note")
        assert kind.advice.endswith(".")
    described = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    for kind in KINDS.values():
        assert f"| {kind.title} | {kind.severity} | {'yes' if kind.dropped else 'no'} |" in described


PROGRAM = """
import resource, sys
import numpy as np
from pathlib import Path
from datamodules.collection import Record
from datamodules.doctor.diagnosis import diagnose
from datamodules.doctor.listing import Listing
from datamodules.doctor.scan import Scan
count = 20_000
rng = np.random.default_rng(0)
targets, splits = rng.integers(0, 2, (2, count))
records = [Record(f"/data/{n}.jpg", (("a",), ("b",))[target]) for n, target in enumerate(targets)]
listing = Listing(Path("/data"), records, ("a", "b"), [("a",), ("b",)], targets, np.sort(splits), False, True, [])
found = Scan.empty(count)
found.kind_names.append("JPEG RGB")
found.sizes[:] = 100
found.contrast[:] = 50
found.content[:] = rng.integers(0, 2**64, count, dtype=np.uint64)
found.looks[:] = rng.integers(0, 2**64, count, dtype=np.uint64)
found.looks[:500] = found.looks[0] ^ (np.uint64(1) << rng.integers(0, 64, 500, dtype=np.uint64))  # a film
found.thumbs[:] = rng.integers(0, 256, found.thumbs.shape, dtype=np.uint8)
found.thumbs[:500] = found.thumbs[0]
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 100_000_000,) * 2)
problems = diagnose(listing, found).by_kind
print(problems)
assert problems["near conflict"] > 200, problems
"""


def test_many_images_in_bounded_memory_and_time():
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_a_scan_keeps_little_of_an_image():
    found = Scan.empty(1000)
    arrays = [value for value in vars(found).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in arrays) <= 256 * 1000


def test_manifests_of_several_labels_and_groups(good, tmp_path):
    names = sorted(path.name for path in (good / "train").glob("*/*.png"))
    lines = [f"data/train/{('crow', 'wren')[int(name[:2]) % 2]}/{name}" for name in names]
    rows = [
        f"{line},{'big|dark' if n % 2 else 'big'},{'val' if n < 4 else ''},{n // 3}" for n, line in enumerate(lines)
    ]
    (tmp_path / "m.csv").write_text("\n".join(["path,labels,split,group", *rows, f"{lines[0]},,huge,"]))
    found = checked(tmp_path / "m.csv")
    assert (found.listing.labels, found.listing.multilabel) == (("big", "dark"), True)
    assert found.counts.tolist() == [[20, 10], [4, 2], [0, 0]]
    assert found.split_counts == {"train": 20, "val": 4}
    assert told(found, "group") == lines[4:6]
    assert told(found, "label") == [lines[0]]
    assert not told(found, "folder label")
    write_fix_list(tmp_path / "fixed.csv", found.listing, found.keep)
    data = ImageFolder(str(tmp_path / "fixed.csv"), image_size=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3)
    assert data.counts() == {"train": {"big": 18, "dark": 9}, "val": {"big": 4, "dark": 2}}
    assert {record.group for record in data.records["val"]} == {"0", "1"}

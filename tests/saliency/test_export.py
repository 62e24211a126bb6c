"""Maps of many photographs as files: each on the right pixels, under its own name, in bounded memory."""

import csv
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from datamodules.transforms import _CentreCrop
from vit.foundation import remove_torn
from vit.models.classifier import Classifier, Preprocessing
from vit.models.encoder import image_encoder
from vit.saliency import export
from vit.saliency.explain import Explanation, explain_batch
from vit.saliency.export import (
    INDEX_COLUMNS,
    WAITING_DRAWINGS,
    ExportOptions,
    Photograph,
    export_maps,
    remaining,
    uncropped,
)
from vit.saliency.export_log import LOG, ExportLog, fingerprint
from vit.saliency.render import overlay, upsample
from vit.saliency.targets import Target

CPU = torch.device("cpu")
PREPARED = Preprocessing((14, 21))
Step = tuple[int, dict[str, str]]


def tiny(labels: tuple[str, ...] = ("crow", "heron", "robin"), num_classes: int = 3) -> Classifier:
    encoder = image_encoder(image_size=(14, 21), patch_size=(7, 7), embed_dim=10, depth=2, num_heads=2)
    return Classifier(encoder, num_classes, labels=labels)


def batch(indices: list[int], skipped: list[tuple[str, str]] | None = None) -> dict[str, Any]:
    """Photos of 30 x 40 pixels, shrunk to 15 x 20."""
    return {
        "image": torch.randn(len(indices), 3, 14, 21),
        "index": torch.tensor(indices, dtype=torch.int64),
        "size": [(30, 40)] * len(indices),
        "photo": [torch.full((15, 20, 3), 10 * index % 256, dtype=torch.uint8) for index in indices],
        "skipped": skipped or [],
    }


def steps(out: Path, batches: Any, count: int, *, model: Classifier | None = None, **options: Any) -> Iterator[Step]:
    prepared, resume = options.pop("prepared", PREPARED), options.pop("resume", False)
    chosen, model = ExportOptions(**options), model or tiny()
    out.mkdir(exist_ok=True)
    with ExportLog(out, fingerprint(model), chosen.facts(prepared), resume=resume) as log:
        yield from export_maps(
            model, batches, photographs(count), out, options=chosen, prepared=prepared, device=CPU, log=log
        )


def photographs(count: int) -> list[Photograph]:
    return [Photograph(f"birds/{index}.jpg", Path(f"birds/{index}")) for index in range(count)]


def index_rows(out: Path) -> list[dict[str, str]]:
    with (out / "index.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def answer(monkeypatch: pytest.MonkeyPatch, maps: Tensor) -> None:
    """The model explains every batch by these maps (B, grid_h, grid_w)."""

    def explain(model: Classifier, images: Tensor, **options: Any) -> Explanation:
        return Explanation(maps[: len(images)], model(images).detach())

    monkeypatch.setattr(export, "explain_batch", explain)


def test_each_photo_gets_its_map_overlay_and_row(tmp_path: Path) -> None:
    model, batches = tiny().eval(), [batch([0, 1]), batch([2], [("/p/3.jpg", "the file is empty")])]
    found = list(steps(tmp_path, batches, 4, model=model))
    assert found == [(2, {}), (1, {"/p/3.jpg": "the file is empty"})]
    explained = [explain_batch(model, each["image"]) for each in batches]
    maps = torch.cat([each.maps for each in explained]).numpy()
    probabilities = torch.cat([each.logits for each in explained]).softmax(1)
    for index, row in enumerate(index_rows(tmp_path)):
        saved = np.load(tmp_path / f"birds/{index}.npy")
        assert saved.dtype == np.float32
        np.testing.assert_allclose(saved, maps[index], rtol=1e-5)
        assert row == {
            "image": f"birds/{index}.jpg", "img_h": "30", "img_w": "40", "truth": "",
            "predicted": model.labels[probabilities[index].argmax()],
            "probability": f"{probabilities[index].max():.6f}",
            "target": "", "method": "default", "map": f"birds/{index}.npy", "grid_h": "2", "grid_w": "3",
            "min": f"{saved.min():.6g}", "max": f"{saved.max():.6g}", "flag": "",
        }  # fmt: skip
        with Image.open(tmp_path / f"birds/{index}.png") as picture:
            picture.load()
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        sheet.load()
    assert tuple(index_rows(tmp_path)[0]) == INDEX_COLUMNS
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"index.csv", "contact_sheet.png", LOG} | {
        f"birds/{n}.{end}" for n in range(3) for end in ("npy", "png")
    }


def test_method_target_and_settings_reach_the_explanation(tmp_path: Path) -> None:
    model, images = tiny().eval(), batch([0])
    given: dict[str, Any] = {"method": "attribution", "start_block": 1, "refine": True}
    list(steps(tmp_path, [images], 1, model=model, **given, target=Target(classes=(2,))))
    np.testing.assert_allclose(
        np.load(tmp_path / "birds/0.npy"),
        explain_batch(model, images["image"], target=2, **given).maps[0].numpy(),
        rtol=1e-5,
    )
    assert [(row["method"], row["target"]) for row in index_rows(tmp_path)] == [("attribution", "robin")]

    settings: dict[str, Any] = {"residual": 0.25, "head_fusion": "max"}
    list(steps(tmp_path, [images], 1, model=model, method="rollout", method_options=settings))
    expected = explain_batch(model, images["image"], method="rollout", **settings).maps[0].numpy()
    np.testing.assert_allclose(np.load(tmp_path / "birds/0.npy"), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (Target(topk=1), {"0": "heron", "1": "robin"}),
        (Target(topk=2), {"0.top1": "heron", "0.top2": "crow", "1.top1": "robin", "1.top2": "heron"}),
        (Target(by_image={"birds/0.jpg": 2, "birds/1.jpg": 0}), {"0": "robin", "1": "crow"}),
    ],
)
def test_each_class_of_a_target_gets_a_map_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Target, expected: dict[str, str]
) -> None:
    """The model says heron, crow, robin of the first photo, and robin, heron, crow of the second."""
    logits = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 2.0]])

    def explain(model: Classifier, images: Tensor, *, target: Tensor | None = None, **options: Any) -> Explanation:
        chosen = logits.argmax(1) if target is None else target  # the map tells its class
        return Explanation(chosen.float()[:, None, None] + torch.arange(6.0).view(1, 2, 3), logits)

    headings: list[str] = []

    def draw(*pictures: np.ndarray, label: str, **options: Any) -> np.ndarray:
        headings.append(label)
        return overlay(*pictures, label=label, **options)

    monkeypatch.setattr(export, "explain_batch", explain)
    monkeypatch.setattr(export, "overlay", draw)
    monkeypatch.setattr(Classifier, "forward", lambda model, images: logits)
    model = tiny()
    list(steps(tmp_path, [batch([0, 1])], 2, model=model, method="legrad", target=target))
    rows = index_rows(tmp_path)
    assert {Path(row["map"]).stem: row["target"] for row in rows} == expected
    assert [row["predicted"] for row in rows] == ["heron"] * (len(rows) // 2) + ["robin"] * (len(rows) // 2)
    for row in rows:
        assert np.load(tmp_path / row["map"])[0, 0] == model.labels.index(row["target"])
        assert (tmp_path / row["map"]).with_suffix(".png").is_file()
    told = [(row["target"], row["predicted"]) for row in rows]
    assert sorted(headings) == sorted(p if t == p else f"map of {t}; predicted {p}" for t, p in told)


def test_classes_without_labels_are_called_by_their_number_and_no_head_by_nothing(tmp_path: Path) -> None:
    list(
        steps(
            tmp_path / "bare", [batch([0])], 1, model=tiny(labels=()), method="attribution", target=Target(classes=(1,))
        )
    )
    list(steps(tmp_path / "headless", [batch([0])], 1, model=tiny(labels=(), num_classes=0)))
    (bare,), (headless,) = index_rows(tmp_path / "bare"), index_rows(tmp_path / "headless")
    assert bare["predicted"] in {"class 0", "class 1", "class 2"}
    assert bare["target"] == "class 1"
    assert (headless["predicted"], headless["probability"]) == ("", "")


def test_a_full_map_has_the_size_of_the_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = torch.arange(6.0).reshape(1, 2, 3)
    answer(monkeypatch, maps)
    list(steps(tmp_path, [batch([0])], 1, full=True))
    full = np.load(tmp_path / "birds/0.full.npy")
    assert full.shape == (30, 40)
    assert full.dtype == np.float32
    expected = torch.nn.functional.interpolate(maps[None], (30, 40), mode="bilinear")[0, 0].numpy()
    np.testing.assert_allclose(full, expected, atol=1e-5)


def test_a_full_map_of_a_crop_is_nan_around_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, torch.arange(6.0).reshape(1, 2, 3))
    list(steps(tmp_path, [batch([0])], 1, full=True, prepared=Preprocessing((14, 21), resize_mode="crop")))
    covered = ~np.isnan(np.load(tmp_path / "birds/0.full.npy"))
    # Of 30 x 40 scaled to 16 x 21 the rows 1 to 15 are seen, which are 1.9 to 28.1 of 30.
    assert np.flatnonzero(covered.any(axis=1)).tolist() == list(range(2, 28))
    assert covered[2:28].all()


# Sizes of photo and model, share that is kept -> (top, bottom, left, right) of the crop, by hand.
CROPS = [
    ((40, 100), (20, 20), 1.0, (0, 40, 30, 70)),
    ((100, 40), (20, 20), 1.0, (30, 70, 0, 40)),
    ((40, 100), (20, 20), 0.5, (10, 30, 40, 60)),
    ((60, 60), (20, 40), 1.0, (15, 45, 0, 60)),
    ((30, 60), (20, 40), 1.0, (0, 30, 0, 60)),
]


@pytest.mark.parametrize(("size", "image_size", "crop_pct", "rectangle"), CROPS)
def test_the_map_of_a_crop_lies_where_the_crop_was(
    size: tuple[int, int], image_size: tuple[int, int], crop_pct: float, rectangle: tuple[int, int, int, int]
) -> None:
    grid = np.array([[1.0, 2.0], [3.0, 5.0]], np.float32)
    full = uncropped(grid, size, Preprocessing(image_size, resize_mode="crop", crop_pct=crop_pct))
    top, bottom, left, right = rectangle
    assert full.shape == size
    np.testing.assert_array_equal(full[top:bottom, left:right], upsample(grid, (bottom - top, right - left)))
    full[top:bottom, left:right] = np.nan
    assert np.isnan(full).all()


def seen_by_the_transform(size: tuple[int, int], prepared: Preprocessing, axis: int) -> tuple[float, float]:
    """Where the crop that the model gets begins and ends in the photo, read from a photo of rising numbers.

    From its inner pixels, as the filter bends the ramp where the photo ends.
    """
    places = np.arange(size[axis], dtype=np.float32) + 0.5
    ramp = np.ascontiguousarray(np.broadcast_to(np.expand_dims(places, 1 - axis), size))
    crop = _CentreCrop(prepared.image_size, prepared.crop_pct, Image.Resampling.BILINEAR).apply(ramp)
    line = np.moveaxis(crop, axis, 0)[:, crop.shape[1 - axis] // 2].astype(np.float64)
    first, last = len(line) // 4, 3 * len(line) // 4
    step = (line[last] - line[first]) / (last - first)
    start = line[first] - (first + 0.5) * step
    return start, start + len(line) * step


# Sizes of photo and model, share that is kept: all with some rounding on the way.
ROUNDED = [
    ((1000, 1500), (32, 32), 0.875),
    ((1000, 1500), (96, 128), 0.9),
    ((1500, 1000), (37, 37), 0.95),
    ((613, 997), (35, 21), 1.0),
    ((23, 31), (40, 40), 0.9),  # enlarged
]


@pytest.mark.parametrize(("size", "image_size", "crop_pct"), ROUNDED)
@pytest.mark.parametrize("shrunk", [1, 0.4])
def test_the_map_of_a_crop_lies_where_the_transform_cut(
    size: tuple[int, int], image_size: tuple[int, int], crop_pct: float, shrunk: float
) -> None:
    """Also on a smaller copy of the photo: what was seen follows from the photo itself."""
    prepared = Preprocessing(image_size, resize_mode="crop", crop_pct=crop_pct)
    shown = (round(size[0] * shrunk), round(size[1] * shrunk))
    covered = ~np.isnan(uncropped(np.eye(2, dtype=np.float32), size, prepared, shown=shown))
    assert covered.shape == shown
    for axis in (0, 1):
        places = np.flatnonzero(covered.any(axis=1 - axis))
        ends = (places[0], places[-1] + 1)
        truth = [end * shown[axis] / size[axis] for end in seen_by_the_transform(size, prepared, axis)]
        assert ends == pytest.approx(truth, abs=0.51)  # the nearest whole pixel


def test_of_a_crop_one_pixel_at_least_is_shown() -> None:
    prepared = Preprocessing((32, 32), resize_mode="crop")
    full = uncropped(np.eye(2, dtype=np.float32), (10_000, 4), prepared, shown=(768, 1))
    assert (~np.isnan(full)).sum() == 1


def test_a_map_that_is_none_is_flagged_and_not_drawn_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = torch.rand(4, 2, 3)
    maps[0], maps[1], maps[2, 0, 0] = torch.nan, 0, torch.nan
    answer(monkeypatch, maps)
    list(steps(tmp_path, [batch([0, 1, 2, 3])], 4))
    rows = index_rows(tmp_path)
    assert [row["flag"] for row in rows] == ["NaN", "all zero", "partly NaN", ""]
    assert [(row["min"], row["max"]) for row in rows[:2]] == [("", ""), ("0", "0")]
    assert rows[2]["max"] == f"{maps[2][maps[2].isfinite()].max():.6g}"
    for index, grey in enumerate([True, True, False, False]):
        with Image.open(tmp_path / f"birds/{index}.png") as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        assert (np.ptp(pixels, axis=2).max() == 0) == grey  # colour in an overlay is always a map's


def test_the_rows_stand_in_the_order_of_the_photos_though_drawings_end_in_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn_later = threading.Event()
    draw = export.write_one

    def out_of_order(job: export.Job, *rest: Any) -> Any:
        if job.name.endswith("/0.jpg"):
            assert drawn_later.wait(30)
        result = draw(job, *rest)
        if job.name.endswith("/3.jpg"):
            drawn_later.set()
        return result

    monkeypatch.setattr(export, "write_one", out_of_order)
    monkeypatch.setattr(export, "_drawing_threads", lambda device: 2)
    list(steps(tmp_path, [batch([0, 1]), batch([2, 3])], 4))
    assert [row["image"] for row in index_rows(tmp_path)] == [f"birds/{index}.jpg" for index in range(4)]


def test_no_more_photos_are_held_than_may_wait_for_their_drawing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The drawings stand still until the model has to wait for them: it may be so far ahead and no farther."""
    size, count = 10, 3 * WAITING_DRAWINGS // 10
    lock, go_on = threading.Lock(), threading.Event()
    begun, done, held = 0, 0, []
    draw = export.write_one

    def slowly(*given: Any) -> Any:
        nonlocal done
        assert go_on.wait(30)
        result = draw(*given)
        with lock:
            done += 1
        return result

    def reading() -> Iterator[dict[str, Any]]:
        nonlocal begun
        for number in range(count):
            held.append(begun - done)
            if begun + size > WAITING_DRAWINGS:
                go_on.set()
            begun += size
            yield batch(list(range(number * size, (number + 1) * size)))

    monkeypatch.setattr(export, "write_one", slowly)
    monkeypatch.setattr(export, "overlay", lambda photo, *rest, **options: photo)
    explaining = steps(tmp_path, reading(), count * size)
    assert next(explaining) == (size, {})  # a step a batch, while nothing is drawn yet
    assert done == 0
    list(explaining)
    assert WAITING_DRAWINGS - size <= max(held) <= WAITING_DRAWINGS
    assert done == len(index_rows(tmp_path)) == count * size


def test_a_drawing_that_fails_ends_the_export_without_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = export.write_one

    def full_disk(job: export.Job, *rest: Any) -> Any:
        if job.name.endswith("/2.jpg"):
            raise OSError(28, "No space left on device")
        return draw(job, *rest)

    monkeypatch.setattr(export, "write_one", full_disk)
    with pytest.raises(OSError, match="No space left"):
        list(steps(tmp_path, [batch([0, 1]), batch([2, 3]), batch([4])], 5))
    assert {path.name for path in tmp_path.iterdir()} == {LOG, "birds"}
    assert not (tmp_path / "birds/2.png").exists()


def test_photos_that_can_not_be_read_are_passed_on_and_have_no_row(tmp_path: Path) -> None:
    skipped = [("/p/1.jpg", "the file is empty"), ("/p/2.jpg", "damaged")]
    assert list(steps(tmp_path, [batch([0]), batch([], skipped)], 3)) == [(1, {}), (0, dict(skipped))]
    assert [row["image"] for row in index_rows(tmp_path)] == ["birds/0.jpg"]


def test_the_contact_sheet_shows_the_first_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    def sheet(overlays: Any, *, per_page: int) -> Iterator[np.ndarray]:
        shown.extend(caption for _, caption in overlays)
        yield np.zeros((4, 4, 3), np.uint8)

    monkeypatch.setattr(export, "contact_sheet", sheet)
    monkeypatch.setattr(export, "SHEET_OVERLAYS", 3)
    list(steps(tmp_path, [batch([0, 1]), batch([2, 3, 4])], 5))
    assert shown == ["birds/0.jpg", "birds/1.jpg", "birds/2.jpg"]
    assert len(index_rows(tmp_path)) == 5


def test_maps_outlive_a_power_cut_and_opencv_gets_its_threads_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def remember(descriptor: int) -> None:
        synced.append(Path(f"/dev/fd/{descriptor}").resolve().suffix)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", remember)
    threads = cv2.getNumThreads()
    list(steps(tmp_path, [batch([0, 1])], 2))
    assert sorted(synced) == [".csv", ".npy", ".npy"]  # a lost overlay can be drawn again
    assert cv2.getNumThreads() == threads


def export_of(folder: Path, count: int, *, resume: bool = False, **options: Any) -> list[int]:
    """Explains the photos that are not done, two at a time; returns their places. The photos follow from theirs."""
    torch.manual_seed(0)
    model, chosen = tiny().eval(), ExportOptions(**{"method": "rollout"} | options)
    folder.mkdir(exist_ok=True)
    with ExportLog(folder, fingerprint(model), chosen.facts(PREPARED), resume=resume) as log:
        remove_torn({(folder / path).parent for each in photographs(count) for path in chosen.files(each.stem)})
        places = remaining(photographs(count), folder, chosen, log)

        def reading() -> Iterator[dict[str, Any]]:
            for start in range(0, len(places), 2):
                found = batch(places[start : start + 2])
                found["image"] = torch.stack([image_of(place) for place in places[start : start + 2]])
                yield found | {"index": torch.arange(start, min(start + 2, len(places)))}

        list(
            export_maps(
                model, reading(), photographs(count), folder, places=places, options=chosen, prepared=PREPARED,
                device=CPU, log=log,
            )
        )  # fmt: skip
    return places


def image_of(place: int) -> Tensor:
    return torch.randn(3, 14, 21, generator=torch.Generator().manual_seed(place))


def all_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_killed_export_is_resumed(tmp_path: Path) -> None:
    """Killed by SIGKILL a few times: each goes on where the last one stood, and nothing tells them from one export."""
    count, moments = 90, np.random.default_rng(0)
    export_of(tmp_path / "whole", count, gallery=True)
    done = [0]
    while len(done) < 20 and (tmp_path / "killed" / "index.csv").exists() is False:
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            export_of(tmp_path / "killed", count, resume=True, gallery=True)
            os._exit(0)
        if len(done) < 5:
            log, start = tmp_path / "killed" / LOG, time.monotonic()
            while time.monotonic() < start + 60 and (not log.exists() or log.read_bytes().count(b"\n") < done[-1] + 9):
                time.sleep(0.001)
            time.sleep(moments.uniform(0, 0.02))
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        done.append((tmp_path / "killed" / LOG).read_bytes().count(b"\n"))
    assert len(done) == 6, done  # four kills, and one that came to its end
    assert done == sorted(set(done)), done
    assert done[-1] == 1 + count  # a line a map: none was done twice
    assert all_files(tmp_path / "killed") == all_files(tmp_path / "whole")


def test_what_is_there_is_not_done_again(tmp_path: Path) -> None:
    assert export_of(tmp_path, 5) == [0, 1, 2, 3, 4]
    before = all_files(tmp_path)
    assert export_of(tmp_path, 5, resume=True) == []
    assert all_files(tmp_path) == before
    (tmp_path / "birds/1.npy").unlink()
    (tmp_path / "birds/3.png").write_bytes(b"")  # as after a power cut
    assert export_of(tmp_path, 5, resume=True) == [1, 3]
    assert {name: data for name, data in all_files(tmp_path).items() if name != LOG} == {
        name: data for name, data in before.items() if name != LOG
    }
    assert export_of(tmp_path, 7, resume=True) == [5, 6]  # two more photos
    assert [row["image"] for row in index_rows(tmp_path)] == [f"birds/{index}.jpg" for index in range(7)]
    assert export_of(tmp_path, 7) == list(range(7))  # without resume, from the start


def test_where_nothing_was_explained_there_is_no_index(tmp_path: Path) -> None:
    assert list(steps(tmp_path, [batch([], [("/p/1.jpg", "damaged")])], 1, gallery=True)) == [
        (0, {"/p/1.jpg": "damaged"})
    ]
    assert list(tmp_path.iterdir()) == []


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not tell a process's memory")
def test_memory_does_not_grow_with_the_photos(tmp_path: Path) -> None:
    """Three times as many photos: no more memory. To hold the overlays of 200 photos would take 60 MB."""
    grown = []
    for number, _ in enumerate(steps(tmp_path, (batch([n]) for n in range(300)), 300, gallery=True), start=1):
        if number in (100, 300):
            grown.append(resident())
    assert grown[1] - grown[0] < 10 * 2**20
    assert len(index_rows(tmp_path)) == 300

"""The cache of decoded photographs: it changes nothing, and survives what may befall its files."""

import logging
import multiprocessing
import os
import time

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import photo_cache, photographs
from datamodules.image_folder import ImageFolder
from datamodules.photo_cache import PhotoCache
from datamodules.reading import Photo
from vit.foundation import UserError

OPTIONS = {"image_size": (29, 23), "mean": (0.5,) * 3, "std": (0.25,) * 3, "num_workers": 0, "batch_size": 5}


@pytest.fixture
def photos(tmp_path):
    """Ten photos of several formats and sizes, one of them no image."""
    rng = np.random.default_rng(0)
    for number in range(10):
        suffix = ("jpg", "png", "webp", "gif")[number % 4]
        pixels = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8))
        place = tmp_path / "photos" / ("train", "val")[number // 7] / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels.resize((150 + 60 * number, 400)).save(place / f"{number}.{suffix}")
    (tmp_path / "photos/train/a/broken.jpg").write_bytes(b"no image")
    return tmp_path / "photos"


def batches(root, **options):
    """All that an epoch of training and one of evaluation give."""
    data = ImageFolder(str(root), **(OPTIONS | options))
    loader = data.train_dataloader()
    loader.sampler.set_epoch(2)
    return [*loader, *data.val_dataloader()]


def assert_equal(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert torch.equal(one["image"], other["image"])
        assert one["index"].tolist() == other["index"].tolist()
        assert one["skipped"] == other["skipped"]


@pytest.mark.parametrize("options", [{}, {"resize_mode": "crop", "crop_pct": 0.9}, {"crop_scale": 1.0}])
def test_it_changes_nothing(photos, tmp_path, monkeypatch, options):
    expected = batches(photos, **options)
    options["cache"] = str(tmp_path / "cache")
    assert_equal(batches(photos, **options), expected)
    files = sorted((tmp_path / "cache").glob("*/*.photo"))
    assert len(files) == 10
    monkeypatch.setattr(photographs, "read_photo", lambda path, **_: pytest.fail(f"decoded again: {path}"))
    (photos / "train/a/broken.jpg").unlink()
    again = ImageFolder(str(photos), **(OPTIONS | options))
    assert [len(batch["image"]) for batch in [*again.train_dataloader(), *again.val_dataloader()]] == [5, 2, 3]


def test_entries_are_small_where_they_can_be(photos, tmp_path):
    batches(photos, cache=str(tmp_path / "cache"))
    sizes = sorted(path.stat().st_size for path in (tmp_path / "cache").glob("*/*.photo"))
    assert sizes[:3] == pytest.approx([3 * 29 * 23] * 3, abs=60)  # those of val, resized
    # A JPEG of 390 x 400 is decoded at a quarter of its size: for crops of 35%, 45 x 57 pixels would be enough.
    assert any(abs(size - 3 * 98 * 100) < 60 for size in sizes)


def test_a_photo_that_changed_is_read_again(photos, tmp_path):
    options = {"cache": str(tmp_path / "cache")}
    batches(photos, **options)
    path = next((photos / "val").rglob("7.*"))
    Image.new("RGB", (300, 300), "red").save(path)
    assert_equal(batches(photos, **options), batches(photos))


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b"",
                                    lambda b: b + b"x", lambda b: bytes(len(b)), lambda b: b[:30]])  # fmt: skip
def test_a_damaged_entry_is_made_anew(photos, tmp_path, damage):
    expected = batches(photos, cache=str(tmp_path / "cache"))
    for path in (tmp_path / "cache").glob("*/*.photo"):
        path.write_bytes(damage(path.read_bytes()))
    assert_equal(batches(photos, cache=str(tmp_path / "cache")), expected)
    assert len(list((tmp_path / "cache").glob("*/*.photo"))) == 10


def test_bounded(photos, tmp_path, caplog):
    cache = tmp_path / "cache"
    with caplog.at_level(logging.WARNING):
        assert_equal(batches(photos, cache=str(cache), cache_gb=1e-4), batches(photos))
    assert 0 < sum(path.stat().st_size for path in cache.glob("*/*.photo")) <= 1e5
    assert caplog.text.count("only read from now on: it is full") == 1


def test_a_disk_that_is_full_stops_nothing(photos, tmp_path, caplog, monkeypatch):
    cache = tmp_path / "cache"
    expected = batches(photos)
    data = ImageFolder(str(photos), cache=str(cache), **OPTIONS)
    (cache / "00").mkdir()
    for number in range(256):  # nothing can be made in a file
        place = cache / f"{number:02x}"
        place.rmdir() if place.is_dir() else None
        place.write_bytes(b"")
    assert_equal([*data.val_dataloader()], expected[2:])
    assert "is only read from now on" in caplog.text
    with pytest.raises(UserError, match="Can't create the cache"):
        ImageFolder(str(photos), cache=str(cache / "00"), **OPTIONS)


def test_what_a_kill_left_is_removed_in_time(tmp_path):
    place = tmp_path / "cache" / "ab"
    place.mkdir(parents=True)
    old, new = place / ".x.photo", place / ".y.photo"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    PhotoCache(tmp_path / "cache", 1e9)
    assert not old.exists()
    assert new.exists()


def hammer(cache, seed, errors):
    """Asks for the same 40 photos in another order, each of which has its own pixels."""
    order = np.random.default_rng(seed).permutation(np.repeat(np.arange(40), 5))
    for number in order.tolist():
        made = Photo(np.full((37, 41, 3), number, np.uint8), (74, 82), f"note {number}", "JPEG RGB")
        found = cache.photo(b"%d" % number, "test", lambda made=made: made)
        if not (found.image == number).all() or found[1:] != made[1:]:
            errors.value += 1


def test_concurrent_writers(tmp_path, monkeypatch):
    monkeypatch.setattr(photo_cache, "_RECOUNT", 20)
    context = multiprocessing.get_context("fork")
    errors = context.Value("i", 0)
    caches = [PhotoCache(tmp_path / "cache", 1e9) for _ in range(2)]  # of two runs
    writers = [context.Process(target=hammer, args=(caches[n % 2], n, errors)) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert errors.value == 0
    assert len(list((tmp_path / "cache").glob("*/[!.]*.photo"))) == 40
    assert not list((tmp_path / "cache").glob("*/.*"))


def test_workers_share_it(photos, tmp_path):
    options = {"cache": str(tmp_path / "cache"), "num_workers": 2, "batch_size": 2}
    expected = batches(photos, batch_size=2)
    assert_equal(batches(photos, **options), expected)
    assert_equal(batches(photos, **options), expected)

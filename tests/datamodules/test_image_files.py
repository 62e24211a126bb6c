"""Finding photos in real trees, naming their outputs, and reading them in batches."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import image_files
from datamodules.image_files import ImageFiles, find_images, list_images
from datamodules.reading import FORMATS, read_image
from datamodules.sampling import Skipped
from datamodules.transforms import eval_transform
from vit.foundation import UserError

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
DATA = Path(__file__).parents[3] / "shared" / "data"


def photo(path, number=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (31, 41, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def relatives(files):
    return [str(file.relative) for file in files]


def few_lines(error):
    assert 1 <= len(str(error.value).splitlines()) <= 5
    return str(error.value)


def test_a_folder_is_listed_deeply_and_sorted(tmp_path):
    for name in ("b/z.JPG", "b/a.png", "a.jpeg", "b/c/d/e.webp", ".hidden.jpg", "__MACOSX/f.jpg", "b/._a.png",
                 ".ipynb_checkpoints/g.jpg"):  # fmt: skip
        photo(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("no photo")
    files = list_images([tmp_path / "in"])
    assert relatives(files) == ["a.jpeg", "b/a.png", "b/c/d/e.webp", "b/z.JPG"]
    assert [str(file.output_stem) for file in files] == ["a", "b/a", "b/c/d/e", "b/z"]
    assert all(file.path.is_absolute() and file.path.is_file() for file in files)


def test_a_limit_takes_some_of_all_under_the_names_that_they_have(tmp_path):
    for name in ("a/1.png", "a/1.jpg", "b/1.png", "b/2.png"):
        photo(tmp_path / name)
    files = list_images([tmp_path], limit=2)
    assert [str(file.output_stem) for file in files] == ["a/1.jpg", "b/1"]
    assert len(list_images([tmp_path], limit=9)) == 4


def test_listing_does_not_depend_on_the_order_of_the_directory(tmp_path, monkeypatch):
    for name in "qwertyuiop":
        photo(tmp_path / name / f"{name}.jpg")
    usual = list_images([tmp_path])
    entries = image_files._entries
    monkeypatch.setattr(image_files, "_entries", lambda place: entries(place)[::-1])
    assert list_images([tmp_path]) == usual


def test_symlink_loops_give_each_file_once(tmp_path):
    photo(tmp_path / "in/a/x.jpg")
    photo(tmp_path / "in/b/y.jpg")
    photo(tmp_path / "store/z.jpg")
    photo(tmp_path / "other.jpg")
    (tmp_path / "in/a/up").symlink_to(tmp_path / "in")
    (tmp_path / "in/a/further_up").symlink_to(tmp_path)
    (tmp_path / "in/a/self").symlink_to(tmp_path / "in/a")
    (tmp_path / "in/aa").symlink_to(tmp_path / "in/b")
    (tmp_path / "in/loop").symlink_to(tmp_path / "in/loop")
    (tmp_path / "in/stored").symlink_to(tmp_path / "store")
    (tmp_path / "store/back").symlink_to(tmp_path / "in/a")
    assert relatives(list_images([tmp_path / "in"])) == ["a/x.jpg", "b/y.jpg", "stored/z.jpg"]


def test_odd_things_named_as_images_are_listed_and_skipped_with_a_reason(tmp_path):
    photo(tmp_path / "good.png")
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "dangling.jpg").symlink_to("nowhere")
    (tmp_path / "empty.jpg").touch()
    files = list_images([tmp_path])
    (batch,) = ImageFiles(files, (7, 11), MEAN, STD).loader(8, 0)
    assert batch["index"].tolist() == [files.index(next(f for f in files if f.path.stem == "good"))]
    assert sorted(Path(path).name for path, _ in batch["skipped"]) == [
        "dangling.jpg", "empty.jpg", "fifo.jpg", "folder.jpg"
    ]  # fmt: skip


def test_outputs_never_collide(tmp_path):
    for name in ("a/x.jpg", "b/x.jpg", "a/x.png", "a/x.jpg.jpg", "a/y.jpg"):
        photo(tmp_path / name)
    stems = {str(f.relative): str(f.output_stem) for f in list_images([tmp_path / "a", tmp_path / "b"])}
    assert stems == {
        "a/x.jpg": "a/x.jpg", "a/x.png": "a/x.png", "a/x.jpg.jpg": "a/x.jpg.jpg", "a/y.jpg": "a/y",
        "b/x.jpg": "b/x",
    }  # fmt: skip
    files = list_images([tmp_path / "a/x.jpg", tmp_path / "b" / ".." / "b/x.jpg", tmp_path / "a/x.jpg"])
    assert [str(file.output_stem) for file in files] == ["a/x", "b/x"]


def test_globs_and_names_that_look_like_globs(tmp_path, monkeypatch):
    for name in ("p/a1.jpg", "p/a2.png", "p/b1.jpg", "p/deep/a3.jpg", "p/bird[1].jpg", "p/a.txt"):
        photo(tmp_path / name) if not name.endswith("txt") else (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert relatives(list_images(["p/a*"])) == ["a1.jpg", "a2.png"]
    assert relatives(list_images(["p/*"])) == ["a1.jpg", "a2.png", "b1.jpg", "bird[1].jpg", "deep/a3.jpg"]
    assert relatives(list_images(["p/**/a?.jpg"])) == ["a1.jpg", "deep/a3.jpg"]
    assert relatives(list_images(["p/bird[1].jpg"])) == ["bird[1].jpg"]
    assert relatives(list_images(["./p/../p/a1.jpg"])) == ["a1.jpg"]


def test_errors_say_what_is_there(tmp_path):
    photo(tmp_path / "photos/robin.jpg")
    (tmp_path / "bare").mkdir()
    for argument, expected in {
        "photos/robbin.jpg": "did you mean 'robin.jpg'",
        "fotos": "did you mean 'photos'",
        "fotos/robin.jpg": "did you mean 'photos'",
        "bare": "holds no images",
        "photos/*.png": "holds no images",
    }.items():
        with pytest.raises(UserError) as error:
            list_images([tmp_path / argument])
        assert expected in few_lines(error)
    with pytest.raises(UserError) as error:
        list_images([])
    few_lines(error)


@pytest.mark.skipif(image_files.formats() != FORMATS, reason="the plugin for HEIC is installed")
def test_heic_names_the_plugin(tmp_path):
    photo(tmp_path / "a.jpg")
    (tmp_path / "b.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(UserError) as error:
        list_images([tmp_path])
    assert "pip install pillow-heif" in few_lines(error)
    assert "b.HEIC" in str(error.value)


def test_names_that_are_not_utf8(tmp_path):
    name = os.path.join(os.fsencode(tmp_path), b"\xffbird.png")  # noqa: PTH118
    Path(os.fsdecode(name)).write_bytes(photo(tmp_path / "x.png").read_bytes())
    (tmp_path / "x.png").unlink()
    files = list_images([tmp_path])
    assert len(files) == 1
    (batch,) = ImageFiles(files, (7, 11), MEAN, STD).loader(2, 0)
    assert len(batch["image"]) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_batches(tmp_path, workers):
    paths = [photo(tmp_path / f"{number}.png", number) for number in range(5)]
    paths[1].write_bytes(paths[1].read_bytes()[:90])
    paths[4].write_bytes(b"")
    dataset = ImageFiles(list_images([tmp_path]), (7, 11), MEAN, STD, photo_side=100)
    batches = list(dataset.loader(2, workers))
    assert [batch["index"].tolist() for batch in batches] == [[0], [2, 3], []]
    skipped = [[Path(path).name for path, _ in batch["skipped"]] for batch in batches]
    assert skipped == [["1.png"], [], ["4.png"]]
    assert batches[2]["image"].shape == (0, 3, 7, 11)
    assert batches[2]["photo"] == batches[2]["size"] == []
    assert batches[1]["size"] == [(31, 41), (31, 41)]
    np.testing.assert_array_equal(batches[1]["photo"][0].numpy(), read_image(paths[2]))
    expected = eval_transform((7, 11), MEAN, STD)(read_image(paths[2]))
    assert torch.equal(batches[1]["image"][0], expected)


def test_photos_to_draw_on_are_shrunk_and_their_size_is_told(tmp_path):
    for name in ("small.png", "large.jpg"):
        Image.new("RGB", (400, 300) if name == "large.jpg" else (40, 30), "teal").save(tmp_path / name)
    large, small = (ImageFiles(list_images([tmp_path]), (7, 11), MEAN, STD, photo_side=60)[n] for n in (0, 1))
    assert large["photo"].shape == (45, 60, 3)
    assert large["size"] == (300, 400)
    assert small["photo"].shape == (30, 40, 3)
    assert (large["photo"][0, 0] - torch.tensor([0, 128, 128])).abs().max() < 4


@pytest.mark.parametrize("workers", [0, 2])
def test_strict_is_an_error_in_few_lines(tmp_path, workers):
    photo(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"<html>")
    dataset = ImageFiles(list_images([tmp_path]), (7, 11), MEAN, STD)
    with pytest.raises(UserError) as error:
        list(dataset.loader(1, workers, strict=True))
    assert "b.png: a web page" in few_lines(error)


def test_an_item_is_skipped_with_its_reason(tmp_path):
    (tmp_path / "a.png").touch()
    item = ImageFiles(list_images([tmp_path]), (7, 11), MEAN, STD)[0]
    assert item == Skipped(str(tmp_path / "a.png"), "the file is empty")


def test_further_frames_are_reported_once(tmp_path, caplog):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for name in ("a.gif", "b.gif", "c.gif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    loader = ImageFiles(list_images([tmp_path]), (7, 11), MEAN, STD).loader(1, 0)
    batches = [*loader, *loader]
    assert len(caplog.records) == 1
    assert "a.gif has several frames" in caplog.text
    assert all("notes" not in batch for batch in batches)


def test_find_images_stays_out_of_other_folders(tmp_path):
    photo(tmp_path / "a/x.jpg")
    photo(tmp_path / "b/y.jpg")
    (tmp_path / "a/link").symlink_to(tmp_path / "b")
    assert len(find_images(tmp_path / "a")) == 2
    assert len(find_images(tmp_path / "a", [tmp_path / "b"])) == 1


def test_what_lies_elsewhere_is_left_out_of_folders_and_globs(tmp_path, monkeypatch):
    for name in ("p/x.png", "p/deep/y.png"):
        photo(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    arguments = (["p"], ["p/*"], ["p/**/*.png"])
    before = [list_images(given, elsewhere=["p/maps"]) for given in arguments]  # there is none yet
    photo(tmp_path / "p/maps/x.png")
    photo(tmp_path / "p/maps/deep/y.png")
    (tmp_path / "p/link").symlink_to(tmp_path / "p/maps")
    assert [list_images(given, elsewhere=["p/maps"]) for given in arguments] == before
    assert relatives(list_images(["p"])) == ["deep/y.png", "maps/deep/y.png", "maps/x.png", "x.png"]
    for named in ("p/maps/x.png", "p/maps", "p/maps/x.*"):  # what is asked for is not passed over
        assert "maps/x.png" in relatives(list_images(["p", named], elsewhere=["p/maps"]))


@pytest.mark.skipif(not DATA.is_dir(), reason="the real photographs are not here")
def test_real_photographs_all_load():
    files = list_images([DATA / "masks/images"])
    assert len(files) == 108
    assert len({file.output_stem for file in files}) == 108
    seen = 0
    for batch in ImageFiles(files, (56, 56), MEAN, STD).loader(16, 0):
        assert batch["skipped"] == []
        assert torch.isfinite(batch["image"]).all()
        seen += len(batch["image"])
    assert seen == 108

"""The files of `vit explain`, as it is typed: their names, the index, the gallery, going on, and what is left alone."""

import hashlib
import os
from pathlib import Path

import numpy as np
import torch

from tests.verbs import Vit, files, is_png, peak, photo, rows, sees_bright
from vit.checkpoints.folder import write_folder

EXPORT = {"index.csv", "contact_sheet.png", "export.jsonl"}


def test_explain_mirrors_the_tree_of_the_photos(vit: Vit, model: Path, tmp_path: Path) -> None:
    """Three photos of one stem, each bright in another place: none overwrites another."""
    photo(tmp_path / "photos" / "a" / "x.jpg", (32, 32), (0, 8, 0, 8))
    photo(tmp_path / "photos" / "a" / "x.png", (32, 32), (8, 16, 16, 24))
    photo(tmp_path / "photos" / "b" / "deep" / "x.jpg", (32, 32), (24, 32, 8, 16))
    out = tmp_path / "maps"
    ran = vit(f"explain {model} {tmp_path}/photos --batch_size 2 --num_workers 0 --out {out}")
    assert ran.code == 0, ran.err
    stems = {"a/x.jpg": (0, 0), "a/x.png": (1, 2), "b/deep/x": (3, 1)}
    for stem, place in stems.items():
        saliency = np.load(out / f"{stem}.npy")
        assert saliency.shape == (4, 4)
        assert saliency.dtype == np.float32
        assert peak(out / f"{stem}.npy") == place
        assert is_png(out / f"{stem}.png")
    assert files(out) == {*EXPORT, *(f"{s}.{end}" for s in stems for end in ("npy", "png"))}
    assert is_png(out / "contact_sheet.png")


def test_the_index_of_the_maps(vit: Vit, model: Path, tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "x.png", (40, 60), (10, 20, 15, 30))
    out = tmp_path / "maps"
    assert vit(f"explain {model} {tmp_path}/photos --num_workers 0 --out {out}").code == 0
    (row,) = rows(out / "index.csv")
    saliency = np.load(out / "x.npy")
    assert float(row.pop("probability")) > 0.9
    assert row == {
        "image": "x.png", "img_h": "40", "img_w": "60", "truth": "", "predicted": "bright", "target": "",
        "method": "default", "map": "x.npy", "grid_h": "4", "grid_w": "4", "min": f"{saliency.min():.6g}",
        "max": f"{saliency.max():.6g}", "flag": "",
    }  # fmt: skip


def test_photos_called_like_files_of_the_export_keep_their_own_names(vit: Vit, model: Path, tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "contact_sheet.png")
    photo(tmp_path / "photos" / "x.full.png", (32, 32), (0, 8, 0, 8))
    photo(tmp_path / "photos" / "x.full.png.jpg")
    photo(tmp_path / "photos" / "x.top1.png")
    photo(tmp_path / "photos" / "x.png")
    out = tmp_path / "maps"
    assert vit(f"explain {model} {tmp_path}/photos --full --num_workers 0 --out {out}").code == 0
    ends = ("npy", "full.npy", "png")
    stems = ("contact_sheet.png", "x.full.png", "x.full.png.jpg", "x.top1.png", "x")
    assert files(out) == {*EXPORT, *(f"{stem}.{end}" for stem in stems for end in ends)}
    assert np.load(out / "x.full.npy").shape == (32, 32)
    assert peak(out / "x.full.png.npy") == (0, 0)


def test_an_export_is_resumed_and_its_gallery_has_scores(vit: Vit, model: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        photo(tmp_path / "photos" / "bright" / f"{name}.png", (32, 32), (16, 24, 24, 32))
    out = tmp_path / "maps"
    line = f"explain {model} {tmp_path}/photos --num_workers 0 --method rollout --gallery --out {out}"
    assert vit(f"{line} --resume").code == 0  # where there is nothing yet, from the start
    (out / "bright" / "b.npy").unlink()
    (out / "bright" / ".a.0123456789abcdef.npy").touch()  # as a killed process leaves it
    (out / ".index.0123456789abcdef.csv").touch()
    untouched = (out / "bright" / "a.npy").stat().st_mtime_ns
    (tmp_path / "scores.csv").write_text(
        "image,method,iou_at_equal_area\nbright/a.png,rollout,0.25\nbright/a.png,random,0\n"
    )
    ran = vit(f"{line} --scores {tmp_path}/scores.csv --resume")
    assert ran.code == 0, ran.err
    assert "2 of 3 images already had their maps" in ran.err
    assert (out / "bright" / "a.npy").stat().st_mtime_ns == untouched
    assert not (out / "bright" / ".a.0123456789abcdef.npy").exists()
    assert not (out / ".index.0123456789abcdef.csv").exists()
    assert len(rows(out / "index.csv")) == 3
    page = (out / "gallery.html").read_text(encoding="utf-8")
    assert 'data-score="0.250000"' in page
    assert page.count("data-correct=") == 3
    assert is_png(out / "bright" / "b.png")
    assert (out / "thumbnails" / "bright" / "b.jpg").is_file()

    for words, said in (
        ("--method rollout --refine --resume", "--refine was False, is True"),
        ("--method legrad --resume", "--method was 'rollout', is 'legrad'"),
        ("--rollout.residual 0.25 --resume", "--rollout.residual was 0.5, is 0.25"),
        ("--resume --overwrite", "Give one of the two"),
    ):
        ran = vit(f"{line} {words}")
        assert (ran.code, said in ran.err) == (1, True), ran.err
        assert len(ran.err.splitlines()) <= 5
    other = sees_bright()
    torch.nn.init.constant_(other.head.bias, 1.0)
    write_folder(other, tmp_path / "other")
    assert "of another model" in vit(f"{line.replace(str(model), str(tmp_path / 'other'))} --resume").err


def test_a_photo_that_took_the_place_of_another_is_explained_again(vit: Vit, model: Path, tmp_path: Path) -> None:
    photos, maps = tmp_path / "photos", tmp_path / "maps"
    for name in ("a", "b", "c"):
        photo(photos / f"{name}.png", (32, 32), (16, 24, 24, 32))
    line = f"explain {model} {photos} --num_workers 0 --out {maps}"
    assert vit(line).code == 0
    untouched = (maps / "b.npy").stat().st_mtime_ns
    (photos / "a.png").unlink()
    photo(photos / "a.bmp", (32, 32), (0, 8, 0, 8))  # its map takes the same name
    photo(photos / "c.png", (32, 32), (8, 16, 0, 8))
    ran = vit(f"{line} --resume")
    assert ran.code == 0, ran.err
    assert "1 of 3 images already had their maps" in ran.err
    assert (peak(maps / "a.npy"), peak(maps / "c.npy")) == ((0, 0), (1, 0))
    assert (maps / "b.npy").stat().st_mtime_ns == untouched
    assert [row["image"] for row in rows(maps / "index.csv")] == ["a.bmp", "b.png", "c.png"]

    (photos / "c.png").write_bytes(b"<html>")  # nothing of what it was is told of what it is
    assert vit(f"{line} --resume").code == 0
    assert [row["image"] for row in rows(maps / "index.csv")] == ["a.bmp", "b.png"]
    assert "3 of 3" not in vit(f"{line} --resume").err
    assert [row["image"] for row in rows(maps / "index.csv")] == ["a.bmp", "b.png"]


def test_photos_in_the_output_folder_are_not_written_over(vit: Vit, model: Path, tmp_path: Path) -> None:
    before = photo(tmp_path / "photos" / "x.png").read_bytes()
    ran = vit(f"explain {model} {tmp_path}/photos --num_workers 0 --out {tmp_path}/photos --overwrite")
    assert ran.code == 1
    assert "holds 1 of the images to explain, such as x.png" in ran.err
    assert (tmp_path / "photos" / "x.png").read_bytes() == before
    assert files(tmp_path / "photos") == {"x.png"}


NAMES = [
    "caf\u00e9 \u9ce5.png",
    "with 'quotes', and; more.png",
    "cafe\u0301.png",
    os.fsdecode(b"latin-\xe9.png"),
    "-dash.png",
]


def test_photos_of_any_name(vit: Vit, model: Path, tmp_path: Path) -> None:
    for number, name in enumerate(NAMES):
        photo(tmp_path / "photos" / name, (32, 32), (0, 8, 8 * (number % 4), 8 * (number % 4) + 8))
    out = tmp_path / "maps"
    ran = vit(f"explain {model} {tmp_path}/photos --num_workers 0 --out {out}")
    assert ran.code == 0, ran.err
    for number, name in enumerate(NAMES):
        stem = name.removesuffix(".png")
        assert peak(out / f"{stem}.npy") == (0, number % 4)
        assert (out / f"{stem}.png").is_file()
    listed = {row["image"] for row in rows(out / "index.csv")}
    assert listed == {*NAMES[:3], "latin-\\xe9.png", "-dash.png"}
    ran = vit(f"predict {model} {tmp_path}/photos --num_workers 0 --out {tmp_path}/labels.csv")
    assert ran.code == 0, ran.err
    assert {row["image"] for row in rows(tmp_path / "labels.csv")} == listed


def test_the_longest_names_leave_room_for_the_ends_of_their_files(vit: Vit, model: Path, tmp_path: Path) -> None:
    names = [
        "b" * 247 + ".jpg",
        "b" * 247 + ".png",
        "\u00e9" * 120 + ".png",
        os.fsdecode(b"\xe9" * 240 + b".png"),
        "x.png",
    ]
    for number, name in enumerate(names):
        photo(tmp_path / "photos" / name, (32, 32), (0, 8, 8 * (number % 4), 8 * (number % 4) + 8))
    line = f"explain {model} {tmp_path}/photos --num_workers 0 --method attribution --target topk:2 --full --gallery"
    line += f" --format png16 --out {tmp_path}/maps"
    ran = vit(line)
    assert ran.code == 0, ran.err
    written = rows(tmp_path / "maps" / "index.csv")
    assert len({row["map"] for row in written}) == 10
    made = [path.name for path in (tmp_path / "maps").rglob("*.full.map.png")]
    assert len(made) == 10
    assert {"x.top1.full.map.png", "x.top2.full.map.png"} <= set(made)
    kept, digest = (
        next(row["map"] for row in written if row["image"] == names[2]).removesuffix(".top1.map.png").split("~")
    )
    assert set(kept) == {"\u00e9"}  # cut between characters
    assert digest == hashlib.sha1(os.fsencode(names[2])).hexdigest()[:8]
    assert "5 of 5 images already had their maps" in vit(f"{line} --resume").err


def test_an_output_folder_among_the_photos_is_left_out(vit: Vit, model: Path, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for name in ("a.png", "b.png"):
        photo(root / name)
    line = f"explain {model} {root} --num_workers 0 --out {root}/maps"
    assert vit(line).code == 0
    ran = vit(f"{line} --resume")
    assert ran.code == 0, ran.err
    assert "2 of 2 images already had their maps" in ran.err
    assert [row["image"] for row in rows(root / "maps" / "index.csv")] == ["a.png", "b.png"]
    ran = vit(f"explain {model} {root}/a.png {root}/maps/b.png --num_workers 0 --out {root}/maps --overwrite")
    assert "holds 1 of the images to explain, such as maps/b.png" in ran.err


def test_a_new_export_begins_by_taking_away_what_told_of_the_older_one(vit: Vit, model: Path, tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "a.png")
    line = f"explain {model} {tmp_path}/photos --num_workers 0 --out {tmp_path}/maps"
    assert vit(f"{line} --gallery").code == 0
    assert vit(f"{line} --overwrite").code == 0
    assert files(tmp_path / "maps") == {*EXPORT, "a.npy", "a.png", "thumbnails/a.jpg"}
    (tmp_path / "photos" / "a.png").write_bytes(b"<html>")
    assert vit(f"{line} --overwrite --strict").code == 1  # it ended before there was anything to tell of
    assert not files(tmp_path / "maps") & {"index.csv", "contact_sheet.png"}


def test_scores_of_other_photos_are_refused(vit: Vit, model: Path, tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "bright" / "a.png")
    table = tmp_path / "scores.csv"
    table.write_text("image,method,iou_at_equal_area\nbrigth/a.png,rollout,0.25\n")
    line = f"explain {model} {tmp_path}/photos --num_workers 0 --method rollout --gallery --out {tmp_path}/maps"
    ran = vit(f"{line} --scores {table}")
    assert ran.code == 1
    assert "has no scores for any of the 1 images, such as 'bright/a.png' (did you mean 'brigth/a.png'?)" in ran.err
    assert len(ran.err.splitlines()) <= 5
    assert not (tmp_path / "maps").exists()


def test_explain_skips_and_lists_what_it_can_not_read(vit: Vit, model: Path, tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "b.png").write_bytes(b"<html>")
    photo(tmp_path / "photos" / "c.png")
    line = f"explain {model} {tmp_path}/photos --batch_size 1 --num_workers 0 --out {tmp_path}"
    ran = vit(f"{line}/maps")
    assert ran.code == 0
    assert [row["image"] for row in rows(tmp_path / "maps" / "index.csv")] == ["a.png", "c.png"]
    assert [Path(row["path"]).name for row in rows(tmp_path / "maps" / "skipped.csv")] == ["b.png"]
    assert "2 maps in" in ran.err

    ran = vit(f"{line}/strict --strict")
    assert ran.code == 1
    assert "b.png" in ran.err
    assert len(ran.err.splitlines()) <= 5
    assert files(tmp_path / "strict") <= {"a.npy", "a.png", "export.jsonl"}  # whole, and without an index

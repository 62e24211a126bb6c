"""Whole files or none, and folders that are not written into by accident."""

import os
import platform
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from vit.foundation import UserError, atomic_write, check_range, claim_folder, nearest, none_read, remove_torn


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_file_appears_under_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "metrics.json"
    with atomic_write(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.parent == path.parent  # one file system: a rename is atomic
        assert temporary.suffix == ".json"  # writers choose the format by it
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert names(path.parent) == ["metrics.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_old_file_stays_when_the_body_raises(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "last.ckpt"
    path.write_text("old")

    def write() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("new, but")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["last.ckpt"]


def test_the_old_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.write_text("old and longer")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a.csv") as first, atomic_write(tmp_path / "a.csv") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a.csv").read_text() == "first"


@pytest.mark.parametrize(("mask", "rights"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_rights_are_those_of_a_plain_open(tmp_path: Path, mask: int, rights: int) -> None:
    before = os.umask(mask)
    try:
        with atomic_write(tmp_path / "index.csv") as temporary:
            # As libraries do that write a private file of their own and rename it.
            temporary.unlink()
            temporary.touch(0o600)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "index.csv").stat().st_mode) == rights


def test_the_umask_is_left_alone_because_all_threads_share_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("set"))
    with atomic_write(tmp_path / "x.png"):
        pass


@pytest.mark.parametrize(
    "name", ["x" * 240 + ".png", "é鳥" * 40 + ".png", os.fsdecode(b"\xff\xfe.png"), ".hidden", "plain"]
)
def test_any_name_that_a_folder_takes(tmp_path: Path, name: str) -> None:
    with atomic_write(tmp_path / name) as temporary:
        temporary.write_text("x")
    assert names(tmp_path) == [name]


def test_a_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    folder = claim_folder(tmp_path / "runs" / "birds")
    assert folder.is_dir()
    assert claim_folder(folder) == folder  # still empty


def test_a_folder_that_holds_something_needs_leave(tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(UserError, match="already holds files"):
        claim_folder(tmp_path)
    assert claim_folder(tmp_path, overwrite=True) == tmp_path
    assert claim_folder(str(tmp_path), resume=True) == tmp_path
    assert names(tmp_path) == ["keep.txt"]


@pytest.mark.parametrize("below", ["", "maps"])
def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path, below: str) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match=r"Can't create the output folder .*taken"):
        claim_folder(tmp_path / "taken" / below, overwrite=True)
    assert (tmp_path / "taken").read_text() == "a file"


def test_nothing_is_written_through_a_link_out_of_the_folder(tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    (out / "a").mkdir(parents=True)
    elsewhere.mkdir()
    (out / "a" / "inside").symlink_to(out / "a")
    (out / "file").symlink_to(elsewhere / "file")
    assert claim_folder(out, overwrite=True) == out
    with atomic_write(out / "file") as temporary:
        temporary.write_text("mine")
    assert list(elsewhere.iterdir()) == []
    (out / "a" / "outside").symlink_to(elsewhere)
    with pytest.raises(UserError, match="outside is a link that leads out of the output folder"):
        claim_folder(out, overwrite=True)


def test_nearest_names_the_likely_one_or_nothing() -> None:
    assert nearest("rolout", ["rollout", "attribution"]) == " (did you mean 'rollout'?)"
    assert nearest("x", ["rollout", "attribution"]) == ""
    assert nearest("11", (10, 12, 111)) == " (did you mean '111'?)"


@pytest.mark.parametrize(("value", "low", "high"), [(0, 0, 1), (1, 0, 1), (0.5, 0, 1), (10**9, 1, float("inf"))])
def test_a_value_in_its_range_passes(value: float, low: float, high: float) -> None:
    check_range("optim.beta2", value, low, high)


@pytest.mark.parametrize(
    ("value", "high", "told"), [(0, float("inf"), "1 or more"), (2.5, 2, "1 to 2"), (float("nan"), 2, "1 to 2")]
)
def test_a_value_out_of_its_range_is_told_with_what_is_allowed(value: float, high: float, told: str) -> None:
    with pytest.raises(UserError, match=f"^--optim.lr is {value}; allowed are {told}.$"):
        check_range("optim.lr", value, 1, high)


def test_the_first_of_many_unreadable_images_stands_for_all() -> None:
    error = none_read("3 images", {"a.png": "the file is empty", "b.png": "damaged"})
    assert str(error) == "None of the 3 images could be read.\nThe first is a.png: the file is empty."
    assert str(none_read("images", {})) == "None of the images could be read."


def test_only_what_must_outlive_a_power_cut_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    for sync in (True, False):
        with atomic_write(tmp_path / "map.npy", sync=sync) as temporary:
            temporary.write_text("whole")
        assert len(synced) == 1
    assert (tmp_path / "map.npy").read_text() == "whole"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept() -> None:
    """Four blocks of 30 MB are 30,720 pages: the second time they are there already, or are to be asked for again."""
    code = """
import resource, sys
from vit.foundation import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [b"." * (30 * 2**20) for _ in range(4)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {
        way: int(subprocess.run([sys.executable, "-c", code, way], capture_output=True, check=True).stdout)
        for way in ("keep", "return")
    }
    assert faults["keep"] < 1000 < 10_000 < faults["return"]


def test_temporary_files_are_removed_and_no_others(tmp_path: Path) -> None:
    for name in ("x.npy", "last.ckpt.sha256", "bare"):
        with atomic_write(tmp_path / name) as temporary:
            pass
        temporary.touch()  # as a killed process leaves it
    kept = {"x.npy", "last.ckpt.sha256", "bare", ".mine.npy", ".hidden"}
    for name in kept:
        (tmp_path / name).touch()
    remove_torn([tmp_path, tmp_path / "none"])
    assert {path.name for path in tmp_path.iterdir()} == kept

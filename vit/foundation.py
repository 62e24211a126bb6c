"""What every module may import: the error that users read, and the writer that leaves either whole files or none."""

import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from math import inf
from pathlib import Path

RECIPE = "# recipe: "  # how the lines begin that name the recipes in a run's config.yaml
TEMPORARY = re.compile(r"\..*\.[0-9a-f]{16}(\.\w+)?", re.DOTALL)  # the temporary names of `atomic_write`
SKIPPED = "skipped.csv"  # of an output folder: the images that could not be used, and why
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


class UserError(Exception):
    """A mistake that the user can correct. Its text is all they see: at most five lines that say what arrived, what is
    allowed and what to try."""


def nearest(name: str, allowed: object) -> str:
    """`" (did you mean 'x'?)"` for the name in `allowed` that is most like `name`, or an empty string."""
    close = get_close_matches(name, [str(item) for item in allowed], n=1)  # type: ignore[attr-defined]
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_range(option: str, value: float, low: float, high: float = inf) -> None:
    """Raises UserError when the value of `--option` lies outside low to high (both inclusive)."""
    if not low <= value <= high:
        allowed = f"{low} or more" if high == inf else f"{low} to {high}"
        raise UserError(f"--{option} is {value}; allowed are {allowed}.")


def none_read(what: str, skipped: Mapping[str, str], verb: str = "read") -> UserError:
    """The error to raise when no image could be read; `skipped` maps paths to reasons."""
    first = "".join(f"\nThe first is {path}: {reason}." for path, reason in list(skipped.items())[:1])
    return UserError(f"None of the {what} could be {verb}.{first}")


def is_first_process() -> bool:
    """Whether this is the process that writes files and prints messages, among those that torchrun, srun or Lightning
    started together; True when there is only one."""
    return not any(int(os.environ.get(name) or 0) for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


@contextmanager
def atomic_write(path: str | os.PathLike[str], *, sync: bool = True) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on a clean exit the complete file is renamed to `path`.

    The temporary file is in the same folder, because a rename is atomic only within one file system.
    When the body raises, the temporary file is removed and whatever was at `path` stays as it was.

    Args:
        sync: fsync the file before the rename, so that a power cut can't leave an empty file under the final name.
            Without it, other programs still see the whole file or none, but it may be lost in a power cut.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem[:40]}.{secrets.token_hex(8)}{path.suffix}")
    temporary.touch(0o666, exist_ok=False)  # less the umask, which can't be read without setting it for all threads
    rights = temporary.stat().st_mode
    try:
        yield temporary
        if sync:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        temporary.chmod(rights)  # a library may have put a private file of its own in its place
        temporary.replace(path)
    except Exception as error:
        # Rust libraries such as safetensors raise their own errors for a full disk.
        if not isinstance(error, OSError) and (refusal := re.search(r"\(os error (\d+)\)", str(error))):
            raise OSError(int(refusal[1]), os.strerror(int(refusal[1])), str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_torn(folders: Iterable[Path]) -> None:
    """Removes the temporary files of `atomic_write` that a killed process left in these folders."""
    for folder in folders:
        if not folder.is_dir():
            continue
        with os.scandir(folder) as entries:
            torn = [entry.path for entry in entries if TEMPORARY.fullmatch(entry.name)]
        for path in torn:
            Path(path).unlink(missing_ok=True)


def claim_folder(folder: str | os.PathLike[str], *, overwrite: bool = False, resume: bool = False) -> Path:
    """Creates the output folder `folder`, and returns its path.

    With several processes only the first creates the folder; it may already contain files when the others get here.

    Raises:
        UserError: when it already holds something and neither flag is set, can't be created, or contains a link to a
            folder outside.
    """
    folder = Path(folder)
    if not is_first_process():
        return folder
    if holds_files(folder) and not (overwrite or resume):
        raise UserError(
            f"The output folder {folder} already holds files.\nGive another folder, or --overwrite to overwrite them."
        )
    make_folder(folder)
    _refuse_ways_out(folder)
    return folder


def claim_file(out: str, *, overwrite: bool) -> Path:
    """The path of an output file.

    Raises:
        UserError: when it exists and may not be overwritten.
    """
    path = Path(out)
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a regular file, so it can't be overwritten.\nGive the name of a CSV.")
    if path.exists() and not overwrite:
        raise UserError(f"{path} already exists.\nGive another name, or --overwrite.")
    return path


def holds_files(folder: Path) -> bool:
    """Whether a folder holds anything besides the list of what could not be read, which a try that failed leaves."""
    return folder.is_dir() and any(path.name != SKIPPED for path in folder.iterdir())


def make_folder(folder: Path) -> None:
    """Creates a folder and its parents, or raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Can't create the output folder {folder}: {error.strerror}.") from None


def _refuse_ways_out(folder: Path) -> None:
    """Raises UserError when a link in `folder` would redirect files written below it to somewhere else.

    Links to files do no harm: a file that is written replaces the link.
    """
    home = folder.resolve()
    for place, folders, _ in os.walk(folder):
        for name in folders:
            path = Path(place, name)
            if path.is_symlink() and not path.resolve().is_relative_to(home):
                raise UserError(
                    f"{path} is a link that leads out of the output folder, to {path.resolve()}.\n"
                    "Remove the link, or give another folder."
                )


def keep_freed_memory() -> None:
    """Lets glibc keep freed memory for later use; does nothing under another C library.

    By default glibc returns the memory of large tensors to the system as soon as they are freed, and gets it back page
    by page for the next layer, which takes a seventh of the time of a forward pass on a CPU. The limits apply to the
    whole process, so the program sets them, not the library: blocks below 32 MB (glibc's own maximum) are kept, and up
    to 256 MB of free memory.
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # musl and macOS have no mallopt; on Windows CDLL(None) fails
        return
    mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
    mallopt(M_TRIM_THRESHOLD, 256 * 2**20)

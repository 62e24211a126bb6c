"""What every module may import: the error that users read, and the writer that leaves whole files or none."""

import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from math import inf
from pathlib import Path

RECIPE = "# recipe: "  # how the lines of a run's config.yaml begin that name its recipes
TEMPORARY = re.compile(r"\..*\.[0-9a-f]{16}(\.\w+)?", re.DOTALL)  # the names that `atomic_write` gives meanwhile
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


class UserError(Exception):
    """A mistake that the user can mend. Its text is all they see: at most five lines that say
    what arrived, what is allowed and what to try."""


def nearest(name: str, allowed: object) -> str:
    """`" (did you mean 'x'?)"` for the name in `allowed` that is most like `name`, or an empty string."""
    close = get_close_matches(name, [str(item) for item in allowed], n=1)  # type: ignore[attr-defined]
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_range(option: str, value: float, low: float, high: float = inf) -> None:
    """Raises UserError when the value of `--option` lies outside low to high, both allowed."""
    if not low <= value <= high:
        allowed = f"{low} or more" if high == inf else f"{low} to {high}"
        raise UserError(f"--{option} is {value}; allowed are {allowed}.")


def none_read(what: str, skipped: Mapping[str, str]) -> UserError:
    """The error for images of which not one could be read; `skipped` is path to reason."""
    first = "".join(f"\nThe first is {path}: {reason}." for path, reason in list(skipped.items())[:1])
    return UserError(f"None of the {what} could be read.{first}")


def is_first_process() -> bool:
    """Whether this is the one that writes files and tells the user, of the processes that torchrun, srun or Lightning
    started together; always, where there is only one."""
    return not any(int(os.environ.get(name) or 0) for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


@contextmanager
def atomic_write(path: str | os.PathLike[str], *, sync: bool = True) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on a clean exit that file takes the name `path`, whole.

    The temporary file is in the same folder, because a rename is atomic only within one file system.
    When the body raises, the temporary file is removed and whatever stood at `path` stays as it was.

    Args:
        sync: the file is fsynced before the rename, so that a power cut can't leave an empty one under the final
            name. Without, it is whole or not there for every program, but after a power cut it may be lost.
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
        # Libraries in Rust, safetensors among them, have errors of their own for a full disk.
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
    """Makes `folder`, or raises UserError when it already holds something and neither flag is set.

    Of several processes the first does, and may have begun to fill it when the others come.
    """
    folder = Path(folder)
    if not is_first_process():
        return folder
    if folder.is_dir() and any(folder.iterdir()) and not (overwrite or resume):
        raise UserError(
            f"The output folder {folder} already holds files.\nGive another folder, or --overwrite to write over them."
        )
    make_folder(folder)
    _refuse_ways_out(folder)
    return folder


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it, or raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Can't make the output folder {folder}: {error.strerror}.") from None


def _refuse_ways_out(folder: Path) -> None:
    """Raises UserError when a link in `folder` would lead what is written below it to somewhere else.

    Links to files do no harm: a file that is written takes the place of the link.
    """
    home = folder.resolve()
    for place, folders, _ in os.walk(folder):
        for name in folders:
            path = Path(place, name)
            if path.is_symlink() and not path.resolve().is_relative_to(home):
                raise UserError(
                    f"{path} is a link out of the output folder, to {path.resolve()}; nothing is written there.\n"
                    "Remove the link, or give another folder."
                )


def keep_freed_memory() -> None:
    """Lets glibc keep freed memory for what comes next; does nothing under another C library.

    By default it returns the memory of large tensors to the system as they are freed, and gets it back page by page
    for the next layer: a seventh of the time of a forward pass on a processor. The limits hold for the whole
    process, so a program sets them, not a library: blocks below 32 MB (glibc's own highest choice) stay, and up to
    256 MB of free memory.
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # musl and macOS have none; Windows can't even be asked
        return
    mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
    mallopt(M_TRIM_THRESHOLD, 256 * 2**20)

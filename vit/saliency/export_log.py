"""What of an export is done, so that one that was killed goes on where it stood."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from vit import processes
from vit.foundation import UserError, holds_files
from vit.models.classifier import Classifier

LOG = "export.jsonl"
FORMAT = 3  # 1 had a fingerprint of the weights and labels alone, and 2 no versions of the photographs


class ExportLog:
    """A text file in the output folder, a line of JSON each: first what the maps are of, then, for each map whose
    files are written, its stem, its row of the index, and the version of the photograph that it is of.

    Lines are appended and handed to the system at once, never changed. A torn last line, of a process that was
    killed, is dropped; of two lines of one stem the later counts. Only the places of the rows are held in memory. A log
    that is closed without any row is removed: nothing was made that it could tell of.

    Several processes have a log each, export.1.jsonl and so on beside the first one's, which takes them in at the end,
    or when an export that was killed goes on.
    """

    def __init__(self, folder: Path, model: str, options: Mapping[str, Any], *, resume: bool) -> None:
        """Opens the log of a folder; `resume` goes on with the one that is there, else a new one takes its place.

        Args:
            model: its `fingerprint`.
            options: all that the files follow from, besides the photographs; plain values.

        Raises:
            UserError: when the folder's maps are of another model or other options, or nothing says what they are of.
        """
        self.part = processes.rank()
        if self.part:
            processes.gathered(None)  # the first process has taken in the logs that were there
            resume = False
        path = folder / (f"export.{self.part}.jsonl" if self.part else LOG)
        if resume and not path.exists() and holds_files(folder):
            raise UserError(
                f"{folder} holds files, but no {LOG} that says what they are of, so there is nothing to resume.\n"
                "Give another folder, or --overwrite."
            )
        header = json.loads(json.dumps({"format": FORMAT, "model": model, "options": options}))
        self._header = header
        self._places: dict[str, int] = {}
        end = self._read(path, header) if resume and path.exists() else 0
        self._filled = bool(self._places)
        self._file = path.open("r+b" if end else "w+b")
        self._file.truncate(end)
        self._file.seek(end)
        if not end:
            self._append(header)
        if not self.part:
            self._take_in_others(keep=resume)
            processes.gathered(None)

    def __enter__(self) -> "ExportLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if not (self._filled or self.part):
            Path(self._file.name).unlink(missing_ok=True)

    def __contains__(self, stem: Path) -> bool:
        return str(stem) in self._places

    def add(self, stem: Path, row: list[Any], version: str = "") -> None:
        """Says that the files of a map are written; `row` has plain values, the name of the photograph first."""
        self._filled = True
        self._places[str(stem)] = self._file.tell()
        self._append([str(stem), row, version])

    def keep(self, stem: Path, name: str, version: str) -> bool:
        """Whether a map is there, and of this version of the photograph of this name; that of any other is forgotten,
        though its line stays."""
        if stem not in self:
            return False
        end = self._file.tell()
        self._file.seek(self._places[str(stem)])
        _, row, found = json.loads(self._file.readline())
        self._file.seek(end)
        if (row[0], found) != (name, version):
            del self._places[str(stem)]
        return stem in self

    def collect(self) -> None:
        """Takes the rows of all processes into the first one's log; all of them must call this, when they are done."""
        processes.gathered(None)
        if not self.part:
            self._take_in_others(keep=True)

    def _take_in_others(self, *, keep: bool) -> None:
        for path in sorted(Path(self._file.name).parent.glob("export.[0-9]*.jsonl")):
            with path.open("rb") as file:
                lines = (_parsed(line) for line in file)
                if keep and (header := next(lines, None)) is not None:
                    _compare(path.parent, header, self._header)
                    for line in lines:
                        if line is not None:
                            self.add(Path(line[0]), *line[1:])
            path.unlink()

    def rows(self, stems: Iterable[Path]) -> Iterator[tuple[Path, list[Any]]]:
        """The stems that are done with their rows, in the order of `stems`, one in memory at a time."""
        with Path(self._file.name).open("rb") as file:
            for stem in stems:
                if stem in self:
                    file.seek(self._places[str(stem)])
                    yield stem, json.loads(file.readline())[1]

    def _append(self, line: Any) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")  # ASCII: a name that is no UTF-8 is escaped
        self._file.flush()

    def _read(self, path: Path, header: dict[str, Any]) -> int:
        """Finds the places of the rows; returns the end of the last whole line, 0 without a whole first one."""
        end = 0
        with path.open("rb") as file:
            for number, line in enumerate(file):
                found = _parsed(line)
                if found is None:
                    break
                if number == 0:
                    _compare(path.parent, found, header)
                else:
                    self._places[found[0]] = end
                end += len(line)
        return end


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None


def _compare(folder: Path, found: Any, header: dict[str, Any]) -> None:
    """Raises UserError when the maps that are there would be mixed with maps of another kind."""
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UserError(f"{folder / LOG} is of another version of this program.\nGive another folder, or --overwrite.")
    if found["model"] != header["model"]:
        raise UserError(
            f"The maps in {folder} are of another model: the sha256 of its weights and shape is "
            f"{found['model'][:16]}..., this one's is {header['model'][:16]}...\nGive another folder, or --overwrite."
        )
    before, now = found["options"], header["options"]
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if changed:
        told = "; ".join(f"{name} was {before.get(name)!r:.60}, is {now.get(name)!r:.60}" for name in changed[:3])
        raise UserError(
            f"The maps in {folder} were made with other options: {told}.\n"
            "Give the same ones, another folder, or --overwrite."
        )


def fingerprint(model: Classifier) -> str:
    """sha256 of a model's weights, as they were loaded, of its neighbours and labels, and of what these don't tell: the
    number of heads, the activation, the norms' eps, what the head reads and how its answers become probabilities."""
    shape: list[Any] = [model.encoder.architecture, model.pool, model.pool_blocks, model.multilabel]
    tensors = model.state_dict()
    if model.neighbours is not None:
        shape.append(model.neighbours.settings())
        tensors |= model.neighbours.named_buffers("neighbours")
    told = json.dumps([list(model.labels), shape], sort_keys=True, default=str)
    digest = hashlib.sha256(told.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()

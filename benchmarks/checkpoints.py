"""Loading a model folder beside what no loader can leave out, and the memory that it takes.

What must be done: the weights read into memory (safetensors), their sha256, a look whether they are finite, and the
model constructed on the meta device, one after the other. The file comes from the page cache. Memory is that of a
process of its own: how much its greatest resident memory grows, in units of the file's size; the process has
loaded a tiny model before, so that nothing has to be imported.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.harness import Table, begin, measure, options, ratio, report, spread
from benchmarks.memory import Memory, peak_memory
from benchmarks.ours import classifier
from vit.checkpoints.folder import sha256, write_folder
from vit.checkpoints.load import load
from vit.models.classifier import Classifier
from vit.models.encoder import image_encoder

OURS, MUST = "vit.load", "what must be done"
PARTS = ("read", "sha256", "finite", "construct")


def read(folder: Path) -> dict[str, torch.Tensor]:
    """The weights, in memory of this process."""
    return load_file(folder / "model.safetensors", backend="pread")


def finite(tensors: dict[str, torch.Tensor]) -> bool:
    """Whether all weights are numbers, by their sums."""
    return all(bool(value.sum().isfinite()) for value in tensors.values())


def construct(folder: Path) -> Classifier:
    """The model without weights."""
    ours = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vitscope"]
    with torch.device("meta"):
        return Classifier(image_encoder(**ours["architecture"]), len(ours["labels"]), labels=ours["labels"])


def must_do(folder: Path) -> None:
    """All four, one after the other."""
    tensors = read(folder)
    sha256(folder / "model.safetensors")
    finite(tensors)
    construct(folder)


def memory_of_loading(folder: Path, tiny: Path, threads: int) -> Memory:
    """What loading the folder takes in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.checkpoints", "--threads", str(threads), "--loads"]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([*command, str(tiny), str(folder)], cwd=root, capture_output=True, text=True, check=True)
    return Memory(**json.loads(done.stdout))


def print_memory(tiny: Path, folder: Path) -> None:
    """Loads both, and prints the greatest resident memory before and after the second."""
    load(tiny)
    before = peak_memory()
    model = load(folder)
    print(json.dumps(Memory(before, peak_memory())._asdict()))
    del model


def tables(folder: Path, tiny: Path, chosen: argparse.Namespace) -> list[Table]:
    """Time and memory."""
    weights = read(folder)
    variants = {
        OURS: lambda: load(folder),
        MUST: lambda: must_do(folder),
        "read": lambda: read(folder),
        "sha256": lambda: sha256(folder / "model.safetensors"),
        "finite": lambda: finite(weights),
        "construct": lambda: construct(folder),
    }
    timings = measure(variants, rounds=chosen.rounds, warmup=chosen.warmup)
    seconds = Table("seconds, median (min..max)", (OURS, MUST, *PARTS, f"{OURS} / {MUST}"))
    times = (spread(timings[name]) for name in variants)
    seconds.rows.append((*times, ratio(timings, OURS, MUST)))
    size = (folder / "model.safetensors").stat().st_size / 1024**2
    memory = memory_of_loading(folder, tiny, chosen.threads)
    table = Table("memory in MiB", ("file", "before", "peak", "growth / file"))
    table.rows.append((size, memory.before, memory.peak, memory.increment / size))
    return [seconds, table]


def main(arguments: Sequence[str] | None = None) -> list[Table]:
    """Measures and reports; returns the tables."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = options("checkpoints", __doc__ or "", rounds=7, warmup=1)
    parser.add_argument("--variant", default="base", choices=("tiny", "small", "base"), help="size (default base)")
    parser.add_argument("--loads", nargs=2, type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    machine = begin(chosen)
    if chosen.loads:
        print_memory(*chosen.loads)
        return []
    with tempfile.TemporaryDirectory() as place:
        folder, tiny = Path(place) / "model", Path(place) / "tiny"
        write_folder(classifier(chosen.variant, 224), folder)
        write_folder(classifier("tiny", 32), tiny)
        found = tables(folder, tiny, chosen)
    settings = {"model": f"ViT-{chosen.variant}/16", "rounds": f"{chosen.rounds} after {chosen.warmup} dropped"}
    report("checkpoints", arguments, machine, settings, found, chosen.out)
    return found


if __name__ == "__main__":
    main()

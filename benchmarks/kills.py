"""Runs that are killed again and again, against runs that were not: the weights, the history and the metrics must be
equal to the bit.

A run of `vit train`, in a process of its own, is killed by SIGKILL at a random moment, resumed,
killed again, until it ends. It saves at every step, and each kill waits for a phase of the run that was drawn before:
any moment, a training step, the validation, or a file being saved. The run is then compared with that of the same
options that was left alone. So for each row of SETTINGS. The processes are forked from one that has imported all and
done nothing: what a kill meets is the same, and starting takes no time.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.harness import Table, begin, options, report
from vit.checkpoints.folder import write_folder
from vit.models.classifier import Classifier
from vit.models.encoder import image_encoder

PHASES = ("starting", "training", "validating", "saving")
STARTING, TRAINING, VALIDATING, SAVING = range(len(PHASES))

SETTINGS = {
    "no worker": ["--data.num_workers", "0"],
    "one worker": ["--data.num_workers", "1"],
    "four workers": ["--data.num_workers", "4"],
    "accumulation of 3": ["--data.num_workers", "1", "--trainer.accumulate", "3"],
    "linear probe": ["--data.num_workers", "0", "--optim.trained", "head"],
    "moving average": ["--data.num_workers", "1", "--optim.ema", "0.9"],
    "low-rank matrices": ["--data.num_workers", "0", "--optim.trained", "lora", "--optim.lora_rank", "2"],
    "mixup and cutmix": ["--data.num_workers", "1", "--optim.mixup", "0.8", "--optim.cutmix", "1"],
    "all at once": [
        "--data.num_workers", "4", "--trainer.accumulate", "2", "--optim.ema", "0.9", "--optim.mixup", "0.8",
        "--optim.cutmix", "1", "--optim.trained", "lora",
    ],
}  # fmt: skip
TRAIN = [
    "train", "--data.batch_size", "8", "--data.erase", "0.5", "--data.val_fraction", "0.25",
    "--model.drop_path", "0.2", "--trainer.max_epochs", "3", "--trainer.precision", "fp32",
    "--trainer.checkpoint_minutes", "0", "--device", "cpu",
]  # fmt: skip


def tiny_photos(folder: Path) -> list[str]:
    """Draws two classes of noise, of another brightness each; their option."""
    for label, brightness in (("bright", 160), ("dark", 60)):
        (folder / label).mkdir(parents=True)
        for number in range(28):
            pixels = np.random.default_rng([brightness, number]).integers(0, 95, (40, 36, 3)) + brightness
            Image.fromarray(pixels.astype(np.uint8)).save(folder / label / f"{number}.png")
    return ["--data.root", str(folder)]


def tiny_model(folder: Path) -> list[str]:
    """Writes the model that all runs begin with, so small that saving it takes milliseconds; its option."""
    encoder = image_encoder(image_size=(32, 32), patch_size=(8, 8), embed_dim=24, depth=3, num_heads=2)
    write_folder(Classifier(encoder, 0), folder)
    return ["--model.pretrained", str(folder)]


def train(words: list[str], log: Path, phase: Any) -> None:
    """The process of a run: `vit` with these words; `phase` is a shared number that says where in the run it is."""
    import cli

    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    tell_phases(phase)
    sys.exit(cli.main(words))


def tell_phases(phase: Any) -> None:
    """Makes the writer of checkpoints, which is there at all these moments, say when they come."""
    from vit.training.checkpoints import CheckpointWriter

    def told(name: str, during: int | None = None, after: int | None = None) -> None:
        inner: Callable[..., object] = getattr(CheckpointWriter, name)

        def call(*arguments: Any) -> object:
            before = phase.value
            phase.value = before if during is None else during
            result = inner(*arguments)
            phase.value = before if after is None else after
            return result

        setattr(CheckpointWriter, name, call)

    told("_save", during=SAVING)
    told("on_train_start", after=TRAINING)
    told("on_validation_start", after=VALIDATING)
    told("on_train_epoch_end", during=SAVING, after=TRAINING)


class Runs:
    """Starts runs, and kills them.

    Args:
        place: folder for the runs and what they print.
        chance: of the moments.
    """

    def __init__(self, place: Path, chance: random.Random):
        self.place, self.chance = place, chance
        self.options = [*TRAIN, *tiny_model(place / "start"), *tiny_photos(place / "photos")]
        self.context: ForkServerContext = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(
            ["cli", "vit.training.fit", "datamodules.image_folder", "benchmarks.harness"]
        )
        self.killed_while: Counter[str] = Counter()

    def start(self, run: Path, setting: Sequence[str]) -> tuple[ForkServerProcess, Any]:
        """A process that begins the run, or goes on with it, and its phase."""
        saved = any((run / "checkpoints" / name).is_file() for name in ("last.ckpt", "best.ckpt"))
        words = [*self.options, *setting, "--run", str(run), "--resume" if saved else "--overwrite"]
        phase = self.context.Value("i", STARTING, lock=False)
        process = self.context.Process(target=train, args=(words, run.with_suffix(".log"), phase))
        process.start()
        return process, phase

    def alone(self, run: Path, setting: Sequence[str]) -> float:
        """Does a run that nothing happens to; returns its seconds."""
        process, phase = self.start(run, setting)
        while phase.value == STARTING and process.is_alive():
            sleep(0.001)
        began = perf_counter()
        process.join()
        self._check(run, process)
        return perf_counter() - began

    def killed(self, run: Path, setting: Sequence[str], seconds: float, most: int) -> int:
        """Does a run, killing it `most` times at most, about ten times in its `seconds`; returns how often."""
        for kills in range(most + 1):
            process, phase = self.start(run, setting)
            if kills < most:
                self._kill(process, phase, seconds / 10)
            process.join()
            if process.exitcode != -9:
                self._check(run, process)
                return kills
        raise AssertionError

    def _kill(self, process: ForkServerProcess, phase: Any, mean: float) -> None:
        wanted = self.chance.choice([None, TRAINING, VALIDATING, SAVING])
        if wanted is None and self.chance.random() < 0.2:  # while it starts, too
            sleep(self.chance.random() * mean)
        else:
            while phase.value == STARTING and process.is_alive():
                sleep(0.001)
            sleep(self.chance.expovariate(1 / mean))
        while wanted is not None and phase.value != wanted and process.is_alive():
            pass  # saving takes but milliseconds: no sleep
        sleep(self.chance.random() * 0.004)
        before = phase.value
        process.kill()
        process.join()
        if process.exitcode == -9:
            self.killed_while[PHASES[before]] += 1

    def _check(self, run: Path, process: ForkServerProcess) -> None:
        if process.exitcode:
            raise RuntimeError(f"a run failed:\n{run.with_suffix('.log').read_text()[-2000:]}")


def differences(found: Path, expected: Path) -> list[str]:
    """What is not equal in two runs."""
    wrong = [
        name
        for name in ("metrics.csv", "model/model.safetensors", "model/config.json")
        if (found / name).read_bytes() != (expected / name).read_bytes()
    ]
    for name in ("last.ckpt", "best.ckpt"):
        one, other = (torch.load(run / "checkpoints" / name, weights_only=True) for run in (found, expected))
        parts = one.keys() - {"loops", "callbacks"}  # Lightning's counters of what was begun, which kills may change
        wrong += [f"{name}: {part}" for part in sorted(parts | other.keys() - {"loops", "callbacks"})
                  if part not in one or part not in other or not same(one[part], other[part])]  # fmt: skip
    return wrong


def same(one: object, other: object) -> bool:
    """Whether two trees of tensors and plain values are equal, to the bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return isinstance(other, list | tuple) and len(one) == len(other) and all(map(same, one, other))
    return one == other


def main(arguments: Sequence[str] | None = None) -> list[Table]:
    """Measures and reports; returns the tables. Exits with 1 when a killed run differs."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = options("kills", __doc__ or "", rounds=100, warmup=0, threads=1)
    parser.add_argument("--settings", nargs="+", choices=tuple(SETTINGS), default=list(SETTINGS), help="default: all")
    chosen: argparse.Namespace = parser.parse_args(arguments)
    machine = begin(chosen)
    rows, bad = [], []
    began = perf_counter()
    with tempfile.TemporaryDirectory() as name:
        runs = Runs(Path(name), random.Random(chosen.seed))
        for number, title in enumerate(chosen.settings):
            setting, expected, found = SETTINGS[title], Path(name) / f"expected{number}", Path(name) / "found"
            seconds = runs.alone(expected, setting)
            wanted = chosen.rounds * (number + 1) // len(chosen.settings) - chosen.rounds * number // len(
                chosen.settings
            )
            kills = count = 0
            while kills < wanted:
                kills += runs.killed(found, setting, seconds, wanted - kills)
                count += 1
                bad += [f"{title}: {what}" for what in differences(found, expected)]
                shutil.rmtree(found)
            rows.append((title, kills, count, "no" if any(each.startswith(title) for each in bad) else "equal"))
            print(*rows[-1], f"{perf_counter() - began:.0f} s", sep="   ", file=sys.stderr, flush=True)
    told = [
        Table("killed runs against the run left alone", ("setting", "kills", "runs", "to the bit"), rows),
        Table("killed while", PHASES, [tuple(runs.killed_while[phase] for phase in PHASES)]),
    ]
    settings = {"differences": "; ".join(bad) or "none", "seconds": round(perf_counter() - began)}
    report("kills", arguments, machine, settings, told, chosen.out)
    if bad:
        sys.exit(1)
    return told


if __name__ == "__main__":
    main()

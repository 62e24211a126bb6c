"""Runs that are killed again and again, against runs that were not: the weights, the history and the metrics must be
equal to the bit.

A run of `vit train` on generated scenes, in a process of its own, is killed by SIGKILL at a random moment (while it
starts, trains, validates or saves), resumed, killed again, until it ends. It saves at every step, so that all kinds
of moments are met, and is compared with the run of the same options that was left alone. So for each row of SETTINGS.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter, sleep

import torch

from benchmarks.harness import Table, begin, options, report

SETTINGS = {
    "no worker": ["--data.num_workers", "0"],
    "one worker": ["--data.num_workers", "1"],
    "four workers": ["--data.num_workers", "4"],
    "accumulation of 3": ["--data.num_workers", "1", "--trainer.accumulate", "3"],
    "linear probe": ["--data.num_workers", "1", "--optim.trained", "head"],
}
TRAIN = [
    "train", "--data.root", "birdscenes:demo", "--data.train_scenes", "96", "--data.val_scenes", "48",
    "--data.batch_size", "8", "--data.erase", "0.5", "--model.variant", "pico", "--model.patch_size", "16",
    "--model.image_size", "64", "--model.drop_path", "0.2", "--trainer.max_epochs", "4", "--trainer.precision", "fp32",
    "--trainer.checkpoint_minutes", "0", "--device", "cpu",
]  # fmt: skip


def start(run: Path, setting: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """A process that begins the run, or goes on with it."""
    resume = ["--resume"] if any((run / "checkpoints").glob("*.ckpt")) else ["--overwrite"]
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "cli.py", *TRAIN, *setting, "--run", str(run), *resume],
            stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def killed(run: Path, setting: Sequence[str], chance: random.Random, longest: float) -> int:
    """Does the run, killing it at random moments, up to `longest` seconds after each start; returns how often."""
    kills, log = 0, run.with_suffix(".log")
    while True:
        process = start(run, setting, log)
        # Starting takes most of the time, and little can go wrong in it: most kills come after it.
        try:
            process.wait(longest * (0.1 + 0.9 * chance.random()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            sleep(0.05)
            continue
        if process.returncode:
            raise RuntimeError(f"a resumed run failed:\n{log.read_text()[-2000:]}")
        return kills


def differences(found: Path, expected: Path) -> list[str]:
    """What is not equal in two runs."""
    wrong = [
        name
        for name in ("metrics.csv", "model/model.safetensors", "model/config.json")
        if (found / name).read_bytes() != (expected / name).read_bytes()
    ]
    for name in ("last.ckpt", "best.ckpt"):
        one, other = (torch.load(run / "checkpoints" / name, weights_only=True) for run in (found, expected))
        parts = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", "running")
        wrong += [f"{name}: {part}" for part in parts if not same(one[part], other[part])]
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
    parser = options("kills", __doc__ or "", rounds=100, warmup=0)
    chosen: argparse.Namespace = parser.parse_args(arguments)
    machine = begin(chosen)
    chance = random.Random(chosen.seed)
    rows, bad = [], []
    with tempfile.TemporaryDirectory() as name:
        for place, (title, setting) in enumerate(SETTINGS.items()):
            expected = Path(name) / f"expected{place}"
            began = perf_counter()
            if start(expected, setting, expected.with_suffix(".log")).wait():
                raise RuntimeError(expected.with_suffix(".log").read_text()[-2000:])
            seconds = perf_counter() - began
            kills = runs = 0
            while kills < chosen.rounds / len(SETTINGS):
                found = Path(name) / "found"
                kills += killed(found, setting, chance, seconds)
                runs += 1
                wrong = differences(found, expected)
                bad += [f"{title}: {what}" for what in wrong]
                shutil.rmtree(found)
            rows.append((title, f"{kills}", f"{runs}", "equal" if not any(b.startswith(title) for b in bad) else "no"))
    found_tables = [Table("killed runs against the run left alone", ("setting", "kills", "runs", "to the bit"), rows)]
    report("kills", arguments, machine, {"differences": "; ".join(bad) or "none"}, found_tables, chosen.out)
    if bad:
        sys.exit(1)
    return found_tables


if __name__ == "__main__":
    main()

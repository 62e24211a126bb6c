"""Images/s of fine-tuning on JPEG folders: `vit train` beside timm's train.py, and beside the bare step.

    ours          `fit` on an ImageFolder: what `vit train` runs, its logging, clipping and progress bar included
    ours, cache   the same with the decoded photographs in a cache, which the dropped rounds filled
    timm          what its train.py does on a processor: create_dataset, create_loader, create_optimizer_v2, its model
    bare          our model, loss, gradient, clipping and AdamW on one batch that stays in memory

All have the same architecture (ViT-S/14 with layer scale), photographs, size, batch, reading processes, precision,
label smoothing and strength of augmentation: random crops of 35 to 100% of the area, flips, colour jitter. A call
trains an epoch of some hundred photographs; its first batches don't count, nor what comes after the last: no loader's
start, no validation, no checkpoint. timm's loader is measured both ways, with its prefetcher, which train.py has by
default, and without; the faster of the two is what ours is compared with.
"""

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data import create_dataset, create_loader
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2

from benchmarks.harness import Table, begin, options, report, spread
from benchmarks.photographs import photographs
from datamodules.image_folder import ImageFolder, find_splits
from vit.checkpoints.load import load
from vit.foundation import keep_freed_memory
from vit.models.classifier import IMAGENET_MEAN, IMAGENET_STD, Classifier
from vit.training.classification import ClassificationTask
from vit.training.fit import fit
from vit.training.optim import parameter_groups

DROPPED = 3  # steps of a call: what was read ahead while the loader started would count as free
LR, DECAY, SMOOTHING, JITTER, CROP = 8e-5, 0.05, 0.1, 0.3, 0.35


class Done(Exception):
    """The last step that counts is over."""


class Timed(ClassificationTask):
    """Writes down when each step ended, and stops with the last."""

    def __init__(self, *arguments: Any, **keywords: Any):
        super().__init__(*arguments, **keywords)
        self.ends: list[float] = []

    def on_train_batch_end(self, *arguments: Any) -> None:
        super().on_train_batch_end(*arguments)
        self.ends.append(perf_counter())
        if len(self.ends) == self.trainer.num_training_batches:
            raise Done


def ours(chosen: argparse.Namespace, root: Path, runs: Path, cache: str | None = None) -> Callable[[], float]:
    """A call gives the seconds that a step of `vit train` takes."""
    size = (chosen.image_size, chosen.image_size)
    numbers = iter(range(1000))

    def call() -> float:
        cached = {} if cache is None else {"cache": cache}
        data = ImageFolder(
            str(root), image_size=size, mean=IMAGENET_MEAN, std=IMAGENET_STD, batch_size=chosen.batch,
            num_workers=chosen.workers, crop_scale=CROP, color_jitter=JITTER, seed=chosen.seed, **cached,
        )  # fmt: skip
        task = Timed(model(chosen, data.labels), lr=LR, weight_decay=DECAY, label_smoothing=SMOOTHING)
        with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(Done):
            fit(task, data, runs / str(next(numbers)), max_epochs=1, precision=chosen.precision, device="cpu")
        return pace(task.ends)

    return call


def model(chosen: argparse.Namespace, labels: Sequence[str]) -> Classifier:
    """The architecture of the benchmark with random weights, ours."""
    made = load(peer(chosen, len(labels)))
    made.reset_head(labels)
    return made.train()


def peer(chosen: argparse.Namespace, classes: int) -> torch.nn.Module:
    """The same as timm has it."""
    return timm.create_model(chosen.model, img_size=chosen.image_size, num_classes=classes)


def theirs(chosen: argparse.Namespace, root: Path, prefetcher: bool) -> Callable[[], float]:
    """A call gives the seconds that a step of timm's train.py takes."""
    classes = len(find_splits(root, val_fraction=0.2, seed=0).labels("train"))
    learner = peer(chosen, classes).train()
    loader = create_loader(
        create_dataset("", root=str(root), split="train", is_training=True, batch_size=chosen.batch),
        input_size=(3, chosen.image_size, chosen.image_size), batch_size=chosen.batch, is_training=True,
        scale=(CROP, 1.0), color_jitter=JITTER, interpolation="bicubic", mean=IMAGENET_MEAN, std=IMAGENET_STD,
        num_workers=chosen.workers, use_prefetcher=prefetcher, device=torch.device("cpu"),
    )  # fmt: skip
    optimizer = create_optimizer_v2(learner, opt="adamw", lr=LR, weight_decay=DECAY)
    criterion = LabelSmoothingCrossEntropy(SMOOTHING)

    def call() -> float:
        ends = []
        for images, targets in loader:
            with arithmetic(chosen):
                loss = criterion(learner(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()  # for its meter
            ends.append(perf_counter())
        return pace(ends)

    return call


def bare(chosen: argparse.Namespace, classes: int) -> Callable[[], float]:
    """A call gives the seconds of a step on tensors in memory."""
    learner = model(chosen, [str(number) for number in range(classes)])
    weights = [weight for weight in learner.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(parameter_groups(learner, lr=LR, weight_decay=DECAY), fused=True)
    images = torch.randn(chosen.batch, 3, chosen.image_size, chosen.image_size)
    targets = torch.randint(classes, (chosen.batch,))

    def call() -> float:
        ends = []
        for _ in range(DROPPED + chosen.images // chosen.batch // 2):
            with arithmetic(chosen):
                logits = learner(images)
            F.cross_entropy(logits.float(), targets, label_smoothing=SMOOTHING).backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            ends.append(perf_counter())
        return pace(ends)

    return call


def arithmetic(chosen: argparse.Namespace) -> contextlib.AbstractContextManager[Any]:
    """What train.py's --amp --amp-dtype bfloat16 does on a processor, or nothing."""
    return torch.autocast("cpu", torch.bfloat16) if chosen.precision == "bf16" else nullcontext()


def pace(ends: Sequence[float]) -> float:
    """Seconds a step, of the times at which steps ended."""
    counted = ends[DROPPED - 1 : -1]  # the last batch may be smaller
    return (counted[-1] - counted[0]) / (len(counted) - 1)


def small_copy(root: Path, folder: Path, images: int, seed: int) -> Path:
    """Links to some photographs of a folder, the same number a class, as train/, and one a class as val/."""
    found = find_splits(root, val_fraction=0.2, seed=seed)
    for split, count in (("train", images), ("val", 0)):
        for label in sorted(found.labels("train")):
            paths = [one.path for one in found.splits[split] if one.labels == (label,)]
            place = folder / split / label
            place.mkdir(parents=True)
            for path in paths[: max(1, round(count / len(found.labels("train"))))]:
                (place / Path(path).name).symlink_to(path)
    return folder


def tables(timings: dict[str, list[float]], batch: int) -> Iterable[Table]:
    """Rates, and the ratios of the rounds."""
    rates = Table("images/s, median (min..max)", tuple(timings))
    rates.rows.append(tuple(spread([batch / seconds for seconds in timings[name]]) for name in timings))
    yield rates
    peers = [name for name in timings if name.startswith("timm")]
    best = min(peers, key=lambda name: spread(timings[name]).median)
    pairs = [(name, over) for over in (best, "bare") for name in timings if name.startswith("ours")]
    ratios = Table("speed, median of the rounds' ratios (min..max)", tuple(f"{a} / {b}" for a, b in pairs))
    ratios.rows.append(
        tuple(spread([s / t for s, t in zip(timings[b], timings[a], strict=True)]) for a, b in pairs)
    )  # fmt: skip
    yield ratios


def main(arguments: Sequence[str] | None = None) -> list[Table]:
    """Measures and reports; returns the tables."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = options("training", __doc__ or "", rounds=5, warmup=1)
    parser.add_argument("--photos", type=Path, default=Path("../shared/data/birds"), metavar="DIR")
    parser.add_argument("--images", type=int, default=320, help="photographs an epoch (default 320)")
    parser.add_argument("--image-size", type=int, default=112, help="pixels of the model (default 112)")
    parser.add_argument("--batch", type=int, default=16, help="images a step (default 16)")
    parser.add_argument("--workers", type=int, default=1, help="reading processes (default 1)")
    parser.add_argument("--model", default="vit_small_patch14_dinov2", help="timm's name of the architecture")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    chosen = parser.parse_args(arguments)
    machine = begin(chosen)
    keep_freed_memory()  # as the command line does
    with tempfile.TemporaryDirectory() as name:
        drawn, described = photographs(chosen.photos, Path(name, "drawn"), chosen.images, size=256, seed=chosen.seed)
        root = small_copy(drawn, Path(name, "photos"), chosen.images, chosen.seed)
        classes = len(list((root / "train").iterdir()))
        calls = {
            "ours": ours(chosen, root, Path(name, "runs")),
            "ours, cache": ours(chosen, root, Path(name, "cached runs"), cache=str(Path(name, "cache"))),
            "timm": theirs(chosen, root, prefetcher=False),
            "timm, prefetcher": theirs(chosen, root, prefetcher=True),
            "bare": bare(chosen, classes),
        }
        timings: dict[str, list[float]] = {label: [] for label in calls}
        for number in range(chosen.warmup + chosen.rounds):
            for place in range(len(calls)):  # each round begins with another one
                label = list(calls)[(number + place) % len(calls)]
                seconds = calls[label]()
                if number >= chosen.warmup:
                    timings[label].append(seconds)
    found = list(tables(timings, chosen.batch))
    settings = {
        "model": f"{chosen.model} at {chosen.image_size} px",
        "photographs": f"{chosen.images} of {described}",
        "batch": chosen.batch,
        "workers": chosen.workers,
        "precision": chosen.precision,
        "timm": timm.__version__,
        "rounds": f"{chosen.rounds} after {chosen.warmup} dropped",
    }
    report("training", arguments, machine, settings, found, chosen.out)
    return found


if __name__ == "__main__":
    main()

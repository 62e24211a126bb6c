"""`vit explain`, end to end, against the model's work alone: what reading, drawing and writing cost.

    whole call    cli.explain(...): loads the model folder, lists the photographs, the export loop, ends the workers
    export loop   within that call, from the first batch asked for to the last file: starts the reading processes;
                  reads, decodes and resizes the photographs; recorded forward and walk; draws and writes an .npy
                  and an overlay a photograph, the index and the contact sheet. The headline.
    bare          explain_batch on the same images, read and prepared beforehand, in batches of the same size

Pipeline and bare take turns in one process (A B A B ...), fp32 on the CPU, a ViT/16 with random weights and 27
classes. Not in any of the two: starting Python and importing torch. The first rounds are dropped, so that the
photographs are in the page cache and all is imported.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest.mock import patch

from torch import Tensor

import cli
from benchmarks.harness import Table, Timings, begin, images_per_second, measure, options, ratio, report
from benchmarks.ours import classifier
from benchmarks.photographs import photographs
from datamodules.image_files import ImageFile, list_images
from vit.checkpoints.folder import write_folder
from vit.checkpoints.load import load
from vit.foundation import keep_freed_memory
from vit.models.classifier import Classifier
from vit.saliency import export
from vit.saliency.explain import explain_batch
from wiring.data import image_files
from wiring.models import prepared_for

WHOLE, LOOP, BARE = "whole call", "export loop", "bare"


@contextmanager
def timed_loop(seconds: list[float]) -> Iterator[None]:
    """While the body runs, each export's seconds, from the first batch asked for to the last file, are appended."""
    export_maps = export.export_maps

    def timed(*arguments: Any, **keywords: Any) -> Iterator[Any]:
        start = perf_counter()
        yield from export_maps(*arguments, **keywords)
        seconds.append(perf_counter() - start)

    with patch.object(export, "export_maps", timed):
        yield


def batches_in_memory(model: Classifier, files: list[ImageFile], batch_size: int) -> list[Tensor]:
    """The photographs as the pipeline prepares them, without those that can't be read."""
    dataset = image_files(files, prepared_for(model, crop=False))
    return [batch["image"] for batch in dataset.loader(batch_size) if len(batch["image"])]


def timed(folder: Path, files: list[ImageFile], chosen: argparse.Namespace) -> tuple[Timings, int]:
    """The timings of the three, and how many photographs could be read."""
    model = load(folder / "model")
    batches = batches_in_memory(model, files, chosen.batch)
    loops: list[float] = []

    def pipeline() -> None:
        cli.explain(
            str(folder / "model"),
            [str(file.path) for file in files],
            out=str(folder / "maps"),
            method="rollout",
            batch_size=chosen.batch,
            num_workers=chosen.workers,
            device="cpu",
            overwrite=True,
        )

    def bare() -> None:
        for images in batches:
            explain_batch(model, images, method="rollout")

    with timed_loop(loops):
        found = measure({WHOLE: pipeline, BARE: bare}, rounds=chosen.rounds, warmup=chosen.warmup, rotate=False)
    return {WHOLE: found[WHOLE], LOOP: loops[chosen.warmup :], BARE: found[BARE]}, sum(map(len, batches))


def tables(timings: Timings, images: int) -> list[Table]:
    """Images/s, and the pipeline's speed as a share of the bare one's."""
    names = (LOOP, WHOLE, BARE)
    rates = Table("images/s, median (min..max)", names, [tuple(images_per_second(timings, n, images) for n in names)])
    shares = Table(
        "speed against bare, median of the rounds' ratios (min..max); 1 means that all else is free",
        (f"{LOOP} / {BARE}", f"{WHOLE} / {BARE}"),
        [(ratio(timings, BARE, LOOP), ratio(timings, BARE, WHOLE))],  # speeds: seconds the other way round
    )
    return [rates, shares]


def main(arguments: Sequence[str] | None = None) -> list[Table]:
    """Measures and reports; returns the tables."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = options("explain", __doc__ or "", rounds=5, warmup=1)
    parser.add_argument("--photos", type=Path, default=Path("../shared/data/birds/val"), metavar="DIR")
    parser.add_argument("--images", type=int, default=400, help="photographs to explain, at most (default 400)")
    parser.add_argument("--scene-size", type=int, default=512, help="pixels of generated ones, without a DIR")
    parser.add_argument("--variant", default="small", help="size of the model (default small)")
    parser.add_argument("--image-size", type=int, default=224, help="pixels that the model sees (default 224)")
    parser.add_argument("--batch", type=int, default=16, help="images a forward pass (default 16)")
    parser.add_argument("--workers", type=int, default=-1, help="as --num_workers of vit explain (default -1)")
    chosen = parser.parse_args(arguments)
    machine = begin(chosen)
    keep_freed_memory()  # as `vit` does
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        place, described = photographs(
            chosen.photos, folder / "scenes", chosen.images, size=chosen.scene_size, seed=chosen.seed
        )
        files = list_images([place])[: chosen.images]
        write_folder(classifier(chosen.variant, chosen.image_size, num_classes=27), folder / "model")
        timings, images = timed(folder, files, chosen)
    settings = {
        "model": f"ViT-{chosen.variant}/16 at {chosen.image_size} px, 27 classes",
        "photographs": f"{images} of {described}",
        "batch": chosen.batch,
        "workers": chosen.workers if chosen.workers >= 0 else f"{chosen.workers} (of {os.cpu_count()} cores)",
        "rounds": f"{chosen.rounds} after {chosen.warmup} dropped",
    }
    found = tables(timings, images)
    report("explain", arguments, machine, settings, found, chosen.out)
    return found


if __name__ == "__main__":
    main()

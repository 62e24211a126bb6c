"""Images/s of the data modules on one core, in one process: what a single reading process gives to training.

    reading              a photograph decoded, upright, RGB; a JPEG no larger than the training transform needs
    reading + training   and varied as for training, stacked in batches: what ImageFolder's training loader does
    reading + evaluation and resized as for evaluation, stacked in batches
    drawing              a scene generated
    drawing + training   and varied as for training, stacked in batches: what BirdScenes' training loader does

And reading against `Image.open(path).convert("RGB")` of Pillow, on the same files: whole, and no larger than the
transform needs; the photographs, and two of them made as large as a camera's.

Every call handles the same images, with the recipes' defaults. The photographs come from the page cache: the dropped
rounds read the same files. torch and OpenCV have one thread each, as in a reading process.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from benchmarks.harness import Table, begin, images_per_second, measure, options, ratio, report
from benchmarks.photographs import photographs
from datamodules.birdscenes import BirdScenes
from datamodules.image_files import list_images
from datamodules.image_folder import ImageFolder
from datamodules.reading import read_photo
from datamodules.sampling import Draw, collate, labelled_batch
from datamodules.scenes import draw_scene
from vit.models.classifier import IMAGENET_MEAN, IMAGENET_STD

PILLOW = 'Image.open(path).convert("RGB")'
Calls = dict[str, Callable[[], object]]


def photo_calls(root: Path, chosen: argparse.Namespace) -> tuple[Calls, int]:
    """The photographs of a folder, read in three ways, and how many there are."""
    size = (chosen.image_size, chosen.image_size)
    module = ImageFolder(str(root), image_size=size, mean=IMAGENET_MEAN, std=IMAGENET_STD, seed=chosen.seed)
    varied, plain = module.dataset("train", augment=True), module.dataset("train")
    count = min(chosen.images, len(varied))
    order = np.linspace(0, len(varied) - 1, count).astype(int).tolist()  # of all classes

    def read() -> None:
        for index in order:
            read_photo(varied.paths[index], min_size=varied.transform.min_size)

    return {
        "reading": read,
        "reading + training": lambda: batches(varied, order, chosen.batch, size),
        "reading + evaluation": lambda: batches(plain, order, chosen.batch, size),
    }, count


def scene_calls(chosen: argparse.Namespace) -> tuple[Calls, int]:
    """Scenes, drawn and drawn and varied, and how many there are."""
    size = (chosen.scene_size, chosen.scene_size)
    module = BirdScenes(
        "demo",
        image_size=size,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        train_scenes=chosen.scenes,
        seed=chosen.seed,
    )
    varied = module.dataset("train", augment=True)

    def draw() -> None:
        for index in range(chosen.scenes):
            draw_scene(chosen.seed, index, size=varied.size, species=varied.species)

    order = list(range(chosen.scenes))
    return {"drawing": draw, "drawing + training": lambda: batches(varied, order, chosen.batch, size)}, chosen.scenes


def batches(dataset: Dataset, order: Sequence[int], batch_size: int, size: tuple[int, int]) -> None:
    """Makes the batches of these samples, as a reading process does."""
    for start in range(0, len(order), batch_size):
        items = [dataset[Draw(0, index)] for index in order[start : start + batch_size]]
        collate(items, labelled_batch(size))


def reader_table(title: str, paths: Sequence[Path], chosen: argparse.Namespace) -> Table:
    """Our reader against Pillow's plain one."""
    size = (chosen.image_size, chosen.image_size)
    calls: Calls = {
        PILLOW: lambda: [Image.open(path).convert("RGB") for path in paths],
        "our reader": lambda: [read_photo(path) for path in paths],
        "our reader, no larger than needed": lambda: [read_photo(path, min_size=size) for path in paths],
    }
    return table(title, calls, len(paths), chosen)


def large_photos(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Two of the photographs as JPEGs of 12 megapixels."""
    folder.mkdir()
    for number, path in enumerate(paths[:2]):
        photo = Image.open(path).convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC)
        photo.save(folder / f"{number}.jpg", quality=90)
    return sorted(folder.iterdir())


@contextmanager
def one_thread_of_opencv() -> Iterator[None]:
    """OpenCV works in the calling thread alone while the body runs."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def table(title: str, calls: Calls, images: int, chosen: argparse.Namespace) -> Table:
    """Rates and times, and what each call takes in units of the first."""
    timings = measure(calls, rounds=chosen.rounds, warmup=chosen.warmup)
    first = next(iter(calls))
    found = Table(title, ("", "images/s, median (min..max)", "ms an image", f"time / {first}"))
    for name in calls:
        rate = images_per_second(timings, name, images)
        found.rows.append((name, rate, 1000 / rate.median, ratio(timings, name, first)))
    return found


def main(arguments: Sequence[str] | None = None) -> list[Table]:
    """Measures and reports; returns the tables."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = options("loading", __doc__ or "", rounds=7, warmup=1, threads=1)
    parser.add_argument("--photos", type=Path, default=Path("../shared/data/birds"), metavar="DIR")
    parser.add_argument("--images", type=int, default=256, help="photographs a call, at most (default 256)")
    parser.add_argument("--image-size", type=int, default=112, help="pixels that photos become (default 112)")
    parser.add_argument("--scenes", type=int, default=256, help="scenes a call (default 256)")
    parser.add_argument("--scene-size", type=int, default=64, help="pixels of a scene (default 64)")
    parser.add_argument("--batch", type=int, default=32, help="images a batch (default 32)")
    chosen = parser.parse_args(arguments)
    machine = begin(chosen)
    with tempfile.TemporaryDirectory() as name, one_thread_of_opencv():
        # Half as many again, because some are kept for validation.
        count = chosen.images + chosen.images // 2
        root, described = photographs(chosen.photos, Path(name), count, size=512, seed=chosen.seed)
        photos, images = photo_calls(root, chosen)
        scenes, drawn = scene_calls(chosen)
        read = [file.path for file in list_images([root], limit=chosen.images)]
        found = [
            reader_table(f"{len(read)} photographs against Pillow", read, chosen),
            reader_table(
                "2 photographs of 4000 x 3000 against Pillow", large_photos(read, Path(name) / "large"), chosen
            ),
            table(f"{images} photographs at {chosen.image_size} px", photos, images, chosen),
            table(f"{drawn} generated scenes at {chosen.scene_size} px", scenes, drawn, chosen),
        ]
    settings = {
        "photographs": f"{images} of {described}",
        "batch": chosen.batch,
        "rounds": f"{chosen.rounds} after {chosen.warmup} dropped",
    }
    report("loading", arguments, machine, settings, found, chosen.out)
    return found


if __name__ == "__main__":
    main()

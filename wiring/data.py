"""The data that the options describe, preprocessed as a model needs it, and facts about it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from vit.foundation import UserError, check_range
from vit.options import DataOptions

if TYPE_CHECKING:
    import torch

    from datamodules.doctor.diagnosis import Diagnosis
    from datamodules.image_files import ImageFile, ImageFiles
    from datamodules.splits import SplitLoaders
    from vit.checkpoints.card import Training
    from vit.models.classifier import Classifier, Preprocessing


def data_module(
    options: DataOptions,
    model: Classifier,
    *,
    seed: int,
    labels: tuple[str, ...] | None = None,
    labelled: bool = True,
    limit: int | None = None,
    fold: tuple[int, int] | None = None,
) -> SplitLoaders:
    """The data module of `--data.root`, preprocessed as the model needs it.

    If `labelled` is False, folder names are ignored.

    Args:
        labels: the classes, in order; None takes those of the data.
        limit: maximum number of images per split; None for all.
        fold: (number from 1, number of folds): validate on this part of the train and val images.

    Raises:
        UserError: for a root that is missing or can't be used, a negative seed, or options that don't fit the data.
    """
    module = whole_data_module(options, model, seed=seed, labels=labels, labelled=labelled)
    if fold is not None:
        module.fold(*fold)
    if limit is not None:
        module.limit(limit)
    return module


def whole_data_module(
    options: DataOptions, model: Classifier, *, seed: int, labels: tuple[str, ...] | None, labelled: bool
) -> SplitLoaders:
    """As `data_module`, with all images. Raises UserError as it does."""
    from datamodules.birdscenes import BirdScenes
    from datamodules.image_folder import ImageFolder
    from datamodules.unlabelled import UnlabelledFolder

    check_range("seed", seed, 0)
    if not options.root:
        raise UserError("--data.root is missing: give the folder of photographs, or birdscenes:demo.")
    prepared = model.preprocessing
    keywords = asdict(options) | {
        "image_size": prepared.image_size,
        "mean": prepared.mean,
        "std": prepared.std,
        "interpolation": prepared.interpolation,
        "resize_mode": prepared.resize_mode,
        "crop_pct": prepared.crop_pct,
        "seed": seed,
    }
    root = keywords.pop("root")
    scenes = {name: keywords.pop(name) for name in ("train_scenes", "val_scenes", "confound") if name in keywords}
    if root.startswith("birdscenes:"):
        for unused in ("val_fraction", "strict", "balanced", "cache", "cache_gb"):
            keywords.pop(unused, None)
        return BirdScenes(root.removeprefix("birdscenes:"), **scenes, labels=labels, **keywords)
    if scenes.get("confound"):
        raise UserError("--data.confound only works with generated scenes (birdscenes:demo).\nLeave it out.")
    if labelled:
        return ImageFolder(root, labels=labels, **keywords)
    keywords.pop("balanced", None)
    return UnlabelledFolder(root, **keywords)


def check_reading(batch_size: int, num_workers: int) -> None:
    """Raises UserError for an invalid batch size or number of reading processes."""
    check_range("batch_size", batch_size, 1)
    check_range("num_workers", num_workers, -1)


def image_files(files: list[ImageFile], prepared: Preprocessing, *, photo_side: int | None = None) -> ImageFiles:
    """The data set of listed photographs, preprocessed as a model needs them."""
    from datamodules.image_files import ImageFiles

    keywords = asdict(prepared)
    return ImageFiles(files, keywords.pop("image_size"), keywords.pop("mean"), keywords.pop("std"),
                      photo_side=photo_side, **keywords)  # fmt: skip


def describe_data(options: DataOptions, module: SplitLoaders, start: str | None) -> Training:
    """What a model card says about a run's data and its starting checkpoint, without paths of this machine."""
    from vit.checkpoints.card import Training

    name = options.root if options.root.startswith("birdscenes:") else Path(options.root).absolute().name
    images = {split: module.length(split) for split in ("train", "val")}
    classes = module.counts().get("train", {})
    start = start or ""
    return Training(name, images, classes, start=start if start.startswith(("timm:", "hf:")) else Path(start).name)


def run_estimate(
    found: Diagnosis, network: Classifier, batch_size: int, max_epochs: int, num_workers: int, device: torch.device
) -> list[str]:
    """Lines to print about the time and memory that training on the checked data would take."""
    from datamodules.doctor.speed import reading_rate
    from datamodules.sampling import reading_processes
    from vit.training.estimate import estimate_training

    network.reset_head(found.listing.labels)
    prepared = network.preprocessing
    reading = reading_rate(found.listing, found.scan, prepared.image_size, prepared.mean, prepared.std)
    if not reading:
        return []
    step = estimate_training(network, batch_size, device=device)
    processes = reading_processes(num_workers)
    rate = min(reading * max(processes, 1), step.images_per_second)
    if not processes:  # then one process reads and trains in turn
        rate = 1 / (1 / reading + 1 / step.images_per_second)
    minutes = max(1, max_epochs * found.split_counts.get("train", 0) / rate / 60)
    height, width = prepared.image_size
    return [
        f"training at {height} x {width} px: reading {reading:.0f} images/s per process, "
        f"the model {step.images_per_second:.1f} images/s on {device.type} (measured on a few images)",
        f"{max_epochs} epochs: about {minutes:.0f} minutes and {step.memory(batch_size) / 2**30:.1f} GiB at batch size "
        f"{batch_size}, fp32, not counting validation and the program itself",
    ]

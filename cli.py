"""The command `vit`: one plain typed function a verb. They parse, wire data to model, and delegate.

What is slow to import (torch, lightning, timm) is imported inside the verb, so that `vit --help` answers at once.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vit.commandline import current_config, run_command
from vit.foundation import UserError, atomic_write, claim_folder
from vit.options import DataOptions, Device, ModelOptions, OptimOptions, TrainerOptions, TrainingDataOptions

if TYPE_CHECKING:
    from vit.models.classifier import Classifier


def train(
    data: TrainingDataOptions,
    model: ModelOptions,
    optim: OptimOptions,
    trainer: TrainerOptions,
    *,
    run: str,
    seed: int = 0,
    device: Device = "auto",
    overwrite: bool = False,
    resume: bool = False,
) -> None:
    """Fine-tune a pretrained Vision Transformer, or train one from scratch.

    Example: vit train --config classify/finetune --data.root photos --model.pretrained vit.safetensors --run runs/birds

    Args:
        data: the photographs to learn from.
        model: the Vision Transformer.
        optim: how the weights move.
        trainer: the length and the arithmetic of the run.
        run: folder for checkpoints, curves and the finished model; refused when it already holds files.
        seed: everything random in the run follows from it.
        device: auto takes a GPU when there is one.
        overwrite: write into a run folder that already holds files.
        resume: go on from the run folder's last checkpoint.
    """
    from vit.training.classification import ClassificationTask
    from vit.training.fit import fit

    network = build_model(model, seed)
    module = data_module(data, network, seed=seed)
    if network.labels != module.labels:
        network.reset_head(module.labels)
        say(f"new head for {len(module.labels)} classes")
    folder = claim_folder(run, overwrite=overwrite, resume=resume)
    with atomic_write(folder / "config.yaml") as temporary:
        temporary.write_text(current_config() or "", encoding="utf-8")
    moves = asdict(optim)
    clip_grad = moves.pop("clip_grad")
    task = ClassificationTask(network, seed=seed, **moves)
    result = fit(task, module, folder, clip_grad=clip_grad, device=device, resume=resume, **asdict(trainer))
    tell_skipped(result.skipped, folder)
    say(f"best top-1 {result.best_top1:.1%} in epoch {result.best_epoch}, last {result.last_top1:.1%}")
    say(f"model: {folder / 'model'}   curves: {folder / 'curves.png'}")


def build_model(options: ModelOptions, seed: int) -> Classifier:
    """The model that the options describe: a checkpoint's, or a new one."""
    import torch

    from vit.checkpoints.load import load_with_report
    from vit.models.classifier import Classifier
    from vit.models.encoder import image_encoder
    from vit.models.variants import VARIANTS, variant

    torch.manual_seed(seed)
    size = pair(options.image_size)
    known = {name: getattr(options, name) for name in ("num_heads", "act", "norm_eps", "pos_interpolation")}
    if options.pretrained:
        model, report = load_with_report(
            options.pretrained, image_size=size, pool=options.pool, drop_path=options.drop_path, **known
        )
        say(*report.lines())
        return model
    keywords = variant(options.variant) | {name: value for name, value in known.items() if value is not None}
    size = size or (224, 224)
    encoder = image_encoder(
        image_size=size, patch_size=(options.patch_size,) * 2, drop_path=options.drop_path, **keywords
    )
    return Classifier(encoder, 0, pool=options.pool or "class")


def data_module(options: DataOptions, model: Classifier, *, seed: int, labels: tuple[str, ...] | None = None) -> Any:
    """The data module of `--data.root`, prepared for the model."""
    from datamodules.birdscenes import BirdScenes
    from datamodules.image_folder import ImageFolder

    if not options.root:
        raise UserError("--data.root is missing: give the folder of photographs, or birdscenes:demo.")
    prepared = model.preprocessing
    keywords = asdict(options) | {
        "image_size": prepared.image_size,
        "mean": prepared.mean,
        "std": prepared.std,
        "seed": seed,
        "labels": labels,
    }
    root = keywords.pop("root")
    scenes = {name: keywords.pop(name) for name in ("train_scenes", "val_scenes", "confound") if name in keywords}
    if root.startswith("birdscenes:"):
        for unused in ("val_fraction", "strict"):
            keywords.pop(unused)
        return BirdScenes(root.removeprefix("birdscenes:"), **scenes, **keywords)
    keywords |= {
        "interpolation": prepared.interpolation, "resize_mode": prepared.resize_mode, "crop_pct": prepared.crop_pct
    }
    return ImageFolder(root, **keywords)


def pair(size: int | list[int] | None) -> tuple[int, int] | None:
    """An image size as (height, width)."""
    if size is None:
        return None
    if isinstance(size, int):
        return size, size
    if len(size) != 2:
        raise UserError(f"--model.image_size is {size}; allowed are one number, or [height, width].")
    return size[0], size[1]


def say(*lines: str) -> None:
    """Tells the user, on the error stream: the output stream is for results."""
    for line in lines:
        print(line, file=sys.stderr)


def tell_skipped(skipped: dict[str, str], folder: Path) -> None:
    """Counts the images that could not be read, and lists them in skipped.csv."""
    if not skipped:
        return
    import csv

    with atomic_write(folder / "skipped.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "reason"])
        rows.writerows(sorted(skipped.items()))
    say(f"{len(skipped)} images could not be read; they are listed in {folder / 'skipped.csv'}")


VERBS = {"train": train}


def main(arguments: list[str] | None = None) -> int:
    """Runs one command line; returns its exit code."""
    return run_command(VERBS, sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())

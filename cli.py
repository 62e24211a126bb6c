"""The command `vit`: one plain typed function a verb. They parse, wire data to model, and delegate.

What is slow to import (torch, lightning, timm) is imported inside the verb, so that `vit --help` answers at once.
"""

import sys
from typing import Literal

from vit.commandline import run_command
from vit.options import DataOptions, Device, ModelOptions, OptimOptions, Precision, TrainerOptions


def train(
    data: DataOptions,
    model: ModelOptions,
    optim: OptimOptions,
    trainer: TrainerOptions,
    run: str,
    seed: int = 0,
    device: Device = "auto",
    overwrite: bool = False,
    resume: str | None = None,
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
        resume: a run folder whose last checkpoint is continued.
    """


def evaluate(
    model: str,
    data: DataOptions,
    out: str,
    split: Literal["train", "val", "test"] = "val",
    precision: Precision = "fp32",
    device: Device = "auto",
    overwrite: bool = False,
) -> None:
    """Accuracy, calibration and confusions of a model on a split.

    Example: vit evaluate runs/birds/model --data.root photos --split val --out runs/birds/val

    Args:
        model: a model folder or checkpoint.
        data: the photographs.
        out: folder for metrics.json, predictions.csv and confusion.png.
        split: which photographs.
        precision: arithmetic of the forward pass.
        device: auto takes a GPU when there is one.
        overwrite: write into a folder that already holds files.
    """


def predict(model: str, images: list[str], out: str, topk: int = 5, batch_size: int = 32, num_workers: int = -1,
            device: Device = "auto", strict: bool = False, overwrite: bool = False) -> None:
    """Labels and probabilities for new images, as a CSV.

    Example: vit predict runs/birds/model photos/new --out labels.csv

    Args:
        model: a model folder or checkpoint.
        images: files, folders or globs.
        out: the CSV to write.
    """


VERBS = {"train": train, "evaluate": evaluate, "predict": predict}


def main(arguments: list[str] | None = None) -> int:
    """Runs one command line; returns its exit code."""
    return run_command(VERBS, sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())

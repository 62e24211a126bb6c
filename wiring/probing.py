"""Linear probes: the frozen encoder sees each image once, and the head is trained on the resulting features."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING

from vit.foundation import UserError, atomic_write, is_first_process, none_read
from vit.options import Device, Precision
from vit.terminal import progress, say

if TYPE_CHECKING:
    import torch

    from datamodules.features import CachedFeatures, Columns
    from datamodules.splits import SplitLoaders
    from vit.models.classifier import Classifier
    from vit.training.classification import ClassificationTask

MOST_IMAGES = 10_000  # for the probe that starts fine-tuning and for neighbours, spread evenly over the classes
FILE = "features.safetensors"  # in the run folder, so that a resumed run need not compute them again


def cached_features(
    module: SplitLoaders,
    model: Classifier,
    folder: Path,
    *,
    data: str,
    device: Device,
    precision: Precision,
    resume: bool,
) -> tuple[CachedFeatures, dict[str, str]]:
    """The features of all training and validation images, preprocessed as in evaluation.

    Args:
        folder: the run folder, where they are kept.
        data: fingerprint of the images and labels.
        resume: use those that are kept there, if any.

    Returns:
        The data module, and the images that could not be read (path to reason).

    Raises:
        UserError: when no image of a split can be read, or those that are kept there are of other data.
    """
    from datamodules.features import CachedFeatures

    kept = _kept(folder / FILE) if resume else {}
    if kept and _data_of(folder / FILE) != data:
        raise UserError(
            f"The run started with other images or labels: {folder / FILE} has their features.\n"
            "Resume it with the data that it started with, or start a new run."
        )
    skipped: dict[str, str] = {}
    if not kept:
        say("The encoder is frozen: it sees each image once, without augmentation.")
        for split in ("train", "val"):
            kept[split], unread = features_of(module, split, model, device, precision)
            skipped |= unread
        _keep(kept, folder / FILE, data)
    classes = module.sampled_classes()
    return CachedFeatures(kept, batch_size=module.batch_size, classes=classes, seed=module.seed), skipped


def start_from_probe(
    task: ClassificationTask, module: SplitLoaders | CachedFeatures, *, device: Device, precision: Precision
) -> None:
    """Fits the task's head as a linear probe on features of the training images, preprocessed as in evaluation.

    Fine-tuning needs a starting point, not the best possible probe, so at most `MOST_IMAGES` images are used. If the
    processes do not work together yet, only the first one fits it, and the others get its weights when training begins.

    Raises:
        UserError: when no training image can be read.
    """
    from vit import processes
    from vit.training.probe import fit_probe

    if processes.count() == 1 and not is_first_process():
        return
    columns = training_features(module, task.model, device=device, precision=precision)
    fit_probe(task, columns["image"], columns["target"], columns.get("weight"))
    task.train()


def training_features(
    module: SplitLoaders | CachedFeatures, model: Classifier, *, device: Device, precision: Precision
) -> Columns:
    """The features of at most `MOST_IMAGES` training images, or of all where they are known, as evaluation sees them,
    with their targets.

    Raises:
        UserError: when no training image can be read.
    """
    from datamodules.features import CachedFeatures

    if isinstance(module, CachedFeatures):  # of a frozen encoder
        return module.tables["train"]
    part = copy(module)
    part.limit(MOST_IMAGES)
    return features_of(part, "train", model, device, precision)[0]


def features_of(
    module: SplitLoaders, split: str, model: Classifier, device: Device, precision: Precision
) -> tuple[Columns, dict[str, str]]:
    """The columns of a split, including the images that other processes read, and what could not be read."""
    import torch

    from datamodules.features import gather_columns
    from vit import processes
    from vit.inference import arithmetic, choose_device

    place = choose_device(device)
    model = model.to(place).eval()
    skipped: dict[str, str] = {}
    count, found = module.length(split), []
    for batch in progress(module.dataloader(split), f"features of {split}", count, lambda each: len(each["index"])):
        skipped |= dict(batch["skipped"])
        with torch.inference_mode(), arithmetic(precision, place):
            features = model.features(batch["image"].to(place, non_blocking=True)).float().cpu()
        found.append(batch | {"image": features})
    read = [batch for each in processes.gathered(found) for batch in each if len(batch["index"])]
    skipped = processes.merged(skipped)
    if not read:
        raise none_read(f"{count} images of {split}", skipped)
    return gather_columns(read), skipped


def _keep(tables: dict[str, Columns], path: Path, data: str) -> None:
    from safetensors.torch import save_file

    named = {f"{split}.{name}": column for split, columns in tables.items() for name, column in columns.items()}
    with atomic_write(path) as temporary:
        save_file(named, temporary, metadata={"data": data})


def _data_of(path: Path) -> str:
    """The fingerprint of the data that features were computed from."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        found: str = (file.metadata() or {}).get("data", "")
    return found


def _kept(path: Path) -> dict[str, Columns]:
    """What `_keep` wrote; an empty dict if it does not exist or can't be read."""
    from vit.checkpoints.read import read_tensors

    tables: dict[str, dict[str, torch.Tensor]] = {}
    if not path.is_file():
        return {}
    try:
        named = read_tensors(path)
    except UserError:
        return {}
    for name, column in named.items():
        split, _, rest = name.partition(".")
        tables.setdefault(split, {})[rest] = column
    return tables

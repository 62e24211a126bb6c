"""Linear probes: the encoder as it is sees each image once, and the head learns from what came out."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit.foundation import UserError, atomic_write, is_first_process, none_read
from vit.options import Device, Precision
from vit.terminal import progress, say

if TYPE_CHECKING:
    import torch

    from datamodules.features import CachedFeatures, Columns
    from vit.models.classifier import Classifier
    from vit.training.classification import ClassificationTask

MOST_IMAGES = 10_000  # that fine-tuning's probe is made of, spread evenly over the classes
FILE = "features.safetensors"  # in the run folder: a run that is resumed computes nothing again


def cached_features(
    module: Any, model: Classifier, folder: Path, *, device: Device, precision: Precision, resume: bool
) -> tuple[CachedFeatures, dict[str, str]]:
    """The features of all training and validation images, as evaluation would see them.

    Args:
        folder: of the run, where they are kept.

    Returns:
        The data module, and the images that could not be read: path to reason.
    """
    from datamodules.features import CachedFeatures

    kept = _kept(folder / FILE) if resume else {}
    skipped: dict[str, str] = {}
    if not kept:
        say("The encoder is frozen: it sees each image once, not augmented.")
        for split in ("train", "val"):
            kept[split], unread = _computed(module, split, model, device, precision)
            skipped |= unread
        _keep(kept, folder / FILE)
    classes = module.sampled_classes() if hasattr(module, "sampled_classes") else None
    return CachedFeatures(kept, batch_size=module.batch_size, classes=classes, seed=module.seed), skipped


def start_from_probe(task: ClassificationTask, module: Any, *, device: Device, precision: Precision) -> None:
    """Makes the task's head a linear probe of the features of training images, as evaluation sees them.

    Fine-tuning needs a place to begin, not the best of probes: of many images it is made of `MOST_IMAGES`. Of processes
    that do not work together yet the first makes it alone, and gives its weights to the others when training begins.
    """
    from vit import processes
    from vit.training.probe import fit_probe

    if processes.count() == 1 and not is_first_process():
        return
    columns = getattr(module, "tables", {}).get("train")  # of a frozen encoder they are there already
    if columns is None:
        part = copy(module)
        part.limit(MOST_IMAGES)
        columns, _ = _computed(part, "train", task.model, device, precision)
    fit_probe(task, columns["image"], columns["target"], columns.get("weight"))
    task.train()


def _computed(
    module: Any, split: str, model: Classifier, device: Device, precision: Precision
) -> tuple[Columns, dict[str, str]]:
    """The columns of a split, also of those images that another process read, and what could not be read."""
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


def _keep(tables: dict[str, Columns], path: Path) -> None:
    from safetensors.torch import save_file

    named = {f"{split}.{name}": column for split, columns in tables.items() for name, column in columns.items()}
    with atomic_write(path) as temporary:
        save_file(named, temporary)


def _kept(path: Path) -> dict[str, Columns]:
    """What `_keep` wrote; nothing where it is not there, or can't be read."""
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

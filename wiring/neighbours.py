"""Neighbours for the model of a finished run: training photographs that vote beside its head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vit.foundation import is_first_process
from vit.options import Device, Precision
from vit.terminal import progress, say
from wiring import probing

if TYPE_CHECKING:
    from datamodules.features import CachedFeatures
    from datamodules.splits import SplitLoaders
    from vit.checkpoints.card import Training
    from vit.models.classifier import Classifier
    from vit.training.fit import FitResult
    from vit.training.task import TrainingTask


def with_neighbours(
    result: FitResult,
    folder: Path,
    module: SplitLoaders,
    learned: SplitLoaders | CachedFeatures,
    task: TrainingTask,
    about: Training,
    *,
    share: float,
    device: Device,
    precision: Precision,
) -> FitResult:
    """Gives the model folder of a run its neighbours, unless they make it worse on the validation images, which choose
    the best epoch as well; prints what they change.

    A run that is killed meanwhile leaves the folder without them; resumed, it does this again.

    Args:
        result: of the run.
        folder: the model folder, of the best epoch.
        module: the images; `learned`: what the run was trained on, for a frozen encoder their features.
        task: of the run, for the names of its metrics.
        about: what the model card says about the data.
        share: see `Neighbours`.

    Returns:
        The result, whose best metric is that of the model with neighbours.

    Raises:
        UserError: when no image can be read.
    """
    from vit import processes
    from vit.checkpoints.folder import write_folder
    from vit.checkpoints.load import load
    from vit.inference import choose_device
    from vit.training.evaluation import evaluate

    model = load(folder)
    remember(model, learned, share=share, device=device, precision=precision)
    names = module.names("val")
    batches = progress(
        module.dataloader("val"), "validating", len(names) // processes.count(), lambda batch: len(batch["target"])
    )
    found = evaluate(model, batches, names, device=choose_device(device), precision=precision).metrics()
    best, judge = float(found[task.judge.metric.removeprefix("val_")]), task.judge
    if best < result.best:
        say(f"the nearest training photographs do not help: {judge.name} {judge.text(best)}; the model has none")
        return result
    keys = {name: key.removeprefix("val_") for name, key in task.told.items()}
    told = {name: f"{found[key]:.1%}" for name, key in keys.items() if key in found}
    if is_first_process():
        write_folder(model.cpu(), folder, replace(about, metrics=told, epoch=result.best_epoch))
    say(f"with the nearest training photographs: {judge.name} {judge.text(best)}")
    return replace(result, best=best)


def remember(
    model: Classifier,
    data: SplitLoaders | CachedFeatures,
    *,
    share: float,
    device: Device = "auto",
    precision: Precision = "fp32",
) -> None:
    """Makes the training photographs of `data` the model's neighbours, in place of those that it has.

    Args:
        model: a Classifier with a head for the classes of the data.
        data: up to `wiring.probing.MOST_IMAGES` of its training images are used, preprocessed as in evaluation.
        share: see `Neighbours`.

    Raises:
        UserError: when no training image can be read.
    """
    from torch.nn import functional as F

    from datamodules.sampling import evenly
    from vit.models.neighbours import Neighbours

    columns = probing.training_features(data, model, device=device, precision=precision)
    few = evenly(len(columns["index"]), probing.MOST_IMAGES)  # the features of a frozen encoder are those of all images
    target = columns["target"][few]
    targets = target if model.multilabel else F.one_hot(target, model.num_classes)
    model.neighbours = Neighbours(columns["image"][few], targets, share=share)

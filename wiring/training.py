"""A classification run, assembled from its options: the model, its head, the data, the task."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

from vit.foundation import UserError
from vit.options import ModelOptions, OptimOptions, TrainerOptions, TrainingDataOptions
from vit.terminal import say
from wiring.data import data_module, describe_data
from wiring.idle import idle
from wiring.models import build_model
from wiring.neighbours import with_neighbours
from wiring.runs import RunOptions, check_run, open_run, refuse_unfit_fsdp, run_task

if TYPE_CHECKING:
    from datamodules.features import CachedFeatures
    from datamodules.splits import SplitLoaders
    from vit.models.classifier import Classifier
    from vit.training.classification import ClassificationTask
    from vit.training.fit import FitResult
    from vit.training.task import Judge


def train_classifier(
    data: TrainingDataOptions,
    model: ModelOptions,
    optim: OptimOptions,
    trainer: TrainerOptions,
    options: RunOptions,
    *,
    fold: tuple[int, int] | None = None,
) -> tuple[FitResult, Judge]:
    """Trains a classifier into the run folder, and prints how it went.

    Args:
        fold: (number from 1, number of folds): validate on this part of the images instead of the data's own val.

    Returns:
        The result, and the metric that judges it.

    Raises:
        UserError: for options, a model or data that can't be used, or when the run fails.
    """
    task, module, told, new_head = prepared(data, model, optim, trainer, options, fold=fold)
    open_run(options)
    say(*told, *idle(data, model, optim, trainer))
    about = describe_data(data, module, model.pretrained)
    began = perf_counter()
    learned = probed(task, module, optim, trainer, options, new_head=new_head)
    result = run_task(task, learned, options, optim, trainer, about, prepared=perf_counter() - began)
    if optim.neighbours:
        result = with_neighbours(
            result, options.run / "model", module, learned, task, about, share=optim.neighbours, device=options.device,
            precision=trainer.precision,
        )  # fmt: skip
    return result, task.judge


def prepared(
    data: TrainingDataOptions,
    model: ModelOptions,
    optim: OptimOptions,
    trainer: TrainerOptions,
    options: RunOptions,
    *,
    fold: tuple[int, int] | None,
) -> tuple[ClassificationTask, SplitLoaders, list[str], bool]:
    """(The task, its data, lines to print, whether the head is new), before anything is written.

    Raises:
        UserError: for invalid options, or a model or data that can't be used.
    """
    check_run(options, trainer, model.pretrained)
    refuse_unfit_fsdp(trainer, optim, classifies=True)
    if data.balanced and optim.class_weights == "balanced":
        raise UserError(
            "--data.balanced and --optim.class_weights balanced both compensate for rare classes.\nGive one of them."
        )
    refuse_unfit_probe(optim, trainer)
    network, report = build_model(model, options.seed)
    module = data_module(data, network, seed=options.seed, limit=options.limit, fold=fold)
    new_head = fit_head(network, module, data.root)
    task = classification_task(network, module, optim, trainer, seed=options.seed)
    return task, module, [*report, *new_head], bool(new_head)


def probed(
    task: ClassificationTask,
    module: SplitLoaders,
    optim: OptimOptions,
    trainer: TrainerOptions,
    options: RunOptions,
    *,
    new_head: bool,
) -> SplitLoaders | CachedFeatures:
    """Fits the linear probe that the options ask for, if any; returns the data to train on: for a frozen encoder, its
    features."""
    from wiring.probing import cached_features, start_from_probe

    arithmetic: dict[str, Any] = {"device": options.device, "precision": trainer.precision}
    learned: SplitLoaders | CachedFeatures = module
    if optim.trained == "head":
        learned, task.skipped = cached_features(
            module, task.model, options.run, data=task.data, resume=options.resume, **arithmetic
        )
    if optim.head_init == "probe" and not options.resume:
        if new_head:
            start_from_probe(task, learned, **arithmetic)
        else:
            say("note: the head already has these classes and is kept; --optim.head_init only applies to a new head")
    return learned


def classification_task(
    network: Classifier, module: SplitLoaders, optim: OptimOptions, trainer: TrainerOptions, *, seed: int
) -> ClassificationTask:
    """The task that the options and the data ask for."""
    from vit.training.classification import ClassificationTask
    from vit.training.losses import balanced_weights
    from vit.training.multilabel import MultiLabelTask

    names = module.names("train")
    weights = None
    if optim.class_weights == "balanced" and module.counts():
        counts = list(module.counts()["train"].values())
        weights = balanced_weights(counts, len(names), multilabel=network.multilabel)
    kind = MultiLabelTask if network.multilabel else ClassificationTask
    return kind(
        network,
        seed=seed,
        names=names,
        data=module.fingerprint(),
        skip_bad_steps=trainer.skip_bad_steps,
        class_weights=weights,
        on_features=optim.trained == "head",
        **optim.movement(),
        **optim.classification(),
    )


def refuse_unfit_probe(optim: OptimOptions, trainer: TrainerOptions) -> None:
    """Raises UserError for --optim.trained head with mixed images or several processes."""
    several = trainer.devices * trainer.num_nodes > 1
    if optim.trained == "head" and several:
        raise UserError(
            "--optim.trained head runs in one process.\nLeave out --trainer.devices and --trainer.num_nodes."
        )
    if optim.trained == "head" and (optim.mixup or optim.cutmix):
        raise UserError(
            "--optim.trained head reads each image only once, so there is nothing to mix.\n"
            "Leave out --optim.mixup and --optim.cutmix, or give --optim.trained blocks:1."
        )


def fit_head(network: Classifier, module: SplitLoaders, root: str) -> list[str]:
    """Gives the model a new head for the data's labels, unless it already has one; returns lines to print about it.

    Raises:
        UserError: when the data has no validation images.
    """
    if not module.length("val"):
        raise UserError(
            f"{root} has only one image per class, or one group, so none is left for validation.\nGive two or more."
        )
    if (network.labels, network.multilabel) == (module.labels, module.multilabel):
        return []
    network.reset_head(module.labels, multilabel=module.multilabel)
    several = ", any number of them per image" if module.multilabel else ""
    return [f"new head for {len(module.labels)} classes{several}"]

"""A training run, put together from its options: the model, the data, the task, the run folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit.foundation import UserError, atomic_write, claim_folder, is_first_process
from vit.options import Device, ModelOptions, OptimOptions, TrainerOptions, TrainingDataOptions, seconds
from vit.terminal import print_tables, say, tell_skipped
from wiring.data import data_module, describe_data
from wiring.models import build_model

if TYPE_CHECKING:
    from vit.checkpoints.card import Training
    from vit.models.classifier import Classifier
    from vit.training.classification import ClassificationTask
    from vit.training.fit import FitResult
    from vit.training.task import Judge, TrainingTask


def train_classifier(
    data: TrainingDataOptions,
    model: ModelOptions,
    optim: OptimOptions,
    trainer: TrainerOptions,
    *,
    run: Path,
    config: str,
    seed: int,
    limit: int | None,
    profile: bool,
    device: Device,
    overwrite: bool,
    resume: bool,
    fold: tuple[int, int] | None = None,
) -> tuple[FitResult, Judge]:
    """One run of classification, into its folder; tells how it went. Returns that, and what it is judged by.

    Args:
        config: all options as YAML, for the run folder.
        fold: validates this one of so many parts of the images, rather than the data's own val.
    """
    from wiring.probing import cached_features, start_from_probe

    check_run(run, config, device=device, resume=resume)
    refuse_unfit_probe(optim, trainer)
    network, report = build_model(model, seed)
    module = data_module(data, network, seed=seed, limit=limit, fold=fold)
    new_head = fit_head(network, module, data.root)
    task = classification_task(network, module, optim, trainer, seed=seed)
    folder = open_run(run, config, overwrite=overwrite, resume=resume)
    say(*report, *new_head)
    about = describe_data(data, module, model.pretrained)
    if optim.trained == "head":
        module, task.skipped = cached_features(
            module, network, folder, device=device, precision=trainer.precision, resume=resume
        )
    if optim.head_init == "probe" and new_head and not resume:
        start_from_probe(task, module, device=device, precision=trainer.precision)
    result = run_task(task, module, folder, optim, trainer, device=device, resume=resume, about=about, profile=profile)
    tell_result(result, task.judge, folder)
    return result, task.judge


def classification_task(
    network: Classifier, module: Any, optim: OptimOptions, trainer: TrainerOptions, *, seed: int
) -> ClassificationTask:
    """The task that the options and the data ask for."""
    from vit.training.classification import ClassificationTask
    from vit.training.losses import balanced_weights
    from vit.training.multilabel import MultiLabelTask

    names = module.names("train")
    weights = None
    if optim.class_weights == "balanced" and hasattr(module, "counts"):  # generated scenes are balanced
        counts = list(module.counts()["train"].values())
        weights = balanced_weights(counts, len(names), multilabel=network.multilabel)
    kind = MultiLabelTask if network.multilabel else ClassificationTask
    return kind(
        network,
        seed=seed,
        names=names,
        skip_bad_steps=trainer.skip_bad_steps,
        class_weights=weights,
        on_features=optim.trained == "head",
        **optim.movement(),
        **optim.classification(),
    )


def refuse_unfit_probe(optim: OptimOptions, trainer: TrainerOptions) -> None:
    """Raises UserError where images are to be mixed that are read only once, or read by several processes."""
    several = trainer.devices * trainer.num_nodes > 1
    if optim.trained == "head" and several:
        raise UserError("--optim.trained head takes one process: what it learns from is small.\nLeave out the others.")
    if optim.head_init == "probe" and several:
        raise UserError("--optim.head_init probe takes one process.\nGive --optim.head_init random.")
    if optim.trained == "head" and (optim.mixup or optim.cutmix):
        raise UserError(
            "--optim.trained head reads each image once, as it is; there is nothing to mix.\n"
            "Leave out --optim.mixup and --optim.cutmix, or give --optim.trained blocks:1."
        )


def run_task(
    task: TrainingTask,
    module: Any,
    folder: Path,
    optim: OptimOptions,
    trainer: TrainerOptions,
    *,
    device: Device,
    resume: bool,
    about: Training,
    profile: bool,
) -> FitResult:
    """Trains the task on the data, as the options say, into the run folder."""
    from vit.training.fit import fit

    length = asdict(trainer)
    del length["skip_bad_steps"]  # the task's own
    length["max_time"] = seconds(trainer.max_time) if trainer.max_time else None
    return fit(
        task, module, folder, clip_grad=optim.clip_grad, device=device, resume=resume, about=about, profile=profile,
        **length,
    )  # fmt: skip


def check_run(run: Path, config: str, *, device: Device, resume: bool) -> None:
    """Raises UserError for a device that is not there, or a run that can't be resumed with these options."""
    from vit.inference import choose_device
    from vit.training.resume import last_checkpoint, refuse_changes

    choose_device(device)
    if resume:
        last_checkpoint(run)
        refuse_changes(run / "config.yaml", config)


def fit_head(network: Classifier, module: Any, root: str) -> list[str]:
    """Gives the model a head for the data's labels, where it has another; returns what to tell of it."""
    if not module.names("val"):
        raise UserError(f"{root} has one image a class, and none is left for validation.\nGive two or more.")
    multilabel = getattr(module, "multilabel", False)  # of generated scenes it is no matter
    if (network.labels, network.multilabel) == (module.labels, multilabel):
        return []
    network.reset_head(module.labels, multilabel=multilabel)
    several = ", of which an image shows any number" if multilabel else ""
    return [f"new head for {len(module.labels)} classes{several}"]


def refuse_classification(optim: OptimOptions, *, takes: str = "") -> None:
    """Raises UserError for options that only classification has a use for, and, it may be, the one that is taken."""
    usual = OptimOptions()
    for name in (*usual.classification(), "head_init"):
        value = getattr(optim, name)
        if value != getattr(usual, name) and name != takes:
            raise UserError(f"--optim.{name} is {value!r}, but there are no classes in this task.\nLeave it out.")


def open_run(run: Path, config: str, *, overwrite: bool, resume: bool) -> Path:
    """Makes the run folder, with the options in it as config.yaml."""
    folder = claim_folder(run, overwrite=overwrite, resume=resume)
    if is_first_process():
        with atomic_write(folder / "config.yaml") as temporary:
            temporary.write_text(config, encoding="utf-8")
    return folder


def tell_result(result: FitResult, judge: Judge, folder: Path) -> None:
    """What a run came to, and where it lies."""
    tell_skipped(result.skipped, folder)
    if result.bad_steps:
        say(f"{result.bad_steps} steps were left out: their loss or gradient was not finite")
    best, last = judge.text(result.best), judge.text(result.last)
    say(f"best {judge.name} {best} in epoch {result.best_epoch}, last {last} in epoch {result.epochs}")
    if result.profile:
        print_tables([result.profile])
    say(f"model: {folder / 'model'}   curves: {folder / 'curves.png'}")

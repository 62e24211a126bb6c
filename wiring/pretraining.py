"""A run of masked pretraining, put together from its options: any photographs, and an encoder that guesses them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit.foundation import UserError, is_first_process
from vit.options import Device, ModelOptions, OptimOptions, PretrainOptions, TrainerOptions, TrainingDataOptions
from vit.terminal import say
from wiring.data import data_module, describe_data
from wiring.models import build_model
from wiring.training import check_run, open_run, refuse_classification, run_task, tell_result

if TYPE_CHECKING:
    from vit.models.encoder import Encoder
    from vit.models.masked import MaskedImageModel
    from vit.training.fit import FitResult

PICTURES = "reconstructions"


def pretrain_encoder(
    data: TrainingDataOptions,
    model: ModelOptions,
    optim: OptimOptions,
    trainer: TrainerOptions,
    options: PretrainOptions,
    *,
    run: Path,
    config: str,
    seed: int,
    limit: int | None,
    profile: bool,
    device: Device,
    overwrite: bool,
    resume: bool,
) -> FitResult:
    """One run of masked pretraining, into its folder; tells how it went.

    Args:
        config: all options as YAML, for the run folder.
    """
    from vit.training.pretraining import PretrainingTask

    refuse_classification(optim)
    check_run(run, config, device=device, resume=resume)
    network, report = build_model(model, seed)
    guesser = masked_model(options, network.encoder)
    module = data_module(data, network, seed=seed, labelled=False, limit=limit)
    folder = open_run(run, config, overwrite=overwrite, resume=resume)
    say(*report)
    task = PretrainingTask(
        guesser,
        pool=network.pool,
        preprocessing=network.preprocessing,
        pictures=folder / PICTURES if is_first_process() else None,
        every=options.pictures_every,
        seed=seed,
        names=module.names("train"),
        skip_bad_steps=trainer.skip_bad_steps,
        **optim.movement(),
    )
    about = describe_data(data, module, model.pretrained)
    result = run_task(task, module, folder, optim, trainer, device=device, resume=resume, about=about, profile=profile)
    tell_result(result, task.judge, folder)
    say(f"what it guesses: {folder / PICTURES}")
    return result


def masked_model(options: PretrainOptions, encoder: Encoder) -> MaskedImageModel:
    """The recipe that the options name, around an encoder."""
    from vit.models.masked import MaskedAutoencoder, SimMIM

    ratio: dict[str, Any] = {} if options.mask_ratio is None else {"mask_ratio": options.mask_ratio}
    if options.recipe == "simmim":
        return SimMIM(encoder, cell=options.cell, **ratio)
    if options.cell != 1:
        raise UserError(f"--pretrain.cell is {options.cell}, but MAE hides single patches.\nIt is for simmim.")
    return MaskedAutoencoder(encoder, **ratio)

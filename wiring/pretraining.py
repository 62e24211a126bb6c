"""A masked pretraining run, assembled from its options: any photographs, and an encoder that reconstructs them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vit.foundation import UserError, is_first_process
from vit.options import ModelOptions, OptimOptions, PretrainOptions, TrainerOptions, TrainingDataOptions
from vit.terminal import say
from wiring.data import data_module, describe_data
from wiring.models import build_model
from wiring.runs import RunOptions, check_run, open_run, refuse_classification, refuse_unfit_fsdp, run_task

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
    pretrain: PretrainOptions,
    options: RunOptions,
) -> FitResult:
    """Pretrains an encoder into the run folder, and prints how it went.

    Raises:
        UserError: for options, a model or data that can't be used, or when the run fails.
    """
    from vit.training.pretraining import PretrainingTask

    refuse_classification(data, optim)
    check_run(options, trainer, model.pretrained)
    refuse_unfit_fsdp(trainer, optim, classifies=False)
    network, report = build_model(model, options.seed)
    guesser = masked_model(pretrain, network.encoder)
    module = data_module(data, network, seed=options.seed, labelled=False, limit=options.limit)
    open_run(options)
    pictures = options.run / PICTURES
    say(*report)
    task = PretrainingTask(
        guesser,
        pool=network.pool,
        preprocessing=network.preprocessing,
        pictures=pictures if is_first_process() else None,
        every=pretrain.pictures_every,
        seed=options.seed,
        names=module.names("train"),
        data=module.fingerprint(),
        skip_bad_steps=trainer.skip_bad_steps,
        **optim.movement(),
    )
    about = describe_data(data, module, model.pretrained)
    result = run_task(task, module, options, optim, trainer, about)
    say(f"reconstructions: {pictures}")
    return result


def masked_model(options: PretrainOptions, encoder: Encoder) -> MaskedImageModel:
    """The recipe that the options name, around an encoder.

    Raises:
        UserError: for a cell size with MAE, or a cell size or mask ratio that doesn't fit the patches.
    """
    from vit.models.masked import MaskedAutoencoder, SimMIM

    ratio: dict[str, Any] = {} if options.mask_ratio is None else {"mask_ratio": options.mask_ratio}
    if options.recipe == "mae" and options.cell != 1:
        raise UserError(
            f"--pretrain.cell is {options.cell}, but MAE hides single patches.\nIt applies to --pretrain.recipe simmim."
        )
    try:
        if options.recipe == "simmim":
            return SimMIM(encoder, cell=options.cell, **ratio)
        return MaskedAutoencoder(encoder, **ratio)
    except ValueError as error:
        raise UserError(f"{error}.\n{_way_on(encoder, options.cell)}") from None


def _way_on(encoder: Encoder, cell: int) -> str:
    """What to change when patches can't be hidden as the options say."""
    if encoder.rotary is not None:
        return "Give another --model.pretrained."
    height, width = encoder.grid
    sides = [str(side) for side in range(1, max(height, width)) if height % side == width % side == 0]
    if str(cell) in sides:
        return "Change --pretrain.mask_ratio, or give a larger --model.image_size."
    if not sides:
        return "Give a larger --model.image_size."
    return f"Give --pretrain.cell {' or '.join(sides)}, or another --model.image_size."

"""Trials before a run: a learning rate and a batch size for its options."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from vit.foundation import UserError, claim_folder
from vit.options import Device, ModelOptions, OptimOptions, TrainerOptions, TrainingDataOptions
from vit.terminal import print_lines, print_tables, say
from wiring.data import data_module
from wiring.models import build_model
from wiring.probing import start_from_probe
from wiring.training import classification_task, fit_head

LARGEST_BATCH = 1024


def find_settings(
    data: TrainingDataOptions,
    model: ModelOptions,
    optim: OptimOptions,
    trainer: TrainerOptions,
    *,
    find: Literal["all", "lr", "batch_size"],
    out: Path,
    steps: int,
    seed: int,
    device: Device,
    overwrite: bool,
) -> None:
    """Finds a batch size, a learning rate or both, and prints them; lr.png is written to `out`.

    Raises:
        UserError: for options, a model or data that can't be used, or a loss that diverges at once.
    """
    import torch

    from vit.inference import choose_device
    from vit.training.finders import best_batch_size, find_batch_size, find_rate
    from vit.training.optim import scaled_lr
    from vit.training.pictures import draw_rates

    if optim.trained == "head":
        raise UserError(
            "vit tune does not work with --optim.trained head.\n"
            "A linear probe trains so fast that you can simply try several values of --optim.lr."
        )
    place = choose_device(device)
    network, _ = build_model(model, seed)
    network.encoder.activation_checkpointing = trainer.activation_checkpointing
    if trainer.compile:
        say("note: vit tune times the model as it is; --trainer.compile has no effect here")
    module = data_module(data, network, seed=seed)
    new_head = fit_head(network, module, data.root)
    folder = claim_folder(out, overwrite=overwrite)
    task = classification_task(network, module, optim, trainer, seed=seed)
    if find != "lr":
        largest = min(LARGEST_BATCH, module.length("train"))
        speeds = find_batch_size(network, largest=largest, device=place, precision=trainer.precision)
        rows = [
            [str(each.batch_size), f"{each.images_per_second:.1f}", f"{each.memory / 2**30:.2f}"] for each in speeds
        ]
        print_tables([("Training steps, not counting reading:", ["batch size", "images/s", "GiB"], rows)])
        module.batch_size = best_batch_size(speeds).batch_size  # the learning rate is for steps of this size
        print_lines([f"--data.batch_size {module.batch_size}"])
    if find != "batch_size":
        if optim.head_init == "probe" and new_head:  # the trials start where the run would
            start_from_probe(task, module, device=device, precision=trainer.precision)
        torch.manual_seed(seed)
        found = find_rate(
            task, module.train_dataloader(), steps=steps, device=place, precision=trainer.precision,
            clip_grad=optim.clip_grad,
        )  # fmt: skip
        draw_rates(found.rates, found.losses, found.suggested, folder / "lr.png")
        images = module.batch_size * trainer.accumulate * trainer.devices * trainer.num_nodes
        factor = scaled_lr(1.0, rule=optim.scale_lr, images=images, base_size=optim.lr_base_size)
        print_lines([f"--optim.lr {found.suggested / factor:.1e}"])
        why = "" if found.falls else "the loss does not fall, so this is the highest rate before it rises; "
        say(f"{why}loss against learning rate: {folder / 'lr.png'}")

"""Options that have no effect beside the others: nobody should take them for what changed a result."""

from __future__ import annotations

from typing import Any

from vit.options import ModelOptions, OptimOptions, TrainerOptions, TrainingDataOptions

AUGMENTATION = ("crop_scale", "hflip", "color_jitter", "auto_augment", "erase", "erase_mode")


def idle(data: TrainingDataOptions, model: ModelOptions, optim: OptimOptions, trainer: TrainerOptions) -> list[str]:
    """A note for each reason why options that were given have no effect."""
    scenes, head = data.root.startswith("birdscenes:"), optim.trained == "head"
    several = (  # whether they have an effect, why not, their group, names
        (scenes, "only birdscenes: has scenes", data, "data", ("train_scenes", "val_scenes")),
        (not scenes, "birdscenes: generates its images", data, "data", ("val_fraction", "strict", "cache", "balanced")),
        (data.cache is not None or scenes, "there is no --data.cache", data, "data", ("cache_gb",)),
        (data.erase > 0 or head, "--data.erase is 0", data, "data", ("erase_mode",)),
        (data.auto_augment is None or head, "--data.auto_augment replaces it", data, "data", ("color_jitter",)),
        (optim.mixup > 0 or optim.cutmix > 0, "neither --optim.mixup nor --optim.cutmix is above 0", optim, "optim",
         ("mix_prob",)),
        (optim.scale_lr != "none", "--optim.scale_lr is none", optim, "optim", ("lr_base_size",)),
        (optim.trained == "lora", "--optim.trained is not lora", optim, "optim", ("lora_rank", "lora_alpha")),
        (not head, "a linear probe reads each image once, as it is", data, "data", AUGMENTATION),
        (not head, "only the head is trained", optim, "optim", ("layer_decay",)),
        (not head, "only the head is trained", model, "model", ("drop_path",)),
        (not head, "only the head is trained", trainer, "trainer", ("compile", "activation_checkpointing")),
    )  # fmt: skip
    notes = []
    for effective, why, group, name, options in several:
        if not effective and (given := _given(group, name, options)):
            notes.append(f"note: {', '.join(given)} has no effect: {why}")
    return notes


def _given(group: Any, name: str, options: tuple[str, ...]) -> list[str]:
    """Those of the options that are not what they are by default."""
    usual = type(group)()
    values = {option: getattr(group, option) for option in options}
    return [f"--{name}.{option} {value}" for option, value in values.items() if value != getattr(usual, option)]

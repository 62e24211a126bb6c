"""Optimizer settings: parameter groups, layer-wise decay of the learning rate, optimizers, warm-up and cosine."""

import math
from typing import Any

import torch
from torch import nn

from vit.foundation import UserError, nearest
from vit.models.captioner import Captioner
from vit.models.classifier import Classifier
from vit.models.masked import MaskedImageModel
from vit.training.lora import add_lora

# Learned vectors for positions or tokens: shrinking them towards zero would only forget them.
UNDECAYED = ("pos_embed", "cls_token", "dist_token", "reg_token", "mask_token")

NOT_SERVED = ["adahessian", "kron*"]  # needs second derivatives; compiles itself at the first step


def parameter_groups(
    model: Classifier | Captioner | MaskedImageModel, *, lr: float, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """AdamW's groups of the weights that are trained (`requires_grad`), one per depth and kind.

    The learning rate of a weight is lr · layer_decay^(depth + 1 - layer), where the embedding is layer 0, block i
    is layer i + 1, and the final norm, the head and a decoder are layer depth + 1 (Clark et al. 2020, ELECTRA; Bao
    et al. 2022, BEiT). Biases, norms, layer scales, positions and tokens are not decayed.
    """
    top = len(model.encoder.blocks) + 1
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = _layer_of(name, top)
        decayed = parameter.ndim > 1 and not name.endswith(UNDECAYED)
        group = {
            "params": [],
            "lr": lr * layer_decay ** (top - layer),
            "weight_decay": weight_decay if decayed else 0.0,
        }
        groups.setdefault((layer, decayed), group)["params"].append(parameter)
    return list(groups.values())


def _layer_of(name: str, top: int) -> int:
    if name.startswith("encoder.embed."):
        return 0
    if name.startswith("encoder.blocks."):
        return int(name.split(".")[2]) + 1
    return top


def new_optimizer(name: str, groups: list[dict[str, Any]], *, beta2: float) -> torch.optim.Optimizer:
    """The optimizer of this name, with its defaults: torch's AdamW, fused, or another that timm's factory makes.

    Args:
        groups: as returned by `parameter_groups`.
        beta2: decay of the second moment, only for AdamW.

    Raises:
        UserError: for a name that timm does not know, or an optimizer that can't be used here.
    """
    check_optimizer(name)
    if name == "adamw":
        return torch.optim.AdamW(groups, betas=(0.9, beta2), fused=True)
    from timm.optim import create_optimizer_v2

    try:
        # The groups have their own learning rates; this one is for groups without one.
        return create_optimizer_v2(groups, opt=name, lr=groups[-1]["lr"])
    except (AssertionError, ImportError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"--optim.name {name} can't be used here: {error}") from None


def check_optimizer(name: str) -> None:
    """Raises UserError for an optimizer that is not known."""
    from timm.optim import list_optimizers

    names = list_optimizers(exclude_filters=NOT_SERVED)
    if name not in names:
        raise UserError(
            f"--optim.name is {name}{nearest(name, names)}.\n"
            f"Allowed are adamw and {len(names) - 1} others of timm's, such as sgd, lamb, lion, nadamw and muon."
        )


def scaled_lr(lr: float, *, rule: str, images: int, base_size: int) -> float:
    """The learning rate for steps of `images` images, if `lr` is meant for steps of `base_size`.

    Args:
        rule: "none", "linear" (Goyal et al. 2017, for SGD) or "sqrt" (Krizhevsky 2014; timm uses it for Adam and
            similar ones).
    """
    ratio = images / base_size
    return lr * {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[rule]


def warmup_cosine(step: int, *, warmup_steps: int, total_steps: float, min_lr: float) -> float:
    """The factor on the learning rate at an optimizer step: linear up to 1, then half a cosine down to `min_lr`
    (Loshchilov & Hutter 2017, without restarts). The warm-up takes at most half of the steps."""
    warmup_steps = min(warmup_steps, int(total_steps / 2))
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return min_lr + (1.0 - min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))


def choose_trained(model: Classifier, trained: str, *, lora_rank: int = 8, lora_alpha: float = 16.0) -> None:
    """Sets which weights are trained; no gradient is computed below the lowest of them.

    Args:
        trained: "all"; "head" (a linear probe); "blocks:K" (the last K blocks, the final norm and the head); or "lora"
            (the head, and adapters for the matrices of all blocks, see `add_lora`).
        lora_rank, lora_alpha: see `add_lora`.

    Raises:
        UserError: for more blocks than the model has, or "lora" without peft.
    """
    kind, _, count = trained.partition(":")
    everything: nn.Module = model
    everything.requires_grad_(kind == "all")
    if kind == "lora":
        add_lora(model, rank=lora_rank, alpha=lora_alpha)
    if kind == "blocks":
        depth = len(model.encoder.blocks)
        if int(count) > depth:
            raise UserError(f"--optim.trained is {trained}, but the model has {depth} blocks.\nTry all.")
        model.encoder.blocks[depth - int(count) :].requires_grad_(True)
        for above in (model.encoder.norm, model.fc_norm, model.attn_pool):
            if above is not None:
                above.requires_grad_(True)
    model.head.requires_grad_(True)


def keep_frozen_still(model: Classifier) -> None:
    """Puts frozen parts into evaluation mode, because their stochastic depth would only be noise."""
    for part in model.modules():
        learning = [parameter.requires_grad for parameter in part.parameters()]
        if learning and not any(learning):
            part.eval()

"""Attention rollout and attribution as they are usually written: matrices of N x N, taken out of the model by hooks.

Abnar & Zuidema 2020, equation 1, after the widespread vit-explain, without its slips (a sum over the wrong axis, and
the first image of a batch alone). The peers that our walks are measured against, and their references.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def unfused(model: nn.Module) -> Iterator[None]:
    """A timm model computes its attention without the fused kernel, as a hook needs it, while the body runs."""
    before = [block.attn.fused_attn for block in model.blocks]
    for block in model.blocks:
        block.attn.fused_attn = False
    try:
        yield
    finally:
        for block, fused in zip(model.blocks, before, strict=True):
            block.attn.fused_attn = fused


@torch.inference_mode()
def rollout_of_kept_maps(model: nn.Module, images: Tensor) -> Tensor:
    """(B, N) relevance of each token for the class token, of a timm model: every head's map of every block is
    kept through the forward pass, as in vit-explain; then the heads' means are multiplied."""
    maps: list[Tensor] = []
    _run_hooked(model, images, maps.append)
    product = identity = torch.eye(maps[0].shape[-1], dtype=maps[0].dtype)
    for attention in maps:
        product = mixed(attention, identity) @ product
    return product[:, 0]


@torch.inference_mode()
def rollout_as_it_goes(model: nn.Module, images: Tensor) -> Tensor:
    """As `rollout_of_kept_maps` with the least memory that products of matrices allow: each block's map is
    multiplied within its hook, and dropped."""
    product: Tensor | None = None

    def take(attention: Tensor) -> None:
        nonlocal product
        matrix = mixed(attention, torch.eye(attention.shape[-1], dtype=attention.dtype))
        product = matrix if product is None else matrix @ product

    _run_hooked(model, images, take)
    assert product is not None
    return product[:, 0]


def attribution_of_kept_maps(model: nn.Module, images: Tensor) -> Tensor:
    """(B, N) relevance of each token for the predicted class, of a timm model, by equations 5 and 6 of Chefer et al.
    2021 (ICCV): R <- R + mean_h relu(A * dA) R, with every head's map and its gradient kept until the end."""
    maps: list[Tensor] = []
    logits = _run_hooked(model, images, maps.append)
    gradients = torch.autograd.grad(logits.amax(dim=1).sum(), maps)
    with torch.inference_mode():
        relevance = torch.eye(maps[0].shape[-1], dtype=maps[0].dtype)
        for attention, gradient in zip(maps, gradients, strict=True):
            relevance = relevance + (attention * gradient).relu().mean(dim=1) @ relevance
        return relevance[:, 0]


def mixed(attention: Tensor, identity: Tensor) -> Tensor:
    """Half the heads' mean, half the residual connection; rows sum to 1. (B, H, N, N) -> (B, N, N)."""
    matrix = 0.5 * attention.mean(dim=1) + 0.5 * identity
    return matrix / matrix.sum(dim=-1, keepdim=True)


def _run_hooked(model: nn.Module, images: Tensor, take: Callable[[Tensor], None]) -> Tensor:
    hooks = [
        block.attn.attn_drop.register_forward_hook(lambda module, inputs, output: take(output))
        for block in model.blocks
    ]
    try:
        with unfused(model):
            return model(images)
    finally:
        for hook in hooks:
            hook.remove()

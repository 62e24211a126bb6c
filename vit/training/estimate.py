"""Estimates the time and memory of a training run from a few steps."""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from vit.models.classifier import Classifier

_STEPS = 2
_BATCH = 4  # maximum number of images in a measured step
_COPIES = 4  # of a weight that is trained: itself, its gradient, AdamW's two moments


@dataclass(frozen=True)
class Estimate:
    """The cost of training in fp32.

    Args:
        images_per_second: for forward and backward passes.
        weight_bytes: bytes of weights, gradients and the optimizer's moments.
        activation_bytes: bytes kept per image from the forward pass for the backward pass.
    """

    images_per_second: float
    weight_bytes: int
    activation_bytes: int

    def memory(self, batch_size: int) -> int:
        """Bytes of a run with this batch size, not counting the program itself."""
        return self.weight_bytes + batch_size * self.activation_bytes


def estimate_training(model: Classifier, batch_size: int, *, device: torch.device) -> Estimate:
    """Times a few steps on random images; the model's weights stay the same, its gradients are discarded.

    Larger batches may be faster on a GPU, so there the result is a lower bound of the speed.
    """
    model = model.to(device).train()
    count = min(batch_size, _BATCH)
    images = torch.rand(count, model.encoder.architecture["in_chans"], *model.preprocessing.image_size, device=device)
    activations = kept_activations(model, lambda: _loss(model, images))  # warms up, too
    _wait(device)
    began = perf_counter()
    for _ in range(_STEPS):
        _loss(model, images).backward()
    _wait(device)
    seconds = perf_counter() - began
    model.zero_grad(set_to_none=True)
    weights = sum(
        weight.numel() * weight.element_size() * (_COPIES if weight.requires_grad else 1)
        for weight in model.parameters()
    )
    return Estimate(_STEPS * count / seconds, weights, activations // count)


def _loss(model: Classifier, images: Tensor) -> Tensor:
    targets = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    return F.cross_entropy(model(images), targets)


def kept_activations(model: nn.Module, loss_of: Callable[[], Tensor]) -> int:
    """Bytes that a forward pass with its loss keeps for the backward pass, without weights; each storage counts once.

    The backward pass is also run, and leaves its gradients.
    """
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of()
    loss.backward()
    return sum(kept.values())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

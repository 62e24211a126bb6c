"""The cost of running a model on one image: floating-point operations and memory, counted without running it."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from vit.models.classifier import Classifier


class Cost(NamedTuple):
    """The cost of one image.

    Args:
        flops: operations of the forward pass; a multiplication and an addition are two. Norms, activations and softmax,
            less than one percent, are not counted.
        activations: bytes that the forward pass keeps for the backward pass of all weights, in float32 and with fused
            attention, not counting the weights.
    """

    flops: int
    activations: int


def cost(model: Classifier, image_size: tuple[int, int]) -> Cost:
    """The cost of one image of (height, width) pixels, without neighbours, whose share in it is small. Nothing is
    computed: the tensors only have shapes."""
    neighbours, model.neighbours = model.neighbours, None
    try:
        return _cost(model, image_size)
    finally:
        model.neighbours = neighbours


def _cost(model: Classifier, image_size: tuple[int, int]) -> Cost:
    channels = model.encoder.architecture["in_chans"]
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    with torch.device("meta"):  # on which attention is plain matrix products
        weights = {name: torch.empty(shape) for name, shape in shapes.items()}
        images = torch.empty(1, channels, *image_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        functional_call(model, weights, (images,))
    return Cost(counter.get_total_flops(), _kept(model, shapes, (1, channels, *image_size)))


def _kept(model: Classifier, shapes: dict[str, torch.Size], size: tuple[int, ...]) -> int:
    """Bytes that autograd keeps, without the weights and the image; shared memory is counted once."""
    kept: dict[Any, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with FakeTensorMode(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        weights = {name: torch.empty(shape, requires_grad=True) for name, shape in shapes.items()}
        images = torch.empty(size)
        output = functional_call(model, weights, (images,))
        given = {tensor.untyped_storage()._cdata for tensor in (*weights.values(), images)}
        del output
    return sum(size for storage, size in kept.items() if storage not in given)

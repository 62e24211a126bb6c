"""A linear probe: the head that minimises the loss on frozen features, found by L-BFGS."""

import torch
from torch import Tensor, nn

from vit.training.classification import ClassificationTask
from vit.training.losses import smoothed

DECAY = 0.01  # weight decay, for features with standard deviation 1
ITERATIONS = 100


def fit_probe(task: ClassificationTask, features: Tensor, targets: Tensor, weight: Tensor | None = None) -> None:
    """Makes the head of the task's model a linear probe, from which fine-tuning may start.

    The gradients that a random head sends through the encoder reflect its random weights; they damage features before
    they help (Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features", LP-FT). The probe minimises the task's
    own loss, including smoothing and weights, plus DECAY / 2 · ‖W‖² on standardised features, by L-BFGS; the loss is
    convex, so the result is not random.

    Args:
        task: the task whose model has a linear head, changed in place.
        features: (N, F), what the head reads for each image.
        targets: (N,) or (N, C), in the form of the task's targets.
        weight: (N,) weight of each image in the loss; None for 1.
    """
    model, features = task.model, features.double()
    assert isinstance(model.head, nn.Linear)
    shares = smoothed(task.shares(targets).double(), task.label_smoothing, multilabel=model.multilabel)
    each = torch.ones(len(features), 1) if weight is None else weight.double()[:, None]
    mean, std = features.mean(dim=0), features.std(dim=0, correction=0) + 1e-6
    inputs = (features - mean) / std
    matrix = torch.zeros(model.num_classes, features.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(model.num_classes, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([matrix, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        search.zero_grad()
        value = task.criterion(inputs @ matrix.T + bias, each * shares, each) + DECAY / 2 * matrix.square().sum()
        value.backward()
        return value

    search.step(objective)
    with torch.no_grad():
        model.head.weight.copy_(matrix / std)
        model.head.bias.copy_(bias - (matrix / std) @ mean)

"""The head that features deserve as they are: the minimum of the loss, found whole rather than step by step."""

import torch
from torch import Tensor, nn

from vit.training.classification import ClassificationTask
from vit.training.losses import smoothed

DECAY = 0.01  # of the weights for features of standard deviation 1
ITERATIONS = 100


def fit_probe(task: ClassificationTask, features: Tensor, targets: Tensor, weight: Tensor | None = None) -> None:
    """Makes the head of the task's model a linear probe, from which fine-tuning may begin.

    A random head sends gradients through the encoder that only tell of its own chance; they spoil features before they
    help (Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features", LP-FT). The probe minimises the task's own
    loss, smoothing and weights included, plus DECAY / 2 · ‖W‖² on standardised features, by L-BFGS; the loss is convex,
    so nothing of it is random.

    Args:
        features: (N, F), what the head reads of each image.
        targets: (N,) or (N, C), as the task has them.
        weight: (N,) of each image in the loss.
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

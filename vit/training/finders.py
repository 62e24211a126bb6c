"""Finds a learning rate and a batch size before a run, without touching any run; the models used are discarded.

Lightning's own finders set the same rate for all weights, which undoes layer decay, and look for a batch size by
running out of memory, which on a CPU ends the program.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from time import perf_counter
from typing import Any

import numpy as np
import psutil
import torch
from torch.nn.utils import clip_grad_norm_

from vit.foundation import UserError
from vit.inference import arithmetic
from vit.models.classifier import Classifier
from vit.training.classification import ClassificationTask
from vit.training.estimate import estimate_training
from vit.training.optim import keep_frozen_still, new_optimizer, parameter_groups

LOWEST, HIGHEST = 1e-7, 1.0
SMOOTHING = 0.9  # of the losses, with the bias correction of Adam
LOST = 2.0  # the test ends when the loss is this many times the best one
CLEAR = 0.05  # relative change of the loss that counts
GAIN = 1.05  # a larger batch size must be this many times as fast to be chosen
MEMORY = 0.8  # share of the free memory that a run may take


@dataclass(frozen=True)
class RateRange:
    """A learning rate range test (Smith 2017).

    Args:
        rates: the learning rates tried, ascending.
        losses: the smoothed loss at each rate.
    """

    rates: Sequence[float]
    losses: Sequence[float]

    @property
    def falls(self) -> bool:
        """Whether the loss falls at all: if the head starts as a probe, it is at its minimum and can only rise."""
        return min(self.losses) < (1 - CLEAR) * self.losses[self._start]

    @property
    def suggested(self) -> float:
        """The rate at which the loss falls fastest; if it does not fall, the largest rate before it rises."""
        if self.falls:
            return self.rates[self._start + int(np.argmin(np.gradient(self.losses, np.log(self.rates))[self._start :]))]
        low = np.minimum.accumulate(self.losses[self._start :])
        risen = np.flatnonzero(np.asarray(self.losses[self._start :]) > (1 + CLEAR) * low)
        return self.rates[self._start + int(risen[0]) - 1 if len(risen) else -1]

    @property
    def _start(self) -> int:
        """The end of the first tenth, in which hardly anything is learned and the loss is noise."""
        return len(self.rates) // 10


def find_rate(
    task: ClassificationTask,
    batches: Iterable[dict[str, Any]],
    *,
    steps: int,
    device: torch.device,
    precision: str,
    clip_grad: float = 0.0,
) -> RateRange:
    """Trains for some steps while the learning rate rises exponentially from 1e-7 to 1; ends when the loss diverges.

    The ratios between the layers' rates are kept. The model is trained a little by this, so use another one afterwards.

    Args:
        task: the task to train.
        batches: training batches, repeated if there are too few.
        steps: maximum number of steps.
        device, precision: the device and precision to train in.
        clip_grad: maximum gradient norm; 0 for no limit.

    Raises:
        UserError: when the loss diverges within the first steps, or no image can be read.
    """
    model = task.model.to(device).train()
    keep_frozen_still(model)
    task.to(device)
    groups = parameter_groups(model, lr=1.0, **task.groups)
    shares = [group["lr"] for group in groups]
    optimizer = new_optimizer(task.optimizer_name, groups, beta2=task.beta2)
    rates: list[float] = []
    losses: list[float] = []
    mean = 0.0
    for number, batch in enumerate(islice(_filled(batches), steps)):
        rate = LOWEST * (HIGHEST / LOWEST) ** (number / max(1, steps - 1))
        for group, share in zip(optimizer.param_groups, shares, strict=True):
            group["lr"] = rate * share
        moved = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
        with arithmetic(precision, device):
            loss, _ = task.loss(moved)
        mean = SMOOTHING * mean + (1 - SMOOTHING) * float(loss.detach())
        smooth = mean / (1 - SMOOTHING ** (number + 1))
        if not math.isfinite(smooth) or (losses and smooth > LOST * min(losses)):
            break
        rates.append(rate)
        losses.append(smooth)
        optimizer.zero_grad()
        loss.backward()
        if clip_grad:
            clip_grad_norm_(model.parameters(), clip_grad)
        optimizer.step()
    if len(rates) < 3:
        raise UserError(
            "The loss diverges within the first steps.\nTry --trainer.precision fp32, and look at the data."
        )
    return RateRange(rates, losses)


def _filled(batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Endlessly repeated batches, without empty ones. Raises UserError if all are empty."""
    while True:
        found = False
        for batch in batches:
            if len(batch["image"]):
                found = True
                yield batch
        if not found:
            raise UserError("None of the training images could be read.")


@dataclass(frozen=True)
class Speed:
    """The speed of training steps with one batch size.

    Args:
        batch_size: images per step.
        images_per_second: for forward and backward pass.
        memory: estimated bytes of a run.
    """

    batch_size: int
    images_per_second: float
    memory: int


def find_batch_size(model: Classifier, *, largest: int, device: torch.device, precision: str) -> list[Speed]:
    """Times steps with 1, 2, 4 ... random images, up to the largest batch size or the free memory."""
    estimate = estimate_training(model, 1, device=device)
    free = MEMORY * free_memory(device)
    found: list[Speed] = []
    size = 1
    while size <= largest and (size == 1 or estimate.memory(size) <= free):
        found.append(Speed(size, _rate(model, size, device, precision), estimate.memory(size)))
        size *= 2
    return found


def best_batch_size(speeds: Sequence[Speed]) -> Speed:
    """The smallest batch size that is about as fast as the fastest, because larger batches mean fewer steps."""
    quickest = max(speed.images_per_second for speed in speeds)
    return next(speed for speed in speeds if speed.images_per_second * GAIN >= quickest)


def free_memory(device: torch.device) -> float:
    """Free memory on the device in bytes."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return float(psutil.virtual_memory().available)


def _rate(model: Classifier, size: int, device: torch.device, precision: str) -> float:
    images = torch.rand(size, model.encoder.architecture["in_chans"], *model.preprocessing.image_size, device=device)
    times = []
    for _ in range(3):  # the first one warms up
        began = perf_counter()
        with arithmetic(precision, device):
            loss = model(images).float().square().mean()
        loss.backward()
        model.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(perf_counter() - began)
    return size / min(times[1:])

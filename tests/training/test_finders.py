"""The rate at which a loss falls fastest, and the batch size from which on nothing is gained."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.training.noise import Noise, noise_task
from vit.foundation import UserError
from vit.training import finders
from vit.training.classification import ClassificationTask
from vit.training.finders import RateRange, Speed, best_batch_size, find_batch_size, find_rate
from vit.training.pictures import draw_rates

CPU = torch.device("cpu")


class Scripted(ClassificationTask):
    """A loss that falls around a rate of 1e-3, and rises from 1e-1 on, whatever is learned."""

    step = 0

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, int]:
        place = -7 + 7 * self.step / 99  # log10 of the rate
        self.step += 1
        value = 2 - 1 / (1 + math.exp(-6 * (place + 3))) + (100 * (place + 1) if place > -1 else 0)
        return self.model.head.weight.sum() * 0 + value, len(batch["image"])


def test_the_steepest_rate() -> None:
    found = find_rate(noise_task(Scripted), Noise().train_dataloader(), steps=100, device=CPU, precision="fp32")
    np.testing.assert_allclose(found.rates, np.logspace(-7, 0, 100)[: len(found.rates)])
    assert found.rates[-1] == pytest.approx(1e-1, rel=0.4)  # it ends where the loss is lost
    assert found.falls
    assert 1e-3 < found.suggested < 5e-3  # smoothing is some ten steps late


def test_a_loss_that_does_not_fall_suggests_the_highest_rate_before_it_rises() -> None:
    rates = [10.0**exponent for exponent in range(-7, 1)]
    found = RateRange(rates, [1.00, 1.01, 0.99, 1.00, 1.02, 1.10, 1.50, 1.99])
    assert not found.falls
    assert found.suggested == rates[4]  # 1.02 is within 5% of 0.99, 1.10 is not
    flat = RateRange(rates, [1.0] * 8)
    assert (flat.falls, flat.suggested) == (False, rates[-1])


def test_the_rates_of_the_layers_keep_their_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[float]] = []

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            seen.append([group["lr"] for group in self.param_groups])

    monkeypatch.setattr(finders, "new_optimizer", lambda name, groups, beta2: Watched(groups))
    find_rate(noise_task(layer_decay=0.5), Noise().train_dataloader(), steps=20, device=CPU, precision="fp32")
    assert len(seen) == 20  # more than an epoch
    for number, rates in enumerate(seen):
        rate = 1e-7 * 10 ** (7 * number / 19)
        assert sorted(set(np.round(np.divide(rates, rate), 6))) == [0.125, 0.25, 0.5, 1.0]


def test_a_loss_that_is_lost_at_once_is_an_error() -> None:
    task = noise_task()
    task.loss = lambda batch: (torch.tensor(float("nan"), requires_grad=True), 4)  # type: ignore[method-assign]
    with pytest.raises(UserError, match="diverges within the first steps"):
        find_rate(task, Noise().train_dataloader(), steps=20, device=CPU, precision="fp32")


def test_batch_sizes_are_tried_up_to_the_largest_or_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = noise_task().model
    speeds = find_batch_size(model, largest=12, device=CPU, precision="fp32")
    assert [speed.batch_size for speed in speeds] == [1, 2, 4, 8]
    assert all(speed.images_per_second > 0 for speed in speeds)
    fitting = (speeds[1].memory + speeds[2].memory) / 2
    monkeypatch.setattr(finders, "free_memory", lambda device: fitting / finders.MEMORY)
    assert [speed.batch_size for speed in find_batch_size(model, largest=12, device=CPU, precision="fp32")] == [1, 2]


def test_the_smallest_batch_size_that_is_about_as_quick_is_taken() -> None:
    speeds = [Speed(2**n, rate, 0) for n, rate in enumerate((10.0, 19.0, 29.0, 30.0, 28.0))]
    assert best_batch_size(speeds).batch_size == 4


def test_the_picture(tmp_path: Path) -> None:
    draw_rates([1e-5, 1e-4, 1e-3], [2.0, 1.0, 3.0], 1e-4, tmp_path / "lr.png")
    with Image.open(tmp_path / "lr.png") as picture:
        assert picture.format == "PNG"

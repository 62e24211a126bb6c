"""Where the time goes: each second is counted once, as what it was spent on."""

import time
from pathlib import Path
from typing import Any

import pytest

from tests.training.noise import Noise, NoiseImages, noise_task
from vit.training import fit as fit_module
from vit.training import profile
from vit.training.classification import ClassificationTask
from vit.training.fit import fit
from vit.training.profile import TimeTable


class Slow(ClassificationTask):
    """The forward pass takes 20 ms, the optimizer 10, a batch of validation 5."""

    def loss(self, batch: dict[str, Any]) -> Any:
        time.sleep(0.02)
        return super().loss(batch)

    def configure_gradient_clipping(self, *args: Any, **keywords: Any) -> None:
        time.sleep(0.01)
        super().configure_gradient_clipping(*args, **keywords)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        time.sleep(0.005)
        super().validation_step(batch, batch_idx)


def test_each_kind_of_work_has_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = NoiseImages.__getitem__
    monkeypatch.setattr(fit_module, "draw_curves", lambda *paths: None)
    monkeypatch.setattr(NoiseImages, "__getitem__", lambda self, draw: [time.sleep(0.01), read(self, draw)][1])
    began = time.perf_counter()
    result = fit(
        noise_task(Slow), Noise(train=20, val=4), tmp_path, max_epochs=2, precision="fp32", device="cpu", profile=True
    )
    whole = time.perf_counter() - began
    assert result.profile
    _, columns, rows = result.profile
    assert list(columns) == ["", "seconds", "share", "ms per batch"]
    spent = {row[0]: float(row[1]) for row in rows}
    # 10 batches of 4 images of 10 ms each
    assert 0.35 < spent["data wait"] < 1.0
    assert 0.2 < spent["forward"] < 0.6
    assert 0.1 < spent["optimiser"] < 0.5
    assert spent["backward"] > 0
    assert spent["validation"] > 0.05  # with its own 4 images, twice
    assert sum(spent.values()) < whole
    assert [float(row[3]) for row in rows] == pytest.approx([100 * spent[row[0]] for row in rows], abs=0.6)


def test_inner_actions_take_their_time_from_outer_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(profile.time, "perf_counter", lambda: now)
    table = TimeTable()
    script = [
        (5, "[Callback]setup", True), (1, "[Callback]setup", False),  # before the first epoch: not counted
        (3, "run_training_epoch", True),
        (1, "[_TrainingEpochLoop].train_dataloader_next", True),
        (2, "[_TrainingEpochLoop].train_dataloader_next", False),
        (0, "run_training_batch", True),
        (0, "optimizer_step", True),
        (1, "[Strategy]SingleDeviceStrategy.training_step", True),
        (4, "[Strategy]SingleDeviceStrategy.training_step", False),
        (0, "[Strategy]SingleDeviceStrategy.backward", True), (8, "[Strategy]SingleDeviceStrategy.backward", False),
        (16, "optimizer_step", False),
        (0, "run_training_batch", False),
        (32, "run_training_epoch", False),
        (64, "[Callback]MetricsFile.on_train_epoch_end", True),
        (128, "[Callback]MetricsFile.on_train_epoch_end", False),
    ]  # fmt: skip
    for seconds, action, begins in script:
        now += seconds
        (table.start if begins else table.stop)(action)
    assert table.seconds == {
        "data wait": 2, "forward": 4, "backward": 8, "optimiser": 17, "logging": 128, "validation": 0,
        "checkpoints": 0, "all else": 97,
    }  # fmt: skip
    assert table.steps == 1

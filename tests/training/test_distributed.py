"""Two processes over gloo are one process with batches of twice the size: the same losses, every sample once."""

import csv
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from tests.launcher import launch
from tests.training.noise import Noise, noise_task
from vit import processes
from vit.checkpoints.load import load
from vit.training import checkpoints, sharding
from vit.training import fit as fit_module
from vit.training.classification import ClassificationTask
from vit.training.fit import fit

# 41 and 11 samples: with 8 a step the last step has one sample, and one process has none; 11 leave 3 for two.
TRAIN, VAL, BATCH = 41, 11, 8
EPOCHS = 2
Signals = Mapping[int, tuple[int, signal.Signals]]  # process -> (in which batch, what)


class Watched(ClassificationTask):
    """Writes down which images each process validates, and whether the weights were spread; a process gets a signal
    where the test says so."""

    seen: Path
    signals: ClassVar[Signals] = MappingProxyType({})

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        number = self.current_epoch * int(self.trainer.num_training_batches) + batch_idx
        at, what = self.signals.get(processes.rank(), (-1, signal.SIGTERM))
        if number == at:
            os.kill(os.getpid(), what)
        return super().training_step(batch, batch_idx)

    def on_train_end(self) -> None:
        super().on_train_end()
        (self.seen.parent / f"{self.seen.name}.spread").write_text(str(sharding.is_spread(self.model)))

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        with (self.seen / f"seen.{processes.rank()}").open("a") as file:
            file.writelines(f"{index}\n" for index in batch["index"].tolist())
        super().validation_step(batch, batch_idx)


def run(
    folder: Path, count: int, options: Mapping[str, Any] = MappingProxyType({}), signals: Signals = MappingProxyType({})
) -> None:
    """One run of `count` processes, in each of them."""
    Watched.signals = signals
    fit_module.draw_curves = lambda *paths: None  # type: ignore[assignment]
    fit_module.STEPS_A_ROW = 1
    checkpoints.verify = lambda path: None
    folder.mkdir(exist_ok=True)
    Watched.seen = folder
    fit(
        noise_task(Watched, warmup_epochs=1.0, seed=3), Noise(TRAIN, VAL, BATCH // count), folder, precision="fp32",
        device="cpu", max_epochs=EPOCHS, devices=count, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    home = tmp_path_factory.mktemp("one")
    assert launch(run, home / "run", 1, log=home / "log", count=1) == [0], (home / "log.0").read_text()
    return home / "run"


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def strategy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folders(one: Path, strategy: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The run of one process, and that of two."""
    home = tmp_path_factory.mktemp(strategy)
    options = {"strategy": strategy}
    assert launch(run, home / "two", 2, options, log=home / "log2") == [0, 0], (home / "log2.0").read_text()
    return one, home / "two"


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def weights(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)[
        "state_dict"
    ]
    return found


def test_two_processes_have_the_losses_of_one_with_the_doubled_batch(folders: tuple[Path, Path]) -> None:
    one, two = map(rows, folders)
    assert len(one) == len(two) == EPOCHS * 6 + EPOCHS
    for expected, found in zip(one, two, strict=True):
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert bool(value) == bool(found[name])
            assert not value or float(found[name]) == pytest.approx(float(value), abs=1e-5), name


def test_and_the_weights(folders: tuple[Path, Path]) -> None:
    one, two = map(weights, folders)
    for name, value in one.items():
        found = two[name]
        if name.endswith("qkv.bias"):
            # The bias of the keys changes no attention: its gradient is rounding alone, which AdamW makes steps of.
            value, found = (torch.cat([each[:10], each[20:]]) for each in (value, found))
        torch.testing.assert_close(found, value, rtol=0, atol=1e-5)


def test_every_sample_is_validated_once(folders: tuple[Path, Path]) -> None:
    seen = [(folders[1] / f"seen.{rank}").read_text().split() for rank in range(2)]
    assert sorted(map(int, seen[0] + seen[1])) == sorted([*range(VAL)] * EPOCHS)
    assert len(set(seen[0]) & set(seen[1])) == 0


def test_the_first_process_writes_and_the_other_says_nothing(folders: tuple[Path, Path]) -> None:
    names = [{path.name for path in folder.rglob("*") if "events" not in path.name} for folder in folders]
    assert names[1] == names[0] | {"seen.1"}
    assert len(list(folders[1].rglob("events*"))) == 1
    assert "epoch 2/2" in (folders[1].parent / "log2.0").read_text()
    assert (folders[1].parent / "log2.1").read_text() == ""


def assert_same_run(found: Path, expected: Path) -> None:
    assert (found / "metrics.csv").read_bytes() == (expected / "metrics.csv").read_bytes()
    for name, value in weights(expected).items():
        assert torch.equal(weights(found)[name], value), name


def signalled(what: signal.Signals, *, process: int, batch: int, folder: Path, strategy: str) -> list[int]:
    """The exit codes of a run of two that is saved at every step, one of whose processes gets a signal."""
    options = {"checkpoint_minutes": 0.0, "strategy": strategy}
    log = folder.parent / "stopped"
    return launch(run, folder, 2, options, {process: (batch, what)}, log=log, timeout=60)


@pytest.mark.parametrize(("what", "process"), [("SIGKILL", 1), ("SIGTERM", 1)])
def test_a_run_of_two_that_was_stopped_goes_on_to_the_bit(
    folders: tuple[Path, Path], strategy: str, tmp_path: Path, what: str, process: int
) -> None:
    codes = signalled(signal.Signals[what], process=process, batch=8, folder=tmp_path / "run", strategy=strategy)
    # A signal to one of them stops both, when they have made the step; a killed one takes the other with it.
    assert codes == [143, 143] if what == "SIGTERM" else codes[1] == -signal.SIGKILL
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == (9 if what == "SIGTERM" else 8)
    codes = launch(run, tmp_path / "run", 2, {"resume": True, "strategy": strategy}, log=tmp_path / "resumed")
    assert codes == [0, 0], (tmp_path / "resumed.0").read_text()
    assert_same_run(tmp_path / "run", folders[1])


def test_the_model_folder_has_all_weights(folders: tuple[Path, Path]) -> None:
    images = torch.randn(3, 3, 8, 8)
    one, two = (load(folder / "model").eval()(images) for folder in folders)
    torch.testing.assert_close(two, one, rtol=0, atol=1e-4)


def test_the_checkpoint_has_the_names_of_any_other(folders: tuple[Path, Path]) -> None:
    one, two = map(weights, folders)
    assert two.keys() == one.keys()


def test_the_weights_are_spread_where_asked(folders: tuple[Path, Path], strategy: str) -> None:
    assert folders[1].with_name("two.spread").read_text() == str(strategy == "fsdp")


def test_each_process_holds_a_part(tmp_path: Path) -> None:
    assert launch(count_own, tmp_path, log=tmp_path / "log") == [0, 0], (tmp_path / "log.0").read_text()
    own = [int((tmp_path / f"own.{rank}").read_text()) for rank in range(2)]
    every = sum(weight.numel() for weight in noise_task().parameters())
    assert sum(own) == every
    assert max(own) < 0.7 * every


def count_own(folder: Path) -> None:
    """Writes down how many weights this process holds; those of the processes differ before they are spread."""
    processes.join()
    task = noise_task()
    with torch.no_grad():
        task.model.head.bias.fill_(processes.rank())
    plain = sharding.spread(task.model, init_device_mesh("cpu", (2,)), torch.device("cpu"))
    assert (plain is None) == (processes.rank() == 1)
    parts = [weight.to_local() for weight in task.parameters() if isinstance(weight, DTensor)]
    (folder / f"own.{processes.rank()}").write_text(str(sum(part.numel() for part in parts)))
    assert not sharding.whole(task.model.head.bias).any()  # as in the first


def test_a_process_without_images_has_a_loss_without_a_gradient() -> None:
    task = noise_task()
    empty = {"image": torch.empty(0, 3, 8, 8), "target": torch.empty(0, dtype=torch.int64), "weight": torch.empty(0)}
    loss, count = task._nothing(empty)
    loss.backward()
    assert (loss.item(), count) == (0, 0)
    assert all(weight.grad is not None and not weight.grad.any() for weight in task.parameters())
    assert not task.train_top1.update_called

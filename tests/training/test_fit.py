"""A whole run: what it leaves, that it is the same every time, and that it goes on where it was stopped."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partialmethod
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import cli
from datamodules.image_folder import ImageFolder
from vit.checkpoints.load import load
from vit.foundation import UserError
from vit.models.classifier import Classifier
from vit.models.encoder import image_encoder
from vit.saliency.record import record
from vit.training import checkpoints, stopping
from vit.training import fit as fit_module
from vit.training.classification import ClassificationTask
from vit.training.fit import FitResult, fit
from vit.training.stopping import StopRequest

ROOT = Path(__file__).parent.parent.parent
EPOCHS = 4
STEPS = 5  # an epoch
BATCHES_VAL = 2
SCORES = (0.25, 0.75, 0.5, 0.75)  # best in the second epoch: the fourth is no better, and has a higher loss
LOSSES = (0.7, 0.5, 0.4, 0.6)


class Scripted(ClassificationTask):
    """Learns as ever, but the validation says what SCORES and LOSSES say."""

    def log(self, name: str, value: Any, **options: Any) -> None:  # type: ignore[override]
        told = {"val_top1": SCORES, "val_loss": LOSSES}
        super().log(name, told[name][self.current_epoch] if name in told else value, **options)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As many in this process as in the one that is killed; and tiny models gain nothing by more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of twelve noisy photos, a quarter of which is for validation."""
    root = tmp_path_factory.mktemp("photos")
    for label, brightness in (("bright", 160), ("dark", 60)):
        (root / label).mkdir()
        for number in range(12):
            random = np.random.default_rng([brightness, number])
            pixels = random.integers(brightness - 60, brightness + 60, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"{number}.png")
    return root


def data(root: Path, seed: int = 0, num_workers: int = 0, **options: Any) -> ImageFolder:
    return ImageFolder(
        str(root), image_size=(14, 21), mean=(0.5,) * 3, std=(0.25,) * 3, val_fraction=0.25, batch_size=4,
        num_workers=num_workers, erase=0.5, seed=seed, **options,
    )  # fmt: skip


def task(seed: int = 0, kind: type[ClassificationTask] = Scripted, **options: Any) -> ClassificationTask:
    torch.manual_seed(7)  # the same weights for every seed of the run
    encoder = image_encoder(image_size=(14, 21), patch_size=(7, 7), embed_dim=10, depth=3, num_heads=2, drop_path=0.4)
    model = Classifier(encoder, 2, labels=["bright", "dark"])
    return kind(model, lr=1e-2, weight_decay=0.1, seed=seed, **options)


def run(
    photos: Path, folder: Path, *, seed: int = 0, num_workers: int = 0, moves: dict[str, Any] | None = None,
    **options: Any,
) -> FitResult:  # fmt: skip
    module = data(photos, seed, num_workers)
    return fit(
        task(seed, **(moves or {})), module, folder, max_epochs=EPOCHS, precision="fp32", device="cpu", **options
    )


def checkpoint(folder: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def same(first: Any, second: Any) -> bool:
    """Whether two trees of tensors are equal, to the bit."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def column(folder: Path, name: str) -> list[float]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def assert_same_run(found: Path, expected: Path) -> None:
    """Weights, state of the optimizer, history and model folder are equal to the bit."""
    for name in ("last", "best"):
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
            assert same(checkpoint(found, name)[part], checkpoint(expected, name)[part]), (name, part)
    for name in ("metrics.csv", "model/model.safetensors", "model/config.json"):
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FitResult]:
    """The folder and the result of a run that was not stopped."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, run(photos, folder)


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs end without curves.png, which takes as long as a tiny run."""
    monkeypatch.setattr(fit_module, "draw_curves", lambda *paths: None)


def test_metrics_have_a_row_every_ten_steps_and_one_an_epoch(whole: tuple[Path, FitResult]) -> None:
    folder, _ = whole
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["epoch"]), int(row["step"])) for row in rows] == [
        (1, 5), (2, 10), (2, 10), (3, 15), (4, 20), (4, 20),
    ]  # fmt: skip
    assert column(folder, "val_top1") == pytest.approx(SCORES)
    assert column(folder, "val_loss") == pytest.approx(LOSSES)
    assert len(column(folder, "train_loss_epoch")) == len(column(folder, "train_top1")) == EPOCHS
    assert len(column(folder, "train_loss_step")) == 2
    assert len(column(folder, "lr")) == 2


def test_tensorboard_has_the_curves(whole: tuple[Path, FitResult]) -> None:
    folder, _ = whole
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [event.value for event in events.Scalars("val_top1")] == pytest.approx(SCORES)
    assert [event.value for event in events.Scalars("train_loss_epoch")] == pytest.approx(
        column(folder, "train_loss_epoch")
    )


def test_curves_are_a_picture(whole: tuple[Path, FitResult]) -> None:
    folder, _ = whole
    with Image.open(folder / "curves.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 100


def test_the_model_folder_and_best_checkpoint_are_those_of_the_best_epoch(whole: tuple[Path, FitResult]) -> None:
    folder, result = whole
    assert result == FitResult(best=0.75, best_epoch=2, last=0.75, skipped={}, epochs=4)
    best = checkpoint(folder, "best")
    assert best["global_step"] == 2 * STEPS
    assert checkpoint(folder)["global_step"] == EPOCHS * STEPS
    model = load(folder / "model")
    assert model.labels == ("bright", "dark")
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    assert same(weights, {name: value for name, value in best["state_dict"].items() if name in weights})


def test_only_whole_files_are_left(whole: tuple[Path, FitResult]) -> None:
    folder, _ = whole
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert [name for name in files if not name.startswith("tensorboard")] == [
        "checkpoints/best.ckpt", "checkpoints/best.ckpt.sha256",
        "checkpoints/last.ckpt", "checkpoints/last.ckpt.sha256", "curves.png", "metrics.csv",
        "model/README.md", "model/config.json", "model/model.safetensors", "times.csv",
    ]  # fmt: skip


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_number_of_workers_changes_nothing(
    whole: tuple[Path, FitResult], photos: Path, tmp_path: Path, num_workers: int
) -> None:
    torch.manual_seed(99)  # nor does what was drawn before
    np.random.seed(99)  # noqa: NPY002
    assert run(photos, tmp_path, num_workers=num_workers) == whole[1]
    assert_same_run(tmp_path, whole[0])


@pytest.mark.usefixtures("no_picture")
def test_another_seed_is_another_run(whole: tuple[Path, FitResult], photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path, seed=1)
    first, second = column(whole[0], "train_loss_epoch"), column(tmp_path, "train_loss_epoch")
    assert all(one != two for one, two in zip(first, second, strict=True))


@pytest.mark.usefixtures("no_picture")
def test_each_epoch_sees_the_photos_in_another_way(photos: Path, tmp_path: Path) -> None:
    """With weights that stand still, what differs between epochs is what they were shown."""
    still = ClassificationTask(task().model.eval(), lr=0.0, weight_decay=0.0)
    fit(still, data(photos), tmp_path, max_epochs=EPOCHS, precision="fp32", device="cpu")
    assert len(set(column(tmp_path, "train_loss_epoch"))) == EPOCHS
    assert len(set(column(tmp_path, "val_loss"))) == 1


class Stopped(Exception):
    pass


def stop_at(call: int, function: Callable[..., Any], *, before: bool = False) -> Callable[..., Any]:
    """The function, which stops the run in its call of this number, counted from 1."""
    calls = 0

    def stopping(*args: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if before and calls == call:
            raise Stopped
        result = function(*args, **keywords)
        if calls == call:
            raise Stopped
        return result

    return stopping


# Where a run is stopped: (owner, function, the number of its call, before or after its work), and how many epochs are
# left to be done then.
STOPS = {
    "after the checkpoint of epoch 1": (checkpoints.CheckpointWriter, "on_train_epoch_end", 1, False, 3),
    "after the checkpoint of epoch 3": (checkpoints.CheckpointWriter, "on_train_epoch_end", 3, False, 1),
    "before the checkpoint of epoch 3": (checkpoints.CheckpointWriter, "on_train_epoch_end", 3, True, 2),
    "before the best model is written": (ClassificationTask, "write_model", 2, True, 3),
    "between the best model and its checkpoint": (ClassificationTask, "write_model", 2, False, 3),
    "between the best checkpoint and the last": (L.Trainer, "save_checkpoint", 4, True, 3),
    "in the midst of epoch 3": (ClassificationTask, "training_step", 2 * STEPS + 3, False, 2),
    "in the validation of epoch 2": (ClassificationTask, "validation_step", 3, False, 3),
}


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize("stop", STOPS)
def test_a_stopped_and_resumed_run_is_the_run_that_was_not_stopped(
    whole: tuple[Path, FitResult], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str
) -> None:
    owner, function, call, before, epochs_left = STOPS[stop]
    with monkeypatch.context() as patch:
        patch.setattr(owner, function, stop_at(call, getattr(owner, function), before=before))
        with pytest.raises(Stopped):
            run(photos, tmp_path)
    with steps_counted(monkeypatch) as steps:
        assert run(photos, tmp_path, resume=True) == whole[1]
    assert_same_run(tmp_path, whole[0])
    assert len(steps) == epochs_left * STEPS


@pytest.fixture(scope="module")
def accumulated(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FitResult]:
    """The folder and the result of a run of two batches a step, that was not stopped."""
    folder = tmp_path_factory.mktemp("runs") / "accumulated"
    return folder, run(photos, folder, accumulate=2)


# (function, the number of its call, batches a step, workers, batches of training that are done again or for the first
# time), where a checkpoint is written at every step and at the start of validation.
MIDST = {
    "in the third batch of epoch 2": ("training_step", STEPS + 3, 1, 0, 2 * STEPS + 3),
    "the same, one worker": ("training_step", STEPS + 3, 1, 1, 2 * STEPS + 3),
    "the same, two workers": ("training_step", STEPS + 3, 1, 2, 2 * STEPS + 3),
    "in the last batch of epoch 1": ("training_step", STEPS, 1, 0, 3 * STEPS + 1),
    "in the first validation": ("validation_step", 1, 1, 0, 3 * STEPS),
    "in the second batch of the third validation": ("validation_step", 2 * BATCHES_VAL + 2, 1, 0, STEPS),
    "between two steps of two batches": ("training_step", STEPS + 4, 2, 0, 2 * STEPS + 3),
}


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize("stop", MIDST)
def test_a_run_that_is_stopped_within_an_epoch_goes_on_there(
    whole: tuple[Path, FitResult], accumulated: tuple[Path, FitResult], photos: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, stop: str,
) -> None:  # fmt: skip
    function, call, accumulate, workers, batches_left = MIDST[stop]
    expected = whole if accumulate == 1 else accumulated
    options: dict[str, Any] = {"accumulate": accumulate, "num_workers": workers, "checkpoint_minutes": 0.0}
    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTask, function, stop_at(call, getattr(ClassificationTask, function), before=True))
        with pytest.raises(Stopped):
            run(photos, tmp_path, **options)
    with steps_counted(monkeypatch) as steps:
        assert run(photos, tmp_path, resume=True, **options) == expected[1]
    assert_same_run(tmp_path, expected[0])
    assert len(steps) == batches_left


@pytest.mark.usefixtures("no_picture")
def test_a_run_that_is_stopped_again_and_again_is_the_same_run(
    whole: tuple[Path, FitResult], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    while calls < 2 * EPOCHS * STEPS:
        calls += 1
        with monkeypatch.context() as patch:
            patch.setattr(
                ClassificationTask, "training_step", stop_at(2, ClassificationTask.training_step, before=True)
            )
            try:
                result = run(photos, tmp_path, checkpoint_minutes=0.0, resume=calls > 1)
                break
            except Stopped:
                continue
    assert calls == EPOCHS * STEPS
    assert result == whole[1]
    assert_same_run(tmp_path, whole[0])


# Ways to train that have a state of their own, which must come back, too.
WAYS: dict[str, dict[str, Any]] = {
    "moving average, mixup and cutmix": {"ema": 0.9, "mixup": 0.8, "cutmix": 1.0, "mix_prob": 0.8},
    "LoRA with a moving average": {"trained": "lora", "lora_rank": 2, "ema": 0.9},
    "the last block": {"trained": "blocks:1"},
    "another optimizer": {"name": "cadamw", "scale_lr": "sqrt", "lr_base_size": 4},
    "Muon, as the recipes have it": {"name": "nmuon"},
}


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_train_is_resumed_to_the_bit(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Stopped between two steps of two batches, and in a validation."""
    options: dict[str, Any] = {"moves": WAYS[way], "accumulate": 2, "checkpoint_minutes": 0.0}
    expected = run(photos, tmp_path / "whole", **options)
    for number, (function, call) in enumerate([("training_step", STEPS + 4), ("validation_step", BATCHES_VAL + 1)]):
        with monkeypatch.context() as patch:
            stopping = stop_at(call, getattr(ClassificationTask, function), before=True)
            patch.setattr(ClassificationTask, function, stopping)
            with pytest.raises(Stopped):
                run(photos, tmp_path / "stopped", resume=number > 0, **options)
    assert run(photos, tmp_path / "stopped", resume=True, **options) == expected
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.usefixtures("no_picture")
def test_the_moving_average_is_what_is_validated_and_kept(photos: Path, tmp_path: Path) -> None:
    averaged = task(kind=ClassificationTask, ema=0.9)
    result = fit(averaged, data(photos), tmp_path, max_epochs=1, precision="fp32", device="cpu")
    average = averaged.evaluated
    assert not torch.equal(average.head.weight, averaged.model.head.weight)
    right = [average(batch["image"]).argmax(1) == batch["target"] for batch in data(photos).dataloader("val")]
    assert result.last == pytest.approx(float(torch.cat(right).float().mean()))
    for kept in (tmp_path / "model", tmp_path / "checkpoints" / "best.ckpt"):
        assert torch.equal(load(kept).head.weight, average.head.weight), kept


@pytest.mark.usefixtures("no_picture")
def test_compiled_and_checkpointed_runs_learn_the_same(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without drop path, whose compiled chance is another. The quick backend stands for the one that takes minutes."""
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="aot_eager"))
    losses = []
    for options in ({}, {"compile": True}, {"activation_checkpointing": True}):
        learned = task(kind=ClassificationTask)
        for block in learned.model.encoder.blocks:
            block.drop_path = torch.nn.Identity()
        folder = tmp_path / "_".join(options)
        fit(learned, data(photos), folder, max_epochs=1, precision="fp32", device="cpu", **options)
        assert (learned.model._compiled_call_impl is not None) == ("compile" in options)
        losses.append(column(folder, "train_loss_epoch")[0])
        with record(learned.model.eval()) as trace:
            learned.model(torch.zeros(1, 3, 14, 21))
        assert len(trace.blocks) == 3
    assert losses[1:] == [pytest.approx(losses[0], rel=1e-5)] * 2


@contextmanager
def steps_counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A list that grows with each step of training."""
    steps: list[int] = []
    step = ClassificationTask.training_step

    def counted(task: ClassificationTask, batch: Any, batch_idx: int) -> Any:
        steps.append(task.global_step)
        return step(task, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTask, "training_step", counted)
        yield steps


@pytest.mark.usefixtures("no_picture")
def test_a_finished_run_that_is_resumed_stays_as_it_is(
    whole: tuple[Path, FitResult], photos: Path, tmp_path: Path
) -> None:
    run(photos, tmp_path)
    assert run(photos, tmp_path, resume=True) == whole[1]
    assert_same_run(tmp_path, whole[0])


@pytest.mark.usefixtures("no_picture")
def test_rows_torn_by_a_crash_are_cut_off_on_resume(
    whole: tuple[Path, FitResult], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            checkpoints.CheckpointWriter,
            "on_train_epoch_end",
            stop_at(2, checkpoints.CheckpointWriter.on_train_epoch_end),
        )
        with pytest.raises(Stopped):
            run(photos, tmp_path)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("3,12,0.00")
    run(photos, tmp_path, resume=True)
    assert_same_run(tmp_path, whole[0])


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize("damage", [b"", b"<html>", b"version https://git-lfs.github.com/spec/v1"])
def test_a_damaged_last_checkpoint_is_passed_over(
    whole: tuple[Path, FitResult], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes
) -> None:
    """Resumed from the best of epoch 2, the run is the same."""
    with monkeypatch.context() as patch:
        patch.setattr(
            checkpoints.CheckpointWriter,
            "on_train_epoch_end",
            stop_at(3, checkpoints.CheckpointWriter.on_train_epoch_end),
        )
        with pytest.raises(Stopped):
            run(photos, tmp_path)
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(damage)
    for name in ("checkpoints/.last.{}.ckpt", "model/.model.{}.safetensors", ".config.{}.yaml"):  # as kills leave them
        (tmp_path / name.format("0123456789abcdef")).write_bytes(b"PK")
    with steps_counted(monkeypatch) as steps:
        assert run(photos, tmp_path, resume=True) == whole[1]
    assert_same_run(tmp_path, whole[0])
    assert len(steps) == 2 * STEPS
    assert not list(tmp_path.rglob(".*"))


def test_with_no_checkpoint_that_can_be_read_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    for name in ("last.ckpt", "best.ckpt"):
        (tmp_path / "checkpoints" / name).write_bytes(b"PK")
    with pytest.raises(UserError, match=r"these are damaged: last\.ckpt, best\.ckpt"):
        fit_module.last_checkpoint(tmp_path)


SIGNALS = {signal.SIGINT: (KeyboardInterrupt, None), signal.SIGTERM: (SystemExit, 143)}


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize(
    ("function", "call", "batches_left"),
    [
        ("training_step", 2 * STEPS + 3, 2 * STEPS - 3),
        ("validation_step", 1, 3 * STEPS),
        ("validation_step", 4, 2 * STEPS),
    ],
)
@pytest.mark.parametrize("number", SIGNALS)
def test_a_run_that_is_asked_to_end_saves_and_can_be_resumed(
    whole: tuple[Path, FitResult], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals, function: str, call: int, batches_left: int,
) -> None:  # fmt: skip
    ending, code = SIGNALS[number]
    handlers = [signal.getsignal(each) for each in SIGNALS]
    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTask, function, signalled(getattr(ClassificationTask, function), {call: number}))
        with pytest.raises(ending) as ended:
            run(photos, tmp_path)
    assert getattr(ended.value, "code", None) == code
    assert [signal.getsignal(each) for each in SIGNALS] == handlers
    with steps_counted(monkeypatch) as steps:
        assert run(photos, tmp_path, resume=True) == whole[1]
    assert_same_run(tmp_path, whole[0])
    assert len(steps) == batches_left  # nothing is done twice


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_ends_the_run_at_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    ending, _ = SIGNALS[number]
    step = ClassificationTask.training_step
    monkeypatch.setattr(ClassificationTask, "training_step", signalled(step, {3: number, 4: number}))
    with steps_counted(monkeypatch) as steps, pytest.raises(ending):
        run(photos, tmp_path, accumulate=4)
    assert len(steps) == 4
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_breaks_the_step_ends_the_run_as_signals_do(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """As when it ends the compiler that torch.compile waits for."""

    def broken(*_: Any) -> None:
        signal.raise_signal(number)
        raise RuntimeError("the compiler failed")

    monkeypatch.setattr(ClassificationTask, "training_step", broken)
    ending, code = SIGNALS[number]
    with pytest.raises(ending) as ended:
        run(photos, tmp_path)
    assert getattr(ended.value, "code", None) == code


def test_a_signal_does_not_hide_that_nothing_could_be_saved(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("no space left")

    step = ClassificationTask.training_step
    monkeypatch.setattr(ClassificationTask, "training_step", signalled(step, {2: signal.SIGTERM}))
    monkeypatch.setattr(L.Trainer, "save_checkpoint", full)
    with pytest.raises(RuntimeError, match="no space left"):
        run(photos, tmp_path)


def test_other_images_are_not_the_run_that_is_resumed(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def named(count: int, folder: str) -> ClassificationTask:
        return task(names=[f"{folder}/{number}.png" for number in range(count)], data=f"{count} images")

    def go(count: int, *, folder: str = "here", resume: bool = False) -> FitResult:
        learner = named(count, folder)
        return fit(learner, data(photos), tmp_path, max_epochs=2, precision="fp32", device="cpu", resume=resume)

    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTask, "training_step", stop_at(7, ClassificationTask.training_step, before=True))
        with pytest.raises(Stopped):
            go(18)
    with pytest.raises(UserError, match=r"other images or labels \(18 training images then, 17 now\)"):
        go(17, resume=True)
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["running"]["data"] == [18, "18 images"]
    assert go(18, folder="moved", resume=True).epochs == 2


def test_a_signal_that_comes_while_the_processes_agree_counts_from_the_next_time_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else it would be lost, or stop this process alone."""
    stop = StopRequest()
    largest = stopping.processes.largest

    def interrupted(*values: float) -> list[float]:
        stop._remember(signal.SIGTERM, None)
        return largest(*values)

    with monkeypatch.context() as patch:
        patch.setattr(stopping.processes, "largest", interrupted)
        assert not stop.share()
    assert stop.share()
    with pytest.raises(SIGTERMException):
        stop.stop()


def signalled(function: Callable[..., Any], signals: dict[int, signal.Signals]) -> Callable[..., Any]:
    """The function, which signals its own process before its work in the calls of these numbers."""
    calls = 0

    def asked(*args: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls in signals:
            signal.raise_signal(signals[calls])
        return function(*args, **keywords)

    return asked


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_a_flipped_bit_in_a_checkpoint_is_seen(photos: Path, tmp_path: Path, name: str) -> None:
    run(photos, tmp_path)
    path = tmp_path / "checkpoints" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    other = {"last.ckpt": "best.ckpt", "best.ckpt": "last.ckpt"}[name]
    assert fit_module.last_checkpoint(tmp_path).name == other


@pytest.mark.usefixtures("no_picture")
def test_weights_that_are_no_numbers_never_take_the_place_of_a_checkpoint(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTask, "training_step", stop_at(3, ClassificationTask.training_step, before=True))
        with pytest.raises(Stopped):
            run(photos, tmp_path, checkpoint_minutes=0.0)
    good = (tmp_path / "checkpoints" / "last.ckpt").read_bytes()
    step = L.LightningModule.optimizer_step

    def spoil(task: ClassificationTask, *args: Any, **keywords: Any) -> None:
        step(task, *args, **keywords)
        task.model.head.weight.data.fill_(torch.inf)

    monkeypatch.setattr(ClassificationTask, "optimizer_step", spoil)
    with pytest.raises(UserError, match=r"1 of .* weights are NaN or infinite, such as model.head.weight"):
        run(photos, tmp_path, checkpoint_minutes=0.0, resume=True)
    assert (tmp_path / "checkpoints" / "last.ckpt").read_bytes() == good
    assert fit_module.last_checkpoint(tmp_path).name == "last.ckpt"


def test_there_must_be_something_to_resume(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to resume") as error:
        run(photos, tmp_path / "new", resume=True)
    assert len(str(error.value).splitlines()) <= 5
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("no_picture")
def test_unreadable_images_are_listed_once_though_each_epoch_meets_them(photos: Path, tmp_path: Path) -> None:
    for number in range(4):
        for label, folder in (("bright", "train"), ("dark", "train"), ("bright", "val"), ("dark", "val")):
            place = tmp_path / folder / label
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number}.png").write_bytes((photos / label / f"{number}.png").read_bytes())
    for broken in ("train/bright/1.png", "val/dark/2.png"):
        (tmp_path / broken).write_bytes(b"")
    result = fit(task(), data(tmp_path), tmp_path / "run", max_epochs=2, precision="fp32", device="cpu")
    assert result.skipped == {
        str(tmp_path / broken): "the file is empty" for broken in ("train/bright/1.png", "val/dark/2.png")
    }


def test_strict_stops_at_the_first_unreadable_image(photos: Path, tmp_path: Path) -> None:
    for label in ("bright", "dark"):
        (tmp_path / label).mkdir()
        for number in range(4):
            (tmp_path / label / f"{number}.png").write_bytes((photos / label / f"{number}.png").read_bytes())
        (tmp_path / label / "x.png").write_bytes(b"<html>")
    module = data(tmp_path, strict=True)
    with pytest.raises(UserError, match=r"x\.png: a web page"):
        fit(task(), module, tmp_path / "run", max_epochs=2, precision="fp32", device="cpu")
    assert not (tmp_path / "run" / "model").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_that_was_killed_is_resumed_to_the_bit(photos: Path, tmp_path: Path) -> None:
    """The real thing: a process of its own, killed as soon as its first checkpoint is there."""
    command = [
        "train", "--data.root", str(photos), "--data.batch_size", "2", "--data.num_workers", "1",
        "--model.variant", "pico", "--model.patch_size", "8", "--model.image_size", "16", "--model.drop_path", "0.2",
        "--trainer.max_epochs", "4", "--trainer.precision", "fp32", "--device", "cpu",
    ]  # fmt: skip
    killed, expected = tmp_path / "killed", tmp_path / "expected"
    log = tmp_path / "log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "cli.py"), *command, "--run", str(killed)],
            stderr=errors,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        while process.poll() is None and not (killed / "checkpoints" / "last.ckpt").is_file():
            time.sleep(0.001)
        process.kill()
        assert process.wait() == -signal.SIGKILL, log.read_text()
    assert checkpoint(killed)["epoch"] < 3
    assert cli.main([*command, "--run", str(killed), "--resume"]) == 0
    assert cli.main([*command, "--run", str(expected)]) == 0
    assert_same_run(killed, expected)

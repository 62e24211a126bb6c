"""One step of training: what moves, by which gradient, and what chance decides."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vit.foundation import UserError
from vit.models.classifier import Classifier
from vit.models.encoder import image_encoder
from vit.training.classification import ClassificationTask

pytestmark = pytest.mark.filterwarnings("ignore:::lightning")  # as `fit` does

OPTIONS: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1, "warmup_epochs": 0}


class Images(Dataset):
    """Random images of two classes, that differ in brightness."""

    def __init__(self, length: int):
        self.targets = torch.arange(length) % 2
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(length, 3, 14, 14, generator=generator) + 2 * self.targets[:, None, None, None] - 1

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[int, Tensor, Tensor]:
        return index, self.images[index], self.targets[index]


class Data(L.LightningDataModule):
    """Batches as the data modules give them, in order and never augmented."""

    def __init__(self, length: int, batch_size: int, unreadable: Sequence[int] = ()):
        super().__init__()
        self.dataset = Images(length)
        self.batch_size = batch_size
        self.unreadable = unreadable

    def train_dataloader(self) -> DataLoader:
        return self._loader()

    def val_dataloader(self) -> DataLoader:
        return self._loader()

    def _loader(self) -> DataLoader:
        return DataLoader(self.dataset, self.batch_size, collate_fn=self._gather)

    def _gather(self, samples: list[tuple[int, Tensor, Tensor]]) -> dict[str, Any]:
        read = [sample for sample in samples if sample[0] not in self.unreadable]
        skipped = [(f"{index}.png", "the file is empty") for index, *_ in samples if index in self.unreadable]
        images = torch.stack([image for _, image, _ in read]) if read else torch.empty(0, 3, 14, 14)
        targets = torch.stack([target for *_, target in read]) if read else torch.empty(0, dtype=torch.int64)
        index = torch.tensor([index for index, *_ in read], dtype=torch.int64)
        return {"image": images, "target": targets, "index": index, "skipped": skipped}


def task(seed: int = 0, drop_path: float = 0.0, **options: Any) -> ClassificationTask:
    torch.manual_seed(7)  # the same weights for every seed of the run
    encoder = image_encoder(
        image_size=(14, 14), patch_size=(7, 7), embed_dim=10, depth=3, num_heads=2, drop_path=drop_path
    )
    return ClassificationTask(Classifier(encoder, 2, labels=["dark", "bright"]), seed=seed, **(OPTIONS | options))


def train(
    learned: ClassificationTask, data: Data, folder: Path, callbacks: Sequence[L.Callback] = (), **options: Any
) -> dict[str, Tensor]:
    """The weights after training."""
    trainer = L.Trainer(
        accelerator="cpu", default_root_dir=folder, logger=False, enable_checkpointing=False, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, callbacks=list(callbacks),
        **({"max_epochs": 1} | options),
    )  # fmt: skip
    trainer.fit(learned, datamodule=data)
    return weights(learned)


def weights(learned: ClassificationTask) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in learned.model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


class Losses(L.Callback):
    """The loss of each micro-batch; the global random state is disturbed before each."""

    def __init__(self, disturb: int = 0):
        self.found: list[float] = []
        self.disturb = disturb

    def on_train_batch_start(self, trainer: L.Trainer, task: L.LightningModule, batch: Any, batch_idx: int) -> None:
        torch.rand(self.disturb)

    def on_train_batch_end(
        self, trainer: L.Trainer, task: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.found.append(float(outputs["loss"]))


def test_training_learns_which_images_are_bright(tmp_path: Path) -> None:
    losses = Losses()
    train(task(), Data(16, 8), tmp_path, [losses], max_epochs=16)
    assert losses.found[0] > 0.6
    assert losses.found[-1] < 0.1


def test_drop_path_is_a_function_of_the_seed_and_the_micro_batch_alone(tmp_path: Path) -> None:
    def run(seed: int, disturb: int = 0) -> list[float]:
        losses = Losses(disturb)
        train(task(seed, drop_path=0.5, lr=0.0), Data(8, 4), tmp_path, [losses], max_epochs=2)
        return losses.found

    first = run(seed=0)
    assert run(seed=0, disturb=5) == first
    assert run(seed=1) != first
    # The weights stand still, and so do the images: what differs between two epochs is what was dropped.
    assert first[:2] != first[2:]


def test_without_chance_in_the_model_the_seed_changes_nothing(tmp_path: Path) -> None:
    one, two = (train(task(seed), Data(8, 4), tmp_path) for seed in (0, 1))
    assert same(one, two)


def test_two_batches_of_four_are_one_of_eight(tmp_path: Path) -> None:
    class Gradients(L.Callback):
        def on_before_optimizer_step(
            self, trainer: L.Trainer, task: L.LightningModule, optimizer: torch.optim.Optimizer
        ) -> None:
            self.found = {name: parameter.grad.clone() for name, parameter in task.named_parameters()}  # type: ignore[union-attr]
            self.step = trainer.global_step

    whole, halves = Gradients(), Gradients()
    train(task(), Data(8, 8), tmp_path, [whole])
    train(task(), Data(8, 4), tmp_path, [halves], accumulate_grad_batches=2)
    assert whole.step == halves.step
    for name, gradient in whole.found.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(halves.found[name], gradient, atol=1e-6, rtol=1e-4)


def test_a_linear_probe_moves_the_head_and_nothing_below_it(tmp_path: Path) -> None:
    class Seen(L.Callback):
        def on_after_backward(self, trainer: L.Trainer, task: L.LightningModule) -> None:
            assert isinstance(task, ClassificationTask)
            self.with_gradient = {name for name, each in task.model.named_parameters() if each.grad is not None}
            self.encoder_in_training = any(module.training for module in task.model.encoder.modules())

    seen, probe = Seen(), task(drop_path=0.9, trained="head")
    before = weights(probe)
    after = train(probe, Data(8, 4), tmp_path, [seen], max_epochs=2)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"head.weight", "head.bias"}
    assert seen.with_gradient == {"head.weight", "head.bias"}
    assert not seen.encoder_in_training  # with 90 % of the branches dropped, its features would be noise


def test_all_that_is_trained_moves(tmp_path: Path) -> None:
    learned = task()
    before = weights(learned)
    after = train(learned, Data(8, 4), tmp_path)
    assert [name for name in before if torch.equal(before[name], after[name])] == []


class Metrics(L.Callback):
    """What was measured in the last epoch."""

    def on_train_epoch_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        names = ("train_loss_epoch", "train_top1", "val_loss", "val_top1", "val_top5")
        self.found = {name: float(trainer.callback_metrics[name]) for name in names}


@pytest.mark.parametrize("batch_size", [4, 8])
def test_unreadable_images_count_for_nothing_and_are_listed(tmp_path: Path, batch_size: int) -> None:
    """The first four of eight images are all that can be read: alone in a batch, or beside the others."""
    with_unreadable, alone = Metrics(), Metrics()
    learned = task(lr=0.0)
    train(learned, Data(8, batch_size, unreadable=[4, 5, 6, 7]), tmp_path, [with_unreadable])
    train(task(lr=0.0), Data(4, 4), tmp_path, [alone])
    assert with_unreadable.found == pytest.approx(alone.found)
    assert learned.skipped == {f"{index}.png": "the file is empty" for index in (4, 5, 6, 7)}


def test_a_batch_of_which_nothing_could_be_read_moves_nothing(tmp_path: Path) -> None:
    class Weights(L.Callback):
        def __init__(self) -> None:
            self.found: list[dict[str, Tensor]] = []

        def on_train_batch_end(
            self, trainer: L.Trainer, task: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            assert isinstance(task, ClassificationTask)
            self.found.append(weights(task))

    steps = Weights()
    train(task(), Data(12, 4, unreadable=[4, 5, 6, 7]), tmp_path, [steps])
    first, second, third = steps.found
    assert same(first, second)
    assert not same(second, third)


def test_a_run_of_which_nothing_can_be_read_ends(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"None of the training images could be read.\nThe first is 0.png"):
        train(task(), Data(8, 4, unreadable=range(8)), tmp_path)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_images(tmp_path: Path, value: float) -> None:
    data = Data(8, 4)
    data.dataset.images[6] = value
    learned = task(names=[f"{index}.png" for index in range(8)])
    with pytest.raises(UserError, match=r"loss became nan in epoch 1") as error:
        train(learned, data, tmp_path)
    assert "4.png, 5.png, 6.png, 7.png" in str(error.value)
    assert len(str(error.value).splitlines()) <= 5


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_bad_steps_are_left_out_whole_and_counted(tmp_path: Path, value: float) -> None:
    """Image 6 is bad: the second of three steps leaves every weight and moment as it was."""

    class States(L.Callback):
        def __init__(self) -> None:
            self.found: list[dict[str, Tensor]] = []

        def on_train_batch_end(
            self, trainer: L.Trainer, task: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            assert isinstance(task, ClassificationTask)
            moments = trainer.optimizers[0].state_dict()["state"]
            kept = {f"{i} {name}": value.clone() for i, state in moments.items() for name, value in state.items()}
            self.found.append({**weights(task), **kept})

    data = Data(12, 4)
    data.dataset.images[6] = value
    states, learned = States(), task(skip_bad_steps=1)
    train(learned, data, tmp_path, [states], max_epochs=1, limit_val_batches=1)
    first, second, third = states.found
    assert same(first, second)
    assert not same(second, third)
    assert (learned.bad_steps, learned.bad_in_a_row) == (1, 0)


def test_more_bad_steps_in_a_row_than_allowed_end_the_run(tmp_path: Path) -> None:
    data = Data(12, 4)
    data.dataset.images[4:] = torch.nan
    with pytest.raises(UserError, match=r"became nan in epoch 1 after 1 skipped steps"):
        train(task(skip_bad_steps=1), data, tmp_path)


def test_a_gradient_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    class Spoil(L.Callback):
        def on_after_backward(self, trainer: L.Trainer, task: L.LightningModule) -> None:
            next(weight for weight in task.parameters() if weight.grad is not None).grad.view(-1)[0] = torch.inf

    learned = task(names=[f"{index}.png" for index in range(8)])
    with pytest.raises(UserError, match=r"The gradient became inf in epoch 1; .*\n.*0.png, 1.png, 2.png, 3.png"):
        train(learned, Data(8, 4), tmp_path, [Spoil()])


def test_weights_that_are_lost_in_the_last_step_of_an_epoch_end_the_run_too(tmp_path: Path) -> None:
    class Lose(L.Callback):
        def on_train_batch_end(
            self, trainer: L.Trainer, task: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            if batch_idx == 1:
                next(task.parameters()).data.fill_(torch.nan)

    with pytest.raises(UserError, match=r"loss became nan in epoch 1"):
        train(task(), Data(8, 4), tmp_path, [Lose()])


def test_the_learning_rate_warms_up_and_falls_to_the_least(tmp_path: Path) -> None:
    class Rates(L.Callback):
        def __init__(self) -> None:
            self.found: list[float] = []

        def on_train_batch_start(self, trainer: L.Trainer, task: L.LightningModule, batch: Any, batch_idx: int) -> None:
            self.found.append(trainer.optimizers[0].param_groups[-1]["lr"])

    rates = Rates()
    train(task(lr=1.0, warmup_epochs=1.5, min_lr=0.25), Data(8, 4), tmp_path, [rates], max_epochs=4)
    assert len(rates.found) == 8
    assert rates.found[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates.found[4:] == sorted(rates.found[4:], reverse=True)
    assert 0.25 < rates.found[-1] < 0.4  # the least is reached after the last step

"""Captioning: what a step learns from, what is measured, and what chance decides."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vit.foundation import UserError
from vit.models.captioner import Captioner
from vit.models.decoder import Decoder
from vit.models.encoder import image_encoder
from vit.training.captioning import CaptioningTask, pad_texts, words_right

pytestmark = pytest.mark.filterwarnings("ignore:::lightning")  # as `fit` does

PAD, START, END = 0, 1, 2
TEXTS = ([START, 3, 4, END], [START, 5, 6, 7, END])  # of dark images and of bright ones


class Data(L.LightningDataModule):
    """Batches as the data modules give them, in order: dark and bright images by turns."""

    def __init__(self, length: int, batch_size: int, unreadable: Sequence[int] = ()):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.images = 0.2 * torch.randn(length, 3, 14, 14, generator=generator)
        self.images += 2 * (torch.arange(length) % 2)[:, None, None, None] - 1
        self.batch_size = batch_size
        self.unreadable = unreadable

    def train_dataloader(self) -> DataLoader:
        return DataLoader(range(len(self.images)), self.batch_size, collate_fn=self._gather)  # type: ignore[arg-type]

    val_dataloader = train_dataloader

    def _gather(self, indices: list[int]) -> dict[str, Any]:
        read = [index for index in indices if index not in self.unreadable]
        return {
            "image": self.images[read],
            "ids": [TEXTS[index % 2] for index in read],
            "references": [[TEXTS[index % 2], [START, 8, END]] for index in read],
            "index": torch.tensor(read, dtype=torch.int64),
            "skipped": [(f"{index}.png", "the file is empty") for index in indices if index in self.unreadable],
        }


def task(seed: int = 0, drop_path: float = 0.0, **options: Any) -> CaptioningTask:
    torch.manual_seed(7)  # the same weights for every seed of the run
    encoder = image_encoder(
        image_size=(14, 14), patch_size=(7, 7), embed_dim=16, depth=2, num_heads=2, drop_path=drop_path
    )
    model = Captioner(encoder, Decoder(9, 8, 16, 2, 2), start=START, end=END, pad=PAD)
    return CaptioningTask(model, seed=seed, **({"lr": 1e-2, "weight_decay": 0.1, "warmup_epochs": 0} | options))


class Watch(L.Callback):
    """The loss of each step and the metrics of the last epoch; the global random state is disturbed."""

    def __init__(self, disturb: int = 0):
        self.losses: list[float] = []
        self.found: dict[str, float] = {}
        self.disturb = disturb

    def on_train_batch_start(self, trainer: L.Trainer, task: L.LightningModule, batch: Any, batch_idx: int) -> None:
        torch.rand(self.disturb)

    def on_train_batch_end(self, trainer: L.Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if outputs:  # empty where nothing in the batch could be read
            self.losses.append(float(outputs["loss"]))

    def on_train_epoch_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        self.found = {name: float(value) for name, value in trainer.callback_metrics.items()}


def train(learned: CaptioningTask, data: Data, folder: Any, disturb: int = 0, **options: Any) -> Watch:
    watch = Watch(disturb)
    trainer = L.Trainer(
        accelerator="cpu", default_root_dir=folder, logger=False, enable_checkpointing=False, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, callbacks=[watch],
        **({"max_epochs": 1} | options),
    )  # fmt: skip
    trainer.fit(learned, datamodule=data)
    return watch


def test_it_learns_to_caption(tmp_path: Any) -> None:
    watch = train(task(), Data(16, 8), tmp_path, max_epochs=25)
    assert watch.losses[0] > 1.5
    assert watch.losses[-1] < 0.1
    assert (watch.found["val_exact"], watch.found["val_words"]) == (1.0, 1.0)
    assert watch.found["val_loss"] < 0.1


@pytest.mark.parametrize("batch_size", [3, 8])
def test_losses_are_means_over_tokens_and_other_metrics_over_captions(tmp_path: Any, batch_size: int) -> None:
    learned, data = task(lr=0.0), Data(8, batch_size)
    found = train(learned, data, tmp_path).found
    log_probs = learned.model(data.images, pad_texts([TEXTS[n % 2] for n in range(8)], PAD)[:, :-1]).log_softmax(dim=2)
    each = [-log_probs[n, place, token].item() for n in range(8) for place, token in enumerate(TEXTS[n % 2][1:])]
    assert len(each) == 4 * 3 + 4 * 4
    assert found["val_loss"] == pytest.approx(sum(each) / len(each), rel=1e-4)
    assert found["train_loss_epoch"] == pytest.approx(found["val_loss"], rel=1e-4)
    assert found["val_exact"] == 0.0


def test_any_of_the_references_may_be_said(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said = torch.tensor([8, END, PAD, PAD])

    def generate(images: Tensor, options: Any) -> Any:
        ids = said.expand(len(images), -1)
        return type("Found", (), {"ids": ids, "mask": ids != PAD})

    learned = task(lr=0.0)
    monkeypatch.setattr(learned.model, "generate", generate)
    assert train(learned, Data(4, 4), tmp_path).found["val_exact"] == 1.0


def test_words_right_are_those_in_their_places() -> None:
    assert words_right([3, 4, END], [3, 4, END]) == 1.0
    assert words_right([3, 5, END], [3, 4, END]) == pytest.approx(2 / 3)
    assert words_right([3, END], [3, 4, END]) == pytest.approx(1 / 3)
    assert words_right([3, 4, 5, 6], [3, END]) == 0.25


def test_label_smoothing_is_for_training_alone(tmp_path: Any) -> None:
    plain, smooth = (train(task(lr=0.0, label_smoothing=value), Data(4, 4), tmp_path).found for value in (0.0, 0.3))
    assert smooth["val_loss"] == plain["val_loss"]
    assert smooth["train_loss_epoch"] != plain["train_loss_epoch"]


def test_chance_is_a_function_of_the_seed_and_the_micro_batch(tmp_path: Any) -> None:
    def run(seed: int, disturb: int = 0) -> list[float]:
        learned = task(seed, drop_path=0.5, lr=0.0)
        return train(learned, Data(8, 4), tmp_path, disturb, max_epochs=2).losses

    first = run(seed=0)
    assert run(seed=0, disturb=5) == first
    assert run(seed=1) != first
    assert first[:2] != first[2:]


def test_all_weights_move(tmp_path: Any) -> None:
    learned = task()
    before = {name: value.clone() for name, value in learned.model.state_dict().items()}
    train(learned, Data(8, 4), tmp_path)
    still = [name for name, value in learned.model.state_dict().items() if torch.equal(value, before[name])]
    # Places behind the longest text are never used, but their table moves as a whole.
    assert still == []


def test_unreadable_images_count_for_nothing_and_are_listed(tmp_path: Any) -> None:
    learned = task(lr=0.0)
    found = train(learned, Data(8, 4, unreadable=[4, 5, 6, 7]), tmp_path).found
    assert found == pytest.approx(train(task(lr=0.0), Data(4, 4), tmp_path).found)
    assert learned.skipped == {f"{index}.png": "the file is empty" for index in (4, 5, 6, 7)}
    with pytest.raises(UserError, match=r"None of the training images could be read.\nThe first is 0.png"):
        train(task(), Data(8, 4, unreadable=range(8)), tmp_path)


def test_a_loss_that_is_not_finite_ends_the_run_or_is_left_out(tmp_path: Any) -> None:
    data = Data(8, 4)
    data.images[6] = torch.nan
    names = [f"{index}.png" for index in range(8)]
    with pytest.raises(UserError, match=r"The loss became nan in epoch 1") as error:
        train(task(names=names), data, tmp_path)
    assert "4.png, 5.png, 6.png, 7.png" in str(error.value)
    learned = task(skip_bad_steps=1)
    with pytest.raises(UserError, match="The validation loss became nan"):
        train(learned, data, tmp_path)
    assert learned.bad_steps == 1
    assert all(value.isfinite().all() for value in learned.model.state_dict().values())


def test_the_running_state_of_an_epoch_is_kept_in_checkpoints() -> None:
    first, second, saved = task(), task(), {}
    first.train_loss.update(2.0, weight=3)
    first.skipped, first.bad_steps, first.bad_in_a_row = {"1.png": "the file is empty"}, 4, 2
    first.on_save_checkpoint(saved)
    first.train_loss.update(9.0, weight=3)
    second.on_load_checkpoint(saved)
    second.train_loss.update(4.0, weight=1)
    assert second.train_loss.compute().item() == pytest.approx((2 * 3 + 4) / 4)
    assert (second.skipped, second.bad_steps, second.bad_in_a_row) == ({"1.png": "the file is empty"}, 4, 2)


def test_a_process_without_images_has_a_loss_without_a_gradient() -> None:
    learner = task()
    loss, count = learner._nothing({"image": torch.empty(0, 3, 14, 14), "ids": [], "skipped": []})
    loss.backward()
    assert (loss.item(), count) == (0, 0)
    assert all(weight.grad is not None and not weight.grad.any() for weight in learner.parameters())

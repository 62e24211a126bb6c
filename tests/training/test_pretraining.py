"""Masked pretraining: which patches are hidden when, and that the encoder learns."""

from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vit.models.encoder import image_encoder
from vit.models.masked import MaskedAutoencoder, MaskedImageModel, SimMIM
from vit.training.optim import parameter_groups
from vit.training.pretraining import PretrainingTask

pytestmark = pytest.mark.filterwarnings("ignore:::lightning")  # as `fit` does

RECIPES = [MaskedAutoencoder, SimMIM]


class Data(L.LightningDataModule):
    """Batches of stripes, dark first or bright first; images without labels."""

    def __init__(self, length: int, batch_size: int):
        super().__init__()
        stripes = (torch.arange(20) * 1.2).sin() * (2 * (torch.arange(length) % 2)[:, None] - 1)
        self.images = stripes[:, None, None].expand(length, 3, 20, 20).contiguous()
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader:
        return DataLoader(range(len(self.images)), self.batch_size, collate_fn=self._gather)  # type: ignore[arg-type]

    val_dataloader = train_dataloader

    def _gather(self, indices: list[int]) -> dict[str, Any]:
        return {"image": self.images[indices], "index": torch.tensor(indices), "skipped": []}


def task(recipe: type[MaskedImageModel] = MaskedAutoencoder, seed: int = 0, **options: Any) -> PretrainingTask:
    torch.manual_seed(7)  # the same weights for every seed of the run
    encoder = image_encoder(image_size=(20, 20), patch_size=(5, 5), embed_dim=16, depth=2, num_heads=2)
    model = recipe(encoder, mask_ratio=0.5)
    return PretrainingTask(model, seed=seed, **({"lr": 1e-2, "weight_decay": 0.05, "warmup_epochs": 0} | options))


class Watch(L.Callback):
    """What was hidden in each batch, and the losses; the global random state is disturbed."""

    def __init__(self, disturb: int = 0):
        self.hidden: dict[bool, list[Tensor]] = {True: [], False: []}  # by whether it was in training
        self.val_losses: list[float] = []
        self.disturb = disturb

    def setup(self, trainer: L.Trainer, task: Any, stage: str) -> None:
        hide = task.model.hide

        def watched(*given: Any) -> Tensor:
            hidden = hide(*given)
            self.hidden[task.model.training].append(hidden)
            return hidden

        task.model.hide = watched

    def on_train_batch_start(self, trainer: L.Trainer, task: L.LightningModule, batch: Any, batch_idx: int) -> None:
        torch.rand(self.disturb)

    def on_validation_batch_start(self, *_: Any) -> None:
        torch.rand(self.disturb)

    def on_train_epoch_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        self.val_losses.append(float(trainer.callback_metrics["val_loss"]))


def train(learned: PretrainingTask, data: Data, folder: Any, disturb: int = 0, **options: Any) -> Watch:
    watch = Watch(disturb)
    trainer = L.Trainer(
        accelerator="cpu", default_root_dir=folder, logger=False, enable_checkpointing=False, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, callbacks=[watch],
        **({"max_epochs": 1} | options),
    )  # fmt: skip
    trainer.fit(learned, datamodule=data)
    return watch


@pytest.mark.parametrize("recipe", RECIPES)
def test_it_learns_to_guess(tmp_path: Any, recipe: type[MaskedImageModel]) -> None:
    losses = train(task(recipe), Data(16, 8), tmp_path, max_epochs=25).val_losses
    assert losses[-1] < 0.4 * losses[0]


def test_what_is_hidden_follows_from_the_seed_and_the_micro_batch(tmp_path: Any) -> None:
    def run(seed: int, disturb: int = 0) -> list[Tensor]:
        return train(task(seed=seed), Data(8, 4), tmp_path, disturb, max_epochs=2).hidden[True]

    first = run(seed=0)
    assert len(first) == 4
    assert all(torch.equal(one, two) for one, two in zip(first, run(seed=0, disturb=5), strict=True))
    assert not any(torch.equal(one, two) for one, two in zip(first, run(seed=1), strict=True))
    assert len({tuple(hidden.flatten().tolist()) for hidden in first}) == 4  # another in each batch of each epoch


def test_validation_hides_the_same_in_every_epoch(tmp_path: Any) -> None:
    watch = train(task(lr=0.0), Data(8, 4), tmp_path, max_epochs=2)
    one, two, three, four = watch.hidden[False]
    assert torch.equal(one, three)
    assert torch.equal(two, four)
    assert not torch.equal(one, two)
    assert watch.val_losses[0] == watch.val_losses[1]
    again = train(task(lr=0.0), Data(8, 4), tmp_path, disturb=5)
    assert torch.equal(again.hidden[False][0], one)


@pytest.mark.parametrize("recipe", RECIPES)
def test_all_weights_move(tmp_path: Any, recipe: type[MaskedImageModel]) -> None:
    learned = task(recipe)
    before = {name: value.clone() for name, value in learned.model.state_dict().items()}
    train(learned, Data(8, 4), tmp_path)
    assert [name for name, value in learned.model.state_dict().items() if torch.equal(value, before[name])] == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_learned_tokens_and_positions_are_not_decayed(recipe: type[MaskedImageModel]) -> None:
    model = task(recipe).model
    groups = parameter_groups(model, lr=1.0, weight_decay=0.1, layer_decay=0.5)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        plain = name.endswith(("token", "pos_embed", "bias")) or "norm" in name
        assert decay[id(parameter)] == (0.0 if plain else 0.1), name
        below = {"encoder.embed": 0.125, "encoder.blocks.0": 0.25, "encoder.blocks.1": 0.5}
        assert rate[id(parameter)] == next((r for start, r in below.items() if name.startswith(start)), 1.0), name

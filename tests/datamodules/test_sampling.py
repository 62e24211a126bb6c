"""Order, batches, workers: the same bytes whatever the number of processes, and errors in bounded time."""

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from datamodules.image_folder import LabelledImages
from datamodules.sampling import (
    Draw,
    EpochSampler,
    Skipped,
    available_cores,
    collate,
    labelled_batch,
    sample_loader,
    worker_failure,
)
from datamodules.transforms import train_transform
from vit.foundation import UserError

SIZE = (13, 17)


@pytest.fixture
def photos(tmp_path):
    """Eleven photos, of which the fifth can't be read."""
    rng = np.random.default_rng(0)
    for number in range(11):
        Image.fromarray(rng.integers(0, 256, (31, 41, 3), dtype=np.uint8)).save(tmp_path / f"{number:02}.png")
    paths = sorted(tmp_path.iterdir())
    paths[4].write_bytes(b"GIF89a")
    return LabelledImages(paths, range(11), train_transform(SIZE, (0.5,) * 3, (0.2,) * 3, erase=0.5), seed=7)


def epochs(dataset, workers, count=2, first=0):
    loader = sample_loader(dataset, labelled_batch(SIZE), batch_size=3, num_workers=workers, shuffle=True, seed=7)
    made = []
    for epoch in range(first, first + count):
        loader.sampler.set_epoch(epoch)
        made.append(list(loader))
    return made


def as_bytes(made):
    return [
        [(batch["image"].numpy().tobytes(), batch["index"].tolist(), batch["skipped"]) for batch in epoch]
        for epoch in made
    ]


def test_any_number_of_workers_gives_the_same_bytes(photos):
    expected = epochs(photos, 0)
    assert [len(batch["image"]) + len(batch["skipped"]) for batch in expected[0]] == [3, 3, 3, 2]
    for workers in (1, 4):
        torch.manual_seed(workers)
        np.random.seed(workers)  # noqa: NPY002
        random.seed(workers)
        assert as_bytes(epochs(photos, workers)) == as_bytes(expected)
    # begun at the second epoch, as after a resume, also by workers that know nothing of the first
    assert as_bytes(epochs(photos, 2, count=1, first=1)) == as_bytes(expected[1:])


def test_epochs_differ_in_order_and_in_augmentation(photos):
    first, second = epochs(photos, 0)
    orders = [[index for batch in epoch for index in batch["index"].tolist()] for epoch in (first, second)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]
    images = [
        {int(i): image for batch in epoch for i, image in zip(batch["index"], batch["image"], strict=True)}
        for epoch in (first, second)
    ]
    assert not any(torch.equal(images[0][index], images[1][index]) for index in images[0])


def test_the_global_generator_is_not_drawn_from(photos):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    epochs(photos, 0)
    epochs(photos, 1)
    assert torch.equal(torch.get_rng_state(), state)


def test_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        sampler = EpochSampler(50, seed=seed, shuffle=True)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 2) == order(1, 2)
    assert order(1, 2)[0].epoch == 2
    orders = {tuple(draw.index for draw in order(seed, epoch)) for seed in (1, 2, 3) for epoch in (1, 2, 3)}
    assert len(orders) == 9
    assert sorted(draw.index for draw in order(1, 2)) == list(range(50))


def test_balanced_epochs():
    classes = [0] * 30 + [1] * 8 + [2] * 3 + [-1] * 2

    def order(seed, epoch):
        sampler = EpochSampler(len(classes), seed=seed, shuffle=True, classes=classes)
        sampler.set_epoch(epoch)
        return list(sampler)

    draws = order(1, 0)
    assert order(1, 0) == draws
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4
    assert sorted(Counter(classes[draw.index] for draw in draws).values()) == [10, 11, 11, 11]
    times = Counter(draw.index for draw in draws)
    for number in set(classes):
        own = [times[index] for index, one in enumerate(classes) if one == number]
        assert max(own) - min(own) <= 1
    assert len(set(draws)) == len(draws)  # no draw comes twice: a repeated sample is augmented in another way
    sampler = EpochSampler(len(classes), seed=1, shuffle=True, classes=classes)
    sampler.start = 7
    assert list(sampler) == draws[7:]
    assert {draw.index for epoch in range(30) for draw in order(1, epoch)} == set(range(len(classes)))


def test_a_repeated_sample_is_augmented_in_another_way(photos):
    first, again, next_epoch = (photos[Draw(*draw)]["image"] for draw in ((3, 5), (3, 5, 1), (4, 5)))
    assert torch.equal(first, photos[Draw(3, 5, 0)]["image"])
    assert not torch.equal(first, again)
    assert not torch.equal(again, next_epoch)


def test_evaluation_is_in_order_in_every_epoch():
    sampler = EpochSampler(5, seed=3)
    sampler.set_epoch(4)
    assert list(sampler) == [Draw(0, index) for index in range(5)]
    assert len(sampler) == 5


def test_each_image_has_its_own_augmentation_in_a_worker(photos):
    """Albumentations alone repeats one stream in every worker."""
    same = LabelledImages([photos.paths[0]] * 8, range(8), photos.transform)
    loader = sample_loader(same, labelled_batch(SIZE), batch_size=2, num_workers=2)
    images = torch.cat([batch["image"] for batch in loader])
    assert len({image.numpy().tobytes() for image in images}) == 8


def test_collate_of_nothing_but_skipped():
    batch = collate([Skipped("a", "b")], labelled_batch(SIZE))
    assert batch["image"].shape == (0, 3, *SIZE)
    assert batch["target"].dtype == batch["index"].dtype == torch.int64
    assert batch["skipped"] == [("a", "b")]


def test_the_number_of_workers(photos):
    def workers(num_workers, batch_size):
        loader = sample_loader(photos, labelled_batch(SIZE), batch_size=batch_size, num_workers=num_workers)
        return loader.num_workers

    assert workers(3, 1) == 3
    assert workers(3, 6) == 2  # no more than batches
    assert workers(-1, 1) == min(available_cores() - 1, 8)
    assert workers(0, 1) == 0


class Trouble(Dataset):
    """Sends a signal to the process that reads index 3; or raises."""

    def __init__(self, number):
        self.number = number

    def __len__(self):
        return 8

    def __getitem__(self, draw):
        if draw.index == 3:
            if self.number is None:
                raise KeyError("a mistake of ours")
            os.kill(os.getpid(), self.number)
        return {"image": torch.zeros(3, *SIZE), "target": 0, "index": draw.index}


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGKILL, "was killed"), (signal.SIGSTOP, "hangs")])
def test_a_dead_or_hanging_worker_is_an_error_in_bounded_time(number, expected):
    loader = sample_loader(Trouble(number), labelled_batch(SIZE), batch_size=1, num_workers=2, timeout=1.5)
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        list(loader)
    workers = [f"/proc/{pid}" for pid in _children()]
    assert expected in str(error.value)
    assert len(str(error.value).splitlines()) <= 5
    del loader, error
    assert time.monotonic() - start < 10
    assert not [place for place in workers if "python" in _state(place)]


def _children():
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def _state(place):
    """The command line of a live process; empty for one that has ended."""
    try:
        return Path(place, "cmdline").read_text()
    except OSError:
        return ""


def test_our_own_mistakes_are_not_disguised():
    for workers in (0, 1):
        loader = sample_loader(Trouble(None), labelled_batch(SIZE), batch_size=1, num_workers=workers)
        with pytest.raises(KeyError, match="a mistake of ours"):
            list(loader)
    assert worker_failure(RuntimeError("CUDA error")) is None
    assert worker_failure(ValueError("DataLoader worker was killed by signal")) is None
    assert worker_failure(ConnectionResetError("a dataset's own")) is None
    assert "was killed" in str(worker_failure(ConnectionResetError("while a batch was fetched"), died=True))
    full = "DataLoader worker (pid 3) is killed by signal: Bus error. It is possible that"
    assert "/dev/shm" in str(worker_failure(RuntimeError(full)))


class Seen(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, batch, batch_number):
        self.seen.append((self.current_epoch, batch["index"].tolist(), batch["image"].numpy().tobytes()))
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [0, 2])
def test_lightning_sets_the_epoch(photos, tmp_path, workers):
    """Also with workers that live through the epochs, and after a resume."""
    quiet = {"accelerator": "cpu", "logger": False, "default_root_dir": tmp_path,
             "enable_progress_bar": False, "enable_model_summary": False}  # fmt: skip

    def fit(max_epochs, checkpoint=None):
        model = Seen()
        loader = sample_loader(photos, labelled_batch(SIZE), batch_size=3, num_workers=workers, shuffle=True, seed=7)
        trainer = pl.Trainer(max_epochs=max_epochs, enable_checkpointing=False, **quiet)
        trainer.fit(model, loader, ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / f"{max_epochs}.ckpt")
        return model.seen

    expected = [
        (number, batch["index"].tolist(), batch["image"].numpy().tobytes())
        for number, epoch in enumerate(epochs(photos, 0, count=3))
        for batch in epoch
    ]
    assert fit(3) == expected
    fit(1)
    assert fit(3, tmp_path / "1.ckpt") == expected[4:]

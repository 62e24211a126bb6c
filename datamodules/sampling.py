"""From a dataset to batches: the order of the samples, how they are collated, and the processes that read them.

The order is a pure function of (seed, epoch). The epoch is passed along with each index, as a `Draw`, so that worker
processes know it without any shared state, even if they live for many epochs.

A batch is a dict:
    image     float32 (B, 3, h, w), normalised
    target    int64 (B,), index of the label; or float32 (B, C), 0 or 1 for each label; only with labels
    weight    float32 (B,), weight of each image in the loss; only with weights
    index     int64 (B,), position in the dataset
    skipped   list of Skipped: files that could not be read, and are in none of the tensors
B is smaller than the batch size if files were skipped, and 0 if all were.

Several processes (torch.distributed) share one order. Each gets the same number of batches: its own parts of the
larger batches that a single process would have made.
"""

import logging
import math
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data._utils import signal_handling

from vit.foundation import UserError, check_range

log = logging.getLogger("vit.data")

# Seconds to wait for a batch before assuming that a worker hangs: many times what the slowest disk needs.
WORKER_TIMEOUT = 120.0

SHARED_MEMORY = Path("/dev/shm")
BATCHES_AHEAD = 2  # batches that a worker prepares in advance


class Draw(NamedTuple):
    """One sample to make: its position in the dataset, and the epoch and the number of earlier repeats in that epoch,
    which decide its augmentation."""

    epoch: int
    index: int  # type: ignore[assignment]
    repeat: int = 0

    def key(self, seed: int) -> tuple[int, ...]:
        """The seed of what is random in the sample."""
        return (seed, self.epoch, self.index, self.repeat) if self.repeat else (seed, self.epoch, self.index)


class Skipped(NamedTuple):
    """A file that could not be read: its printable path, and the reason in one line."""

    path: str
    reason: str


def evenly(length: int, count: int | None) -> list[int]:
    """At most `count` positions in a list, spread evenly, so that a list sorted by class keeps its proportions.

    Raises:
        UserError: when `count`, the option --limit, is below 1.
    """
    if count is None:
        return list(range(length))
    check_range("limit", count, 1)
    count = min(count, length)
    return [place * length // count for place in range(count)]


class EpochSampler(Sampler[Draw]):
    """Yields each of `length` samples once, as `Draw`.

    If shuffled, the order is a pure function of (seed, epoch); Lightning calls `set_epoch` before each epoch, also
    after a resume. Otherwise, for evaluation, it is always 0, 1, 2 ... of epoch 0.

    With several processes, each takes its `share` of that one order: together they draw what a single process would.

    `start` is the number of its own samples that the next iteration, and only that one, leaves out at its beginning,
    to continue an epoch that was interrupted.

    Args:
        length: number of samples.
        seed: seed of the order.
        shuffle: whether the order is random.
        classes: the class of each sample, for balanced training, see `balanced_order`.
        batch_size: samples per batch and process.
        process: (rank of this process, number of processes).
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int = 0,
        shuffle: bool = False,
        classes: Sequence[int] | None = None,
        batch_size: int = 1,
        process: tuple[int, int] = (0, 1),
    ) -> None:
        self.length = length
        self.batches = -(-length // (batch_size * process[1]))  # per epoch, in each process
        self.share = share(length, batch_size, *process)
        self.seed = seed
        self.shuffle = shuffle
        self.classes = None if classes is None else np.asarray(classes)
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration."""
        self.epoch = epoch if self.shuffle else 0

    def __len__(self) -> int:
        return len(self.share)

    def __iter__(self) -> Iterator[Draw]:
        epoch = self.epoch
        repeats = np.zeros(self.length, int)
        if self.shuffle and self.classes is not None:
            order, repeats = balanced_order(self.classes, self.seed, epoch)
        elif self.shuffle:
            order = np.random.default_rng(np.random.SeedSequence((self.seed, epoch))).permutation(self.length)
        else:
            order = np.arange(self.length)
        own, self.start = self.share[self.start :], 0
        order, repeats = order[own], repeats[own]
        return (Draw(epoch, index, repeat) for index, repeat in zip(order.tolist(), repeats.tolist(), strict=True))


def share(length: int, batch_size: int, process: int, processes: int) -> np.ndarray:
    """The positions of one process in an order: part number `process` of every batch_size * processes in a row. The
    rest at the end is divided as evenly as possible, so that no sample is used twice or left out."""
    step = batch_size * processes
    whole = length // step * step
    parts = np.arange(whole).reshape(-1, processes, batch_size)[:, process].ravel()
    return np.concatenate([parts, np.array_split(np.arange(whole, length), processes)[process]])


def balanced_order(classes: np.ndarray, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """An order of the same length with equally many samples of each class (give or take one), shuffled.

    The samples of a class are drawn in random order, over and over until there are enough, so that their numbers of
    repeats differ by at most one. A pure function of (seed, epoch).

    Args:
        classes: (samples,) int, the class of each sample.

    Returns:
        (samples,) which sample, and (samples,) how often it was drawn before.
    """
    random = np.random.default_rng(np.random.SeedSequence((seed, epoch)))
    members = [np.flatnonzero(classes == number) for number in np.unique(classes)]
    shares = np.full(len(members), len(classes) // len(members))
    shares[random.permutation(len(members))[: len(classes) % len(members)]] += 1
    drawn: list[np.ndarray] = []
    for own, share in zip(members, shares.tolist(), strict=True):
        rounds = -(-share // len(own))
        given = [random.permutation(own) for _ in range(rounds)]
        drawn.append(np.stack([np.concatenate(given), np.repeat(np.arange(rounds), len(own))])[:, :share])
    order, repeats = random.permutation(np.concatenate(drawn, axis=1), axis=1)
    return order, repeats


def collate(items: list[dict[str, Any] | Skipped], empty: dict[str, Any]) -> dict[str, Any]:
    """Items of a dataset -> a batch, as described above; `empty` is the batch without items.

    Images and masks are stacked, integers become int64, targets and weights that are floats or arrays become float32,
    and anything else stays a list. The loader removes `notes`, the notes about readable files.
    """
    good = [item for item in items if not isinstance(item, Skipped)]
    batch = dict(empty)
    for key in good[0] if good else ():
        values = [item[key] for item in good]
        if key in ("image", "mask"):
            # torch.stack wakes all threads for a simple copy, which halves the speed of a busy machine
            batch[key] = torch.from_numpy(np.stack([value.numpy() for value in values]))
        elif isinstance(values[0], int):
            batch[key] = torch.tensor(values, dtype=torch.int64)
        elif key in ("target", "weight"):
            batch[key] = torch.from_numpy(np.array(values, np.float32))
        else:
            batch[key] = values
    batch["notes"] = [note for note in batch.pop("note", []) if note]
    batch["skipped"] = [item for item in items if isinstance(item, Skipped)]
    return batch


def image_batch(image_size: tuple[int, int]) -> dict[str, torch.Tensor]:
    """A batch without images."""
    return {"image": torch.empty(0, 3, *image_size), "index": torch.empty(0, dtype=torch.int64)}


def labelled_batch(image_size: tuple[int, int], classes: int | None = None) -> dict[str, torch.Tensor]:
    """A batch without labelled images, for one label per image, or for any number out of `classes`."""
    target = torch.empty(0, dtype=torch.int64) if classes is None else torch.empty(0, classes)
    return image_batch(image_size) | {"target": target}


class SampleLoader(DataLoader):
    """A DataLoader that can continue in the middle of an epoch, and reports failures of its workers as a UserError.

    Iterating raises UserError for a skipped file if `strict`, and for a worker that was killed, or returned nothing for
    `timeout` seconds.

    Args:
        dataset: returns a dict, or Skipped, for a Draw.
        strict: raise UserError at the first skipped file, instead of listing it in its batch.
        keywords: those of DataLoader.
    """

    def __init__(self, dataset: Dataset, *, strict: bool = False, **keywords: Any) -> None:
        self.strict = strict
        self._noted = False
        self._start = self._given = 0  # batches to leave out at the start of the next epoch; yielded in the current one
        super().__init__(dataset, **keywords)

    def __len__(self) -> int:
        assert isinstance(self.sampler, EpochSampler)
        return self.sampler.batches

    def state_dict(self) -> dict[str, int]:
        """How many batches of the current epoch were yielded; 0 between epochs."""
        return {"batches": self._given % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Starts the next epoch after the batches that were already yielded."""
        self._start = state["batches"]

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        # Nothing happens before the first batch is requested: Lightning makes the iterator, then sets the epoch.
        assert isinstance(self.sampler, EpochSampler)
        self.sampler.start = self._start * (self.batch_size or 1)
        self._given, self._start = self._start, 0
        batches = super().__iter__()
        try:
            for batch in batches:
                self._given += 1
                yield self._checked(batch)
            while self._given < len(self):  # at the end of an epoch no samples may be left for this process
                self._given += 1
                yield self._checked(self.collate_fn([]))
        except Exception as error:
            self._iterator = None
            died = any(not worker.is_alive() for worker in getattr(batches, "_workers", ()))
            _kill_workers(batches)
            raise worker_failure(error, died=died) or error from None

    def check_worker_number_rationality(self) -> None:
        """Does not warn: more workers than cores do no harm, and are requested deliberately."""

    def _checked(self, batch: dict[str, Any]) -> dict[str, Any]:
        notes = batch.pop("notes")
        if notes and not self._noted:
            log.warning("%s. Further files like it are not mentioned.", notes[0])
            self._noted = True
        if self.strict and batch["skipped"]:
            path, reason = batch["skipped"][0]
            raise UserError(f"Can't read {path}: {reason}.\nRepair or remove it; without strict it is skipped.")
        return batch


def sample_loader(
    dataset: Dataset,
    empty: dict[str, Any],
    *,
    batch_size: int,
    num_workers: int = -1,
    shuffle: bool = False,
    classes: Sequence[int] | None = None,
    seed: int = 0,
    strict: bool = False,
    timeout: float = WORKER_TIMEOUT,
) -> SampleLoader:
    """The loader that all data modules use.

    The last batch may be smaller, so that no sample is left out of an epoch.

    Args:
        dataset: as for `SampleLoader`.
        empty: the batch without items, see `collate`.
        num_workers: reading processes, never more than there are batches; -1 uses all cores but one, at most 8.
        shuffle, classes, seed: see `EpochSampler`.
        strict, timeout: see `SampleLoader`.

    Raises:
        UserError: when the shared memory is too small for the batches of the workers.
    """
    length = len(dataset)  # type: ignore[arg-type]
    workers = min(reading_processes(num_workers), -(-length // batch_size))
    parallel: dict[str, Any] = {}
    if workers > 0:
        tensors = [value for value in empty.values() if isinstance(value, torch.Tensor)]
        item = sum(value.element_size() * math.prod(value.shape[1:]) for value in tensors)
        _check_shared_memory(workers * BATCHES_AHEAD * batch_size * item)
        parallel = {
            "num_workers": workers,
            "persistent_workers": True,
            "prefetch_factor": BATCHES_AHEAD,
            "worker_init_fn": _start_worker,
            "timeout": timeout,
            # fork starts a worker in milliseconds; elsewhere it is unsafe or missing
            "multiprocessing_context": "fork" if sys.platform == "linux" else None,
        }
    return SampleLoader(
        dataset,
        strict=strict,
        batch_size=batch_size,
        sampler=EpochSampler(
            length, seed=seed, shuffle=shuffle, classes=classes, batch_size=batch_size, process=this_process()
        ),
        collate_fn=partial(collate, empty=empty),
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # otherwise each iteration would draw from the global generator
        **parallel,
    )


def this_process() -> tuple[int, int]:
    """(Rank of this process, number of processes) among those that work together."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if together else (0, 1)


def reading_processes(num_workers: int) -> int:
    """The number of processes that `num_workers` stands for."""
    return num_workers if num_workers >= 0 else min(available_cores() - 1, 8)


def _check_shared_memory(needed: int) -> None:
    """Raises UserError when the shared memory, through which the workers pass their batches, is too small for them.

    Otherwise a worker would later die silently, or never answer.
    """
    if not SHARED_MEMORY.is_dir():
        return
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free < needed:
        raise UserError(
            f"The shared memory, {SHARED_MEMORY}, has {free / 2**20:.0f} MiB free; the processes that read images "
            f"need {needed / 2**20:.0f} MiB.\n"
            "Try a smaller num_workers (0 reads in the main process) or batch_size, or make it larger."
        )


def available_cores() -> int:
    """The number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_failure(error: BaseException, *, died: bool = False) -> UserError | None:
    """The error for the user if `error` means that a reading process died or hangs; None otherwise.

    PyTorch raises the death of a worker in whatever line the main process happens to be, not only in the loader. A
    worker that `died` while its batch was being fetched first shows as a closed connection.
    """
    text = str(error)
    if died and isinstance(error, ConnectionError | EOFError):
        text = "DataLoader worker exited unexpectedly"
    elif not isinstance(error, RuntimeError) or not text.startswith("DataLoader"):
        return None
    if "timed out" in text:
        what = f"No images came in time ({text}): a reading process hangs, or the disk does."
    elif "Bus error" in text or "shared memory" in text:
        what = "A process that reads images died because the shared memory (/dev/shm) is full."
    elif "killed by signal" in text or "exited unexpectedly" in text:
        what = "A process that reads images was killed, perhaps because memory ran out."
    else:
        return None
    return UserError(f"{what}\nTry a smaller num_workers (0 reads in the main process) or batch_size.")


def _start_worker(number: int) -> None:
    # One thread per worker: the parallelism comes from their number.
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    # Signals to the whole group of processes are handled by the main one, which needs its batches until it has saved.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # otherwise a worker ends at once
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_parent_asks, daemon=True).start()


def _end_when_the_parent_asks() -> None:
    """Ends this process when its parent sends SIGTERM; SIGTERM from other processes is ignored."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _kill_workers(batches: Any) -> None:
    """Kills the workers: a stopped process would otherwise keep the interpreter from exiting."""
    if getattr(batches, "_worker_pids_set", False):
        signal_handling._remove_worker_pids(id(batches))  # otherwise their deaths would be raised as errors here
        batches._worker_pids_set = False
    for worker in getattr(batches, "_workers", ()):
        worker.kill()

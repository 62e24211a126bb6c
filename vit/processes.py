"""Several processes that work on one thing: which of them this is, and what they tell each other.

They are started by torchrun, by srun or by Lightning. In a single process all of this does nothing.
"""

import atexit
import os
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from vit.foundation import UserError

T = TypeVar("T")


def count() -> int:
    """How many processes work together."""
    return dist.get_world_size() if _together() else 1


def rank() -> int:
    """Which of them this is, 0 the first."""
    return dist.get_rank() if _together() else 0


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()


def join() -> None:
    """Lets the processes that a launcher such as torchrun started work together, to the end of the program: data
    loaders then give each its share of the images. Does nothing without a launcher."""
    if _together() or int(os.environ.get("WORLD_SIZE", 1)) == 1 or "RANK" not in os.environ:
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    dist.init_process_group("gloo")  # what is exchanged is small, and on no GPU
    atexit.register(dist.destroy_process_group)


def refuse_several(what: str) -> None:
    """Raises UserError where a launcher started several processes for what one does alone."""
    started = int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1
    if started > 1:
        raise UserError(f"{what} runs in one process, and {started} were started.\nRun it without torchrun or srun.")


def total(*values: float) -> list[float]:
    """Each value, added up over the processes; all of them must ask."""
    return _reduced(values, dist.ReduceOp.SUM)


def largest(*values: float) -> list[float]:
    """Each value's largest over the processes; all of them must ask."""
    return _reduced(values, dist.ReduceOp.MAX)


def _reduced(values: tuple[float, ...], operation: Any) -> list[float]:
    if count() == 1:
        return list(values)
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    shared = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(shared, operation)
    return shared.tolist()


def gathered(value: T) -> list[T]:
    """The value of each process, in their order, for all of them."""
    if count() == 1:
        return [value]
    found: list[Any] = [None] * count()
    dist.all_gather_object(found, value)
    return found


def merged(values: dict[str, T]) -> dict[str, T]:
    """The dicts of all processes in one, for all of them."""
    return {name: value for each in gathered(values) for name, value in each.items()}


def first(value: T) -> T:
    """The first process's value, for all of them."""
    return gathered(value)[0]

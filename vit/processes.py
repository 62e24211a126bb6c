"""Several processes that work together: the rank of this one, and their communication.

They are started by torchrun, srun or Lightning. In a single process all of this does nothing.
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
    """The rank of this process, 0 for the first."""
    return dist.get_rank() if _together() else 0


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()


def join() -> None:
    """Connects the processes that a launcher such as torchrun started, until the end of the program: data loaders then
    give each its share of the images. Does nothing without a launcher."""
    if _together() or int(os.environ.get("WORLD_SIZE", 1)) == 1 or "RANK" not in os.environ:
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    dist.init_process_group("gloo")  # the exchanged data is small, and not on a GPU
    atexit.register(dist.destroy_process_group)


def refuse_several(what: str) -> None:
    """Raises UserError if a launcher started several processes for `what`, which runs in a single one."""
    started = int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1
    if started > 1:
        raise UserError(f"{what} runs in one process, but {started} were started.\nRun it without torchrun or srun.")


def total(*values: float) -> list[float]:
    """The sum of each value over the processes; all of them must call this."""
    return _reduced(values, dist.ReduceOp.SUM)


def largest(*values: float) -> list[float]:
    """The maximum of each value over the processes; all of them must call this."""
    return _reduced(values, dist.ReduceOp.MAX)


def _reduced(values: tuple[float, ...], operation: Any) -> list[float]:
    if count() == 1:
        return list(values)
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    shared = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(shared, operation)
    return shared.tolist()


def gathered(value: T) -> list[T]:
    """The values of all processes, in order of rank; all of them must call this, and all get the same list."""
    if count() == 1:
        return [value]
    found: list[Any] = [None] * count()
    dist.all_gather_object(found, value)
    return found


def merged(values: dict[str, T]) -> dict[str, T]:
    """The dicts of all processes, merged into one; all of them must call this, and all get the same dict."""
    return {name: value for each in gathered(values) for name, value in each.items()}


def first(value: T) -> T:
    """The value of the first process; all of them must call this."""
    return gathered(value)[0]

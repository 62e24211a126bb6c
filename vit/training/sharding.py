"""Weights that are spread over processes: each holds a part, and gets the rest of a block only while it runs (FSDP).

This is torch's `fully_shard` (Zhao et al. 2023, "PyTorch FSDP"; stage 3 of ZeRO, Rajbhandari et al. 2020), which
Lightning runs as its ModelParallelStrategy, on CPUs as well. Gradients and the optimizer's state are spread alike.
"""

from copy import deepcopy

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor


def strategy_of(name: str, processes: int) -> str | Strategy:
    """What Lightning's Trainer takes for --trainer.strategy.

    Args:
        processes: number of all processes, over which "fsdp" spreads the weights. Checkpoints hold all of them.
    """
    if name != "fsdp":
        return name
    return ModelParallelStrategy(
        data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False
    )


def spread(model: nn.Module, mesh: DeviceMesh, device: torch.device) -> nn.Module | None:
    """Spreads a model with an `encoder` over the processes of a mesh; all begin with the first one's weights.

    A part is moved to the device and spread before the next, so that no device ever holds all weights.

    Returns:
        In the first process a plain copy of the model, for `with_whole_weights`.
    """
    plain = deepcopy(model).cpu() if dist.get_rank() == 0 else None
    for part in (*model.encoder.blocks, model):  # type: ignore[misc, union-attr]
        part.to(device)
        for value in (*part.parameters(), *part.buffers()):
            if not isinstance(value, DTensor):  # those are of a block that is already spread
                dist.broadcast(value.detach(), src=0)
        fully_shard(part, mesh=mesh)
    return plain


def is_spread(model: nn.Module) -> bool:
    """Whether the model's weights are spread."""
    return isinstance(model, FSDPModule)


def whole(value: Tensor) -> Tensor:
    """The value of which each process may hold a part; all processes must call this."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def with_whole_weights(model: nn.Module, plain: nn.Module | None) -> nn.Module | None:
    """The weights of a model that is spread, in the plain copy that `spread` returned. All processes must call this."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict  # slow to import

    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if plain is not None:
        plain.load_state_dict(state)
    return plain

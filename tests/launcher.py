"""Starts a function in several processes that work together, as torchrun would, but imports what is slow just once.

They are forked from a server that has imported it: torch's autograd, once used, can't be forked.
"""

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch

GRACE = 10.0  # seconds that the others have when one has failed


def launch(function: Callable[..., Any], *arguments: Any, log: Path, count: int = 2, timeout: float = 120) -> list[int]:
    """Calls function(*arguments) in processes, whose output goes to log.0, log.1 ...; returns their exit codes,
    which a function may return.

    When one fails the others are ended a little later, as torchrun does.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cli", "vit.training.fit", "datamodules.image_folder"])
    processes = [
        context.Process(target=_run, args=(rank, count, port, log, function, arguments)) for rank in range(count)
    ]
    for process in processes:
        process.start()
    waiting = {process.sentinel: process for process in processes}
    while waiting:
        done = connection.wait(list(waiting), timeout=GRACE if any(one.exitcode for one in processes) else timeout)
        for process in [waiting.pop(sentinel) for sentinel in done]:  # type: ignore[call-overload]
            process.join()
        if not done:
            for process in waiting.values():
                process.kill()
    return [process.exitcode if process.exitcode is not None else -1 for process in processes]


def _run(rank: int, count: int, port: int, log: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    output = os.open(f"{log}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1, closefd=False)
    torch.set_num_threads(1)  # as in the tests' own process: their number changes the last digits
    try:
        code = function(*arguments)
    except SystemExit as exit_:
        code = exit_.code
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code if isinstance(code, int) else 0)

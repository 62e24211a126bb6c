"""Where the time of a training run goes."""

import time
from collections.abc import Sequence

import torch
from lightning.pytorch.profilers import Profiler
from typing_extensions import override

# The kind of a Lightning action, by the first matching part of its name. The time of a nested action is not counted for
# the enclosing one; an action that is not listed here counts for the enclosing one.
KINDS = (
    ("train_dataloader_next", "data wait"),
    ("batch_to_device", "data wait"),
    ("training_step", "forward"),
    ("backward", "backward"),
    ("optimizer_step", "optimiser"),
    ("configure_gradient_clipping", "optimiser"),
    ("zero_grad", "optimiser"),
    ("CheckpointWriter.on_train", "checkpoints"),
    ("CheckpointWriter.on_validation", "checkpoints"),
    ("save_checkpoint", "checkpoints"),
    ("MetricsFile", "logging"),
    ("TrainingProgress", "logging"),
    ("RunClock", "logging"),
    ("val_next", "validation"),
    ("validation", "validation"),
)
REST = "all else"  # the rest of Lightning's loops
ORDER = ("data wait", "forward", "backward", "optimiser", "logging", "validation", "checkpoints", REST)


Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]  # title, columns, rows


class TimeTable(Profiler):
    """Adds up the seconds of each kind of work in the main process, from the start of the first epoch to the end of the
    run, so that the kinds sum up to the whole time. On a GPU each action waits for its kernels, which costs some speed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds = dict.fromkeys(ORDER, 0.0)
        self.steps = 0
        self._around = ""  # no kind: the set-up before the first epoch is not counted
        self._open: list[str] = []  # the kinds of the running actions, innermost last
        self._since = 0.0

    @override
    def start(self, action_name: str) -> None:
        self._count()
        if action_name == "run_training_epoch":
            self._around = REST
        around = self._kind()
        self._open.append(around and kind_of(action_name, around))

    @override
    def stop(self, action_name: str) -> None:
        self._count()
        self._open.pop()
        self.steps += action_name == "run_training_batch"

    @override
    def summary(self) -> str:
        return ""  # the caller prints the table

    def _count(self) -> None:
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if kind := self._kind():
            self.seconds[kind] += now - self._since
        self._since = now

    def _kind(self) -> str:
        return self._open[-1] if self._open else self._around

    def table(self) -> Table:
        """A table with one row per kind of work."""
        whole = max(sum(self.seconds.values()), 1e-9)
        rows = [
            [kind, f"{spent:.2f}", f"{spent / whole:.1%}", f"{1000 * spent / max(self.steps, 1):.2f}"]
            for kind, spent in self.seconds.items()
        ]
        title = f"Where the time went, of {whole:.1f} s and {self.steps} batches:"
        return title, ["", "seconds", "share", "ms per batch"], rows


def kind_of(action: str, around: str) -> str:
    """The kind of work of an action inside one of the kind `around`."""
    return next((kind for part, kind in KINDS if part in action), around)

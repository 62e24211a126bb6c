"""A request to stop: the first SIGINT or SIGTERM lets the run save its state; a second one stops it at once."""

import os
import signal
from types import FrameType
from typing import Any, NoReturn

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException

from vit import processes

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest(L.Callback):
    """Turns the first signal of a run into a request, which is granted by calling `stop` once the run is saved.

    The handlers are installed while the run trains; Lightning restores the earlier ones.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @property
    def asked(self) -> bool:
        """Whether the run is to stop."""
        return self.signal is not None

    def on_train_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        for number in SIGNALS:
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            self.stop()
        self.signal = signal.Signals(number)
        # Not through a rich console: the main thread may hold its lock at this moment.
        os.write(2, b"\nStopping after the current step, to save the run. A second signal stops it without saving.\n")

    def share(self) -> bool:
        """Whether one of the processes was asked to stop; all of them must call this, and all get the same answer.

        A signal that arrives during the call counts from the next call on.
        """
        number = int(processes.largest(self.signal or 0)[0])
        if number:
            self.signal = signal.Signals(number)
        return bool(number)

    def stop(self) -> NoReturn:
        """Ends the run the way its signal would have.

        Raises:
            KeyboardInterrupt: for SIGINT.
            SIGTERMException: for SIGTERM.
        """
        raise KeyboardInterrupt if self.signal == signal.SIGINT else SIGTERMException

    def teardown(self, trainer: L.Trainer, task: Any, stage: str) -> None:
        self.signal = None

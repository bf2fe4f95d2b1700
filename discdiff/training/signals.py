"""Ctrl-C and SIGTERM as a request to stop after the current step."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)


class GracefulStop:
    """Within `with`, the first SIGINT or SIGTERM sets `requested`; the same one again acts as it did before.

    Handlers are set in the main thread only (Python allows no other), and put back at the end.
    """

    def __init__(self) -> None:
        self.requested = False
        self._seen: set[int] = set()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> GracefulStop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number in self._seen:
            self.__exit__()
            signal.raise_signal(number)
            return
        self._seen.add(number)
        self.requested = True
        name = signal.Signals(number).name
        logger.warning("%s: stopping after this step, with a checkpoint; send it again to stop at once", name)


def ignore_interrupt(worker: int) -> None:
    """For data workers: Ctrl-C reaches the whole process group, and the main process still needs them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

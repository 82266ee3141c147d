"""SIGTERM and SIGINT: the first asks to stop gracefully, the second ends it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Iterator

log = logging.getLogger("headrace")


class Stop:
    """What the signals have asked for so far."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.asked = asyncio.Event()
        self.now = asyncio.Event()

    def ask(self) -> None:
        """Once: finish what runs. Twice: end now."""
        if self.asked.is_set():
            self.now.set()
        self.asked.set()


@contextlib.contextmanager
def stopping(stop: Stop, parent_pipe: int | None = None) -> Iterator[None]:
    """While inside, signals (and the end of the parent process, seen as the end of `parent_pipe`) go to `stop`."""
    loop = asyncio.get_running_loop()
    caught = (signal.SIGTERM, signal.SIGINT)
    for number in caught:
        loop.add_signal_handler(number, stop.ask)

    def orphaned() -> None:
        if not os.read(parent_pipe, 1):  # type: ignore[arg-type]  # only called with a pipe
            loop.remove_reader(parent_pipe)  # type: ignore[arg-type]
            log.warning("the parent process is gone; stopping")
            stop.ask()

    if parent_pipe is not None:
        loop.add_reader(parent_pipe, orphaned)
    try:
        yield
    finally:
        for number in caught:
            loop.remove_signal_handler(number)
        if parent_pipe is not None:
            loop.remove_reader(parent_pipe)

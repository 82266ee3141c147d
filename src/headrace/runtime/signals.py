"""SIGTERM and SIGINT: the first asks to stop gracefully, the second ends it.

A process with a parent may get one and the same wish twice: from a terminal or a service manager, which signal everybody, and from its
parent, which passes it on. So there a signal always means the first, and the parent says the second through its pipe.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from typing import Final

END_NOW: Final = b"!"
"""What the parent writes into the pipe to end its child now; the pipe's end asks to stop."""
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
    """While inside, signals (and what the parent process says through `parent_pipe`) go to `stop`."""
    loop = asyncio.get_running_loop()
    caught = (signal.SIGTERM, signal.SIGINT)
    for number in caught:
        loop.add_signal_handler(number, stop.ask if parent_pipe is None else stop.asked.set)

    def listen(pipe: int) -> None:
        stop.asked.set()
        if os.read(pipe, len(END_NOW)):
            stop.now.set()
        else:
            loop.remove_reader(pipe)
            log.warning("the parent process is gone; stopping")

    if parent_pipe is not None:
        loop.add_reader(parent_pipe, listen, parent_pipe)
    try:
        yield
    finally:
        for number in caught:
            loop.remove_signal_handler(number)
        if parent_pipe is not None:
            loop.remove_reader(parent_pipe)

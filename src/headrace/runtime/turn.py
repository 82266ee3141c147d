"""Fairness on the event loop: handlers that never wait give everyone else a turn after a moment."""

from __future__ import annotations

import asyncio
from typing import Final

TURN_S: Final = 0.002
"""After handlers that never wait have had the event loop for this long, everyone else gets a turn: other groups, publishers, timers."""


class Turn:
    """The turn of one pump. All its lanes share it, so that more lanes are not more time."""

    __slots__ = ("_loop", "_next", "ends")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """It begins with the first event."""
        self._loop = loop
        self._next: asyncio.Future[None] | None = None
        self.ends = 0.0
        """By the event loop's clock."""

    def begin(self) -> None:
        """Everyone else has just had a turn."""
        if self._next is None:
            self.ends = self._loop.time() + TURN_S

    async def wait(self) -> float:
        """Returns the time, at once or when this pump's turn has come."""
        while (now := self._loop.time()) > self.ends:
            if self._next is not None:
                await asyncio.shield(self._next)
                continue
            self._next = self._loop.create_future()
            try:
                await asyncio.sleep(0)
            finally:
                self._next.set_result(None)
                self._next = None
                self.ends = self._loop.time() + TURN_S
        return now

"""What a backend's author provides so that the scenarios can run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from headrace.backends.contract import Backend, Features, Feed, Inspector

Value = bytes | dict[bytes, bytes] | list[bytes] | set[bytes] | dict[bytes, float] | None


class Harness(Protocol):
    """An empty server and the means to look at it and to break its clients."""

    features: Features
    lease_s: float
    """Lease of the workers that scenarios start. With real time short (0.5 to 1 s): the suite waits for about 30 of them."""

    async def backend(self) -> Backend:
        """A further client of the server, as another process would be. The harness closes it when the scenario is over.

        Its `publish` gives up with Overloaded after a second or less.
        """
        ...

    def inspector(self) -> Inspector:
        """The operator's view of the server. The harness closes it when the scenario is over."""
        ...

    async def crash(self, feed: Feed) -> None:
        """The worker dies as by SIGKILL: nothing is handed back, its lease is renewed no more, it makes no further call."""
        ...

    async def pause(self, feed: Feed) -> None:
        """The worker's lease is renewed no more, as when its process is stopped; calls that it makes later reach the server."""
        ...

    async def elapse(self, seconds: float) -> None:
        """Lets that much of the server's time pass, at least, and other tasks run: virtually, or by waiting."""
        ...

    async def now(self) -> float:
        """The server's clock, Unix time in seconds."""
        ...

    async def redis_value(self, key: str) -> Value:
        """What effects wrote to a key: bytes, dict, list, set, dict of scores, or None. Only called if `features.effects`."""
        ...


HarnessFactory = Callable[[], AbstractAsyncContextManager[Harness]]
"""Each call gives an empty server; leaving it closes every client that the harness opened."""

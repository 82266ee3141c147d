"""The conformance suite's harness for the memory backend: virtual time, so nothing sleeps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

from headrace.backends.contract import Backend, Feed, Inspector
from headrace.backends.memory.backend import MemoryBackend, MemoryFeed
from headrace.backends.memory.inspect import MemoryInspector
from headrace.backends.memory.server import MemoryServer
from headrace.testing.conformance import Harness
from headrace.testing.conformance.harness import Value


class MemoryHarness:
    """Implements testing.conformance.Harness on one `MemoryServer`."""

    features = MemoryBackend.features
    lease_s = 15.0

    def __init__(self, server: MemoryServer) -> None:
        """Clients are opened on this server."""
        self._server = server
        self.backends: list[MemoryBackend] = []

    async def backend(self) -> Backend:
        """See Harness."""
        self.backends.append(MemoryBackend(self._server))
        return self.backends[-1]

    def inspector(self) -> Inspector:
        """See Harness."""
        return MemoryInspector(self._server)

    async def crash(self, feed: Feed) -> None:
        """See Harness."""
        assert isinstance(feed, MemoryFeed)
        feed.abandon()

    async def pause(self, feed: Feed) -> None:
        """See Harness."""
        assert isinstance(feed, MemoryFeed)
        feed.pause()

    async def elapse(self, seconds: float) -> None:
        """See Harness. Tasks that wait for the clock run before and after it moves."""
        await asyncio.sleep(0)
        self._server.advance(seconds)
        for _ in range(3):
            await asyncio.sleep(0)

    async def now(self) -> float:
        """See Harness."""
        return self._server.now()

    async def redis_value(self, key: str) -> Value:
        """See Harness."""
        return self._server.data.value(key.encode())


@asynccontextmanager
async def _opened(server_type: Callable[[], MemoryServer]) -> AsyncIterator[Harness]:
    harness = MemoryHarness(server_type())
    try:
        yield harness
    finally:
        for backend in harness.backends:
            await backend.aclose()


def memory(
    server_type: Callable[[], MemoryServer] = MemoryServer,
) -> Callable[[], AbstractAsyncContextManager[Harness]]:
    """A factory of harnesses, each on a server of its own."""
    return partial(_opened, server_type)

"""A backend without a server, for tests: same behaviour as the Redis backend in shared mode, held to it by the conformance suite.

server = MemoryServer()                 # virtual time: nothing sleeps
backend = MemoryBackend(server)         # as many as there would be processes
server.advance(30)                      # delays and retries become due, leases of dead workers end
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from headrace.backends.contract import Delivery, Features, Feed, Record, Route, Settled, Subscription, Unsettled
from headrace.backends.effects import EFFECTS
from headrace.backends.memory.server import MemoryServer
from headrace.errors import Closed


class MemoryFeed:
    """A worker's place in a consumer group; implements contract.Feed. Its lease is renewed for as long as it is neither closed nor paused."""

    def __init__(self, server: MemoryServer, subscription: Subscription) -> None:
        """Joins the group."""
        self._server = server
        self._sub = subscription
        self._closed: Closed | None = None
        server.join(subscription)

    def _require_open(self) -> None:
        if self._closed is not None:
            raise self._closed

    async def take(self, limit: int, wait_s: float) -> Sequence[Delivery]:
        """See contract.Feed. In virtual time the wait ends when the clock is advanced past it, or something comes."""
        until = self._server.now() + wait_s
        await asyncio.sleep(0)  # as a call to a server would, it lets others run
        while True:
            self._require_open()
            taken = self._server.take(self._sub, limit)
            if taken or self._server.now() >= until:
                return taken
            await self._server.changed(until)

    async def commit(self, settled: Sequence[Settled]) -> Sequence[Unsettled]:
        """See contract.Feed."""
        await asyncio.sleep(0)
        self._require_open()
        return self._server.commit(self._sub, settled)

    async def aclose(self) -> None:
        """See contract.Feed."""
        if self._closed is None:
            self._closed = Closed(f"the feed of group {self._sub.group} was closed")
            self._server.leave(self._sub)

    def pause(self) -> None:
        """Stops to renew the lease, like a process that is stopped or blocked; its calls still work."""
        self._server.silence(self._sub)

    def abandon(self) -> None:
        """Dies like a killed process: nothing is handed back, the lease is no longer renewed."""
        self._closed = Closed("the feed was abandoned")
        self._server.silence(self._sub)
        self._server.wake()


class MemoryBackend:
    """One process's connection to a `MemoryServer`; implements contract.Backend."""

    features = Features(name="memory", effects=frozenset(EFFECTS), ordered=True)

    def __init__(self, server: MemoryServer) -> None:
        """A client of this server, and a producer of its own."""
        self._server = server
        self._producer = server.new_producer()
        self._sequences: dict[str, int] = {}
        """Topic -> sequence of the last record published to it."""
        self._feeds: list[MemoryFeed] = []
        self._closed = False

    def _require_open(self) -> None:
        if self._closed:
            raise Closed("the app was closed")

    async def publish(self, route: Route, records: Sequence[Record]) -> None:
        """See contract.Backend. Does not wait for room: raises Overloaded at once."""
        await asyncio.sleep(0)
        self._require_open()
        last = self._sequences.get(route.topic, 0)
        self._server.publish(route, self._producer, 1, last + 1, records)
        self._sequences[route.topic] = last + len(records)

    async def subscribe(self, subscription: Subscription) -> Feed:
        """See contract.Backend."""
        await asyncio.sleep(0)
        self._require_open()
        feed = MemoryFeed(self._server, subscription)
        self._feeds.append(feed)
        return feed

    async def aclose(self) -> None:
        """See contract.Backend."""
        self._closed = True
        for feed in self._feeds:
            await feed.aclose()

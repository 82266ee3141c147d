"""Test your handlers: `async with app.testing() as t`. Memory backend, virtual time, the real runtime; no server, no sleeps."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self, TypeVar

from headrace import limits
from headrace.backends.contract import Delivery, GroupInfo, Letter
from headrace.backends.memory.backend import MemoryBackend
from headrace.backends.memory.inspect import MemoryInspector
from headrace.backends.memory.server import MemoryServer
from headrace.observe import LogObserver
from headrace.runtime.pump import Pump
from headrace.runtime.worker import start
from headrace.topic import Group, Topic

T = TypeVar("T")


class Testing:
    """The app's handlers, served in this event loop. Time stands still until `drain` or `advance` move it."""

    def __init__(self, groups: Iterable[Group], lease_s: float) -> None:
        """Made by `app.testing()`."""
        self._groups = list(groups)
        self._lease_s = lease_s
        self.server = MemoryServer()
        self.backend = MemoryBackend(self.server)
        self.inspector = MemoryInspector(self.server)
        self._threads = ThreadPoolExecutor(8, "headrace-testing")
        self._pumps: list[Pump] = []
        self._running: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Joins every group and begins to serve."""
        self._pumps = await start(self._groups, self.backend, self._threads, LogObserver(), self._lease_s)
        self._running = [asyncio.ensure_future(p.run()) for p in self._pumps]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stops serving."""
        await asyncio.gather(*(p.drain(0.0) for p in self._pumps))
        await asyncio.gather(*self._running)
        await self.backend.aclose()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def drain(self, *, timeout_s: float = 10.0) -> None:
        """Returns when everything is settled: retries and delayed events included, virtual time moving to each of them.

        Raises TimeoutError if handlers are still at work after `timeout_s` of real time, saying where.
        """
        async with asyncio.timeout(timeout_s):
            while True:
                await self._quiet()
                due = self.server.next_due()
                if due is None:
                    return
                self.server.advance(max(due - self.server.now(), 0.0))

    async def advance(self, seconds: float, *, timeout_s: float = 10.0) -> None:
        """Moves virtual time, then waits until what has become due is settled. What is due later stays."""
        end = self.server.now() + seconds
        async with asyncio.timeout(timeout_s):
            while True:
                await self._quiet()
                due = self.server.next_due()
                if due is None or due > end:
                    break
                self.server.advance(max(due - self.server.now(), 0.0))
            self.server.advance(max(end - self.server.now(), 0.0))
            await self._quiet()

    async def _quiet(self) -> None:
        while not self.server.idle():
            await self.server.changed()

    def published(self, topic: Topic[T]) -> list[T]:
        """The events that the topic holds, oldest first: published by the test, or by handlers."""
        known = self.server.topics.get(topic.name)
        return [] if known is None else [topic.codec.decode(Delivery(b"", e.fields, None)) for e in known.entries]

    async def dead(self, topic: Topic[Any], group: str) -> Sequence[Letter]:
        """The group's dead letters with their reasons."""
        return await self.inspector.dead(topic.name, group, count=limits.read_records_max)

    async def ledger(self, topic: Topic[Any], group: str) -> GroupInfo:
        """Where the topic's events stand for this group."""
        return next(g for g in await self.inspector.groups(topic.name) if g.group == group)

    def redis(self, key: str) -> Any:
        """What `ctx.redis` has written: text, dict of texts, list, set, dict of scores; None if the key is absent."""
        return _text(self.server.data.value(key.encode()))


def _text(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, dict):
        return {_text(k): _text(v) for k, v in value.items()}
    if isinstance(value, list | set):
        return type(value)(_text(v) for v in value)
    return value

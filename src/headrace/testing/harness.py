"""Test your handlers: `async with app.testing() as t`. Memory backend, virtual time, the real runtime; no server, no sleeps."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self, TypeVar

from headrace import limits
from headrace.backends.contract import Delivery, GroupInfo, Letter
from headrace.backends.memory.backend import MemoryBackend
from headrace.backends.memory.inspect import MemoryInspector
from headrace.backends.memory.server import MemoryServer
from headrace.errors import Refused
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
        async with self._within(timeout_s):
            while True:
                await self._quiet()
                due = self.server.next_due()
                if due is None:
                    return
                self.server.advance(max(due - self.server.now(), 0.0))

    async def advance(self, seconds: float, *, timeout_s: float = 10.0) -> None:
        """Moves virtual time, then waits until what has become due is settled. What is due later stays. Raises as `drain` does."""
        end = self.server.now() + seconds
        async with self._within(timeout_s):
            while True:
                await self._quiet()
                due = self.server.next_due()
                if due is None or due > end:
                    break
                self.server.advance(max(due - self.server.now(), 0.0))
            self.server.advance(max(end - self.server.now(), 0.0))
            await self._quiet()

    @contextlib.asynccontextmanager
    async def _within(self, timeout_s: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(timeout_s):
                yield
        except TimeoutError:
            where = [
                f"group {g.group} of topic {g.topic} ({g.pending} at work or waiting for a handler, {g.unread} unread, {g.retrying} retrying)"
                for g in await self.inspector.groups()
                if g.pending or g.unread or g.retrying
            ]
            raise TimeoutError(f"after {timeout_s:g} s not everything is settled: {', '.join(where)}") from None

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
        """Where the topic's events stand for this group. Raises Refused, as `dead` does, if there is no such group."""
        groups = {g.group: g for g in await self.inspector.groups(topic.name)}
        if group not in groups:
            raise Refused(f"no group {group!r} on topic {topic.name!r}; groups: {', '.join(groups) or 'none yet'}")
        return groups[group]

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

"""Blocking reads in ordered mode: one connection for all partitions of a server, in a Cluster one for each partition."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

from headrace import limits
from headrace.backends.contract import Subscription
from headrace.backends.redis.client import Client
from headrace.backends.redis.connection import Wire, pack
from headrace.backends.redis.holding import Holding
from headrace.backends.redis.lines import aside_of
from headrace.errors import BackendError, NotConnected

log = logging.getLogger("headrace.redis")
_SAMPLE = 8
"""Every so manieth entry of a read is measured, to judge how many make `read_bytes`."""


class Source:
    """One connection, and what is asked over it."""

    def __init__(self) -> None:
        self.wire: Wire | None = None
        self.id = 0
        self.reply: asyncio.Future[Any] | None = None
        self.asked: dict[bytes, tuple[Holding, bytes]] = {}
        """By stream: for whom, and after which entry."""


class Reading:
    """Reads the partitions of one feed."""

    def __init__(self, client: Client, subscription: Subscription) -> None:
        """Connects on first use."""
        self._client, self._sub = client, subscription
        self._sources: dict[str, Source] = {}
        self._fit = limits.first_read_records
        self._woken = asyncio.Event()
        self.forgotten: Callable[[Holding], None]
        """Told of each partition whose last entry that was read the server does not have."""

    async def read(self, holdings: Sequence[Holding], limit: int, wait_s: float) -> None:
        """What comes within `wait_s` goes to the holdings; returns as soon as something has come, or `wake` was called. Raises as reads do."""
        if self._woken.is_set():
            self._woken.clear()
            await asyncio.sleep(0)  # however often somebody wakes: others have their turn
            return
        by_source: dict[str, list[Holding]] = {}
        for holding in holdings:
            by_source.setdefault(holding.stream if self._client.clustered else "", []).append(holding)
        count = max(min(limit, self._fit // max(len(holdings), 1)), 1)
        for name, own in by_source.items():
            source = self._sources.setdefault(name, Source())
            if source.reply is None:
                await self._ask(source, own, count, wait_s)
        await self._wait(wait_s)
        for name in [n for n, s in self._sources.items() if s.reply is not None and s.reply.done()]:
            self._take(self._sources[name])

    async def _ask(self, source: Source, holdings: Sequence[Holding], count: int, wait_s: float) -> None:
        source.asked = {}
        for holding in holdings:
            source.asked[holding.keys.retry] = (holding, holding.aside_position)
            if (
                holding.lines.count < limits.aside_records_max
            ):  # else what follows would most often have to be set aside, too
                source.asked[holding.own.stream] = (holding, holding.position)
        if not source.asked:
            return
        if source.wire is None or source.wire.closed is not None:
            source.wire = await self._client.open(
                holdings[0].own.stream, self._client.settings.request_s + limits.block_s
            )
            source.id = await source.wire.send(pack(("CLIENT", "ID")))
        await self._look_back(source)
        if not source.asked:
            return
        words: tuple[bytes | str | int, ...] = ("XREAD", "COUNT", count)
        if wait_s > 0:
            words += ("BLOCK", max(int(wait_s * 1000), 1))
        after = [position for _, position in source.asked.values()]
        source.reply = source.wire.send(pack((*words, "STREAMS", *source.asked, *after)))

    async def _look_back(self, source: Source) -> None:
        """Who answers on a new connection may not have what was read over the last one: a replica that lagged, now the primary.

        It has a prefix of that stream, so it is enough to ask for the last entry.
        """
        for holding in dict.fromkeys(holding for holding, _ in source.asked.values()):
            if holding.read_over is source.wire or source.wire is None:
                continue
            if holding.position != holding.cursor:
                last = pack((b"XRANGE", holding.own.stream, holding.position, holding.position))
                if not await source.wire.send(last):
                    self.forgotten(holding)
            holding.read_over = source.wire
        source.asked = {name: (h, after) for name, (h, after) in source.asked.items() if not h.lost}

    async def _wait(self, wait_s: float) -> None:
        """Until a reply is there, the time is over, or somebody calls `wake`."""
        replies = [s.reply for s in self._sources.values() if s.reply is not None]
        if any(r.done() for r in replies):
            return
        woken = asyncio.ensure_future(self._woken.wait())
        try:
            alone = len(replies) == 1 and not self._client.clustered  # it ends by itself
            await asyncio.wait(
                [*replies, woken], timeout=None if alone else wait_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            woken.cancel()
        if self._woken.is_set():
            self._woken.clear()
            await self._unblock()

    async def _unblock(self) -> None:
        """What is asked of the one server is asked of other partitions from now on."""
        source = self._sources.get("")
        if source is None or source.reply is None or source.reply.done():
            return
        pause_s = 0.005
        while not source.reply.done():  # the first may come before the server has seen what it is to end
            if (wire := self._client.connected(b"")) is not None:
                unblocked = wire.send(pack(("CLIENT", "UNBLOCK", source.id)))
                unblocked.add_done_callback(lambda f: f.cancelled() or f.exception())
            await asyncio.wait([source.reply], timeout=pause_s)
            pause_s = min(2 * pause_s, 1.0)

    def _take(self, source: Source) -> None:
        reply, source.reply = source.reply, None
        try:
            streams = (reply.result() if reply is not None else None) or ()
        except NotConnected:  # also when the partition lives elsewhere by now
            if source.wire is not None:
                source.wire.close()
            raise
        size = entries_seen = 0
        for name, entries in streams:
            holding, after = source.asked[name]
            if holding.lost or holding.leaving:
                continue
            if name == holding.own.stream:
                if holding.position != after:
                    continue  # it was rewound meanwhile
                sizes = [len(fields[-1]) for _, fields in entries[::_SAMPLE]]
                size, entries_seen = size + sum(sizes), entries_seen + len(sizes)
                holding.receive(entries)
            elif holding.aside_position == after:
                holding.aside_position = entries[-1][0]
                for token, fields in entries:
                    holding.lines.add(aside_of(holding, token, fields))
        if entries_seen:
            self._fit = max(self._sub.read_bytes * entries_seen // (size + 1), 1)

    async def load(self, holding: Holding) -> None:
        """Reads what was set aside in a partition, before its further events are. Raises as the client does."""
        while True:
            page = await self._client.command(
                "XRANGE", holding.keys.retry, b"(" + holding.aside_position, "+", "COUNT", limits.batch_records_max
            )
            for token, fields in page:
                holding.lines.add(aside_of(holding, token, fields))
                holding.aside_position = token
            if len(page) < limits.batch_records_max:
                return

    async def fetch(self, holding: Holding, tokens: Sequence[bytes]) -> list[Sequence[bytes] | None]:
        """The fields of events that were set aside; None for one that is gone. Raises as the client does."""
        wire = await self._client.wire(holding.own.stream)
        replies = [wire.send(pack((b"XRANGE", holding.keys.retry, t, t))) for t in tokens]
        return [(await reply or [(b"", None)])[0][1] for reply in replies]

    def wake(self) -> None:
        """Whoever reads looks again at what there is to read."""
        self._woken.set()

    def close(self) -> None:
        """Closes its connections."""
        for source in self._sources.values():
            if source.wire is not None:
                source.wire.close()
            if source.reply is not None:
                with contextlib.suppress(BackendError, asyncio.InvalidStateError, asyncio.CancelledError):
                    source.reply.exception()

"""The few moves that all scenarios are made of, and the words in which they complain."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Final, TypeVar

from headrace.backends.contract import (
    Backend,
    Delivery,
    Feed,
    GroupInfo,
    Inspector,
    Record,
    Route,
    Settled,
    Subscription,
)
from headrace.errors import HeadraceError
from headrace.testing.conformance.harness import Harness

T = TypeVar("T")

STEP_S: Final = 0.05
"""The server's time between two looks at what a scenario waits for."""
PATIENCE_S: Final = 10.0
"""The server's time, in addition to five leases, after which what has not come never will."""
CLOCK_S: Final = 0.002
"""What clocks of milliseconds may be off."""
BOOKKEEPING: Final = (b"id", b"attempt", b"origin", b"replay", b"reason")
"""Attributes that a backend may add to a copy."""

ORDERS: Final = Route("orders")


class Violation(AssertionError):
    """The backend did something else than the contract says."""


def expect(holds: object, message: str) -> None:
    """Raises Violation unless it holds."""
    if not holds:
        raise Violation(message)


def expect_same(what: str, got: object, wanted: object) -> None:
    """Raises Violation, with both, unless they are equal."""
    if got != wanted:
        raise Violation(f"{what}: expected {_short(wanted)}, got {_short(got)}")


def _short(value: object, most: int = 600) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


async def expect_error(kind: type[HeadraceError], call: Awaitable[object], what: str) -> str:
    """Raises Violation unless the call raises exactly this; returns the error's message."""
    try:
        await call
    except HeadraceError as e:
        expect(type(e) is kind, f"{what}: expected {kind.__name__}, got {type(e).__name__}: {e}")
        return str(e)
    raise Violation(f"{what}: expected {kind.__name__}, but it succeeded")


def bodies(deliveries: Sequence[Delivery]) -> list[bytes | None]:
    """The bodies, in order."""
    return [d.get(b"data") for d in deliveries]


def numbered(count: int, prefix: bytes = b"") -> list[Record]:
    """Records whose bodies count from 0."""
    return [Record(b"%b%d" % (prefix, n)) for n in range(count)]


def attributes(delivery: Delivery) -> list[tuple[bytes, bytes]]:
    """Names and values in wire order, without what a backend may add to copies."""
    pairs = zip(delivery.fields[::2], delivery.fields[1::2], strict=True)
    return [(name, value) for name, value in pairs if name not in BOOKKEEPING]


class Stage:
    """A harness with one backend opened on first use."""

    def __init__(self, harness: Harness) -> None:
        """Opens nothing yet."""
        self.harness = harness
        self._backend: Backend | None = None
        self._inspector: Inspector | None = None
        self._workers = 0

    async def backend(self) -> Backend:
        """The publisher's client."""
        if self._backend is None:
            self._backend = await self.harness.backend()
        return self._backend

    @property
    def inspector(self) -> Inspector:
        """The operator's view."""
        if self._inspector is None:
            self._inspector = self.harness.inspector()
        return self._inspector

    async def publish(self, *records: Record, route: Route = ORDERS) -> None:
        """Publishes in one call."""
        await (await self.backend()).publish(route, records)

    async def worker(
        self, group: str = "billing", route: Route = ORDERS, start: str = "earliest", *, ordered: bool = False
    ) -> Feed:
        """A new worker, in a process of its own."""
        self._workers += 1
        backend = await self.harness.backend()
        return await backend.subscribe(
            Subscription(route, group, f"worker{self._workers}", start, self.harness.lease_s, ordered=ordered)
        )

    async def now(self) -> float:
        """The server's clock, Unix time in seconds."""
        return await self.harness.now()

    async def elapse(self, seconds: float) -> None:
        """Lets the server's time pass."""
        await self.harness.elapse(seconds)

    async def receive(self, feed: Feed, count: int, limit: int | None = None) -> list[Delivery]:
        """Takes until `count` deliveries are there, at most `limit` at a time; raises Violation if they do not come."""
        got: list[Delivery] = []
        waited = 0.0
        while True:
            got += await feed.take(min(limit or 1_000, count - len(got)), 0)
            if len(got) >= count:
                break
            expect(
                waited <= PATIENCE_S + 5 * self.harness.lease_s,
                f"waited for {count} deliveries, got {len(got)}: {_short(bodies(got))}",
            )
            await self.elapse(STEP_S)
            waited += STEP_S
        expect_same("deliveries beyond the limit of take", len(got), count)
        return got

    async def expect_nothing(self, feed: Feed, why: str) -> None:
        """Takes a few times and expects nothing to come."""
        for _ in range(3):
            got = await feed.take(10, 0)
            expect(not got, f"{why}, but {_short([(d.id, d.get(b'data'), d.attempt) for d in got])} came")
            await self.elapse(STEP_S)

    async def commit(self, feed: Feed, settled: Sequence[Settled]) -> None:
        """Commits and expects everything to be applied."""
        left = await feed.commit(settled)
        expect(not left, f"everything is this worker's, but commit did not apply {_short(left)}")

    async def drain(self, feed: Feed, count: int) -> list[Delivery]:
        """Receives and settles `count`, then expects no more."""
        got = await self.receive(feed, count)
        await self.commit(feed, got)
        await self.expect_nothing(feed, f"all {count} events were settled")
        return got

    async def start(self, call: Awaitable[T]) -> asyncio.Future[T]:
        """The call as a task that has begun to wait."""
        task = asyncio.ensure_future(call)
        await self.elapse(STEP_S)
        return task

    async def group(self, group: str = "billing", topic: str = "orders") -> GroupInfo:
        """The ledger of one group; raises Violation if it does not balance."""
        for info in await self.inspector.groups(topic):
            if info.group == group:
                self._expect_balance(info)
                return info
        raise Violation(f"inspector.groups({topic!r}) does not name the group {group}")

    async def expect_balance(self) -> None:
        """Every group's ledger balances."""
        for info in await self.inspector.groups():
            self._expect_balance(info)

    def _expect_balance(self, info: GroupInfo) -> None:
        expect(
            not info.missing,
            f"the ledger is off by {info.missing}: published + replayed is not the sum of the rest: {info}",
        )

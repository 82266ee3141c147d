"""In a Cluster, what a handler publishes is there once, though its topic grows between the steps of a commit."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from redis.crc import key_slot

from headrace.backends.contract import Delivery, Feed, Record, Route, Settled, Settlement, Subscription, Unsettled
from headrace.backends.partition import partition_of, streams
from headrace.backends.redis.backend import RedisBackend
from headrace.backends.redis.client import Client
from headrace.backends.redis.growth import grow
from headrace.embedded import cluster
from headrace.errors import NotConnected
from headrace.settings import Settings
from tests.servers import require

ORDERS = Route("orders", partitions=2)
both_modes = pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "shared"])


def key_of(before: int, after: int) -> bytes:
    """A key that is in one partition of two and in another of four."""
    names = (b"k%d" % n for n in range(1_000))
    return next(n for n in names if (partition_of(n, 2), partition_of(n, 4)) == (before, after))


STAYS, MOVES, OTHER = key_of(0, 0), key_of(0, 2), key_of(1, 1)
"""Of events of `orders.0`: at home there for good, until the topic grows, and never."""


class Stage:
    """A program at a Cluster."""

    def __init__(self, url: str) -> None:
        self.settings = Settings(url=url)
        self.backend = RedisBackend(self.settings)

    async def worker(self, route: Route = ORDERS, name: str = "w", *, ordered: bool = False) -> Any:
        return await self.backend.subscribe(Subscription(route, "g", name, lease_s=0.6, ordered=ordered))

    async def grow(self, topic: str = "orders") -> None:
        """To four partitions; and the program hears of it, as it does now and then."""
        client = Client(self.settings)
        try:
            await grow(client, topic, 4)
        finally:
            await client.aclose()
        await self.backend.client.recount(topic)

    async def bodies(self, topic: str = "orders", partitions: int = 4) -> list[bytes]:
        """All events of a topic, sorted."""
        found = [await self.backend.client.command("XRANGE", name, "-", "+") for name in streams(topic, partitions)]
        return sorted(fields[-1] for entries in found for _, fields in entries)


@pytest.fixture
def played() -> Iterator[Callable[[Callable[[Stage], Awaitable[None]]], None]]:
    """Plays at a Cluster."""
    require("valkey")

    def play(acts: Callable[[Stage], Awaitable[None]]) -> None:
        async def run(url: str) -> None:
            stage = Stage(url)
            await stage.backend.open()
            try:
                async with asyncio.timeout(60):
                    await acts(stage)
            finally:
                await stage.backend.aclose()

        with cluster.start(Path(root) / "fleet") as fleet:
            asyncio.run(run(fleet.url))

    with tempfile.TemporaryDirectory(prefix="hro-", ignore_cleanup_errors=True) as root:
        yield play


Played = Callable[[Callable[[Stage], Awaitable[None]]], None]


async def taken(feed: Feed, count: int) -> list[Delivery]:
    got: list[Delivery] = []
    async with asyncio.timeout(20):
        while len(got) < count:
            got += await feed.take(count - len(got), 0.2)
    return got


async def settle(feed: Feed, settled: Sequence[Settled]) -> Sequence[Unsettled]:
    """As a worker commits: until it is answered."""
    while True:
        try:
            return await feed.commit(settled)
        except NotConnected:
            await asyncio.sleep(0.01)


class Deaf:
    """A connection over which nothing is heard of what was sent: it is done, and its answer is lost."""

    def __init__(self, wire: Any) -> None:
        self._wire = wire

    def send(self, packed: bytes) -> asyncio.Future[None]:
        return asyncio.ensure_future(self._lose(self._wire.send(packed)))

    async def _lose(self, reply: asyncio.Future[Any]) -> None:
        await reply
        raise NotConnected("the answer was lost")


@both_modes
def test_an_output_is_in_the_commit_though_the_topic_grows_while_others_are_published_before_it(
    played: Played, monkeypatch: pytest.MonkeyPatch, *, ordered: bool
) -> None:
    """As it was decided that it is not among those: otherwise its input is settled without it."""

    async def acts(stage: Stage) -> None:
        publish, published = stage.backend.publish, list[bytes]()
        await publish(ORDERS, [Record(b"input", key=STAYS)])

        async def while_it_grows(route: Route, records: Sequence[Record]) -> None:
            if not published:
                await stage.grow()
            published.extend(r.body for r in records)
            await publish(route, records)

        monkeypatch.setattr(stage.backend, "publish", while_it_grows)
        feed = await stage.worker(ordered=ordered)
        (event,) = await taken(feed, 1)
        outputs = [(ORDERS, Record(b"elsewhere", key=OTHER)), (ORDERS, Record(b"local", key=MOVES))]
        assert not await settle(feed, [Settlement(event, outputs=outputs)])
        assert await stage.bodies() == [b"elsewhere", b"input", b"local"]
        assert published == [b"elsewhere", b"elsewhere", b"local"], (
            "the commit was refused, and repeated by the new number"
        )

    played(acts)


@both_modes
def test_an_output_of_a_commit_whose_answer_was_lost_is_not_published_again_when_the_topic_has_grown(
    played: Played, monkeypatch: pytest.MonkeyPatch, *, ordered: bool
) -> None:
    async def acts(stage: Stage) -> None:
        await stage.backend.publish(ORDERS, [Record(b"input", key=STAYS)])
        feed = await stage.worker(ordered=ordered)
        settled = [Settlement(d, outputs=[(ORDERS, Record(b"local", key=MOVES))]) for d in await taken(feed, 1)]
        wire = stage.backend.client.wire

        async def deaf(key: bytes) -> Deaf:
            return Deaf(await wire(key))

        with monkeypatch.context() as patch:
            patch.setattr(stage.backend.client, "wire", deaf)
            with pytest.raises(NotConnected, match="the answer was lost"):
                await feed.commit(settled)
        await stage.grow()
        await settle(feed, settled)
        assert await stage.bodies() == [b"input", b"local"]

    played(acts)


def test_what_an_event_of_a_packed_entry_writes_is_there_though_the_topic_grows_before_the_last_is_handled(
    played: Played,
) -> None:
    """The entry is settled with its last event, and it is by then that outputs have a place."""
    route = Route("orders", partitions=2, packing=100)

    async def acts(stage: Stage) -> None:
        await stage.backend.publish(route, [Record(b"input", key=STAYS), Record(b"input", key=STAYS)])
        feed = await stage.worker(route)
        first, last = await taken(feed, 2)
        outputs = [(route, Record(b"elsewhere", key=OTHER)), (route, Record(b"local", key=MOVES))]
        assert not await feed.commit([Settlement(first, outputs=outputs)])
        await stage.grow()
        assert not await settle(feed, [last])
        found = await stage.bodies()
        assert [b for b in found if not b.startswith(b"input")] == [b"elsewhere", b"local"]

    played(acts)


@both_modes
def test_an_output_that_a_dead_worker_published_is_not_written_again_by_the_next_whose_commit_has_room_for_it(
    played: Played, monkeypatch: pytest.MonkeyPatch, *, ordered: bool
) -> None:
    """It was for another server, and its new partition happens to be in the slot of the input."""
    orders, slot = Route("orders"), key_slot(b"orders")
    names = (f"bills-{n}" for n in range(1_000_000))
    bills = Route(next(n for n in names if key_slot(f"{n}.2".encode()) == slot), partitions=2)

    async def acts(stage: Stage) -> None:
        await stage.backend.publish(orders, [Record(b"input")])

        def billed(deliveries: Sequence[Delivery]) -> list[Settlement]:
            return [Settlement(d, outputs=[(bills, Record(b"bill", key=MOVES))]) for d in deliveries]

        async def dead(key: bytes) -> Any:
            raise NotConnected("the worker dies here: its output is published, its commit is not")

        first = await stage.worker(orders, "first", ordered=ordered)
        held = await taken(first, 1)
        with monkeypatch.context() as patch:
            patch.setattr(stage.backend.client, "wire", dead)
            with pytest.raises(NotConnected, match="dies here"):
                await first.commit(billed(held))
        first.abandon()
        assert await stage.bodies(bills.topic, 2) == [b"bill"]
        await stage.grow(bills.topic)
        second = await stage.worker(orders, "second", ordered=ordered)
        assert not await settle(second, billed(await taken(second, 1)))
        assert await stage.bodies(bills.topic) == [b"bill"]

    played(acts)


def test_a_worker_that_has_lost_its_partition_publishes_nothing(played: Played) -> None:
    async def acts(stage: Stage) -> None:
        await stage.backend.publish(ORDERS, [Record(b"input", key=STAYS)])
        first = await stage.worker(name="first", ordered=True)
        (event,) = await taken(first, 1)
        first.pause()
        second = await stage.worker(name="second", ordered=True)
        assert not await second.commit(await taken(second, 1))
        (late,) = await first.commit([Settlement(event, outputs=[(ORDERS, Record(b"elsewhere", key=OTHER))])])
        assert not late.refused
        assert await stage.bodies(partitions=2) == [b"input"]

    played(acts)

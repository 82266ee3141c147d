"""A Cluster and a primary behind sentinels: order per key and exactly once through failovers, moving slots, and frozen primaries."""

from __future__ import annotations

import asyncio
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from headrace import DurabilityError, Headrace, NotConnected, Refused
from headrace.backends.contract import Delivery, Record, Route, Settlement, Subscription
from headrace.backends.partition import partition_of
from headrace.backends.redis.backend import RedisBackend
from headrace.backends.redis.client import Client
from headrace.embedded import cluster, sentinel
from headrace.embedded.fleet import Fleet
from headrace.settings import Durability, Settings
from tests.servers import require
from tests.slots import move_slot, password_of, primaries
from tests.trial import Event, Plan, Trial

LIVE_S = 3.0
"""How long a fault lasts, and how long nothing happens after it."""


@pytest.fixture
def place() -> Iterator[Path]:
    require("valkey")
    with tempfile.TemporaryDirectory(prefix="hrt-", ignore_cleanup_errors=True) as root:
        yield Path(root) / "fleet"


class Faults:
    """Does something to the fleet, so many times, in a thread of its own."""

    def __init__(self, fault: Callable[[], None], times: int) -> None:
        self._fault, self._times, self._over = fault, times, threading.Event()
        self.count = 0
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            while self.count < self._times and not self._over.wait(1.0):
                self._fault()
                self.count += 1
        except BaseException as e:
            self.error = e

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def look(self) -> None:
        if self.error is not None:
            raise self.error


def play(fleet: Fleet, plan: Plan, fault: Callable[[], None], times: int) -> None:
    """A trial that is as long as so many faults."""

    async def run() -> None:
        with Faults(fault, times) as faults:
            trial = Trial(fleet.url, plan)
            trial.goes_on = lambda: faults.count < times
            await trial.run(faults.look)

    asyncio.run(run())


def test_slots_move_under_load(place: Path) -> None:
    with cluster.start(place) as fleet:
        numbers = iter(range(100))
        plan = Plan(random.randrange(10**6), events=3_000, partitions=6)
        play(fleet, plan, lambda: move_slot(fleet, f"orders.{next(numbers) % 6}", password_of(fleet)), 4)


def test_a_topic_grows_while_slots_move(place: Path) -> None:
    with cluster.start(place) as fleet:
        numbers = iter(range(100))
        plan = Plan(random.randrange(10**6), events=3_000, partitions=3, grow_to=6)
        play(fleet, plan, lambda: move_slot(fleet, f"orders.{next(numbers) % 6}", password_of(fleet)), 3)


def test_a_shared_group_reads_where_its_partition_has_moved_to(place: Path) -> None:
    async def run(fleet: Fleet) -> None:
        backend = RedisBackend(Settings(url=fleet.url, durability=Durability.RELAXED))
        await backend.open()
        orders = Route("orders")
        feed = await backend.subscribe(Subscription(orders, "g", "w", lease_s=2.0))
        for n in range(3):
            reading = asyncio.ensure_future(patiently(feed))
            await asyncio.sleep(0.2)
            await asyncio.to_thread(move_slot, fleet, "orders", password_of(fleet))
            await backend.publish(orders, [Record(b"%d" % n)])
            async with asyncio.timeout(10):
                (delivery,) = await reading
                assert delivery.fields[-1] == b"%d" % n
                assert not await feed.commit([delivery])
        await backend.aclose()

    async def patiently(feed: Any) -> list[Delivery]:
        while True:
            try:
                if got := await feed.take(10, 5.0):
                    return list(got)
            except NotConnected:
                await asyncio.sleep(0.02)

    with cluster.start(place) as fleet:
        asyncio.run(run(fleet))


def killed(fleet: Fleet) -> None:
    node = random.choice(primaries(fleet))
    node.kill()
    time.sleep(LIVE_S)
    node.start()
    time.sleep(LIVE_S)


def frozen(fleet: Fleet) -> None:
    node = random.choice(primaries(fleet))
    node.pause()
    time.sleep(LIVE_S + 2)
    node.resume()
    time.sleep(LIVE_S)


@pytest.mark.parametrize("fault", [killed, frozen])
def test_primaries_of_a_cluster_fail(place: Path, fault: Callable[[Fleet], None]) -> None:
    with cluster.start(place, replicas=1) as fleet:
        plan = Plan(random.randrange(10**6), events=2_000, partitions=6, durability="quorum")
        play(fleet, plan, lambda: fault(fleet), 1)


@pytest.mark.parametrize("fault", [killed, frozen])
def test_the_primary_behind_sentinels_fails(place: Path, fault: Callable[[Fleet], None]) -> None:
    with sentinel.start(place, replicas=2) as fleet:
        plan = Plan(random.randrange(10**6), events=2_000, partitions=4, durability="quorum")
        play(fleet, plan, lambda: fault(fleet), 1)


async def opened(url: str, **settings: Any) -> RedisBackend:
    backend = RedisBackend(Settings(url=url, **settings))
    await backend.open()
    return backend


async def taken(feed: Any, count: int) -> list[Delivery]:
    got: list[Delivery] = []
    async with asyncio.timeout(15):
        while len(got) < count:
            got += await feed.take(count - len(got), 0.5)
    return got


@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "shared"])
def test_an_output_to_another_server_is_there_once_though_its_worker_died_before_the_commit(
    place: Path, monkeypatch: pytest.MonkeyPatch, *, ordered: bool
) -> None:
    async def run(fleet: Fleet) -> None:
        backend = await opened(fleet.url)
        orders, bills = Route("orders", partitions=4), Route("bills", partitions=4)
        await backend.publish(orders, [Record(b"%d" % n, key=b"k%d" % n) for n in range(40)])

        async def worker(name: str) -> Any:
            return await backend.subscribe(Subscription(orders, "g", name, lease_s=0.6, ordered=ordered))

        def billed(deliveries: list[Delivery]) -> list[Settlement]:
            return [Settlement(d, outputs=[(bills, Record(d.fields[-1], key=d.key))]) for d in deliveries]

        first = await worker("first")
        held = await taken(first, 40)
        died = False

        async def wire(client: Client, key: bytes) -> Any:
            nonlocal died
            died = True
            raise NotConnected("the worker dies here: its outputs are published, its commit is not")

        with monkeypatch.context() as patch:
            patch.setattr(Client, "wire", wire)
            with pytest.raises(NotConnected):
                await first.commit(billed(held))
        assert died
        first.abandon()
        second = await worker("second")
        assert not await second.commit(billed(await taken(second, 40)))
        reader = await backend.subscribe(Subscription(bills, "h", "reader", ordered=ordered))
        bodies = [d.fields[-1] for d in await taken(reader, 40)]
        assert sorted(bodies) == sorted(b"%d" % n for n in range(40))
        assert not await reader.take(10, 0.5)
        await backend.aclose()

    with cluster.start(place) as fleet:
        asyncio.run(run(fleet))


@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "shared"])
def test_an_effect_on_another_server_is_refused_with_the_name_that_works(place: Path, *, ordered: bool) -> None:
    async def run(fleet: Fleet) -> None:
        backend = await opened(fleet.url)
        orders = Route("orders", partitions=4)
        await backend.publish(orders, [Record(b"1", key=b"ann")])
        feed = await backend.subscribe(Subscription(orders, "g", "w", ordered=ordered))
        (event,) = await taken(feed, 1)
        home = f"orders.{partition_of(b'ann', 4)}"
        (one,) = await feed.commit([Settlement(event, effects=[(b"INCRBY", b"revenue", b"1")])])
        assert one.refused == (
            f"key revenue lives in another slot of the Cluster than {home}, from where the event came: write to {{{home}}}:revenue"
        )
        assert not await feed.commit([Settlement(event, effects=[(b"INCRBY", b"{%b}:revenue" % home.encode(), b"1")])])
        assert await backend.client.command("GET", f"{{{home}}}:revenue") == b"1"
        await backend.aclose()

    with cluster.start(place) as fleet:
        asyncio.run(run(fleet))


def test_what_is_said_of_servers_that_are_not_there(place: Path) -> None:
    async def published(url: str) -> None:
        async with Headrace(url) as app:
            topic = app.topic("orders", Event, key="key", partitions=6)
            for n in range(12):
                await topic.publish(Event(f"k{n}", n))

    with cluster.start(place) as fleet:
        fleet.servers[2].kill()
        host = fleet.url.partition("@")[2].split(",")[0]
        with pytest.raises(NotConnected, match=f"{fleet.servers[2].port}.*cannot connect; is the server up"):
            asyncio.run(published(fleet.url))
        with pytest.raises(DurabilityError, match=r"follow the Cluster: a URL that begins with redis\+cluster://"):
            asyncio.run(published(f"redis://:{password_of(fleet)}@{host}"))
    single = sentinel.start(place.parent / "other")
    with single:
        name = single.url.replace("/headrace", "/nobody")
        with pytest.raises(NotConnected, match="the sentinels name no primary of 'nobody'; is the name right"):
            asyncio.run(published(name))
        server = f"redis+cluster://:{password_of(single)}@127.0.0.1:{single.servers[0].port}"
        with pytest.raises(Refused, match="not part of a Cluster: use redis:// without"):
            asyncio.run(published(server))


def test_fsync_says_what_a_failover_loses(place: Path) -> None:
    async def report(url: str) -> str:
        from headrace.backends import doctor

        return (await doctor(Settings(url=url, durability=Durability.FSYNC))).loss_window

    with sentinel.start(place) as fleet:
        assert "A failover loses what the promoted replica had not received" in asyncio.run(report(fleet.url))

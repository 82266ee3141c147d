"""Order per key on real servers: random trials, workers that die of an event, and what cannot be meant."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any

import msgspec
import pytest

from headrace import ConfigurationError, Headrace, NotConnected, Refused, Topic
from headrace.backends.contract import Delivery, Record, Route, Settled, Settlement, Subscription, Verdict
from headrace.backends.redis.backend import RedisBackend
from headrace.backends.redis.inspect import RedisInspector
from headrace.backends.redis.membership import shares
from headrace.backends.redis.ordered import OrderedFeed
from headrace.settings import Settings
from tests.playing import with_backend
from tests.servers import Server
from tests.trial import Event, Plan, Trial

pytest_plugins = ["tests.servers"]
ORDERS, ONE = Route("orders", partitions=4), Route("one")

VARIANTS = {
    "one by one": Plan(0),
    "in batches": Plan(0, batched=True),
    "packed entries": Plan(0, packing="batch", partitions=5),
    "one partition": Plan(0, partitions=1, events=800),
    "growing": Plan(0, partitions=2, grow_to=6, events=3_000),
    "growing, packed entries": Plan(0, partitions=3, grow_to=6, events=3_000, packing="batch", batched=True),
}


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.replace(" ", "-"))
def test_every_key_is_handled_once_and_in_order(server: Server, variant: str) -> None:
    plan = VARIANTS[variant]
    seeded = msgspec.structs.replace(plan, seed=random.randrange(10**6))
    asyncio.run(Trial(server.url, seeded).run())


async def worker(backend: RedisBackend, name: str, route: Route = ORDERS) -> OrderedFeed:
    feed = await backend.subscribe(Subscription(route, "g", name, lease_s=0.6, ordered=True))
    assert isinstance(feed, OrderedFeed)
    return feed


def keyed(*pairs: tuple[str, str]) -> list[Record]:
    return [Record(body.encode(), key=key.encode()) for key, body in pairs]


async def take(feed: OrderedFeed, count: int) -> list[Delivery]:
    got: list[Delivery] = []
    async with asyncio.timeout(10):
        while len(got) < count:
            got += await feed.take(count - len(got), 0.5)
    return got


def test_shares_are_fair_and_few_partitions_move() -> None:
    for partitions in (1, 3, 16, 100):
        before: dict[str, list[int]] = {}
        for workers in range(1, 9):
            now = shares([f"w{n}" for n in range(workers)], partitions)
            assert sorted(p for own in now.values() for p in own) == list(range(partitions))
            assert max(map(len, now.values())) - min(map(len, now.values())) <= 1
            if workers > 1:
                moved = sum(len(set(before[w]) - set(now[w])) for w in before)
                assert moved <= 2 * partitions / workers + 1
            before = now


def test_an_event_that_kills_workers_is_dead_lettered_and_the_others_are_not(server: Server) -> None:
    async def play(backend: RedisBackend) -> None:
        route = Route("orders")
        await backend.publish(route, keyed(("a", "1"), ("b", "poison"), ("a", "2"), ("c", "3")))
        handled: list[bytes] = []
        deaths = 0
        while server.command("XLEN", "{orders}:dead:g") == 0:
            feed = await worker(backend, f"w{deaths}", route)
            async with asyncio.timeout(30):
                while server.command("XLEN", "{orders}:dead:g") == 0:
                    got = await feed.take(10, 0.1)
                    if any(d.fields[-1] == b"poison" for d in got):
                        feed.abandon()
                        deaths += 1
                        break
                    handled += [d.fields[-1] for d in got]
                    await feed.commit(got)
            assert deaths <= 5
        assert deaths == 5
        while len(handled) < 3:
            got = await take(feed, 1)
            handled += [d.fields[-1] for d in got]
            await feed.commit(got)
        assert sorted(handled) == [b"1", b"2", b"3"]
        ((_, fields),) = server.command("XRANGE", "{orders}:dead:g", "-", "+")
        assert b"poison" in fields

    with_backend(server, play)


def test_a_worker_that_was_silent_writes_nothing_and_says_so(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    async def play(backend: RedisBackend) -> None:
        bills = Route("bills")
        await backend.publish(ORDERS, keyed(*((f"k{n}", str(n)) for n in range(20))))
        first = await worker(backend, "first")
        held = await take(first, 20)
        first.pause()
        second = await worker(backend, "second")
        again = await take(second, 20)
        late = await first.commit(
            [Settlement(d, outputs=[(bills, Record(b"late"))], effects=[(b"INCRBY", b"n", b"1")]) for d in held]
        )
        assert len(late) == 20
        assert not any(u.refused for u in late)
        assert not await second.commit([Settlement(d, effects=[(b"INCRBY", b"n", b"1")]) for d in again])
        assert server.command("GET", "n") == b"20"
        assert server.command("EXISTS", "bills") == 0

    with caplog.at_level(logging.WARNING):
        with_backend(server, play)
    assert "lost the partition" in caplog.text


def test_what_a_failed_event_holds_up_survives_its_worker(server: Server) -> None:
    async def play(backend: RedisBackend) -> None:
        route = Route("orders")
        await backend.publish(route, keyed(("a", "a0"), ("a", "a1"), ("b", "b0")))
        first = await worker(backend, "first", route)
        a0, a1, b0 = await take(first, 3)
        assert not await first.commit([Settlement(a0, Verdict.RETRY, delay_ms=300), Settlement(a1, Verdict.RETURN), b0])
        first.abandon()
        await backend.publish(route, keyed(("a", "a2")))
        second = await worker(backend, "second", route)
        bodies = []
        for _ in range(3):
            (got,) = await take(second, 1)
            bodies.append(got.fields[-1])
            assert not await second.commit([got])
        assert bodies == [b"a0", b"a1", b"a2"]
        assert server.command("HGET", "{orders}:group:g", "handled") == b"4"

    with_backend(server, play)


def test_a_read_under_way_brings_nothing_of_a_key_that_is_stopped_meanwhile(server: Server) -> None:
    async def play(backend: RedisBackend) -> None:
        route = Route("orders")
        await backend.publish(route, keyed(("b", "b0"), ("a", "a0")))
        feed = await worker(backend, "w", route)
        b0, a0 = await take(feed, 2)
        await backend.publish(route, keyed(("a", "a1"), ("c", "c0")))
        give, stopped = feed._give, list[Delivery]()

        async def slowly(holdings: Any, limit: int) -> list[Delivery]:
            given = await give(holdings, limit)
            if any(d.fields[-1] == b"a1" for d in given) and not stopped:
                stopped.append(a0)
                assert not await feed.commit([Settlement(a0, Verdict.RETURN)])  # another task has its turn here
            return given

        feed._give = slowly  # type: ignore[method-assign]
        (c0,) = await take(feed, 1)
        assert c0.fields[-1] == b"c0"
        assert not await feed.commit([b0, c0])
        assert [d.fields[-1] for d in await take(feed, 2)] == [b"a0", b"a1"]

    with_backend(server, play)


def test_who_takes_events_one_by_one_leaves_the_event_loop_to_their_handlers(server: Server) -> None:
    async def play(backend: RedisBackend) -> None:
        route = Route("orders")
        await backend.publish(route, keyed(("a", "a0"), ("b", "b0"), ("c", "c0")))
        feed = await backend.subscribe(Subscription(route, "g", "w", lease_s=5.0, ordered=True))
        assert isinstance(feed, OrderedFeed)
        (holding,) = feed._leases.held.values()
        holding.careful = 10  # as after two deaths
        (first,) = await feed.take(10, 0.5)
        loop = asyncio.get_running_loop()
        began = loop.time()
        more = asyncio.ensure_future(feed.take(10, 5.0))
        await asyncio.sleep(0.05)
        assert loop.time() - began < 2.5, "it stood still until the lease was over"
        assert not await feed.commit([first])
        (second,) = await more or await take(feed, 1)
        assert [first.fields[-1], second.fields[-1]] == [b"a0", b"b0"]

    with_backend(server, play)


def test_what_one_partition_gave_is_not_lost_with_the_call_of_another(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(backend: RedisBackend) -> None:
        await backend.publish(ORDERS, keyed(*((f"k{n}", f"k{n}") for n in range(20))))
        feed = await worker(backend, "w")
        got = await take(feed, 20)
        failing = got[0]
        other = next(d for d in got if d.batch is not failing.batch)
        first, second = other.batch, failing.batch
        assert not await feed.commit([Settlement(failing, Verdict.RETRY), *got[1:]])
        await backend.publish(ORDERS, [Record(b"new", key=other.key)])
        while not (second.lines.count and first.hand):
            await feed._reading.read([first, second], 10, 0.1)
        await asyncio.sleep(0.01)  # its time has come by every clock

        async def cut(*_: object) -> Any:
            raise NotConnected("cut")

        with monkeypatch.context() as patched:
            patched.setattr(feed._reading, "fetch", cut)
            (new,) = await feed._give([first, second], 10)
            with pytest.raises(NotConnected):
                await feed._give([first, second], 10)
        assert new.fields[-1] == b"new"
        (again,) = await feed._give([first, second], 10)
        assert again.key == failing.key
        assert not await feed.commit([new, again])

    with_backend(server, play)


def test_an_event_that_is_tried_alone_is_not_lost_with_the_call_that_says_so(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(backend: RedisBackend) -> None:
        await backend.publish(Route("orders"), keyed(("a", "a0"), ("b", "b0")))
        feed = await worker(backend, "w", Route("orders"))
        (holding,) = feed._leases.held.values()
        holding.careful = 10

        async def cut(*_: object) -> Any:
            raise NotConnected("cut")

        with monkeypatch.context() as patched:
            patched.setattr(feed._leases, "renew", cut)
            with pytest.raises(NotConnected):
                await take(feed, 1)
        for body in (b"a0", b"b0"):
            (got,) = await take(feed, 1)
            assert got.fields[-1] == body
            assert not await feed.commit([got])

    with_backend(server, play)


def test_stop_keeps_the_partition_where_it_is(server: Server) -> None:
    async def play(backend: RedisBackend) -> None:
        route = Route("orders")
        await backend.publish(route, keyed(("a", "a0"), ("b", "b0")))
        feed = await backend.subscribe(Subscription(route, "g", "w", ordered=True, on_failure="stop"))
        assert isinstance(feed, OrderedFeed)
        a0, b0 = await take(feed, 2)
        lost = await feed.commit([Settlement(a0, Verdict.RETRY, delay_ms=200), b0])
        assert [u.settled for u in lost] == [b0], "what comes behind is handled again"
        assert not await feed.take(10, 0)
        again = await take(feed, 2)
        assert [(d.fields[-1], d.attempt) for d in again] == [(b"a0", 2), (b"b0", 1)]
        assert server.command("XLEN", "{orders}:retry:g") == 0

    with_backend(server, play)


def test_one_group_has_one_mode_and_a_topic_one_number_of_partitions(server: Server) -> None:
    async def play(backend: RedisBackend) -> None:
        await backend.subscribe(Subscription(ORDERS, "shared", "w"))
        with pytest.raises(
            Refused, match="is used in shared mode on the server, and this program subscribes it ordered"
        ):
            await worker_of(backend, "shared", ordered=True)
        await worker_of(backend, "ordered", ordered=True)
        with pytest.raises(Refused, match="is used in ordered mode on the server"):
            await worker_of(backend, "ordered", ordered=False)
        other = RedisBackend(Settings(url=server.url))
        with pytest.raises(Refused, match="topic orders has 4 partitions on the server, and this program declares 8"):
            await other.publish(Route("orders", partitions=8), keyed(("a", "1")))
        await other.aclose()

    async def worker_of(backend: RedisBackend, group: str, *, ordered: bool) -> None:
        await backend.subscribe(Subscription(ORDERS, group, "w2", ordered=ordered))

    with_backend(server, play)


@pytest.mark.parametrize(
    ("options", "subscribe", "says"),
    [
        ({"partitions": 0}, {}, "partitions: expected 1 to 1,024, got 0"),
        ({"partitions": 5_000}, {}, "partitions: expected 1 to 1,024, got 5000"),
        ({"partitions": "16"}, {}, "partitions: expected 1 to 1,024, got '16'"),
        ({}, {"ordered": True}, "ordered=True needs to know whose events are in order"),
        (
            {"key": "key"},
            {"ordered": True, "on_failure": "wait"},
            "on_failure: expected park, skip or stop, got 'wait'",
        ),
        ({"key": "key"}, {"on_failure": "stop"}, "is for ordered=True"),
        ({"partition": 4}, {}, "unknown option partition; there are"),
    ],
)
def test_what_cannot_be_meant(options: dict[str, Any], subscribe: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        topic: Topic[Any] = Headrace("redis://localhost").topic("orders", Event, **options)
        topic.subscribe("g", **subscribe)


def test_what_was_set_aside_is_not_ahead_of_a_group_that_begins_anew(server: Server) -> None:
    """It is read again with all others of its key, in their order; what the topic has no more stays set aside."""

    async def play(backend: RedisBackend) -> None:
        first = await worker(backend, "first", ONE)
        await backend.publish(ONE, keyed(*(("a", f"a{n}") for n in range(4))))
        got = await take(first, 4)
        settled: list[Settled] = [got[0], Settlement(got[1], Verdict.RETRY), *got[2:]]
        assert not await first.commit(settled)
        await first.aclose()
        assert server.command("XLEN", "{one}:retry:g") == 3
        server.command("XDEL", "one", got[2].token)
        await RedisInspector(backend.client).seek("one", "g", "earliest")
        assert server.command("XLEN", "{one}:retry:g") == 1
        second = await worker(backend, "second", ONE)
        again: list[str] = []
        async with asyncio.timeout(10):
            while len(again) < 4:
                for delivery in await second.take(1, 0.2):
                    again.append(delivery.fields[-1].decode())
                    assert not await second.commit([delivery])
        assert again == ["a2", "a0", "a1", "a3"]

    with_backend(server, play)

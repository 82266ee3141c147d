"""What operators see and do with topics of several partitions, and with ordered groups."""

from __future__ import annotations

import asyncio

import pytest

from headrace import Refused
from headrace.backends.contract import Delivery, Feed, Record, Route, Settlement, Subscription, Verdict
from headrace.backends.partition import partition_of
from headrace.backends.redis.backend import RedisBackend
from headrace.backends.redis.inspect import RedisInspector
from tests.cli.shell import run as command_line
from tests.playing import with_inspector as playing
from tests.servers import Server

pytest_plugins = ["tests.servers"]
ORDERS = Route("orders", partitions=4)
ANN = f"orders.{partition_of(b'ann', 4)}"


async def take(feed: Feed, count: int) -> list[Delivery]:
    got: list[Delivery] = []
    async with asyncio.timeout(10):
        while len(got) < count:
            got += await feed.take(count - len(got), 0.5)
    return got


def events(count: int) -> list[Record]:
    return [Record(b"%d" % n, key=b"k%d" % (n % 10)) for n in range(count)]


@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "shared"])
def test_the_ledger_is_that_of_all_partitions(server: Server, *, ordered: bool) -> None:
    async def play(backend: RedisBackend, inspector: RedisInspector) -> None:
        await backend.publish(ORDERS, [*events(40), Record(b"later", key=b"k1", delay_ms=60_000)])
        feed = await backend.subscribe(Subscription(ORDERS, "g", "w", ordered=ordered))
        got = await take(feed, 40)
        await feed.commit(
            [*got[:-2], Settlement(got[-2], Verdict.RETRY, delay_ms=60_000), Settlement(got[-1], Verdict.DEAD)]
        )
        await backend.publish(ORDERS, events(10))
        (topic,) = await inspector.topics()
        assert (topic.topic, topic.partitions, topic.published, topic.delayed, topic.groups) == (
            "orders",
            4,
            50,
            1,
            ("g",),
        )
        (group,) = await inspector.groups("orders")
        assert (group.ordered, group.workers, group.missing) == (ordered, 1, 0)
        assert (group.published, group.handled, group.dead, group.retrying) == (51, 38, 1, 1)
        assert (group.unread + group.pending, group.delayed) == (10, 1)

    playing(server, play)


def test_who_has_which_partition(server: Server) -> None:
    async def play(backend: RedisBackend, inspector: RedisInspector) -> None:
        await backend.publish(ORDERS, events(40))
        await backend.subscribe(Subscription(ORDERS, "g", "first", ordered=True))
        leases = await inspector.leases("orders", "g")
        assert [(x.partition, x.worker) for x in leases] == [(n, "first") for n in range(4)]
        assert sum(x.unread for x in leases) == 40
        assert all(14 < x.ends_s <= 15 for x in leases)
        shown = await asyncio.to_thread(command_line, "groups", "orders", "--url", server.url)
        assert "ordered" in shown.out
        assert shown.out.count("first") == 4

    playing(server, play)


def test_a_partition_is_looked_at_by_its_name(server: Server) -> None:
    async def play(backend: RedisBackend, inspector: RedisInspector) -> None:
        await backend.publish(ORDERS, [Record(b"1", key=b"ann"), Record(b"2", key=b"ann")])
        feed = await backend.subscribe(Subscription(ORDERS, "g", "w", ordered=True))
        one, two = await take(feed, 2)
        await feed.commit([Settlement(one, Verdict.DEAD, reason=b"no good"), two])
        assert [letter.data for letter in await inspector.read(ANN)] == [b"1", b"2"]
        with pytest.raises(Refused, match=r"topic orders has 4 partitions: name one of them, orders\.0 to orders\.3"):
            await inspector.read("orders")
        with pytest.raises(Refused, match=r"no topic 'orders\.4' on this server"):
            await inspector.read("orders.4")
        (letter,) = await inspector.dead(ANN, "g")
        assert await inspector.dead_replay(ANN, "g", [letter.token]) == 1
        (again,) = await take(feed, 1)
        assert (again.fields[-1], again.attempt) == (b"1", 1)
        await feed.commit([again])
        assert (await inspector.replay(ANN, "g", "-", "+"))[0] == 2
        assert [d.fields[-1] for d in await take(feed, 2)] == [b"1", b"2"]
        (group,) = await inspector.groups("orders")
        assert (group.replayed, group.handled, group.missing) == (2, 2, 0)

    playing(server, play)


def test_a_group_begins_anew_under_its_worker(server: Server) -> None:
    async def play(backend: RedisBackend, inspector: RedisInspector) -> None:
        await backend.publish(ORDERS, events(20))
        feed = await backend.subscribe(Subscription(ORDERS, "g", "w", lease_s=0.5, ordered=True))
        held = await take(feed, 20)
        await inspector.seek("orders", "g", "earliest")
        lost = await feed.commit(held)
        assert len(lost) == 20
        again = await take(feed, 20)
        assert sorted(d.fields[-1] for d in again) == sorted(d.fields[-1] for d in held)
        assert not await feed.commit(again)
        (group,) = await inspector.groups("orders")
        assert (group.handled, group.missing, group.unread) == (20, 0, 0)

    playing(server, play)


def test_the_command_line_publishes_to_the_partition_of_the_key(server: Server) -> None:
    async def make(backend: RedisBackend, inspector: RedisInspector) -> None:
        await backend.publish(ORDERS, events(1))
        del inspector

    playing(server, make)
    assert command_line("publish", "orders", "{}", "--key", "ann", "--url", server.url).code == 0
    assert server.command("XLEN", ANN) >= 1
    refused = command_line("publish", "orders", "{}", "--url", server.url)
    assert refused.code != 0
    assert "topic orders has 4 partitions, and the key says which one: give --key" in refused.err

"""What a stranger takes out of a topic's stream is missing in the ledger, not unread for ever; and what an operator needs works on a full server."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from headrace.backends.contract import Delivery, Record, Route, Settlement, Subscription, Verdict
from headrace.backends.redis import retention
from headrace.backends.redis.backend import RedisBackend
from headrace.backends.redis.inspect import RedisInspector
from headrace.settings import Settings
from tests.playing import with_inspector as playing
from tests.servers import Server

pytest_plugins = ["tests.servers"]
ORDERS = Route("orders")
DELETIONS: dict[str, Callable[[list[bytes]], tuple[str | bytes | int, ...]]] = {
    "trimmed": lambda _ids: ("XTRIM", "orders", "MAXLEN", "=", 60),
    "the first": lambda ids: ("XDEL", "orders", *ids[:40]),
    "in the middle": lambda ids: ("XDEL", "orders", *ids[30:70]),
}


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("how", DELETIONS)
def test_it_is_missing_when_all_is_read_and_when_nothing_is(server: Server, how: str, *, ordered: bool) -> None:
    async def play(backend: RedisBackend, inspector: RedisInspector) -> None:
        subscription = Subscription(ORDERS, "g", "w", ordered=ordered)
        await (await backend.subscribe(subscription)).aclose()
        await backend.publish(ORDERS, [Record(b"{}", key=b"k")] * 100)
        server.command(*DELETIONS[how]([entry[0] for entry in server.command("XRANGE", "orders", "-", "+")]))
        (group,) = await inspector.groups("orders")
        assert (group.unread, group.missing) == (60, 40)
        feed = await backend.subscribe(subscription)
        taken: list[Delivery] = []
        while len(taken) < 60:
            taken += await feed.take(100, 1.0)
        await feed.commit(taken)
        (group,) = await inspector.groups("orders")
        assert (group.handled, group.unread, group.missing) == (60, 0, 40)
        await feed.aclose()

    playing(server, play)


def test_packed_entries_that_are_trimmed_count_no_longer(server: Server) -> None:
    """Behind them are more entries than one look sees."""

    async def play(backend: RedisBackend, inspector: RedisInspector) -> None:
        packed = Route("orders", packing=100, retain_events=0, retain_s=0)
        single = Route("orders", retain_events=0, retain_s=0)
        other = RedisBackend(Settings(url=server.url))
        await other.open()
        feed = await backend.subscribe(Subscription(packed, "g", "w", "earliest"))
        await backend.publish(packed, [Record(b"{}")] * 1_000)
        await other.publish(single, [Record(b"{}")] * 300)
        settled = 0
        while settled < 1_300:
            taken = await feed.take(1_000, 1.0)
            await feed.commit(taken)
            settled += len(taken)
        await other.publish(single, [Record(b"{}")] * 250)
        while await retention.trim(backend.client, single, "orders", b"{orders}:group:", 10_000):
            pass
        await retention.trim(backend.client, single, "orders", b"{orders}:group:", 10_000)
        (topic,) = await inspector.topics()
        assert topic.events == server.command("XLEN", "orders") < 400
        await feed.aclose()
        await other.aclose()

    playing(server, play)


def test_an_operator_makes_room_on_a_server_without_memory(server: Server) -> None:
    async def play(backend: RedisBackend, inspector: RedisInspector) -> None:
        feed = await backend.subscribe(Subscription(ORDERS, "g", "w", "earliest"))
        await backend.publish(ORDERS, [Record(b"x" * 1_000)] * 10)
        taken = await feed.take(10, 1.0)
        await feed.commit([Settlement(delivery, Verdict.DEAD, reason=b"no") for delivery in taken])
        server.command("CONFIG", "SET", "maxmemory", 1)
        letters = await inspector.dead("orders", "g")
        assert await inspector.dead_drop("orders", "g", [letter.token for letter in letters]) == 10
        await inspector.seek("orders", "g", "latest")
        server.command("CONFIG", "SET", "maxmemory", 0)
        await feed.aclose()

    playing(server, play)


def test_an_empty_key_has_its_partition(server: Server) -> None:
    """That of CRC-32 of nothing, in every language."""

    async def play(backend: RedisBackend, _inspector: RedisInspector) -> None:
        route = Route("orders", partitions=4)
        for _ in range(8):
            await backend.publish(route, [Record(b"{}", key=b"")])
        assert [server.command("XLEN", f"orders.{n}") for n in range(4)] == [8, 0, 0, 0]

    playing(server, play)

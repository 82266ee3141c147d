"""A topic grows more than once, while groups begin, and by growers that are late with a step."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from headrace.backends.contract import Feed, Route, Subscription
from headrace.backends.partition import partition_of
from headrace.backends.redis.client import Client
from headrace.backends.redis.growth import grow
from headrace.backends.redis.inspect import RedisInspector
from headrace.settings import Settings
from tests.integration.test_growth import MOVES, ORDERS, Play, handle, numbered, numbers, playing
from tests.servers import Server

pytest_plugins = ["tests.servers"]


def key_through(*numbers: int) -> bytes:
    """A key that is in these partitions of 2, 4 and 8."""
    names = (b"k%d" % n for n in range(10_000))
    return next(n for n in names if tuple(partition_of(n, of) for of in (2, 4, 8)) == numbers)


async def twice(stage: Play) -> None:
    await stage.grow(4)
    await stage.grow(8)


class Held(Client):
    """Does something else before the first call that begins with these words."""

    def __init__(self, settings: Settings, words: tuple[object, ...], first: Callable[[], Awaitable[object]]) -> None:
        super().__init__(settings)
        self._words, self._first = words, first
        self.met = False

    async def _meet(self, *words: object) -> None:
        if not self.met and words[: len(self._words)] == self._words:
            self.met = True
            await self._first()

    async def command(self, *words: Any) -> Any:
        await self._meet(*words)
        return await super().command(*words)

    async def call(self, name: str, keys: Any, *words: Any) -> Any:
        await self._meet(name, *words)
        return await super().call(name, keys, *words)


def test_a_key_that_moves_twice_waits_for_where_it_was_first(server: Server) -> None:
    """Nothing of it was ever where it was in between."""

    async def play(stage: Play) -> None:
        key = key_through(0, 2, 6)
        publisher, feed = await stage.program(), await stage.worker(ordered=True)
        await publisher.publish(ORDERS, numbered(key, 0, 1, 2))
        held = [*await feed.take(100, 5.0)]
        assert len(held) == 3
        await twice(stage)
        await publisher.publish(ORDERS, numbered(key, 3))
        assert server.command("XLEN", "orders.6") == 1
        other = await stage.worker("other", ordered=True)
        for _ in range(5):
            assert [*await feed.take(100, 0.2), *await other.take(100, 0.2)] == []
        await feed.commit(held)
        got: list[int] = []
        while not got:
            for one in (feed, other):
                some = await one.take(100, 0.1)
                got += numbers(some)
                await one.commit(some)
        assert (got, await stage.balance()) == ([3], (4, 0))

    playing(server, play)


@pytest.mark.parametrize("reset", [False, True], ids=["new", "reset"])
def test_a_group_begins_with_the_first_event_though_the_parent_was_trimmed(server: Server, *, reset: bool) -> None:
    async def play(stage: Play) -> None:
        route = Route("orders", partitions=2, retain_events=0, retain_s=0)
        publisher, feed = await stage.program(), await stage.worker(ordered=True)
        await publisher.publish(route, numbered(MOVES, 0))
        assert await handle(feed, 1) == [0]
        await stage.grow()
        server.command("XTRIM", "orders.1", "MAXLEN", 0)
        await publisher.publish(route, numbered(MOVES, 1))
        if reset:
            await feed.aclose()
            inspector = RedisInspector(Client(stage.settings))
            await inspector.seek("orders", "g", "earliest")
            await inspector.aclose()
            assert await handle(await stage.worker("again", ordered=True), 1) == [1]
        else:
            begun = Subscription(route, "new", "w", "earliest", lease_s=0.6, ordered=True)
            assert await handle(await (await stage.program()).subscribe(begun), 1) == [1]

    playing(server, play)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("step", ["ZRANGE", "grow"], ids=["while ids are copied", "when all is told"])
def test_a_group_that_begins_with_what_comes_misses_nothing(server: Server, step: str, *, ordered: bool) -> None:
    """It begins while the topic grows, before its new partitions take events."""

    async def play(stage: Play) -> None:
        publisher = await stage.program()
        await publisher.publish(ORDERS, numbered(MOVES, 0))
        feeds: list[Feed] = []

        async def begin() -> None:
            feeds.append(await stage.worker(ordered=ordered, start="latest"))
            if ordered:
                await feeds[0].take(1, 0.3)  # it has its partitions

        words = ("ZRANGE",) if step == "ZRANGE" else ("grow", "open")
        client = Held(stage.settings, words, begin)
        await stage.grow(client=client)
        assert client.met
        await publisher.publish(ORDERS, numbered(MOVES, 1, 2, 3))
        assert await handle(feeds[0], 3) == [1, 2, 3]

    playing(server, play)


@pytest.mark.parametrize(
    "words",
    [("count", "before"), ("count", "more"), ("count", "done")],
    ids=["what it had", "what it has", "that it is done"],
)
def test_who_is_late_with_the_last_steps_changes_nothing(server: Server, words: tuple[str, str]) -> None:
    """Others have finished for it meanwhile, and have begun the next growth, which one of them is in the middle of."""

    async def play(stage: Play) -> None:
        publisher = await stage.program()
        await publisher.publish(ORDERS, numbered(MOVES, 0))

        async def others() -> None:
            await twice(stage)
            server.command("HSETNX", "headrace:growing", "orders", 16)  # and there it died

        await stage.grow(4, client=Held(stage.settings, words, others))
        assert server.command("HGET", "headrace:topics", "orders") == b"8"
        assert server.command("HGET", "headrace:grown", "orders") == b"2 4"
        assert server.command("HGET", "headrace:growing", "orders") == b"16"
        await stage.grow(16)
        await publisher.publish(ORDERS, numbered(MOVES, 1))
        assert await handle(await stage.worker(ordered=True), 2) == [0, 1]

    playing(server, play)


def test_who_looked_long_ago_leaves_no_mark(server: Server) -> None:
    """It begins when the topic has that number, and more, by now."""

    async def play(stage: Play) -> None:
        publisher = await stage.program()
        await publisher.publish(ORDERS, numbered(MOVES, 0))

        late = Held(stage.settings, ("HSETNX", b"headrace:growing"), partial(twice, stage))
        with pytest.raises(Exception, match="cannot get fewer"):
            await stage.grow(4, client=late)
        assert late.met
        assert not server.command("HEXISTS", "headrace:growing", "orders")
        server.command("HSET", "headrace:growing", "orders", 4)  # had it died before it took its mark back
        client = Client(stage.settings)
        await grow(client, "orders", 16)
        await client.aclose()
        assert server.command("HGETALL", "headrace:topics") == [b"orders", b"16"]
        assert not server.command("HEXISTS", "headrace:growing", "orders")

    playing(server, play)

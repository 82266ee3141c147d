"""A server that comes back without its last writes, as a replica that lagged behind does: its living workers handle again what it has forgotten."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from headrace import NotConnected
from headrace.backends.contract import Delivery, Record, Route, Settled, Settlement, Subscription, Verdict
from headrace.backends.redis.backend import RedisBackend
from headrace.settings import Settings
from tests.servers import Server

ORDERS = Route("orders", partitions=2)
COUNT = 12


class Past:
    """A server and a copy of its data."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._now, self._then = server.directory / "appendonlydir", server.directory / "then"

    def remember(self) -> None:
        shutil.copytree(self._now, self._then)

    def return_to(self) -> None:
        self._server.kill()
        shutil.rmtree(self._now)
        shutil.move(self._then, self._now)
        self._server.start()


def playing(server: Server, play: Callable[[RedisBackend, Past], Awaitable[None]]) -> None:
    async def run() -> None:
        backend = RedisBackend(Settings(url=server.url))
        await backend.open()
        try:
            await backend.publish(ORDERS, [Record(b"%d" % n, key=b"key%d" % (n % 4)) for n in range(COUNT)])
            await play(backend, Past(server))
        finally:
            await backend.aclose()

    asyncio.run(run())


async def taken(feed: Any, count: int) -> list[Delivery]:
    got: list[Delivery] = []
    async with asyncio.timeout(8):
        while len(got) < count:
            try:
                got += await feed.take(count - len(got), 0.3)
            except NotConnected:
                await asyncio.sleep(0.02)
    return got


@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "shared"])
def test_what_was_settled_comes_again(server: Server, *, ordered: bool) -> None:
    async def play(backend: RedisBackend, past: Past) -> None:
        feed = await backend.subscribe(Subscription(ORDERS, "g", "w", lease_s=1.0, ordered=ordered))
        held = await taken(feed, COUNT)
        await asyncio.to_thread(past.remember)
        assert not await feed.commit(held)
        await asyncio.to_thread(past.return_to)
        again = await taken(feed, COUNT)
        assert sorted(d.fields[-1] for d in again) == sorted(d.fields[-1] for d in held)
        assert not await feed.commit(again)
        assert sum(int(server.command("HGET", f"{{orders.{n}}}:group:g", "handled") or 0) for n in range(2)) == COUNT

    playing(server, play)


def test_what_was_set_aside_again_is_not_passed_over(server: Server) -> None:
    """The server forgets the copy of the second attempt, and has that of the first: it is not `taken away by an operator`."""

    async def play(backend: RedisBackend, past: Past) -> None:
        feed = await backend.subscribe(Subscription(ORDERS, "g", "w", lease_s=1.0, ordered=True))
        held = await taken(feed, COUNT)
        failing = next(d for d in held if d.fields[-1] == b"0")
        behind = [d for d in held if d.key == failing.key and d is not failing]
        others = [d for d in held if d.key != failing.key]
        first: list[Settled] = [
            Settlement(failing, Verdict.RETRY),
            *(Settlement(d, Verdict.RETURN) for d in behind),
            *others,
        ]
        assert not await feed.commit(first)
        again = await taken(feed, 3)
        await asyncio.to_thread(past.remember)
        second: list[Settled] = [
            Settlement(again[0], Verdict.RETRY, delay_ms=600),
            *(Settlement(d, Verdict.RETURN) for d in again[1:]),
        ]
        assert not await feed.commit(second)
        await asyncio.to_thread(past.return_to)
        seen = [d.fields[-1] for d in await taken(feed, 3)]
        assert seen == [b"0", b"4", b"8"]

    playing(server, play)


def test_an_event_that_only_the_old_server_had_has_no_effect_of_its_own(server: Server) -> None:
    """It was read before the replica had it; its publisher sends it again, and that one is handled."""

    async def play(backend: RedisBackend, past: Past) -> None:
        feed = await backend.subscribe(Subscription(ORDERS, "g", "w", lease_s=1.0, ordered=True))
        assert not await feed.commit(await taken(feed, COUNT))
        await asyncio.to_thread(past.remember)
        server.command("XADD", "orders.0", "*", "id", "late", "key", "key0", "data", "late")
        (early,) = await taken(feed, 1)
        await asyncio.to_thread(past.return_to)
        while True:
            try:
                effect = Settlement(early, effects=[(b"INCRBY", b"effects", b"1")])
                assert await feed.commit([effect]), "nothing was settled"
                break
            except NotConnected:
                await asyncio.sleep(0.02)
        assert server.command("GET", "effects") is None
        server.command("XADD", "orders.0", "*", "id", "late", "key", "key0", "data", "late")
        (again,) = await taken(feed, 1)
        assert not await feed.commit([Settlement(again, effects=[(b"INCRBY", b"effects", b"1")])])
        assert server.command("GET", "effects") == b"1"

    playing(server, play)


def test_as_many_events_are_not_the_same_events(server: Server) -> None:
    """The server has forgotten that a read buffer was settled, and that it was filled again: its consumer has as many pending as we believe."""

    async def play(backend: RedisBackend, past: Past) -> None:
        solo = Route("solo")
        numbers = [Record(b"%d" % n) for n in range(2 * COUNT)]
        await backend.publish(solo, numbers[:COUNT])
        feed = await backend.subscribe(Subscription(solo, "g", "w", lease_s=1.0))
        held = await taken(feed, COUNT)
        await asyncio.to_thread(past.remember)
        assert not await feed.commit([_counted(d) for d in held])
        await backend.publish(solo, numbers[COUNT:])
        later = await taken(feed, COUNT)
        await asyncio.to_thread(past.return_to)
        lost = await feed.commit([_counted(d) for d in later])
        assert len(lost) == COUNT
        assert not any(u.refused for u in lost)
        assert not await feed.commit([_counted(d) for d in await taken(feed, COUNT)])
        flat = server.command("HGETALL", "counts")
        assert dict(zip(flat[::2], flat[1::2], strict=True)) == {b"%d" % n: b"1" for n in range(COUNT)}

    playing(server, play)


def test_what_is_pending_again_under_a_name_that_was_given_up(server: Server) -> None:
    async def play(backend: RedisBackend, past: Past) -> None:
        solo = Route("solo")
        await backend.publish(solo, [Record(b"%d" % n) for n in range(COUNT)])
        feed = await backend.subscribe(Subscription(solo, "g", "w", lease_s=1.0))
        held = await taken(feed, COUNT)
        await asyncio.to_thread(past.remember)
        assert not await feed.commit(held)
        reading = asyncio.ensure_future(feed.take(1, 5.0))
        while b"xreadgroup" not in server.command("CLIENT", "LIST"):
            await asyncio.sleep(0.01)
        server.command("CLIENT", "KILL", "TYPE", "normal")
        with pytest.raises(NotConnected):
            await reading
        assert not await feed.take(1, 0.0), "the name of that read is not used any more"
        await asyncio.to_thread(past.return_to)
        assert not await feed.commit(await taken(feed, COUNT))
        assert server.command("XPENDING", "solo", "g")[0] == 0

    playing(server, play)


def _counted(delivery: Delivery) -> Settlement:
    return Settlement(delivery, effects=[(b"HINCRBY", b"counts", delivery.fields[-1], b"1")])

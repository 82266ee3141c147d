"""Ordered mode: what is told and taken while a commit is under way, fails or is repeated."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

import pytest

from headrace import NotConnected
from headrace.backends.contract import Delivery, Record, Route, Settled, Settlement, Verdict
from headrace.backends.redis import keys
from headrace.backends.redis.backend import RedisBackend
from headrace.backends.redis.node import load_script
from headrace.backends.redis.ordered import OrderedFeed
from headrace.settings import Settings
from headrace.testing.faults import Fault, Proxy
from tests.integration.test_ordered import take, worker
from tests.servers import Server

pytest_plugins = ["tests.servers"]
ONE, TWO, PLAIN = Route("one", packing=100), Route("two", partitions=2), Route("plain")
KEYS = (b"a", b"e")
"""Of different partitions."""


def body_of(delivery: Delivery) -> str:
    return delivery.fields[-1].decode()


async def publish(backend: RedisBackend, number: int) -> None:
    await backend.publish(TWO, [Record(b"%b%d" % (key, number), key=key) for key in KEYS])


def playing(server: Server, play: Callable[[RedisBackend, Proxy], Awaitable[None]]) -> None:
    async def run(proxy: Proxy) -> None:
        backend = RedisBackend(Settings(url=proxy.url))
        await backend.open()
        try:
            await play(backend, proxy)
        finally:
            await backend.aclose()

    with Proxy(server.url) as proxy:
        asyncio.run(run(proxy))


async def repeated(feed: OrderedFeed, settled: Sequence[Settled]) -> None:
    """As a worker does it."""
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(NotConnected):
                await feed.commit(settled)
                return
            await asyncio.sleep(0.01)


def test_what_was_handed_back_is_not_handed_back_again(server: Server) -> None:
    """Its key goes on behind it otherwise: the second telling is taken for the result of the second giving."""

    async def play(backend: RedisBackend, proxy: Proxy) -> None:
        feed = await worker(backend, "w", TWO)
        await publish(backend, 0)
        await publish(backend, 1)
        got = {body_of(d): d for d in await take(feed, 4)}
        early: list[Settled] = [Settlement(got["a0"], Verdict.RETURN), got["e0"]]
        advance = load_script("advance").digest
        proxy.fail(Fault.LOSE_REQUEST, when=lambda words: advance in words)
        with pytest.raises(NotConnected):
            await feed.commit(early)
        await repeated(feed, [Settlement(got["a1"], Verdict.RETURN)])  # both are there to be given out again
        await repeated(feed, early)
        for body in ("a0", "a1"):
            again = await take(feed, 1)
            assert body_of(again[0]) == body
            assert not await feed.commit(again)
        assert not await feed.commit([got["e1"]])

    playing(server, play)


def test_what_was_being_taken_of_a_lost_partition_is_not_handled(server: Server) -> None:
    """The worker may have told a failure of its key that nobody could write."""

    async def play(backend: RedisBackend, proxy: Proxy) -> None:
        feed = await worker(backend, "w", ONE)
        for entry in ((b"c0",), (b"a0", b"b0", b"a1")):
            await backend.publish(ONE, [Record(body, key=body[:1]) for body in entry])
        got = {body_of(d): d for d in await take(feed, 3)}
        assert list(got) == ["c0", "a0", "b0"]
        assert not await feed.commit([got["b0"]])  # it waits for those before it
        proxy.freeze()
        server.command("HSET", keys.group("one", "g").record, "token", "another's")
        commits = [asyncio.ensure_future(feed.commit([got["c0"]]))]
        await asyncio.sleep(0.05)
        taking = asyncio.ensure_future(feed.take(1, 0.5))
        await asyncio.sleep(0.05)
        commits.append(asyncio.ensure_future(feed.commit([Settlement(got["a0"], Verdict.RETRY)])))
        await asyncio.sleep(0.05)
        proxy.thaw()
        async with asyncio.timeout(10):
            assert sorted(map(len, await asyncio.gather(*commits))) == [0, 3]
            assert await taking == []

    playing(server, play)


def test_what_a_server_has_forgotten_is_not_settled_with_what_came_after_it(server: Server) -> None:
    """As after a failover to a replica that had the first entry only, and was given another one since."""

    async def play(backend: RedisBackend, proxy: Proxy) -> None:
        feed = await worker(backend, "w", PLAIN)
        for body in (b"a0", b"gone"):
            await backend.publish(PLAIN, [Record(body, key=b"a")])
        got = await take(feed, 2)
        proxy.cut()
        server.command("XDEL", "plain", got[1].token)
        await backend.publish(PLAIN, [Record(b"a1", key=b"a")])
        seen: list[str] = []
        async with asyncio.timeout(10):
            while seen[-1:] != ["a1"]:
                with contextlib.suppress(NotConnected):
                    more = await feed.take(1, 0.2)
                    seen += map(body_of, more)
                    got += more
        await repeated(feed, [Settlement(d, effects=[(b"HINCRBY", b"counts", d.fields[-1], b"1")]) for d in got])
        assert seen == ["a0", "a1"]
        flat = server.command("HGETALL", "counts")
        assert dict(zip(flat[::2], flat[1::2], strict=True)) == {b"a0": b"1", b"a1": b"1"}

    playing(server, play)

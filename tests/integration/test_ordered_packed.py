"""Ordered mode on topics with packed entries: an entry is settled as a whole, whatever happens in the middle of it."""

from __future__ import annotations

import asyncio

import pytest

from headrace.backends.contract import Delivery, Record, Route, Settlement
from headrace.backends.redis.backend import RedisBackend
from tests.integration.test_ordered import take, worker
from tests.playing import with_backend
from tests.servers import Server

pytest_plugins = ["tests.servers"]
PACKED = Route("orders", packing=100)
SPREAD = Route("spread", partitions=2, packing=100)


async def publish(backend: RedisBackend, route: Route, *bodies: str) -> None:
    """One entry for each partition; the key is the body's first letter."""
    await backend.publish(route, [Record(b.encode(), key=b[:1].encode()) for b in bodies])


def bodies(got: list[Delivery]) -> list[str]:
    return [d.fields[-1].decode() for d in got]


def counting(got: list[Delivery]) -> list[Settlement]:
    """Each of them counts its body with the commit."""
    return [Settlement(d, effects=[(b"HINCRBY", b"counts", d.fields[-1], b"1")]) for d in got]


def counts(server: Server) -> dict[bytes, bytes]:
    flat = server.command("HGETALL", "counts")
    return dict(zip(flat[::2], flat[1::2], strict=True))


@pytest.mark.parametrize("settled", [0, 1, 2])
def test_stopping_in_the_middle_of_an_entry_loses_nothing(server: Server, settled: int) -> None:
    async def play(backend: RedisBackend) -> None:
        await publish(backend, PACKED, "a0", "b0", "a1", "c0")
        first = await worker(backend, "first", PACKED)
        got = await take(first, 2)
        assert not await first.commit(counting(got[:settled]))
        await first.aclose()
        second = await worker(backend, "second", PACKED)
        again = await take(second, 4 - settled)
        assert sorted(bodies(again)) == sorted(["a0", "b0", "a1", "c0"][settled:])
        assert not await second.commit(counting(again))
        assert counts(server) == dict.fromkeys([b"a0", b"b0", b"a1", b"c0"], b"1")

    with_backend(server, play)


@pytest.mark.parametrize("settled_before", [True, False], ids=["settled before", "settled after"])
def test_a_partition_is_handed_over_in_the_middle_of_an_entry(server: Server, *, settled_before: bool) -> None:
    async def play(backend: RedisBackend) -> None:
        first = await worker(backend, "first", SPREAD)
        await publish(backend, SPREAD, *(f"{key}{n}" for n in range(3) for key in "abcdefgh"))
        assert backend.client.count(SPREAD) == 2
        got = await take(first, 3)  # both partitions have entries of which less than all is given out
        while not any(h.next for h in first._leases.held.values()) or len({d.batch for d in got}) < 2:
            got += await take(first, 3)
        if settled_before:
            assert not await first.commit(counting(got))
        second = await worker(backend, "second", SPREAD)
        while not any(h.leaving for h in first._leases.held.values()) and len(first._leases.held) == 2:
            await asyncio.sleep(0.01)
        if not settled_before:
            assert not await first.commit(counting(got))
        async with asyncio.timeout(20):
            while len(counts(server)) < 24:
                for feed in (first, second):
                    more = await feed.take(5, 0.1)
                    assert not await feed.commit(counting(list(more)))
        assert set(counts(server).values()) == {b"1"}
        assert len(first._leases.held) == len(second._leases.held) == 1

    with_backend(server, play)


def test_one_by_one_goes_through_an_entry(server: Server) -> None:
    """As after two deaths."""

    async def play(backend: RedisBackend) -> None:
        await publish(backend, PACKED, "a0", "b0", "a1")
        feed = await worker(backend, "w", PACKED)
        (holding,) = feed._leases.held.values()
        holding.careful = 10
        for body in ("a0", "b0", "a1"):
            got = await take(feed, 1)
            assert bodies(got) == [body]
            assert not await feed.commit(counting(got))
        assert counts(server) == dict.fromkeys([b"a0", b"b0", b"a1"], b"1")

    with_backend(server, play)

"""A shared group on several partitions: one of them fails while others have something to give."""

from __future__ import annotations

import asyncio

import pytest

from headrace import NotConnected
from headrace.backends.contract import Delivery, Record, Route, Subscription
from headrace.backends.redis.backend import RedisBackend
from headrace.backends.redis.fan_in import FanIn
from headrace.settings import Settings
from tests.servers import Server


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_what_the_others_brought_is_given_out_though_a_partition_fails(server: Server, failing: int) -> None:
    async def run() -> None:
        backend = RedisBackend(Settings(url=server.url))
        await backend.open()
        orders = Route("orders", partitions=3)
        await backend.publish(orders, [Record(b"%d" % n, key=b"k%d" % n) for n in range(30)])
        feed = await backend.subscribe(Subscription(orders, "g", "w"))
        assert isinstance(feed, FanIn)
        broken = feed._feeds[f"orders.{failing}"]
        works = broken.take
        fails = 1

        async def take(limit: int, wait_s: float) -> object:
            nonlocal fails
            if fails:
                fails -= 1
                await asyncio.sleep(0.1)  # the others have answered by then
                raise NotConnected("cut")
            return await works(limit, wait_s)

        broken.take = take  # type: ignore[assignment,method-assign]
        got: list[Delivery] = []
        for _ in range(10):
            try:
                got += await feed.take(300, 0)
            except NotConnected:
                continue
        assert sorted(d.fields[-1] for d in got) == sorted(b"%d" % n for n in range(30))
        assert not fails
        await backend.aclose()

    asyncio.run(run())

"""What a publisher does when the server is full, absent, hangs or forgets: it goes on as long as it said, and no longer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from headrace import Overloaded
from headrace.backends.contract import Record, Route
from headrace.backends.redis.backend import RedisBackend
from headrace.settings import Settings
from tests.servers import Server

pytest_plugins = ["tests.servers"]
ORDERS = Route("orders")


def bodies(server: Server, key: str = "orders") -> list[bytes]:
    return [fields[-1] for _, fields in server.command("XRANGE", key, "-", "+")]


def records(count: int, first: int = 0) -> list[Record]:
    return [Record(b"%d" % i) for i in range(first, first + count)]


def playing(server: Server, play: Any, **settings: Any) -> None:
    async def run() -> None:
        backend = RedisBackend(Settings(url=server.url, **{"publish_wait_s": 5.0, **settings}))
        await backend.open()
        try:
            await play(backend)
        finally:
            await backend.aclose()

    asyncio.run(run())


@pytest.mark.parametrize("together", [True, False], ids=["one call of many", "many calls at once"])
def test_a_small_topic_is_filled_to_its_cap(server: Server, *, together: bool) -> None:
    """Though more is published at once than fits into it."""

    async def play(backend: RedisBackend) -> None:
        route = Route("orders", cap_events=100)
        await backend.client.register(route)
        calls = [records(150)] if together else [records(1, n) for n in range(150)]
        ended = await asyncio.gather(*(backend.publish(route, call) for call in calls), return_exceptions=True)
        assert [type(e) for e in ended if e is not None] == [Overloaded] * (1 if together else 50)
        assert bodies(server) == [b"%d" % n for n in range(100)]

    playing(server, play, publish_wait_s=0.3)

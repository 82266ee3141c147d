"""What a publisher does when the server is full, absent, hangs or forgets: it goes on as long as it said, and no longer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest

from headrace import NotConnected, Overloaded, Refused
from headrace.backends.contract import Record, Route
from headrace.backends.redis.backend import RedisBackend
from headrace.backends.redis.node import Script
from tests.playing import bodies, records, with_backend
from tests.servers import Server

pytest_plugins = ["tests.servers"]
ORDERS = Route("orders")


def playing(server: Server, play: Any, **settings: Any) -> None:
    with_backend(server, play, **{"publish_wait_s": 5.0, **settings})


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


@pytest.mark.parametrize("partitions", [1, 4])
def test_a_topic_that_nobody_reads_makes_room_for_its_publishers_and_says_nothing(
    server: Server, caplog: pytest.LogCaptureFixture, partitions: int
) -> None:
    async def play(backend: RedisBackend) -> None:
        route = Route("orders", partitions, cap_events=2_000, retain_events=100, keep_for_first_group=False)
        await asyncio.gather(*(backend.publish(route, records(500)) for _ in range(40)))

    playing(server, play)
    assert not caplog.records


async def gave_up(calls: Sequence[Any]) -> list[float]:
    """When each of the calls ended with NotConnected, in seconds from now."""
    start = time.monotonic()

    async def one(call: Any) -> float:
        with pytest.raises(NotConnected):
            await call
        return time.monotonic() - start

    return await asyncio.gather(*(one(call) for call in calls))


HANGING = {"publish_wait_s": 1.0, "request_s": 1.0, "connect_s": 1.0}


def test_a_server_that_hangs_is_waited_for_once_and_not_once_for_each_batch(server: Server) -> None:
    async def play(backend: RedisBackend) -> None:
        await backend.publish(ORDERS, records(1))
        server.pause()
        ends = await gave_up([backend.publish(ORDERS, records(500)) for _ in range(10)])
        assert max(ends) < 6, "ten batches"
        server.resume()
        await backend.publish(ORDERS, [Record(b"last")])
        assert bodies(server)[-1] == b"last"

    playing(server, play, **HANGING)


def test_a_server_that_hangs_is_waited_for_once_and_not_once_for_each_first_call(server: Server) -> None:
    async def play(backend: RedisBackend) -> None:
        server.pause()
        backend.client.drop(b"orders")
        ends = await gave_up([backend.publish(ORDERS, records(1)) for _ in range(10)])
        assert max(ends) < 6, "ten calls"
        server.resume()
        await backend.publish(ORDERS, [Record(b"last")])
        assert bodies(server)[-1] == b"last"

    playing(server, play, **HANGING)


def test_one_that_comes_late_to_an_outage_has_time_of_its_own(server: Server) -> None:
    async def play(backend: RedisBackend) -> None:
        await backend.publish(ORDERS, records(1))
        server.kill()
        first = asyncio.ensure_future(gave_up([backend.publish(ORDERS, records(1, 1))]))
        await asyncio.sleep(0.1)
        second = asyncio.ensure_future(gave_up([backend.publish(ORDERS, records(1, 2))]))
        await asyncio.sleep(3.0)
        late = asyncio.ensure_future(
            backend.publish(ORDERS, [Record(b"late")])
        )  # not with the second, which waits to be sent
        await first
        await second
        assert not late.done()
        server.start()
        await late
        assert bodies(server) == [b"0", b"late"]

    playing(server, play, publish_wait_s=4.0)


def test_a_script_that_cannot_be_loaded_is_given_up_after_the_wait(server: Server) -> None:
    """As behind a proxy that leads each call to another server."""

    async def connections() -> int:
        said = server.command("INFO", "stats").decode()
        return int(said.partition("total_connections_received:")[2].split()[0])

    async def play(backend: RedisBackend) -> None:
        backend.client.scripts["publish"] = Script("publish", "return 1", b"0" * 40)
        before = await connections()
        with pytest.raises(Refused, match="does not know the script"):
            await asyncio.wait_for(backend.publish(ORDERS, records(1)), 10)
        assert await connections() - before < 40

    playing(server, play, publish_wait_s=1.0)

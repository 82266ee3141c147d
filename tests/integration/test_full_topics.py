"""Commits to topics that are full: they make the room that they need, and no more than helps."""

from __future__ import annotations

from typing import Any

import pytest

from headrace import Overloaded
from headrace.backends.contract import Record, Route, Settlement, Subscription
from headrace.backends.redis.backend import RedisBackend
from tests.playing import records, with_backend
from tests.servers import Server

pytest_plugins = ["tests.servers"]
ORDERS = Route("orders")


async def settle(backend: RedisBackend, full: Route, outputs: tuple[int, ...], *, ordered: bool) -> None:
    """One commit of events that publish so many to a topic which has 400 events. Raises as commit does."""
    feed = await backend.subscribe(Subscription(ORDERS, "g", "w", ordered=ordered))
    await backend.publish(ORDERS, records(len(outputs)))
    await backend.publish(full, records(400))
    taken: list[Any] = []
    while len(taken) < len(outputs):
        taken += await feed.take(10, 1.0)
    settled = [
        Settlement(one, outputs=[(full, Record(b"new"))] * count) for one, count in zip(taken, outputs, strict=True)
    ]
    try:
        assert not await feed.commit(settled)
    finally:
        await feed.aclose()


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("outputs", [(490, 600), (600, 490), (1,) * 1_500, (1, 1, 990)])
def test_together_they_would_not_fit(server: Server, outputs: tuple[int, ...], *, ordered: bool) -> None:
    async def play(backend: RedisBackend) -> None:
        full = Route("full", cap_events=1_000, retain_events=950, keep_for_first_group=False)
        await settle(backend, full, outputs, ordered=ordered)
        assert 600 <= int(server.command("XLEN", "full")) <= 1_000

    with_backend(server, play)


@pytest.mark.parametrize("ordered", [False, True])
def test_what_never_fits_takes_nothing_away(server: Server, *, ordered: bool) -> None:
    async def play(backend: RedisBackend) -> None:
        full = Route("full", cap_events=1_000, retain_events=950, keep_for_first_group=False)
        with pytest.raises(Overloaded, match="full is at its cap of 1000"):
            await settle(backend, full, (1_001,), ordered=ordered)
        assert server.command("XLEN", "full") == 400

    with_backend(server, play)


@pytest.mark.parametrize("keep", [True, False])
def test_what_a_destroyed_group_had_not_settled(server: Server, *, keep: bool) -> None:
    """It stays, unless nobody is waited for and the topic reaches its cap."""

    async def play(backend: RedisBackend) -> None:
        full = Route("full", cap_events=1_000, retain_events=100, keep_for_first_group=keep)
        feed = await backend.subscribe(Subscription(full, "g", "w"))
        await feed.aclose()
        await backend.publish(full, records(1_000))
        with pytest.raises(Overloaded):
            await backend.publish(full, records(1))
        assert server.command("XGROUP", "DESTROY", "full", "g") == 1
        if keep:
            with pytest.raises(Overloaded):
                await backend.publish(full, records(1))
        else:
            await backend.publish(full, records(1))
        assert (int(server.command("XLEN", "full")) == 1_000) is keep

    with_backend(server, play, publish_wait_s=0.3)


def test_one_publisher_that_waits_for_nobody_makes_room_for_the_others(server: Server) -> None:
    async def play(backend: RedisBackend) -> None:
        full = Route("full", cap_events=1_000, retain_events=100)
        await backend.publish(full, records(1_000))
        with pytest.raises(Overloaded):
            await backend.publish(full, records(1))
        other = RedisBackend(backend.client.settings)
        await other.open()
        await other.publish(Route("full", cap_events=1_000, retain_events=100, keep_for_first_group=False), records(1))
        await other.aclose()
        await backend.publish(full, records(1))

    with_backend(server, play, publish_wait_s=0.3)

"""The memory that the advice computes is what a server takes: the two scenarios whose choice can be measured here."""

from __future__ import annotations

import asyncio

import pytest

from headrace import Headrace
from headrace.stack import facts
from headrace.stack.capacity import capacity, load_of
from headrace.stack.manifest import Rates, Requirements
from headrace.stack.quantity import Duration, Rate, Size
from tests.servers import Server

pytest_plugins = ["tests.servers"]
_EVENTS = 20_000


@pytest.mark.parametrize(
    ("payload", "retention", "ordering"),
    [("1KB", "6h", "none"), ("300B", "1h", "per-key")],
    ids=["1000/s for 6 h", "2000/s for 1 h, in order"],
)
def test_the_memory_of_kept_events(server: Server, payload: str, retention: str, ordering: str) -> None:
    requirements = Requirements(
        rate=Rates(Rate(_EVENTS / Duration.parse(retention))),
        payload=Size.parse(payload),
        retention=Duration.parse(retention),
        ordering="per-key" if ordering == "per-key" else "none",
    )
    computed = capacity(load_of(requirements), facts.load())
    assert computed.events_kept == pytest.approx(_EVENTS, rel=0.01)

    async def publish() -> None:
        async with Headrace(server.url) as app:
            topic = app.topic("orders", bytes, key=(lambda body: body[:4].decode()) if ordering == "per-key" else None)
            await topic.publish_many(b"%04d" % (n % 1_000) + b"x" * (Size.parse(payload) - 4) for n in range(_EVENTS))

    asyncio.run(publish())
    taken = int(server.command("MEMORY", "USAGE", "orders", "SAMPLES", 0))
    assert computed.memory == pytest.approx(taken, rel=0.25)

"""A durable server per test module, and a topic with events in every state."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from headrace import backends, settings
from headrace.backends.contract import Record, Route, Settlement, Subscription, Verdict
from tests.servers import Server, require


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Server]:
    """One server for the tests of a module."""
    require("valkey")
    with Server("valkey") as it:
        yield it


@pytest.fixture
def cli_server(shared_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """That server, empty, and chosen by the environment."""
    shared_server.start()
    shared_server.command("FLUSHALL")
    monkeypatch.setenv("HEADRACE_URL", shared_server.url)
    monkeypatch.delenv("HEADRACE_DURABILITY", raising=False)
    return shared_server


@pytest.fixture
def orders(cli_server: Server) -> Server:
    """The topic `orders`: seven events, of which group `billing` has handled 2, buried 2, holds 1, and has not read 2."""
    asyncio.run(_fill(cli_server.url))
    cli_server.command("XREADGROUP", "GROUP", "billing", "w1/0", "COUNT", 1, "STREAMS", "orders", ">")
    return cli_server


async def _fill(url: str) -> None:
    backend = await backends.connect(settings.load(url))
    route = Route("orders")
    await backend.publish(route, [Record(b'{"n":%d}' % n, b"Order", b"ann", b"order-%d" % n) for n in range(7)])
    feed = await backend.subscribe(Subscription(route, "billing", "w0"))
    taken = await feed.take(4, 5.0)
    assert len(taken) == 4
    buried = (Settlement(delivery, Verdict.DEAD, reason=b"bad amount") for delivery in taken[2:])
    assert not await feed.commit([*taken[:2], *buried])
    await feed.aclose()
    await backend.aclose()

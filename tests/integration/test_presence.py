"""A worker that cannot say that it lives does not go on as if it did."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from msgspec import Struct

from headrace import Headrace
from headrace.backends.contract import Route, Subscription
from headrace.backends.redis.client import Client
from headrace.backends.redis.membership import Membership
from headrace.backends.redis.presence import Presence
from headrace.backends.redis.replies import ServerSaid
from headrace.runtime.signals import Stop
from headrace.runtime.worker import serve
from headrace.settings import Settings
from tests.servers import Server

pytest_plugins = ["tests.servers"]


class Job(Struct):
    n: int


@pytest.mark.parametrize("partitions", [1, 2])
def test_a_heartbeat_that_fails_in_an_unforeseen_way_ends_the_worker(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, partitions: int
) -> None:
    async def broken(*_: Any) -> None:
        raise ZeroDivisionError("a bug")

    async def play() -> None:
        app = Headrace(server.url, lease_s=0.6)

        @app.topic("jobs", Job, partitions=partitions).subscribe("g")
        async def handle(job: Job) -> None: ...

        monkeypatch.setattr(Presence, "_beat", broken)
        async with asyncio.timeout(20):
            with pytest.raises(RuntimeError, match="not closed by its worker"):
                await serve(app, Stop())

    asyncio.run(play())
    assert "the heartbeat failed in an unforeseen way" in caplog.text
    assert "the feed failed in an unforeseen way; this worker ends" in caplog.text


def test_a_membership_that_fails_in_an_unforeseen_way_goes_on(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    look, looks = Membership._look, list[str]()

    async def sometimes_broken(self: Membership, how: str) -> tuple[bytes, float]:
        looks.append(how)
        if len(looks) == 2:
            raise ZeroDivisionError("a bug")
        return await look(self, how)

    async def play() -> None:
        app = Headrace(server.url, lease_s=0.6)

        @app.topic("jobs", Job, key="n").subscribe("g", ordered=True)
        async def handle(job: Job) -> None: ...

        monkeypatch.setattr(Membership, "_look", sometimes_broken)
        stop = Stop()
        worker = asyncio.ensure_future(serve(app, stop))
        async with asyncio.timeout(20):
            while len(looks) < 4:
                await asyncio.sleep(0.02)
            stop.ask()
            assert await worker is None

    asyncio.run(play())
    assert "the membership failed in an unforeseen way; it goes on" in caplog.text


class Refusing(Client):
    """A server that does not let this worker renew its lease for a while."""

    def __init__(self) -> None:
        super().__init__(Settings(url="unix:///nowhere"))
        self.calls = 0

    async def call(self, *_: Any) -> Any:
        self.calls += 1
        if self.calls < 5:
            raise ServerSaid("NOPERM", "not now")
        return [-1, 0, 1_000_000]


class Feed:
    committed = 0

    def look_around(self) -> None: ...

    def sweep(self) -> None: ...

    def abandon(self) -> None: ...


def test_a_heartbeat_that_was_refused_is_none(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "headrace")

    async def play() -> None:
        client = Refusing()
        presence = Presence(client, Subscription(Route("jobs"), "g", "w", lease_s=0.3), "jobs", Feed())
        presence.start()
        async with asyncio.timeout(10):
            while "was silent for" not in caplog.text:
                assert client.calls < 8, "it has said so with the first that was answered"
                await asyncio.sleep(0.01)
        presence.stop()
        await client.aclose()

    asyncio.run(play())

"""One worker with several groups, and what it leaves when it is stopped early."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from msgspec import Struct

from headrace import Closed, Headrace, limits
from headrace.runtime import pruning
from headrace.runtime.signals import Stop
from headrace.runtime.worker import serve
from headrace.topic import Group
from tests.servers import Server

pytest_plugins = ["tests.servers"]


class Job(Struct):
    n: int


def test_threads_of_one_group_that_hang_keep_none_from_another(server: Server) -> None:
    async def play() -> None:
        app, release, hanging, handled = Headrace(server.url), threading.Event(), set[int](), set[int]()
        slow, quick = app.topic("slow", Job), app.topic("quick", Job)

        @slow.subscribe("g", lanes=4)
        def hang(job: Job) -> None:
            hanging.add(job.n)
            release.wait(60)

        @quick.subscribe("g", lanes=4)
        def handle(job: Job) -> None:
            handled.add(job.n)

        async with Headrace(server.url) as publisher:
            await publisher.topic("slow", Job).publish_many(Job(n) for n in range(4))
        stop = Stop()
        worker = asyncio.ensure_future(serve(app, stop))
        async with asyncio.timeout(20):
            while len(hanging) < 4:
                await asyncio.sleep(0.02)
            async with Headrace(server.url) as publisher:
                await publisher.topic("quick", Job).publish_many(Job(n) for n in range(20))
            while len(handled) < 20:
                await asyncio.sleep(0.02)
            release.set()
            stop.ask()
            assert await worker is None

    asyncio.run(play())


def test_a_stop_while_it_connects_leaves_no_connection(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> None:
        app, stop = Headrace(server.url), Stop()

        @app.topic("jobs", Job).subscribe("g")
        async def handle(job: Job) -> None: ...

        connect = Headrace.connect

        async def and_stop(self: Headrace) -> None:
            await connect(self)
            stop.ask()

        monkeypatch.setattr(Headrace, "connect", and_stop)
        async with asyncio.timeout(10):
            assert await serve(app, stop) is None
        with pytest.raises(Closed):
            app.backend()

    asyncio.run(play())


def test_pruning_that_fails_in_an_unforeseen_way_is_seen_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "prune_s", 0.01)
    calls = list[str]()

    async def broken(group: Group, *_: Any) -> int:
        calls.append(group.name)
        raise ZeroDivisionError("a bug")

    async def play() -> None:
        app = Headrace("redis://nowhere")
        inbox: Any = object()

        @app.topic("jobs", Job).subscribe("g")
        async def handle(job: Job) -> None: ...

        app.groups["jobs", "g"].inbox = inbox
        monkeypatch.setattr(pruning, "prune", broken)
        task = asyncio.ensure_future(pruning.prune_always(app.groups.values(), app.settings))
        async with asyncio.timeout(10):
            while len(calls) < 3 and not task.done():
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(play())
    assert len(calls) >= 3
    assert "ZeroDivisionError: a bug" in caplog.text

"""One worker with several groups, and what it leaves when it is stopped early."""

from __future__ import annotations

import asyncio
import threading

import pytest
from msgspec import Struct

from headrace import Closed, Headrace
from headrace.runtime.signals import Stop
from headrace.runtime.worker import serve
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

"""A machine that has no time for the event loop: no event is left in nobody's hands."""

from __future__ import annotations

import asyncio
import time

import pytest
from msgspec import Struct

from headrace import Headrace
from headrace.observe import LogObserver
from headrace.runtime.signals import Stop
from headrace.runtime.worker import serve
from tests.servers import Server

pytest_plugins = ["tests.servers"]
COUNT = 200


class Job(Struct):
    n: int


@pytest.mark.parametrize("ordered", [False, True], ids=["shared", "ordered"])
def test_a_lane_that_waits_for_its_turn_is_not_cancelled_for_its_last_handler(server: Server, *, ordered: bool) -> None:
    async def play() -> None:
        app, handled = Headrace(server.url), set[int]()
        jobs = app.topic("jobs", Job, key="n")

        @jobs.subscribe("g", ordered=ordered, lanes=8, timeout_s=0.2)
        async def handle(job: Job) -> None:
            await asyncio.sleep(0)
            time.sleep(0.003)  # longer than a turn
            handled.add(job.n)

        async def stall() -> None:
            while True:
                await asyncio.sleep(0.05)
                time.sleep(0.25)

        async with Headrace(server.url) as publisher:
            await publisher.topic("jobs", Job, key="n").publish_many(Job(n) for n in range(COUNT))
        stop = Stop()
        worker, stalling = asyncio.ensure_future(serve(app, stop)), asyncio.ensure_future(stall())
        async with asyncio.timeout(30):
            while len(handled) < COUNT:
                await asyncio.sleep(0.05)
        stalling.cancel()
        stop.ask()
        assert await worker is None

    asyncio.run(play())


class Blocked(LogObserver):
    def __init__(self) -> None:
        self.groups = list[str]()

    def blocked(self, topic: str, group: str, handler: str, seconds: float) -> None:
        self.groups.append(group)


@pytest.mark.parametrize("waits_s", [0.0, 0.8], ids=["at once", "after it has waited"])
def test_only_who_was_at_work_is_said_to_block(server: Server, waits_s: float) -> None:
    async def play() -> None:
        app, observer, done = Headrace(server.url), Blocked(), asyncio.Event()

        @app.topic("guilty", Job).subscribe("guilty")
        async def block(job: Job) -> None:
            await asyncio.sleep(waits_s)
            time.sleep(1.8)
            done.set()

        @app.topic("idle", Job).subscribe("idle")
        async def handle(job: Job) -> None: ...

        async with Headrace(server.url) as publisher:
            stop = Stop()
            worker = asyncio.ensure_future(serve(app, stop, observer))
            async with asyncio.timeout(20):
                while not server.command("EXISTS", "{idle}:group:idle"):
                    await asyncio.sleep(0.02)
                await publisher.topic("guilty", Job).publish(Job(1))
                await done.wait()
                while not observer.groups:
                    await asyncio.sleep(0.02)
                stop.ask()
                assert await worker is None
        assert observer.groups == ["guilty"]

    asyncio.run(play())

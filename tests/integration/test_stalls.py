"""A machine that has no time for the event loop: no event is left in nobody's hands."""

from __future__ import annotations

import asyncio
import time

import pytest
from msgspec import Struct

from headrace import Headrace
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

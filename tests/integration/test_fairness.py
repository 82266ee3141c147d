"""Several kinds of work in one worker share it: groups, slow and fast handlers, retries and new events, small events and large ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import groupby

import pytest
from msgspec import Struct

from headrace import Context, Headrace, Retry, limits
from headrace.backends.contract import Record, Route, Subscription
from headrace.backends.redis.backend import RedisBackend
from headrace.runtime.signals import Stop
from headrace.runtime.worker import serve
from headrace.settings import Settings
from tests.servers import Server, require


class Job(Struct):
    n: int
    wait_s: float = 0.0
    fails: bool = False


@pytest.fixture(name="live")
def _live() -> Iterator[Server]:
    require("valkey")
    with Server("valkey") as server:
        yield server


@asynccontextmanager
async def served(app: Headrace) -> AsyncIterator[None]:
    stop = Stop()
    worker = asyncio.ensure_future(serve(app, stop))
    try:
        yield
    finally:
        stop.ask()
        await worker


async def reached(done: asyncio.Event) -> None:
    async with asyncio.timeout(60):
        await done.wait()


def spin(seconds: float) -> None:
    """Work that never waits."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def test_groups_that_never_wait_take_turns(live: Server) -> None:
    """A turn is 2 ms, so 10 events of 0.2 ms; who has to wait for a read meanwhile waits for a few turns of the other."""

    async def play() -> list[str]:
        app = Headrace(live.url)
        first, second = app.topic("first", Job), app.topic("second", Job)
        order: list[str] = []
        done = asyncio.Event()

        def handled(name: str) -> None:
            spin(0.0002)
            order.append(name)
            if len(order) == 4_000:
                done.set()

        @first.subscribe("g")
        async def one(job: Job) -> None:
            handled("first")

        @second.subscribe("g")
        async def two(job: Job) -> None:
            handled("second")

        async with app:
            for topic in (first, second):
                await topic.publish_many(Job(n) for n in range(2_000))
            async with served(app):
                await reached(done)
        return order

    order = asyncio.run(play())
    both = order[: max(i for i, name in enumerate(order) if name != order[-1]) + 1]  # while there was work for both
    longest = max(len(list(run)) for _, run in groupby(both))
    assert longest <= 200, f"one group was handled {longest} times in a row while the other waited"
    share = both.count("first") / len(both)
    assert 0.3 < share < 0.7, f"the first of two equal groups got {share:.0%} of the turns"


def test_a_lone_event_passes_a_flood(live: Server) -> None:
    async def play() -> int:
        app = Headrace(live.url)
        flood, rare = app.topic("flood", Job), app.topic("rare", Job)
        left = 30_000
        passed, drained = asyncio.Event(), asyncio.Event()

        @flood.subscribe("g")
        async def many(job: Job) -> None:
            nonlocal left
            spin(0.00005)
            left -= 1
            if not left:
                drained.set()

        @rare.subscribe("g")
        async def few(job: Job) -> None:
            passed.set()

        async with app:
            await flood.publish_many(Job(n) for n in range(left))
            async with served(app):
                while left > 29_000:
                    await asyncio.sleep(0)
                await rare.publish(Job(0))
                await reached(passed)
                behind = left
                await reached(drained)
        return behind

    behind = asyncio.run(play())
    assert behind > 10_000, f"when the lone event was handled only {behind} of the flood were left"


def test_slow_handlers_do_not_hold_up_fast_ones(live: Server) -> None:
    """50 of 100 lanes wait for something; the events behind them are handled and committed meanwhile."""

    async def play() -> None:
        app = Headrace(live.url)
        jobs = app.topic("jobs", Job)
        release, fast, all_done = asyncio.Event(), asyncio.Event(), asyncio.Event()
        slow = quick = 0

        @jobs.subscribe("g")
        async def handle(job: Job) -> None:
            nonlocal slow, quick
            if job.wait_s:
                await release.wait()
                slow += 1
            else:
                quick += 1
                if quick == 5_000:
                    fast.set()
            if slow + quick == 5_050:
                all_done.set()

        async with app:
            await jobs.publish_many(Job(n, wait_s=float(n < 50)) for n in range(5_050))
            async with served(app):
                await reached(fast)
                assert not slow
                async with asyncio.timeout(30):
                    while live.command("XPENDING", "jobs", "g")[0] != 50:
                        await asyncio.sleep(0.01)
                release.set()
                await reached(all_done)

    asyncio.run(play())


def test_a_flood_of_retries_does_not_starve_new_events(live: Server) -> None:
    async def play() -> int:
        app = Headrace(live.url)
        jobs = app.topic("jobs", Job)
        fresh = asyncio.Event()
        failures = new = 0

        @jobs.subscribe("g", retry=Retry(attempts=1_000, first_s=0.001, max_s=0.001))
        async def handle(job: Job, ctx: Context) -> None:
            nonlocal failures, new
            if job.fails and not fresh.is_set():
                failures += 1
                raise ValueError("again")
            if not job.fails:
                new += 1
                if new == 2_000:
                    fresh.set()

        async with app:
            await jobs.publish_many(Job(n, fails=True) for n in range(500))
            async with served(app):
                while failures < 2_000:
                    await asyncio.sleep(0.01)
                await jobs.publish_many(Job(n) for n in range(2_000))
                await reached(fresh)
        return failures

    assert asyncio.run(play()) < 100_000


def test_large_events_are_not_read_by_the_thousand(live: Server) -> None:
    """The first read, which knows nothing, is of a few; after it a read brings about `read_bytes`."""

    async def play() -> list[int]:
        backend = RedisBackend(Settings(url=live.url))
        await backend.open()
        try:
            route, body = Route("large"), b"x" * limits.body_bytes_max
            for _ in range(40):
                await backend.publish(route, [Record(body)])
            feed = await backend.subscribe(Subscription(route, "g", "w"))
            reads: list[int] = []
            while sum(reads) < 40:
                took = await feed.take(limits.first_read_records if not reads else limits.read_records_max, 1.0)
                reads.append(len(took))
                assert not await feed.commit(took)
            return reads
        finally:
            await backend.aclose()

    reads = asyncio.run(play())
    assert reads[0] <= limits.first_read_records
    assert max(reads[1:]) <= limits.read_bytes // limits.body_bytes_max, reads

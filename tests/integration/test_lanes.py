"""However a handler ends, its lane does not stand still unnoticed, and keeps no worker from stopping."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from msgspec import Struct

from headrace import Context, Headrace, Retry, limits
from headrace.runtime.execute import Executor
from headrace.runtime.signals import Stop
from headrace.runtime.worker import serve
from tests.servers import Server

pytest_plugins = ["tests.servers"]


class Job(Struct):
    n: int


async def publish(server: Server, *numbers: int) -> None:
    async with Headrace(server.url) as app:
        await app.topic("jobs", Job, key="n").publish_many(Job(n) for n in numbers)


@pytest.mark.parametrize("ordered", [False, True], ids=["shared", "ordered"])
@pytest.mark.parametrize("batched", [False, True], ids=["single", "batch"])
def test_a_lane_that_fails_ends_the_worker(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, ordered: bool, batched: bool
) -> None:
    async def broken(*_: Any) -> None:
        raise ZeroDivisionError("a bug")

    async def play() -> None:
        app = Headrace(server.url)
        jobs = app.topic("jobs", Job, key="n")

        async def handle(job: Job) -> None: ...

        async def handle_batch(batch: list[Job]) -> None: ...

        jobs.subscribe("g", ordered=ordered)(handle_batch if batched else handle)
        await publish(server, *range(20))
        monkeypatch.setattr(Executor, "execute_batch" if batched else "execute", broken)
        async with asyncio.timeout(20):
            with pytest.raises(ZeroDivisionError):
                await serve(app, Stop())

    asyncio.run(play())
    assert "a lane failed in an unforeseen way; this worker ends" in caplog.text
    if not ordered:
        assert server.command("XPENDING", "jobs", "g")[0] == 0, "handed back"


@pytest.mark.parametrize("ordered", [False, True], ids=["shared", "ordered"])
def test_a_handler_that_cancels_its_own_task_fails_alone(server: Server, *, ordered: bool) -> None:
    async def play() -> None:
        app, handled, attempts = Headrace(server.url), set[int](), list[int]()
        jobs = app.topic("jobs", Job, key="n")

        @jobs.subscribe("g", ordered=ordered, lanes=2, retry=Retry(attempts=3, first_s=0.02, jitter=0.0))
        async def handle(job: Job, ctx: Context) -> None:
            if job.n == 0:
                attempts.append(ctx.attempt)
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                await asyncio.sleep(1)
            handled.add(job.n)

        await publish(server, *range(20))
        stop = Stop()
        worker = asyncio.ensure_future(serve(app, stop))
        async with asyncio.timeout(20):
            while len(handled) < 19 or server.command("XLEN", "{jobs}:dead:g") < 1:
                await asyncio.sleep(0.02)
        stop.ask()
        assert await worker is None
        assert attempts == [1, 2, 3]

    asyncio.run(play())


@pytest.mark.parametrize("ordered", [False, True], ids=["shared", "ordered"])
@pytest.mark.parametrize("batched", [False, True], ids=["single", "batch"])
@pytest.mark.parametrize("how", ["returns", "raises", "ignores it"])
def test_a_handler_that_keeps_its_cancellation_to_itself_does_not_keep_the_worker(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    how: str,
    *,
    ordered: bool,
    batched: bool,
) -> None:
    monkeypatch.setattr(limits, "stop_s", 0.2)
    monkeypatch.setattr(limits, "abandon_s", 0.5)

    async def play() -> None:
        app, began, release = Headrace(server.url), asyncio.Event(), asyncio.Event()
        jobs = app.topic("jobs", Job, key="n")
        attempts = list[int]()

        async def hold(attempt: int) -> None:
            attempts.append(attempt)
            began.set()
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    if how == "raises":
                        raise RuntimeError("the connection is gone") from None
                    if how == "returns":
                        return

        async def handle(job: Job, ctx: Context) -> None:
            await hold(ctx.attempt)

        async def handle_batch(batch: list[Job], contexts: list[Context]) -> None:
            await hold(contexts[0].attempt)

        jobs.subscribe("g", ordered=ordered)(handle_batch if batched else handle)
        await publish(server, 1)
        stop = Stop()
        worker = asyncio.ensure_future(serve(app, stop))
        async with asyncio.timeout(10):
            await began.wait()
            stop.ask()
            assert await worker is None
        assert ("left alone" in caplog.text) == (how == "ignores it")
        began.clear()
        caplog.clear()
        worker = asyncio.ensure_future(serve(app, stop := Stop()))
        async with asyncio.timeout(10):
            await began.wait()  # at once: it was handed back
            release.set()
            stop.ask()
            assert await worker is None
        assert attempts == [1, 1], "what a handler that was cut off makes of it does not count"

    caplog.set_level(logging.WARNING, "headrace")
    asyncio.run(play())

"""A worker that cannot settle what it handled ends and hands it back: it would hold it for as long as it lives."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec import Struct

from headrace import Context, Headrace, limits
from headrace.backends.redis.committer import Committer
from headrace.backends.redis.replies import ServerSaid
from headrace.errors import BackendError
from headrace.runtime.signals import Stop
from headrace.runtime.worker import serve
from headrace.testing.faults import Proxy
from tests.servers import Server

pytest_plugins = ["tests.servers"]


class Job(Struct):
    n: int


@pytest.mark.parametrize("why", [ServerSaid("ERR", "the server says no"), ZeroDivisionError("a bug")], ids=repr)
def test_a_commit_that_cannot_be_made_ends_the_worker(
    server: Server, monkeypatch: pytest.MonkeyPatch, why: Exception
) -> None:
    def app() -> Headrace:
        app = Headrace(server.url)
        jobs = app.topic("jobs", Job)

        @jobs.subscribe("g")
        async def handle(job: Job, ctx: Context) -> None:
            ctx.redis.hincrby("counts", str(job.n), 1)

        return app

    async def broken(*_: Any) -> None:
        raise why

    async def play() -> None:
        async with app() as publisher:
            await publisher.topics["jobs"].publish_many([Job(n) for n in range(20)])
        with monkeypatch.context() as patched:
            patched.setattr(Committer, "_send", broken)
            async with asyncio.timeout(20):
                if isinstance(why, BackendError):
                    assert await serve(app(), Stop()) is why
                else:
                    with pytest.raises(type(why)):
                        await serve(app(), Stop())
        assert server.command("XPENDING", "jobs", "g")[0] == 0, "handed back"
        stop = Stop()
        worker = asyncio.ensure_future(serve(app(), stop))
        async with asyncio.timeout(20):
            while server.command("HLEN", "counts") < 20:
                await asyncio.sleep(0.02)
        stop.ask()
        assert await worker is None
        assert set(server.command("HVALS", "counts")) == {b"1"}

    asyncio.run(play())


@pytest.mark.parametrize("ordered", [False, True], ids=["shared", "ordered"])
def test_a_worker_ends_although_the_server_does_not_answer(
    server: Server, monkeypatch: pytest.MonkeyPatch, *, ordered: bool
) -> None:
    monkeypatch.setattr(limits, "stop_s", 0.2)
    monkeypatch.setattr(limits, "leave_s", 0.2)

    async def play(proxy: Proxy) -> None:
        app, began = Headrace(proxy.url), asyncio.Event()
        jobs = app.topic("jobs", Job, key="n")

        @jobs.subscribe("g", ordered=ordered)
        async def handle(job: Job) -> None:
            began.set()
            await asyncio.sleep(60)

        async with Headrace(server.url) as publisher:
            await publisher.topic("jobs", Job, key="n").publish(Job(1))
        stop = Stop()
        worker = asyncio.ensure_future(serve(app, stop))
        async with asyncio.timeout(10):
            await began.wait()
            proxy.freeze()
            stop.ask()
            await worker

    with Proxy(server.url) as proxy:
        asyncio.run(play(proxy))

"""A worker that cannot settle what it handled ends and hands it back: it would hold it for as long as it lives."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from msgspec import Struct

from headrace import Context, Headrace, Retry, limits
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


def test_an_event_whose_writes_are_not_allowed_fails_alone(server: Server) -> None:
    server.command("ACL", "SETUSER", "app", "on", ">pw", "~jobs", "~{jobs}*", "~headrace:*", "~ok", "+@all")

    async def play() -> None:
        app = Headrace(server.url.replace("unix://", "unix://app:pw@"))
        jobs = app.topic("jobs", Job)

        @jobs.subscribe("g", retry=Retry(attempts=2, first_s=0.05))
        async def handle(job: Job, ctx: Context) -> None:
            if job.n % 3:
                ctx.redis.incr("forbidden" if job.n == 7 else "ok")

        async with app as publisher:
            await publisher.topics["jobs"].publish_many([Job(n) for n in range(20)])
        stop = Stop()
        worker = asyncio.ensure_future(serve(app, stop))
        async with asyncio.timeout(20):
            while server.command("GET", "ok") != b"12" or server.command("XLEN", "{jobs}:dead:g") != 1:
                await asyncio.sleep(0.02)
            stop.ask()
            assert await worker is None
        ((_, letter),) = server.command("XRANGE", "{jobs}:dead:g", "-", "+")
        fields = dict(zip(letter[::2], letter[1::2], strict=True))
        assert fields[b"data"] == b'{"n":7}'
        assert (
            b"Refused: a write recorded by the handler cannot be made: this user may not do that" in fields[b"reason"]
        )
        assert server.command("XPENDING", "jobs", "g")[0] == 0

    asyncio.run(play())


def test_a_commit_that_waits_says_so_once(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "headrace")

    async def play() -> None:
        app, handled = Headrace(server.url), set[int]()
        jobs, full = app.topic("jobs", Job), app.topic("full", Job, cap_events=1)

        @jobs.subscribe("g")
        async def handle(job: Job, ctx: Context) -> None:
            handled.add(job.n)
            if job.n == 0:
                ctx.publish(full, job)

        async with Headrace(server.url) as publisher:
            await publisher.topic("full", Job).publish(Job(0))
        stop = Stop()
        worker = asyncio.ensure_future(serve(app, stop))
        async with asyncio.timeout(20), Headrace(server.url) as publisher:
            jobs = publisher.topic("jobs", Job)
            for n in range(40):  # reads that succeed, and commits beside the one that waits
                await jobs.publish(Job(n))
                while len(handled) <= n:
                    await asyncio.sleep(0.01)
            while "at its cap" not in caplog.text:
                await asyncio.sleep(0.01)
            assert "going on" not in caplog.text
            server.command("XTRIM", "full", "MAXLEN", 0)
            while server.command("XPENDING", "jobs", "g")[0]:
                await asyncio.sleep(0.01)
            stop.ask()
            assert await worker is None

    asyncio.run(play())
    lines = [record.getMessage() for record in caplog.records]
    assert sum("at its cap" in line for line in lines) == 1, lines
    assert sum("going on" in line for line in lines) == 1, lines


class Refund(Struct):
    n: int


def test_a_write_that_cannot_be_made_is_judged_by_the_rules_of_its_own_handler(server: Server) -> None:
    server.command("SET", "text", "words")

    async def play() -> None:
        app, attempts = Headrace(server.url), list[int]()
        money = app.topic("money", Job | Refund)

        @money.subscribe("g", retry=Retry(attempts=1))
        async def first(job: Job) -> None: ...

        @money.subscribe("g", retry=Retry(attempts=3, first_s=0.02))
        async def second(refund: Refund, ctx: Context) -> None:
            attempts.append(ctx.attempt)
            ctx.redis.incr("text")

        async with app as publisher:
            await publisher.topics["money"].publish(Refund(1))
        stop = Stop()
        worker = asyncio.ensure_future(serve(app, stop))
        async with asyncio.timeout(20):
            while not server.command("XLEN", "{money}:dead:g"):
                await asyncio.sleep(0.02)
            stop.ask()
            assert await worker is None
        assert attempts == [1, 2, 3]

    asyncio.run(play())

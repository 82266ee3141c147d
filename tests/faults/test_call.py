"""Every single call to the server fails once: publish, handle, fail, handle again, stop; each time all of it ends exact."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from headrace import Context, NotConnected
from headrace.runtime.signals import Stop
from headrace.runtime.worker import serve
from headrace.testing.faults import Fault, Proxy
from tests.faults import apps
from tests.faults.apps import Job
from tests.faults.stage import Stage
from tests.waiting import wait_until_async

EVENTS = 50
AT_ONCE = 8
"""Runs side by side, each with a topic and a proxy of its own."""
CALLS_MAX = 200


async def play(stage: Stage, proxy: Proxy, jobs: str, done: str) -> None:
    """The scenario, with a publisher and a worker that connect through the proxy."""
    ours = apps.line(proxy.url, jobs=jobs, done=done)
    theirs = apps.line(proxy.url, jobs=jobs, done=done)

    @theirs.jobs.subscribe("g", retry=apps.PATIENT)
    async def handle(job: Job, ctx: Context) -> None:
        apps.record(job, ctx, theirs.done)
        await apps.act(job, ctx)

    stop = Stop()
    worker = asyncio.ensure_future(serve(theirs.app, stop))
    while True:
        try:
            await ours.app.connect()
            break
        except NotConnected:
            pass  # a program that only publishes is told at once that there is no server; this one tries again
    try:
        await ours.jobs.publish(Job(0))
        await asyncio.gather(*(ours.jobs.publish(Job(n, "once fail" if n == 7 else "")) for n in range(1, EVENTS)))
    finally:
        await ours.app.aclose()

    async def settled() -> bool:
        return worker.done() or stage.server.command("HGET", f"{{{jobs}}}:group:g", "handled") == b"%d" % EVENTS

    await wait_until_async(settled, f"{jobs}: {EVENTS} events are handled")
    stop.ask()
    assert await asyncio.wait_for(worker, 10) is None


async def fail_each_call(stage: Stage, fault: Fault) -> int:
    """Fails the first call, the second, and so on, until a run needs no more calls. Returns how many there were."""
    first, last = 1, CALLS_MAX
    while first <= last:
        with_fault = await asyncio.gather(*(one(stage, fault, n) for n in range(first, first + AT_ONCE)))
        if not any(with_fault):
            return first - 1
        first += AT_ONCE
    raise AssertionError(f"a run of {EVENTS} events still takes more than {CALLS_MAX} calls")


async def one(stage: Stage, fault: Fault, nth: int) -> bool:
    """A run whose n-th call fails; whether it came to that."""
    with Proxy(stage.server.url) as proxy:
        proxy.fail(fault, nth)
        try:
            await play(stage, proxy, f"jobs.{nth}", f"done.{nth}")
        except BaseException as e:
            e.add_note(f"{fault.name} at call {nth}")
            raise
        return proxy.fired.is_set()


@pytest.mark.parametrize(
    "fault", [Fault.LOSE_REPLY, Fault.LOSE_REQUEST, Fault.TEAR_REPLY], ids=lambda f: f.name.lower()
)
def test_every_call(stage: Stage, fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apps, "SHARED", tmp_path)
    calls = asyncio.run(fail_each_call(stage, fault))
    assert calls > 40, "handshakes, gate, scripts, join, reads, publishes, commits, heartbeats, leave"
    for nth in range(1, calls + AT_ONCE):
        stage.exact(range(EVENTS), topic=f"jobs.{nth}", done=f"done.{nth}")

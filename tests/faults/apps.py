"""Apps for worker processes whose handlers misbehave on demand.

Every handled job leaves exact traces inside Redis (`sums`, one event on `done`) and inexact ones outside (a line in the file `calls`).
FAULTS_DIR is the directory that test and workers share; FAULTS_ROLE tells workers apart: what a job makes `victim`s do, others do not.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from headrace import Context, Headrace, Reject, Retry, Topic, limits

SHARED = Path(os.environ.get("FAULTS_DIR", "."))
VICTIM = os.environ.get("FAULTS_ROLE") == "victim"
LEASE_S = float(os.environ.get("FAULTS_LEASE_S", "1.0"))
SILENCE_S = float(os.environ.get("FAULTS_SILENCE_S", "15.0"))
PATIENT = Retry(attempts=3, first_s=0.05, factor=1.0, jitter=0.0)

if "FAULTS_DIR" in os.environ:
    vars(limits)["abandon_s"] = 1.0  # in workers only: what waits for handlers that do not end


class Job(Struct):
    """Add `n` to the sums, and do what `act` says."""

    n: int
    act: str = ""


class Done(Struct):
    """Job `n` was handled."""

    n: int


class Line(NamedTuple):
    """An app and its two topics."""

    app: Headrace
    jobs: Topic[Job]
    done: Topic[Done]


def line(url: str | None = None, *, jobs: str = "jobs", done: str = "done", **settings: Any) -> Line:
    """A fresh app; `settings` replace those of `Settings`."""
    app = Headrace(url, lease_s=LEASE_S)
    app.settings = msgspec.structs.replace(
        app.settings, **{"request_s": SILENCE_S, "connect_s": min(5.0, SILENCE_S), **settings}
    )
    return Line(app, app.topic(jobs, Job), app.topic(done, Done))


def record(job: Job, ctx: Context, to: Topic[Done]) -> None:
    """What handling a job writes, in the moment of its ack or not at all."""
    key = f"sums.{to.name}"
    ctx.redis.hincrby(key, "count", 1)
    ctx.redis.hincrby(key, "total", job.n)
    ctx.publish(to, Done(job.n))


def note(job: Job, ctx: Context) -> None:
    """A line in the file `calls`: written whatever becomes of the event."""
    with (SHARED / "calls").open("a") as calls:
        calls.write(f"{job.n} {ctx.attempt} {os.getpid()}\n")


async def hold() -> None:
    """Until the test makes the file `release`."""
    while not (SHARED / "release").exists():
        await asyncio.sleep(0.01)


async def ignore_cancellation() -> None:
    while not (SHARED / "release").exists():
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            continue


async def act(job: Job, ctx: Context) -> None:  # noqa: PLR0912 - a list of misdeeds
    """The misdeeds by name; `once` in front means: at the first attempt only."""
    name = job.act
    if name.startswith("once "):
        if ctx.attempt > 1:
            return
        name = name.removeprefix("once ")
    match name:
        case "hold" if VICTIM:
            await hold()
        case "block" if VICTIM:
            time.sleep(2.5 * LEASE_S)
        case "fail":
            raise ValueError(f"job {job.n} always fails")
        case "reject":
            raise Reject(f"job {job.n} is no good")
        case "hang":
            await asyncio.sleep(3_600)
        case "ignore":
            await ignore_cancellation()
        case "exit":
            sys.exit(3)
        case "interrupt":
            raise KeyboardInterrupt
        case "cancelled":
            raise asyncio.CancelledError
        case "base":
            raise BaseException("not even an Exception")  # noqa: TRY002 - on purpose
        case "leak":
            leaked.append(asyncio.create_task(asyncio.sleep(3_600)))
        case "die":
            os._exit(9)
        case "slow":
            await asyncio.sleep(0.01)


leaked: list[asyncio.Task[None]] = []

app, jobs, done = line()


@jobs.subscribe("g", retry=PATIENT)
async def handle(job: Job, ctx: Context) -> None:
    note(job, ctx)
    record(job, ctx, done)
    await act(job, ctx)


hurried, hurried_jobs, hurried_done = line()


@hurried_jobs.subscribe("g", retry=Retry(attempts=2, first_s=0.05, jitter=0.0), timeout_s=0.3)
async def hurry(job: Job, ctx: Context) -> None:
    note(job, ctx)
    record(job, ctx, hurried_done)
    await act(job, ctx)


threaded, threaded_jobs, threaded_done = line()


@threaded_jobs.subscribe("g", retry=PATIENT, lanes=8)
def handle_in_thread(job: Job, ctx: Context) -> None:
    note(job, ctx)
    record(job, ctx, threaded_done)
    match job.act:
        case "block" if VICTIM:
            time.sleep(2.5 * LEASE_S)
        case "hold":
            while not (SHARED / "release").exists():
                time.sleep(0.01)
        case "exit":
            sys.exit(3)
        case "stop iteration":
            raise StopIteration
        case "interrupt":
            raise KeyboardInterrupt
        case "fail":
            raise ValueError(f"job {job.n} always fails")


batched, batched_jobs, batched_done = line()


@batched_jobs.subscribe("g", retry=PATIENT, batch=50)
async def handle_batch(batch: list[Job], ctx: list[Context]) -> None:
    for i, job in enumerate(batch):
        note(job, ctx[i])
        record(job, ctx[i], batched_done)
        if job.act == "fail":
            ctx[i].fail(f"job {job.n} always fails")
        elif job.act == "once fail" and ctx[i].attempt == 1:
            ctx[i].fail("try again")
        elif job.act == "reject":
            ctx[i].reject(f"job {job.n} is no good")
        elif job.act == "raise":
            raise ValueError(f"job {job.n} spoils its batch")
        elif job.act == "hold" and VICTIM:
            await hold()


KEYS = 12
ordered = Headrace(lease_s=LEASE_S)
steps = ordered.topic("steps", Job, key=lambda job: job.n % KEYS, partitions=3)
stepped = ordered.topic("stepped", Done)


@steps.subscribe("g", ordered=True, retry=Retry(attempts=100, first_s=0.02, factor=1.0))
async def step(job: Job, ctx: Context) -> None:
    note(job, ctx)
    ctx.redis.rpush(f"seen.{ctx.key}", str(job.n))
    ctx.publish(stepped, Done(job.n))
    await act(job, ctx)

"""What is measured: every stage as a line, and how one is run on a fresh server."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from bench.event import Figures
from bench.server import Server


class Stage(Struct, frozen=True):
    """One measured program, and what comes before it on the same server."""

    name: str
    label: str
    program: str
    """Module and program, `programs consume`."""
    before: tuple[str, ...] = ()
    """Programs that prepare it, each with the same count unless it says another: `yardsticks fill 1000000`."""
    share: float = 1.0
    """Part of the round's number of events."""
    exact: bool = True
    """At the end everything on the server must be settled."""
    body: int = 150
    """Bytes of an event."""
    first: int = 0
    """The first event that counts; those before it are held by another worker."""


PUBLISH: Final = (
    Stage("wire_publish", "packed commands, no semantics", "yardsticks wire_publish"),
    Stage("redis_py_publish", "redis-py pipeline, no semantics", "yardsticks redis_py_publish", share=0.25),
    Stage("publish_many", "**headrace `publish_many`**", "programs publish_many"),
    Stage("publish_packed", '**… with `packing="batch"`**', "programs publish_packed", share=2.0),
    Stage("publish_each_1000", "**headrace `publish`, 1,000 callers**", "programs publish_each_1000", share=0.5),
    Stage("publish_each_100", "**… 100 callers**", "programs publish_each_100", share=0.25),
    Stage("publish_each_1", "**… 1 caller**", "programs publish_each_1", share=0.02),
)
CONSUME: Final = (
    Stage(
        "wire_consume",
        "packed commands, no decode, no handler",
        "yardsticks wire_consume",
        ("yardsticks wire_publish",),
    ),
    Stage(
        "redis_py_consume",
        "redis-py loop, no semantics",
        "yardsticks redis_py_consume",
        ("yardsticks redis_py_publish",),
        share=0.5,
    ),
    Stage("consume", "**headrace, a handler call per event**", "programs consume", ("programs publish_many",)),
    Stage(
        "consume_packed",
        '**… with `packing="batch"`**',
        "programs consume_packed",
        ("programs publish_packed",),
        share=2.0,
    ),
    Stage("consume_keyed", "**… events with keys**", "programs consume_keyed_1", ("programs publish_keyed_1",)),
    *(
        Stage(
            f"consume_ordered_{n}",
            f"**… in order per key, {n} partition{'s' if n > 1 else ''}**",
            f"programs consume_ordered_{n}",
            (f"programs publish_keyed_{n}",),
            share=2.0,
        )
        for n in (1, 16)
    ),
    Stage(
        "consume_effect",
        "**… with a HINCRBY in the same commit**",
        "programs consume_effect",
        ("programs publish_many",),
        share=0.5,
    ),
    Stage(
        "consume_output",
        "**… with an event published in the same commit**",
        "programs consume_output",
        ("programs publish_many",),
        share=0.5,
    ),
)
LATENCY: Final = Stage("latency", "latency", "programs latency 1000")
TOGETHER: Final = (
    Stage("together", "**publisher + server + worker**", "programs consume"),
    Stage("together_output", "**… with an event published in the same commit**", "programs consume_output", share=0.5),
    Stage("together_ordered", "**… in order per key**", "programs consume_ordered_1"),
    Stage("together_packed", '**… with `packing="batch"`**', "programs consume_packed", share=2.0),
)
PAYLOADS: Final = tuple(
    Stage(f"{program}_{size}", f"{program}, {size:,} bytes", f"programs {program}", before, share, body=size)
    for size, share in ((100, 1.0), (1_000, 0.5), (10_000, 0.1))
    for program, before in (("publish_many", ()), ("consume", ("programs publish_many",)))
)


def backlogs(small: int, sizes: tuple[int, ...], held: int) -> tuple[Stage, ...]:
    """Consuming `small` events with nothing, with a backlog behind them, with so many pending at another worker."""
    filled = [
        Stage(
            f"backlog_{n}",
            f"{n:,} events waiting",
            f"programs consume {small}",
            (f"yardsticks fill {n}",),
            exact=n == small,
        )
        for n in (small, *sizes)
    ]
    pending = Stage(
        "pending",
        f"{held:,} events pending at another worker",
        f"programs consume {small}",
        (f"yardsticks fill {held + small}", f"yardsticks hold {held}"),
        exact=False,
        first=held,
    )
    return (*filled, pending)


def memory(counts: tuple[int, ...]) -> tuple[Stage, ...]:
    """Publisher and worker with so many events in flight."""
    return tuple(
        stage
        for n in counts
        for stage in (
            Stage(f"memory_publish_{n}", f"publisher, {n:,} callers at once", f"programs memory_publish {n}"),
            Stage(
                f"memory_work_{n}",
                f"worker, {min(n, 10_000):,} handlers at once, {n:,} events waiting",
                f"programs memory_work {n}",
                (f"yardsticks fill {n}",),
            ),
        )
    )


class NotExact(Exception):
    """A measured run lost an event, or handled one twice, or left something unsettled: its figures are worth nothing."""


def command(program: str, count: int) -> list[str]:
    """A program of this package as a command; `program` may end in a count of its own."""
    module, name, *own = program.split()
    return [sys.executable, "-m", f"bench.{module}", name, own[0] if own else str(count)]


def figures_of(output: str, name: str) -> Figures:
    """What a program said last, in a line of JSON. Raises NotExact if it says so, or says nothing."""
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if not lines:
        raise NotExact(f"{name}: no figures")
    figures: Figures = json.loads(lines[-1])
    if figures.get("twice") or figures.get("left"):
        raise NotExact(f"{name}: {figures}")
    return figures


def run(stage: Stage, kind: str, fsync: str, count: int) -> Figures:
    """One stage on a fresh server. Raises NotExact, CalledProcessError, FileNotFoundError (no such server)."""
    count = max(int(count * stage.share), 100)
    with Server(kind, fsync) as server:
        environment = _environment(server, stage)
        for program in stage.before:
            subprocess.run(command(program, count), env=environment, check=True, stdout=subprocess.PIPE)
        before = server.cpu_s()
        out = subprocess.run(
            command(stage.program, count), env=environment, check=True, stdout=subprocess.PIPE, text=True
        )
        figures = figures_of(out.stdout, stage.name)
        own = stage.program.split()[2:]
        figures["server_us"] = (server.cpu_s() - before) / int(own[0] if own else count) * 1e6
        if stage.exact and "left" in figures:
            check_settled(server, stage)
        if stage.program.startswith(("programs publish", "yardsticks fill")):
            figures["bytes_per_event"] = (server.client.memory_usage("orders", samples=0) or 0) / count
        return figures


def run_together(stage: Stage, kind: str, fsync: str, count: int) -> Figures:
    """Publisher and worker at the same time: events a second from the publisher's first to the last one handled."""
    count = int(count * stage.share)
    with Server(kind, fsync) as server:
        environment = _environment(server, stage)
        worker = subprocess.Popen(command(stage.program, count), env=environment, stdout=subprocess.PIPE, text=True)
        with _ended(worker):
            while not server.client.exists("{orders}:workers:bench"):
                time.sleep(0.01)
            before = server.cpu_s()
            publishers = {"together_packed": "publish_packed", "together_ordered": "publish_keyed_1"}
            publisher = publishers.get(stage.name, "publish_many")
            subprocess.run(command(f"programs {publisher}", count), env=environment, check=True, stdout=subprocess.PIPE)
            output, _ = worker.communicate()
        figures = figures_of(output, stage.name)
        figures["server_us"] = (server.cpu_s() - before) / count * 1e6
        check_settled(server, stage)
        return figures


@contextlib.contextmanager
def _ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """A child that is not there any more afterwards, however it goes."""
    try:
        yield
    finally:
        process.kill()
        process.wait()


def check_settled(server: Server, stage: Stage) -> None:
    """Raises NotExact unless every group has settled everything."""
    for stream in server.client.scan_iter("orders*", _type="stream"):
        for info in server.client.xinfo_groups(stream):
            if info["pending"] or info.get("lag"):
                raise NotExact(f"{stage.name}: not everything of {stream} was settled: {info}")


def _environment(server: Server, stage: Stage) -> dict[str, str]:
    return {
        **os.environ,
        "HEADRACE_URL": server.url,
        "BENCH_BYTES": str(stage.body),
        "BENCH_FIRST": str(stage.first),
    }

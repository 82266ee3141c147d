"""What the requirements come to on Redis Streams: memory, server time, file, workers."""

from __future__ import annotations

import math
from typing import Final, TypeVar

from msgspec import Struct

from headrace.stack.facts import Facts
from headrace.stack.manifest import Requirements
from headrace.stack.quantity import Duration, Rate, Size

T = TypeVar("T")

MEMORY_SHARE: Final = 0.5
"""Of a server's memory that events may fill: a rewrite of its file copies pages that change meanwhile."""
CPU_SHARE: Final = 0.6
"""Of the main thread's time that events may take at the peak, so that latency stays flat."""
WORKER_SHARE: Final = 0.5
"""Of what a worker process can do at best; handlers have work of their own."""
REWRITE_FACTOR: Final = 2.0
"""An append-only file is rewritten when it has doubled (auto-aof-rewrite-percentage 100), and both are there meanwhile."""

RATE: Final = Rate(100)
PEAK_FACTOR: Final = 4.0
PAYLOAD: Final = Size(500)
RETENTION: Final = Duration(0)
OUTAGE: Final = Duration(3_600)
MEMORY: Final = Size(32 * 2**30)


class Load(Struct, frozen=True):
    """The requirements as numbers; what was left open is assumed, and said."""

    rate: Rate
    peak: Rate
    payload: Size
    retention: Duration
    outage: Duration
    groups: int
    memory: Size
    assumed: tuple[str, ...]


class Capacity(Struct, frozen=True):
    """What it takes."""

    events_kept: int
    memory: Size
    """Of the events, over all servers."""
    servers_for_memory: int
    cores: float
    """Of servers' main threads, at the peak."""
    servers_for_rate: int
    partitions: int
    file: Size
    """Append-only files, at their largest."""
    append_per_s: Size
    """What is written to them in a second, at the peak."""
    workers: int
    """Processes of each group, at the peak."""

    @property
    def servers(self) -> int:
        """Primaries."""
        return max(self.servers_for_memory, self.servers_for_rate)


def load_of(requirements: Requirements) -> Load:
    """What the requirements say, and what is assumed."""
    assumed: list[str] = []

    def given(value: T | None, otherwise: T, what: str) -> T:
        if value is None:
            assumed.append(f"{what} {otherwise}")
            return otherwise
        return value

    rates = requirements.rate
    rate = given(rates.avg if rates else None, RATE, "rate")
    peak = given(rates.peak if rates else None, Rate(rate * PEAK_FACTOR), "peak")
    return Load(
        rate,
        max(rate, peak),
        given(requirements.payload, PAYLOAD, "payload"),
        given(requirements.retention, RETENTION, "retention after handling"),
        given(requirements.outage, OUTAGE, "longest outage of a group"),
        requirements.groups,
        given(requirements.memory, MEMORY, "memory of a server"),
        tuple(assumed),
    )


def capacity(load: Load, facts: Facts) -> Capacity:
    """Events are kept for as long as is asked for, or as long as a group is away, whichever is longer."""
    kept = load.rate * max(load.retention, load.outage)
    memory = kept * facts.memory_bytes(load.payload)
    cores = load.peak * (facts.publish_cpu_us + load.groups * facts.handle_cpu_us) / 1e6
    for_memory = max(math.ceil(memory / (load.memory * MEMORY_SHARE)), 1)
    for_rate = max(math.ceil(cores / CPU_SHARE), 1)
    servers = max(for_memory, for_rate)
    workers = max(math.ceil(load.peak / (facts.worker_per_s * WORKER_SHARE)), 1)
    return Capacity(
        events_kept=round(kept),
        memory=Size(memory),
        servers_for_memory=for_memory,
        cores=round(cores, 3),
        servers_for_rate=for_rate,
        partitions=1 if servers == workers == 1 else max(16, 4 * servers, 2 * workers),
        file=Size(REWRITE_FACTOR * memory + load.payload),
        append_per_s=Size(load.peak * facts.file_bytes(load.payload)),
        workers=workers,
    )

"""The measured event, the ticking off of events, and how a measured program says what it found."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import msgspec

Figures = dict[str, float]
Program = Callable[[int], Awaitable[Figures]]

NOTE = "x" * max(int(os.environ.get("BENCH_BYTES", "150")) - 50, 0)


class Order(msgspec.Struct):
    """About BENCH_BYTES (default 150) bytes of JSON."""

    order_id: int
    amount: float
    sku: str
    note: str


def order(i: int) -> Order:
    """The i-th event."""
    return Order(i, i % 1000 + 0.5, "SKU-0042", NOTE)


class Clock:
    """Wall and CPU time of this process since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def figures(self, count: int) -> Figures:
        """Events a second and CPU microseconds per event."""
        return {
            "rate": count / (time.perf_counter() - self._wall),
            "cpu_us": (time.process_time() - self._cpu) / count * 1e6,
        }


class Seen:
    """Ticks events off; knows when all were handled, and whether any was handled twice. The time begins with the first."""

    def __init__(self, count: int, done: Callable[[], None]) -> None:
        """`done` is called when the last of `count` was handled."""
        self._ticks = bytearray(count)
        self._first = int(os.environ.get("BENCH_FIRST", "0"))
        self.count, self.left, self.twice = count, count, 0
        self._done = done
        self._clock: Clock | None = None
        self._figures: Figures = {}

    def tick(self, i: int) -> None:
        """The i-th event is being handled. BENCH_FIRST is the first that counts; those after `count` are backlog."""
        if self._clock is None:
            self._clock = Clock()
        i -= self._first
        if i >= self.count:
            return
        if self._ticks[i]:
            self.twice += 1
            return
        self._ticks[i] = 1
        self.left -= 1
        if not self.left:
            self._figures = self._clock.figures(self.count)
            self._done()

    def result(self) -> Figures:
        """Rate, CPU and exactness."""
        return {**self._figures, "twice": self.twice, "left": self.left}


def rss_kib(field: str = "VmRSS") -> int:
    """Memory of this process now, or at its peak (`VmHWM`), as the kernel counts it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def main(programs: Mapping[str, Program]) -> None:
    """Runs the program named first on the command line with the count named second; one JSON object on stdout."""
    print(json.dumps(asyncio.run(programs[sys.argv[1]](int(sys.argv[2])))))  # type: ignore[arg-type]

"""What an event costs, in counts that do not depend on the machine: instructions of this library, commands and bytes of the server.

Instructions are the interpreter's, counted by `sys.settrace` in frames of the package. Batches have a fixed size and nothing in the
counted part depends on a clock, so two runs differ by less than a per cent (a read that comes a turn of the event loop later).
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any, Self
from unittest.mock import patch

from msgspec import Struct

import headrace
from headrace import Context, Headrace, Topic
from headrace.observe import LogObserver
from headrace.runtime import pump
from headrace.runtime.worker import start
from tests.servers import Server

EVENTS, BATCH = 2_000, 500
HOME = str(Path(headrace.__file__).parent)


class Order(Struct):
    """About 150 bytes of JSON."""

    order_id: int
    amount: float = 2.5
    sku: str = "SKU-0042"
    note: str = "x" * 100


class Cost(Struct):
    """Per event."""

    instructions: float
    functions: dict[str, float]
    """Instructions by function, the dearest first."""
    commands: float
    """Of the server, those inside scripts included."""
    bytes_in: float
    bytes_out: float


class Counting:
    """Counts while it is entered."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._by: Counter[str] = Counter()
        self._before: tuple[int, int, int] = (0, 0, 0)

    def _stats(self) -> tuple[int, int, int]:
        said = self._server.command("INFO", "stats").decode()
        facts = dict(line.split(":", 1) for line in said.splitlines() if ":" in line)
        return (
            int(facts["total_commands_processed"]),
            int(facts["total_net_input_bytes"]),
            int(facts["total_net_output_bytes"]),
        )

    def _enter_frame(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(HOME):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        name, by = f"{Path(code.co_filename).name} {code.co_qualname}", self._by

        def count(_: FrameType, event: str, __: Any) -> Any:
            if event == "opcode":
                by[name] += 1
            return count

        return count

    def __enter__(self) -> Self:
        self._before = self._stats()
        sys.settrace(self._enter_frame)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def cost(self) -> Cost:
        after = self._stats()
        commands, read, written = (a - b for a, b in zip(after, self._before, strict=True))
        functions = {name: round(n / EVENTS, 2) for name, n in self._by.most_common(25)}
        return Cost(
            round(sum(self._by.values()) / EVENTS, 1),
            functions,
            round(commands / EVENTS, 3),
            round(read / EVENTS, 1),
            round(written / EVENTS, 1),
        )


async def publish_many(server: Server, topic: Topic[Order]) -> Cost:
    events = [Order(i) for i in range(EVENTS)]
    await topic.publish(Order(0))
    with Counting(server) as counting:
        await topic.publish_many(events)
    return counting.cost()


async def publish_each(server: Server, topic: Topic[Order]) -> Cost:
    await topic.publish(Order(0))

    async def caller(first: int) -> None:
        for i in range(first, EVENTS, BATCH):
            await topic.publish(Order(i))

    with Counting(server) as counting:
        await asyncio.gather(*(caller(i) for i in range(BATCH)))
    return counting.cost()


Declare = Callable[[Headrace, Topic[Order], Callable[[], None]], None]


def plain(app: Headrace, topic: Topic[Order], tick: Callable[[], None]) -> None:
    @topic.subscribe("g")
    async def handle(order: Order) -> None:
        tick()


def effect(app: Headrace, topic: Topic[Order], tick: Callable[[], None]) -> None:
    @topic.subscribe("g")
    async def handle(order: Order, ctx: Context) -> None:
        tick()
        ctx.redis.hincrby("sums", order.order_id % 100, 1)


def output(app: Headrace, topic: Topic[Order], tick: Callable[[], None]) -> None:
    out = app.topic("out", Order)

    @topic.subscribe("g")
    async def handle(order: Order, ctx: Context) -> None:
        tick()
        ctx.publish(out, order)


def consume(declare: Declare) -> Callable[[Server, Topic[Order]], Awaitable[Cost]]:
    async def path(server: Server, topic: Topic[Order]) -> Cost:
        app: Headrace = topic._app  # type: ignore[assignment]
        left = EVENTS
        done = asyncio.Event()

        def tick() -> None:
            nonlocal left
            left -= 1
            if not left:
                done.set()

        declare(app, topic, tick)
        await topic.publish_many(Order(i) for i in range(EVENTS))
        threads = ThreadPoolExecutor(1)
        with patch.object(pump.Pump, "_limit", lambda _: BATCH), patch.object(pump, "_TURN_S", 1e9):
            (served,) = await start(app.groups.values(), app.backend(), threads, LogObserver(), 60.0)
            with Counting(server) as counting:
                running = asyncio.ensure_future(served.run())
                async with asyncio.timeout(60):
                    await done.wait()
                    while served.handled < EVENTS:
                        await asyncio.sleep(0)
            cost = counting.cost()
            await served.drain(0.0)
            await running
        threads.shutdown()
        return cost

    return path


PATHS: dict[str, tuple[Callable[[Server, Topic[Order]], Awaitable[Cost]], str]] = {
    "publish_many": (publish_many, "none"),
    "publish": (publish_each, "none"),
    "consume": (consume(plain), "none"),
    "consume, an effect each": (consume(effect), "none"),
    "consume, an output each": (consume(output), "none"),
    "publish_many, packed": (publish_many, "batch"),
    "consume, packed": (consume(plain), "batch"),
    "consume, packed, an effect each": (consume(effect), "batch"),
}


def measure(name: str) -> Cost:
    """What one event of this path costs, on a fresh Valkey."""
    path, packing = PATHS[name]

    async def play(server: Server) -> Cost:
        app = Headrace(server.url)
        topic = app.topic("orders", Order, packing=packing)  # type: ignore[call-overload]
        async with app:
            return await path(server, topic)

    with Server("valkey") as server:
        return asyncio.run(play(server))

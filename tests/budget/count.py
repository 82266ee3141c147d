"""What an event costs, in counts that do not depend on the machine: instructions of this library, commands and bytes of the server.

Connections are made and scripts loaded before the count begins, batches have a fixed size, and nothing in the counted part depends on
a clock; so two runs differ by less than a per cent (an answer that comes a turn of the event loop later).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Self
from unittest.mock import patch

from msgspec import Struct

from headrace import Context, Headrace, Topic, limits
from headrace.observe import LogObserver
from headrace.route import Packing
from headrace.runtime import pump, turn, worker
from tests.budget.instructions import Instructions
from tests.servers import Server

EVENTS, BATCH = 2_000, 500


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
    """Counts while it is entered, on both sides."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._instructions = Instructions()
        self._before = self._own = self._after = (0, 0, 0)

    def _stats(self) -> tuple[int, int, int]:
        said = self._server.command("INFO", "stats").decode()
        facts = dict(line.split(":", 1) for line in said.splitlines() if ":" in line)
        return (
            int(facts["total_commands_processed"]),
            int(facts["total_net_input_bytes"]),
            int(facts["total_net_output_bytes"]),
        )

    def __enter__(self) -> Self:
        before = self._stats()
        self._before = self._stats()
        self._own = (self._before[0] - before[0], self._before[1] - before[1], self._before[2] - before[2])
        self._instructions.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._instructions.__exit__(*exc)
        self._after = self._stats()

    def cost(self) -> Cost:
        """What was counted, without what asking for it costs."""
        rows = zip(self._after, self._before, self._own, strict=True)
        commands, read, written = (after - before - own for after, before, own in rows)
        by = self._instructions.by_function
        assert by, "not one instruction was counted: this interpreter needs another way (tests/budget/instructions.py)"
        return Cost(
            round(by.total() / EVENTS, 1),
            {name: round(n / EVENTS, 2) for name, n in by.most_common(25)},
            round(commands / EVENTS, 4),
            round(read / EVENTS, 2),
            round(written / EVENTS, 2),
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
Path = Callable[[Server, Topic[Order]], Awaitable[Cost]]


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


async def warm(served: pump.Pump, topic: Topic[Order]) -> None:
    """Opens the connection that reads, and lets the feed learn how large entries are and how many events they hold."""
    await topic.publish_many([Order(0)] * BATCH)
    left = BATCH
    while left:
        taken = await served._feed.take(BATCH, 1.0)
        left -= len(taken)
        await served._feed.commit(taken)


def consume(declare: Declare) -> Path:
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
        threads = ThreadPoolExecutor(1)
        with patch.multiple(turn, TURN_S=1e9), patch.object(pump.Pump, "_limit", lambda _: BATCH):
            with patch.object(worker, "worker_name", lambda: "worker"):  # its length is bytes of each call
                (served,) = await worker.start(
                    app.groups.values(),
                    app.backend(),
                    threads,
                    LogObserver(),
                    limits.lease_s_max,  # no heartbeat meanwhile
                )
            await warm(served, topic)
            await topic.publish_many(Order(i) for i in range(EVENTS))
            with Counting(server) as counting:
                running = asyncio.ensure_future(served.run())
                async with asyncio.timeout(60):
                    await done.wait()
                    while served.handled < EVENTS:
                        await asyncio.sleep(0)
            await served.drain(0.0)
            await running
        threads.shutdown()
        return counting.cost()

    return path


_WAYS: dict[str, Path] = {
    "publish_many": publish_many,
    "publish": publish_each,
    "consume": consume(plain),
    "consume, an effect each": consume(effect),
    "consume, an output each": consume(output),
}
_PACKINGS: dict[str, Packing] = {"": "none", ", packed": "batch"}
PATHS: dict[str, tuple[Path, Packing]] = {
    name + suffix: (path, packing) for suffix, packing in _PACKINGS.items() for name, path in _WAYS.items()
}
"""Every way of an event through the library: what is counted, and how its topic is packed."""


def measure(name: str) -> Cost:
    """What one event of this path costs, on a fresh Valkey."""
    path, packing = PATHS[name]

    async def play(server: Server) -> Cost:
        app = Headrace(server.url)
        async with app:
            return await path(server, app.topic("orders", Order, packing=packing))

    with Server("valkey") as server:
        return asyncio.run(play(server))

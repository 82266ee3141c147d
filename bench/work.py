"""The measured programs: `python -m bench.work STAGE COUNT`, the server in HEADRACE_URL; one JSON object on stdout."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import hiredis
import msgspec
import redis.asyncio

from headrace import Context, Headrace
from headrace.backends.redis.connection import pack
from headrace.runtime.signals import Stop
from headrace.runtime.worker import serve


class Order(msgspec.Struct):
    """The measured event: about 150 bytes of JSON."""

    order_id: int
    amount: float
    sku: str
    note: str


NOTE = "x" * 100
app = Headrace(os.environ.get("HEADRACE_URL"), durability="relaxed")
orders = app.topic("orders", Order, retain_events=10_000_000)


def order(i: int) -> Order:
    """The i-th event."""
    return Order(i, i % 1000 + 0.5, "SKU-0042", NOTE)


class Seen:
    """Ticks events off; knows when all were handled, and whether any was handled twice."""

    def __init__(self, count: int) -> None:
        self.ticks = bytearray(count)
        self.count, self.left = count, count
        self.began = self.ended = 0.0
        self.twice = 0
        self.stop = Stop()
        self.cpu = 0.0

    def tick(self, i: int) -> None:
        """The i-th event is being handled."""
        if not self.began:
            self.began, self.cpu = time.perf_counter(), time.process_time()
        if self.ticks[i]:
            self.twice += 1
            return
        self.ticks[i] = 1
        self.left -= 1
        if not self.left:
            self.ended, self.cpu = time.perf_counter(), time.process_time() - self.cpu
            self.stop.ask()

    def result(self) -> dict[str, float]:
        """Rate, CPU and exactness."""
        return {
            "rate": self.count / (self.ended - self.began),
            "cpu_us": self.cpu / self.count * 1e6,
            "twice": self.twice,
            "left": self.left,
        }


async def publish_many(count: int) -> dict[str, float]:
    """Typed events through publish_many."""
    async with app:
        began, cpu = time.perf_counter(), time.process_time()
        await orders.publish_many(order(i) for i in range(count))
        return {"rate": count / (time.perf_counter() - began), "cpu_us": (time.process_time() - cpu) / count * 1e6}


async def publish_each(count: int) -> dict[str, float]:
    """`await publish()` from 1,000 concurrent callers."""
    numbers = iter(range(count))

    async def caller() -> None:
        for i in numbers:
            await orders.publish(order(i))

    async with app:
        began, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(caller() for _ in range(1_000)))
        return {"rate": count / (time.perf_counter() - began), "cpu_us": (time.process_time() - cpu) / count * 1e6}


async def consume(count: int) -> dict[str, float]:
    """One `await handler(order)` per event."""
    seen = Seen(count)

    @orders.subscribe("bench")
    async def handle(event: Order) -> None:
        seen.tick(event.order_id)

    await serve(app, seen.stop)
    return seen.result()


async def consume_effect(count: int) -> dict[str, float]:
    """The same with one HINCRBY per event in the commit."""
    seen = Seen(count)

    @orders.subscribe("bench")
    async def handle(event: Order, ctx: Context) -> None:
        seen.tick(event.order_id)
        ctx.redis.hincrby("sums", event.order_id % 100, 1)

    await serve(app, seen.stop)
    return seen.result()


async def consume_output(count: int) -> dict[str, float]:
    """The same with one published event per event in the commit."""
    seen = Seen(count)
    out = app.topic("out", Order, retain_events=10_000_000)

    @orders.subscribe("bench")
    async def handle(event: Order, ctx: Context) -> None:
        seen.tick(event.order_id)
        ctx.publish(out, event)

    await serve(app, seen.stop)
    return seen.result()


async def latency(count: int) -> dict[str, float]:
    """200 events a second, open loop, in one process: from the call of publish() to the first line of the handler."""
    sent = [0.0] * count
    seen = Seen(count)
    delays: list[float] = []

    @orders.subscribe("bench")
    async def handle(event: Order) -> None:
        delays.append(time.perf_counter() - sent[event.order_id])
        seen.tick(event.order_id)

    async def one(i: int) -> None:
        sent[i] = time.perf_counter()
        await orders.publish(order(i))

    server = asyncio.ensure_future(serve(app, seen.stop))
    await asyncio.sleep(1.0)
    began = time.perf_counter()
    tasks = []
    for i in range(count):
        await asyncio.sleep(max(began + i / 200 - time.perf_counter(), 0))
        tasks.append(asyncio.ensure_future(one(i)))
    await asyncio.gather(*tasks)
    await server
    delays.sort()
    return {
        "p50_ms": delays[len(delays) // 2] * 1e3,
        "p99_ms": delays[int(len(delays) * 0.99)] * 1e3,
        "twice": seen.twice,
        "left": seen.left,
    }


async def idle(seconds: int) -> dict[str, float]:
    """A worker with nothing to do: commands the server counts, those inside scripts included."""
    stop = Stop()

    @orders.subscribe("bench")
    async def handle(event: Order) -> None:
        del event

    worker = asyncio.ensure_future(serve(app, stop))
    watcher = redis.asyncio.Redis.from_url(os.environ["HEADRACE_URL"])
    await asyncio.sleep(2)
    before = (await watcher.info("stats"))["total_commands_processed"]
    await asyncio.sleep(seconds)
    after = (await watcher.info("stats"))["total_commands_processed"]
    await watcher.aclose()
    stop.ask()
    await worker
    return {"commands_per_s": (after - before - 1) / seconds}


async def redis_py(count: int) -> dict[str, float]:
    """A plain redis-py loop without any of the promises: pipelined XADD, then XREADGROUP and XACK."""
    client = redis.asyncio.Redis.from_url(os.environ["HEADRACE_URL"])
    encode, decode = msgspec.json.Encoder().encode, msgspec.json.Decoder(Order).decode
    began = time.perf_counter()
    for start in range(0, count, 500):
        pipe = client.pipeline(transaction=False)
        for i in range(start, min(start + 500, count)):
            pipe.xadd("orders", {"data": encode(order(i))})
        await pipe.execute()
    published = time.perf_counter() - began
    await client.xgroup_create("orders", "bench", "0")
    seen = Seen(count)
    while seen.left:
        reply: Any = await client.xreadgroup("bench", "w", {"orders": ">"}, count=1000)
        entries = reply[0][1]
        for _, fields in entries:
            seen.tick(decode(fields[b"data"]).order_id)
        await client.xack("orders", "bench", *[e[0] for e in entries])
    await client.aclose()
    return {**seen.result(), "publish_rate": count / published}


async def wire(count: int) -> dict[str, float]:
    """What the server can do: packed commands, no semantics, no decode, no handler."""
    reader, writer = await asyncio.open_unix_connection(os.environ["HEADRACE_URL"].removeprefix("unix://"))
    parser = hiredis.Reader()

    async def replies(n: int) -> list[object]:
        out: list[object] = []
        while len(out) < n:
            while (reply := parser.gets()) is not False:
                out.append(reply)
            if len(out) < n:
                parser.feed(await reader.read(1 << 18))
        return out

    body = msgspec.json.encode(order(1))
    batch = pack(("XADD", "orders", "*", "data", body)) * 500
    began = time.perf_counter()
    for _ in range(0, count, 500):
        writer.write(batch)
        await replies(500)
    published = time.perf_counter() - began
    writer.write(pack(("XGROUP", "CREATE", "orders", "bench", "0")))
    await replies(1)
    read = pack(("XREADGROUP", "GROUP", "bench", "w", "COUNT", "1000", "STREAMS", "orders", ">"))
    began, left = time.perf_counter(), count
    while left:
        writer.write(read)
        entries = (await replies(1))[0][0][1]  # type: ignore[index]
        writer.write(pack(("XACK", "orders", "bench", *[e[0] for e in entries])))
        await replies(1)
        left -= len(entries)
    writer.close()
    return {"publish_rate": count / published, "rate": count / (time.perf_counter() - began)}


STAGES: dict[str, Callable[[int], Awaitable[dict[str, float]]]] = {
    f.__name__: f
    for f in (publish_many, publish_each, consume, consume_effect, consume_output, latency, idle, redis_py, wire)
}

if __name__ == "__main__":
    print(json.dumps(asyncio.run(STAGES[sys.argv[1]](int(sys.argv[2])))))  # type: ignore[arg-type]

"""The measured programs of headrace: `python -m bench.programs NAME COUNT`, the server in HEADRACE_URL."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Sequence

import redis.asyncio

from bench.event import Clock, Figures, Order, Program, Seen, main, order, rss_kib
from headrace import Context, Headrace, Topic
from headrace.runtime.signals import Stop
from headrace.runtime.worker import serve

KEPT = 10_000_000
app = Headrace(os.environ.get("HEADRACE_URL"), durability="relaxed")
orders = app.topic("orders", Order, retain_events=KEPT)


def packed() -> Topic[Order]:
    """The same topic, with record batches."""
    del app.topics["orders"]
    return app.topic("orders", Order, retain_events=KEPT, packing="batch")


KEYS = 1_000


def keyed(partitions: int) -> Topic[Order]:
    """The same topic, with keys and partitions."""
    del app.topics["orders"]
    return app.topic("orders", Order, key=lambda o: o.order_id % KEYS, retain_events=KEPT, partitions=partitions)


def seen_until(count: int) -> tuple[Seen, Stop]:
    """What ticks events off, and what stops the worker after the last."""
    stop = Stop()
    return Seen(count, stop.ask), stop


async def publish_many(count: int, topic: Topic[Order] = orders) -> Figures:
    """Typed events through publish_many."""
    async with app:
        clock = Clock()
        await topic.publish_many(order(i) for i in range(count))
        return clock.figures(count)


async def publish_packed(count: int) -> Figures:
    """The same with record batches."""
    return await publish_many(count, packed())


def publish_each(callers: int) -> Program:
    """`await publish()` from so many concurrent callers."""

    async def program(count: int) -> Figures:
        numbers = iter(range(count))

        async def caller() -> None:
            for i in numbers:
                await orders.publish(order(i))

        async with app:
            clock = Clock()
            await asyncio.gather(*(caller() for _ in range(callers)))
            return clock.figures(count)

    return program


async def consume(count: int, topic: Topic[Order] = orders) -> Figures:
    """One `await handler(order)` per event. Where more events are waiting, the first `count`."""
    seen, stop = seen_until(count)

    @topic.subscribe("bench")
    async def handle(event: Order) -> None:
        seen.tick(event.order_id)

    await serve(app, stop)
    return seen.result()


async def consume_packed(count: int) -> Figures:
    """The same with record batches."""
    return await consume(count, packed())


def publish_keyed(partitions: int) -> Program:
    """Typed events with keys through publish_many."""
    return lambda count: publish_many(count, keyed(partitions))


def consume_ordered(partitions: int) -> Program:
    """One `await handler(order)` per event, in order per key; an event out of its order counts as one handled twice."""

    async def program(count: int) -> Figures:
        topic = keyed(partitions)
        seen, stop = seen_until(count)
        last = [-1] * KEYS

        @topic.subscribe("bench", ordered=True)
        async def handle(event: Order) -> None:
            number = event.order_id
            if last[number % KEYS] >= number:
                seen.twice += 1
            last[number % KEYS] = number
            seen.tick(number)

        await serve(app, stop)
        return seen.result()

    return program


def consume_keyed(partitions: int) -> Program:
    """The same in shared mode, without order."""
    return lambda count: consume(count, keyed(partitions))


async def consume_effect(count: int) -> Figures:
    """The same with one HINCRBY per event in the commit."""
    seen, stop = seen_until(count)

    @orders.subscribe("bench")
    async def handle(event: Order, ctx: Context) -> None:
        seen.tick(event.order_id)
        ctx.redis.hincrby("sums", event.order_id % 100, 1)

    await serve(app, stop)
    return seen.result()


async def consume_output(count: int) -> Figures:
    """The same with one published event per event in the commit."""
    seen, stop = seen_until(count)
    out = app.topic("out", Order, retain_events=KEPT)

    @orders.subscribe("bench")
    async def handle(event: Order, ctx: Context) -> None:
        seen.tick(event.order_id)
        ctx.publish(out, event)

    await serve(app, stop)
    return seen.result()


async def latency(count: int) -> Figures:
    """200 events a second, open loop, in one process: from the call of publish() to the first line of the handler."""
    sent = [0.0] * count
    seen, stop = seen_until(count)
    delays: list[float] = []

    @orders.subscribe("bench")
    async def handle(event: Order) -> None:
        delays.append(time.perf_counter() - sent[event.order_id])
        seen.tick(event.order_id)

    async def one(i: int) -> None:
        sent[i] = time.perf_counter()
        await orders.publish(order(i))

    server = asyncio.ensure_future(serve(app, stop))
    await asyncio.sleep(1.0)
    began = time.perf_counter()
    tasks = []
    for i in range(count):
        await asyncio.sleep(max(began + i / 200 - time.perf_counter(), 0))
        tasks.append(asyncio.ensure_future(one(i)))
    await asyncio.gather(*tasks)
    await server
    delays.sort()
    return {**quantiles(delays), "twice": seen.twice, "left": seen.left}


def quantiles(delays: Sequence[float]) -> Figures:
    """Median and 99th percentile of sorted seconds, in milliseconds."""
    return {"p50_ms": delays[len(delays) // 2] * 1e3, "p99_ms": delays[int(len(delays) * 0.99)] * 1e3}


async def idle(seconds: int) -> Figures:
    """A worker with nothing to do: what it sends, what the server counts (commands inside scripts included), CPU."""
    stop = Stop()

    @orders.subscribe("bench")
    async def handle(event: Order) -> None:
        del event

    worker = asyncio.ensure_future(serve(app, stop))
    watcher = redis.asyncio.Redis.from_url(os.environ["HEADRACE_URL"])
    await asyncio.sleep(2)
    before, cpu = await watcher.info("commandstats"), time.process_time()
    await asyncio.sleep(seconds)
    after, cpu = await watcher.info("commandstats"), time.process_time() - cpu
    await watcher.aclose()
    stop.ask()
    await worker
    calls = {name: after[name]["calls"] - before.get(name, {"calls": 0})["calls"] for name in after}
    calls["cmdstat_info"] = 0  # ours
    sent = calls.get("cmdstat_evalsha", 0) + calls.get("cmdstat_xreadgroup", 0)
    return {
        "sent_per_s": sent / seconds,
        "commands_per_s": sum(calls.values()) / seconds,
        "cpu_percent": cpu / seconds * 100,
    }


async def memory_publish(count: int) -> Figures:
    """Memory of a publisher while `count` callers wait for `publish()` at once, beyond that of the callers themselves."""
    gate = asyncio.Event()

    async def caller(i: int) -> None:
        event = order(i)
        await gate.wait()
        await orders.publish(event)

    async with app:
        await orders.publish(order(0))
        tasks = [asyncio.ensure_future(caller(i)) for i in range(count)]
        await asyncio.sleep(0.1)
        gc.collect()
        before = rss_kib()
        gate.set()
        await asyncio.gather(*tasks)
        return {"peak_kib": rss_kib("VmHWM") - before, "rss_kib": before}


async def memory_work(count: int) -> Figures:
    """Memory of a worker whose handlers all wait, in as many lanes as there are events, 10,000 at most; then all go on."""
    seen, stop = seen_until(count)
    at_work, gate = 0, asyncio.Event()
    lanes = min(count, 10_000)

    @orders.subscribe("bench", lanes=lanes)
    async def handle(event: Order) -> None:
        nonlocal at_work
        at_work += 1
        if at_work == lanes:
            gate.set()
        await gate.wait()
        seen.tick(event.order_id)

    gc.collect()
    before = rss_kib()
    await serve(app, stop)
    return {"peak_kib": rss_kib("VmHWM") - before, "rss_kib": before, "twice": seen.twice, "left": seen.left}


PROGRAMS: dict[str, Program] = {
    f.__name__: f
    for f in (
        publish_many,
        publish_packed,
        consume,
        consume_packed,
        consume_effect,
        consume_output,
        latency,
        idle,
        memory_publish,
        memory_work,
    )
}
PROGRAMS |= {f"publish_each_{n}": publish_each(n) for n in (1, 100, 1_000)}
PROGRAMS |= {f"publish_keyed_{n}": publish_keyed(n) for n in (1, 4, 16)}
PROGRAMS |= {f"consume_keyed_{n}": consume_keyed(n) for n in (1, 4, 16)}
PROGRAMS |= {f"consume_ordered_{n}": consume_ordered(n) for n in (1, 4, 16)}

if __name__ == "__main__":
    main(PROGRAMS)

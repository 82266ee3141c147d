"""taskiq: RedisStreamBroker, 100 tasks at once, ack after the task.

requires: taskiq==0.13.0 taskiq-redis==1.2.4 redis==8.1.0 hiredis==3.5.0 uvloop==0.23.0 msgspec
events: 10000
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

import redis.asyncio as redis
import uvloop
from taskiq.receiver import Receiver
from taskiq_redis import RedisStreamBroker

from bench.event import Clock, Figures, Seen, main, order

URL = os.environ["HEADRACE_URL"]
uvloop.install()
broker = RedisStreamBroker(URL, max_connection_pool_size=20)
done = asyncio.Event()
seen: Seen


@broker.task(task_name="handle")
async def handle(order_id: int, amount: float, sku: str, note: str) -> None:
    """The fields of an event, which taskiq checks by their annotations."""
    del amount, sku, note
    seen.tick(order_id)


async def publish(count: int) -> Figures:
    """500 `kiq` at once."""
    await broker.startup()
    clock = Clock()
    for start in range(0, count, 500):
        events = [order(i) for i in range(start, min(start + 500, count))]
        await asyncio.gather(*(handle.kiq(e.order_id, e.amount, e.sku, e.note) for e in events))
    return clock.figures(count)


async def consume(count: int) -> Figures:
    """The receiver that its worker command runs, with that command's defaults."""
    global seen  # noqa: PLW0603 - the task is declared before the count is known
    seen = Seen(count, done.set)
    broker.is_worker_process = True
    finish = asyncio.Event()
    receiver = Receiver(broker, executor=ThreadPoolExecutor(1), max_async_tasks=100, max_prefetch=100)
    listening = asyncio.ensure_future(receiver.listen(finish))
    await done.wait()
    client = redis.Redis.from_url(URL)
    while (await client.xpending("taskiq", "taskiq"))["pending"]:
        await asyncio.sleep(0.01)
    finish.set()
    listening.cancel()
    return seen.result()


if __name__ == "__main__":
    main({"publish": publish, "consume": consume})

"""Dramatiq: Redis broker, 32 threads, ack after the actor.

requires: dramatiq[redis]==2.2.1 redis==8.1.0 hiredis==3.5.0 msgspec
events: 10000
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker

from bench.event import Clock, Figures, Seen, main, order

URL = os.environ["HEADRACE_URL"]
logging.disable(logging.CRITICAL)
broker = RedisBroker(url=URL)
dramatiq.set_broker(broker)
done = threading.Event()
lock = threading.Lock()
seen: Seen


@dramatiq.actor
def handle(order_id: int, amount: float, sku: str, note: str) -> None:
    """The fields of an event."""
    del amount, sku, note
    with lock:
        seen.tick(order_id)


async def publish(count: int) -> Figures:
    """One `send` after the other; there is no batch."""
    clock = Clock()
    for i in range(count):
        event = order(i)
        handle.send(event.order_id, event.amount, event.sku, event.note)
    return clock.figures(count)


async def consume(count: int) -> Figures:
    """A worker of 32 threads in this process."""
    global seen  # noqa: PLW0603 - the actor is declared before the count is known
    seen = Seen(count, done.set)
    worker = dramatiq.Worker(broker, worker_threads=32)
    worker.start()
    await asyncio.to_thread(done.wait)
    client = redis.Redis.from_url(URL)
    while client.hlen("dramatiq:default.msgs"):
        time.sleep(0.01)
    worker.stop()
    return seen.result()


if __name__ == "__main__":
    main({"publish": publish, "consume": consume})

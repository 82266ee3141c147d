"""FastStream: a stream subscriber with one call per message, ack after the handler.

requires: faststream[redis]==0.7.8 redis==8.1.0 hiredis==3.5.0 uvloop==0.23.0 msgspec
events: 15000
"""

from __future__ import annotations

import asyncio
import contextlib
import os

import redis.asyncio as redis
import uvloop
from faststream.redis import RedisBroker, StreamSub
from pydantic import BaseModel

from bench.event import NOTE, Clock, Figures, Seen, main

URL = os.environ["HEADRACE_URL"]
uvloop.install()


class Order(BaseModel):
    """The measured event as a model that FastStream validates."""

    order_id: int
    amount: float
    sku: str
    note: str


async def publish(count: int) -> Figures:
    """Pipelines of 500 `broker.publish`, the fastest way it documents."""
    client = redis.Redis.from_url(URL)
    with contextlib.suppress(redis.ResponseError):
        await client.xgroup_create("orders", "workers", "0", mkstream=True)
    broker = RedisBroker(URL, logger=None)
    await broker.connect()
    clock = Clock()
    for start in range(0, count, 500):
        async with client.pipeline(transaction=False) as pipe:
            for i in range(start, min(start + 500, count)):
                event = Order(order_id=i, amount=i % 1000 + 0.5, sku="SKU-0042", note=NOTE)
                await broker.publish(event, stream="orders", pipeline=pipe)
            await pipe.execute()
    return clock.figures(count)


async def consume(count: int) -> Figures:
    """100 messages at a time, one call each."""
    done = asyncio.Event()
    seen = Seen(count, done.set)
    broker = RedisBroker(URL, logger=None)

    @broker.subscriber(stream=StreamSub("orders", group="workers", consumer="c1", max_records=100), max_workers=100)
    async def handle(event: Order) -> None:
        seen.tick(event.order_id)

    await broker.start()
    await done.wait()
    client = redis.Redis.from_url(URL)
    while (await client.xpending("orders", "workers"))["pending"]:
        await asyncio.sleep(0.01)
    return seen.result()


if __name__ == "__main__":
    main({"publish": publish, "consume": consume})

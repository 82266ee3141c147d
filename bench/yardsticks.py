"""What the others do: packed commands without any semantics, a plain redis-py loop. `python -m bench.yardsticks NAME COUNT`."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import hiredis
import msgspec
import redis.asyncio

from bench.event import Clock, Figures, Order, Program, Seen, main, order
from headrace.backends.redis.connection import pack

_PIPELINE = 500
_READ = 1_000


class Wire:
    """A bare connection: packed commands out, replies in."""

    @classmethod
    async def open(cls) -> Wire:
        """To the server of HEADRACE_URL, a unix socket."""
        wire = cls()
        path = os.environ["HEADRACE_URL"].removeprefix("unix://")
        wire._reader, wire._writer = await asyncio.open_unix_connection(path)
        return wire

    def __init__(self) -> None:
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self._parser = hiredis.Reader()

    async def call(self, packed: bytes, replies: int = 1) -> list[Any]:
        """Sends commands and returns their replies."""
        self._writer.write(packed)
        out: list[Any] = []
        while True:
            while len(out) < replies and (reply := self._parser.gets()) is not False:
                out.append(reply)
            if len(out) == replies:
                return out
            self._parser.feed(await self._reader.read(1 << 18))


async def wire_publish(count: int) -> Figures:
    """One field, one body, packed once: what the server can take."""
    wire = await Wire.open()
    batch = pack(("XADD", "orders", "*", "data", msgspec.json.encode(order(1)))) * _PIPELINE
    clock = Clock()
    for _ in range(0, count, _PIPELINE):
        await wire.call(batch, _PIPELINE)
    return clock.figures(count)


async def wire_consume(count: int) -> Figures:
    """XREADGROUP and XACK, no decode, no handler."""
    wire = await Wire.open()
    await wire.call(pack(("XGROUP", "CREATE", "orders", "bench", "0")))
    read = pack(("XREADGROUP", "GROUP", "bench", "w", "COUNT", _READ, "STREAMS", "orders", ">"))
    clock, left = Clock(), count
    while left:
        entries = (await wire.call(read))[0][0][1]
        await wire.call(pack(("XACK", "orders", "bench", *[e[0] for e in entries])))
        left -= len(entries)
    return {**clock.figures(count), "left": left}


async def redis_py_publish(count: int) -> Figures:
    """Typed events through pipelines of XADD."""
    client = redis.asyncio.Redis.from_url(os.environ["HEADRACE_URL"])
    encode = msgspec.json.Encoder().encode
    clock = Clock()
    for start in range(0, count, _PIPELINE):
        pipe = client.pipeline(transaction=False)
        for i in range(start, min(start + _PIPELINE, count)):
            pipe.xadd("orders", {"data": encode(order(i))})
        await pipe.execute()
    figures = clock.figures(count)
    await client.aclose()
    return figures


async def redis_py_consume(count: int) -> Figures:
    """XREADGROUP, typed decode, XACK by the batch: the loop that people write by hand, without any of the promises."""
    client = redis.asyncio.Redis.from_url(os.environ["HEADRACE_URL"])
    decode = msgspec.json.Decoder(Order).decode
    await client.xgroup_create("orders", "bench", "0")
    seen = Seen(count, lambda: None)
    while seen.left:
        reply: Any = await client.xreadgroup("bench", "w", {"orders": ">"}, count=_READ)
        entries = reply[0][1]
        for _, fields in entries:
            seen.tick(decode(fields[b"data"]).order_id)
        await client.xack("orders", "bench", *[e[0] for e in entries])
    await client.aclose()
    return seen.result()


async def fill(count: int) -> Figures:
    """A backlog as headrace would have published it, without its protection against repeats: to have it quickly."""
    wire = await Wire.open()
    encode = msgspec.json.Encoder().encode
    clock = Clock()
    for start in range(0, count, _PIPELINE):
        entries = [
            pack(("XADD", "orders", "*", "id", f"fill.1.{i + 1}", "type", "Order", "data", encode(order(i))))
            for i in range(start, min(start + _PIPELINE, count))
        ]
        await wire.call(b"".join(entries), len(entries))
    return clock.figures(count)


async def hold(count: int) -> Figures:
    """`count` events pending under another worker of the group that is alive for a day to come."""
    wire = await Wire.open()
    await wire.call(pack(("XGROUP", "CREATE", "orders", "bench", "0", "MKSTREAM")))
    now = (await wire.call(pack(("TIME",))))[0]
    await wire.call(pack(("ZADD", "{orders}:workers:bench", int(now[0]) * 1000 + 86_400_000, "other")))
    read = pack(("XREADGROUP", "GROUP", "bench", "other/1", "COUNT", _READ, "STREAMS", "orders", ">"))
    clock = Clock()
    for _ in range(0, count, _READ):
        await wire.call(read)
    return clock.figures(count)


PROGRAMS: dict[str, Program] = {
    f.__name__: f for f in (wire_publish, wire_consume, redis_py_publish, redis_py_consume, fill, hold)
}

if __name__ == "__main__":
    main(PROGRAMS)

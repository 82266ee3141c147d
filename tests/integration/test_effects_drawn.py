"""Sequences of effects drawn by chance: the server's scripts write all of an event or nothing, as the fake in memory does."""

from __future__ import annotations

import asyncio
import random

import pytest

from headrace.backends.contract import Effect, Record, Route, Settlement, Subscription
from headrace.backends.effects import EFFECTS
from headrace.backends.memory.effects import RedisData, Value
from headrace.backends.redis.backend import RedisBackend
from headrace.settings import Settings
from tests.servers import Server

pytest_plugins = ["tests.servers"]
ORDERS = Route("orders")
EVENTS = 2_000
KEYS = (b"{orders}:a", b"{orders}:b")
FIELDS = (b"1", b"x")
PLAIN = (b"0", b"1", b"-1", b"5", b"0.5", b"x", b"")
ODD = (
    b"-0",
    b"01",
    b"+1",
    b".5",
    b"1e3",
    b"1e400",
    b"1e-400",
    b" 1",
    b"nan",
    b"9223372036854775807",
    b"9223372036854775808",
)


def drawn(chance: random.Random) -> Effect:
    name = chance.choice(list(EFFECTS))
    spec = EFFECTS[name]
    count = spec.min_args + (spec.step * chance.randint(0, 2) if spec.max_args is None else 0)
    odd = ODD[:-2] if name.endswith("FLOAT") else ODD  # sums of large numbers differ in their last places
    words = [chance.choice(odd if chance.random() < 0.1 else PLAIN) for _ in range(count)]
    if spec.type == "hash":
        words[0] = chance.choice(FIELDS)
    if name.endswith("EXPIRE"):
        words = [b"1000"]
    return (name.encode(), chance.choice(KEYS), *words)


def held(server: Server, key: bytes) -> Value | None:
    match server.command("TYPE", key):
        case b"string":
            return bytes(server.command("GET", key))
        case b"hash":
            flat = server.command("HGETALL", key)
            return dict(zip(flat[::2], flat[1::2], strict=True))
        case b"list":
            return list(server.command("LRANGE", key, 0, -1))
        case b"set":
            return set(server.command("SMEMBERS", key))
        case b"zset":
            flat = server.command("ZRANGE", key, 0, -1, "WITHSCORES")
            return {member: float(score) for member, score in zip(flat[::2], flat[1::2], strict=True)}
    return None


@pytest.mark.parametrize("ordered", [False, True])
def test_the_effects_of_an_event_are_made_all_or_not_at_all(server: Server, *, ordered: bool) -> None:
    chance = random.Random(7)

    async def run() -> None:
        backend, fake = RedisBackend(Settings(url=server.url)), RedisData(lambda: 0.0)
        await backend.open()
        feed = await backend.subscribe(Subscription(ORDERS, "g", "w", "earliest", ordered=ordered))
        await backend.publish(ORDERS, [Record(b"{}")] * EVENTS)
        made = refused = 0
        try:
            while made + refused < EVENTS:
                for delivery in await feed.take(1_000, 1.0):
                    if (made + refused) % 5 == 0:
                        server.command("DEL", *KEYS)
                        fake = RedisData(lambda: 0.0)
                    effects = [drawn(chance) for _ in range(chance.randint(1, 6))]
                    before = [held(server, key) for key in KEYS]
                    unsettled = await feed.commit([Settlement(delivery, effects=effects)])
                    now = [held(server, key) for key in KEYS]
                    if unsettled:
                        refused += 1
                        assert now == before, effects
                        await feed.commit([delivery])
                    else:
                        made += 1
                        assert (fake.apply(effects), now) == ("", [fake.value(key) for key in KEYS]), (before, effects)
        finally:
            await feed.aclose()
            await backend.aclose()
        assert made > EVENTS / 4
        assert refused > EVENTS / 4

    asyncio.run(run())


@pytest.mark.parametrize(
    ("before", "effects", "after"),
    [
        (("SET", b"k", b"text"), [(b"DEL", b"k"), (b"HSET", b"k", b"f", b"1"), (b"HINCRBY", b"k", b"f", b"1")], {b"f": b"2"}),
        (("HSET", b"k", b"f", b"text"), [(b"HDEL", b"k", b"f"), (b"HINCRBY", b"k", b"f", b"1")], {b"f": b"1"}),
        (("SET", b"k", b"4"), [(b"APPEND", b"k", b"2"), (b"INCRBY", b"k", b"1")], b"43"),
        (("HSET", b"k", b"f", b"text"), [(b"SET", b"k", b"1"), (b"INCRBY", b"k", b"1"), (b"APPEND", b"k", b"0")], b"20"),
        (("RPUSH", b"k", b"a"), [(b"LPUSH", b"k", b"b"), (b"LTRIM", b"k", b"0", b"0"), (b"RPUSH", b"k", b"c")], [b"b", b"c"]),
        (("SADD", b"other", b"a"), [(b"ZREM", b"k", b"a"), (b"SETNX", b"k", b"1"), (b"INCRBY", b"k", b"1")], b"2"),
    ],
)  # fmt: skip
def test_what_a_server_would_do_is_not_refused(
    server: Server, before: tuple[str, ...], effects: list[Effect], after: Value
) -> None:
    async def run() -> None:
        backend = RedisBackend(Settings(url=server.url))
        await backend.open()
        feed = await backend.subscribe(Subscription(ORDERS, "g", "w", "earliest"))
        await backend.publish(ORDERS, [Record(b"{}")])
        (delivery,) = await feed.take(1, 1.0)
        assert await feed.commit([Settlement(delivery, effects=effects)]) == []
        await feed.aclose()
        await backend.aclose()

    server.command(*before)
    asyncio.run(run())
    assert held(server, b"k") == after


@pytest.mark.parametrize(
    "effects",
    [
        [(b"HINCRBY", b"k", b"n", b"1"), (b"HSETNX", b"k", b"f", b"0.0"), (b"HINCRBY", b"k", b"f", b"5")],
        [(b"HINCRBYFLOAT", b"k", b"f", b"1.0"), (b"HINCRBYFLOAT", b"k", b"f", b"1e-17"), (b"HINCRBY", b"k", b"f", b"1")],
        [(b"SET", b"k", b"1"), (b"APPEND", b"k", b".5"), (b"INCRBY", b"k", b"1")],
        [(b"SET", b"k", b"1"), (b"SET", b"{orders}:retry:g", b"1")],
        [(b"SET", b"k", b"1"), (b"DEL", b"orders")],
    ],
)  # fmt: skip
def test_what_a_server_would_refuse_midway_is_refused_before(server: Server, effects: list[Effect]) -> None:
    async def run() -> list[str]:
        backend = RedisBackend(Settings(url=server.url))
        await backend.open()
        feed = await backend.subscribe(Subscription(ORDERS, "g", "w", "earliest"))
        await backend.publish(ORDERS, [Record(b"{}")])
        (delivery,) = await feed.take(1, 1.0)
        outputs = [(Route("invoices"), Record(b"{}"))]
        refused = [
            *await feed.commit([Settlement(delivery, outputs=outputs, effects=effects)]),
            *await feed.commit([Settlement(delivery, outputs=outputs, effects=[(b"SET", b"invoices", b"1")])]),
        ]
        await feed.aclose()
        await backend.aclose()
        return [one.refused for one in refused]

    reasons = asyncio.run(run())
    assert len(reasons) == 2
    assert all(reasons)
    assert (held(server, b"k"), server.command("EXISTS", "invoices")) == (None, 0)

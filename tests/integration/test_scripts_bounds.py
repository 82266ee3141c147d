"""Scripts are not rolled back: what a server would refuse in the middle of one is refused before its first write, or made to fit."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from msgspec import Struct

from headrace import Headrace
from headrace.backends.contract import Delivery, Feed, Record, Route, Settlement, Subscription, Verdict
from headrace.backends.redis.backend import RedisBackend
from headrace.backends.redis.client import Client
from headrace.backends.redis.inspect import RedisInspector
from headrace.runtime.signals import Stop
from headrace.runtime.worker import serve
from headrace.settings import Settings
from tests.playing import with_inspector as playing
from tests.servers import Server
from tests.waiting import wait_until_async

pytest_plugins = ["tests.servers"]
ORDERS = Route("orders")
WIDE = [word for n in range(5_000) for word in (f"field{n}", "value")]


class Number(Struct):
    n: int
    key: str = "a"


def subscription(*, ordered: bool = False) -> Subscription:
    return Subscription(ORDERS, "g", "w", "earliest", lease_s=0.6, ordered=ordered)


async def take(feed: Feed, count: int) -> list[Delivery]:
    got: list[Delivery] = []
    while len(got) < count:
        got += await feed.take(100, 0.2)
    return got


@pytest.mark.parametrize("ordered", [False, True])
def test_an_entry_with_more_fields_than_a_script_can_pass_on_harms_nobody(server: Server, *, ordered: bool) -> None:
    """It rests in the dead letters, with what of it fits; those beside it are handled."""

    async def play() -> None:
        app = Headrace(server.url, lease_s=0.6)
        numbers = app.topic("numbers", Number, key="key")

        @numbers.subscribe("g", ordered=ordered)
        async def count(number: Number) -> None:
            seen.append(number.n)

        seen: list[int] = []
        async with app:
            await numbers.publish(Number(1))
            server.command("XADD", "numbers", "*", *WIDE)
            await numbers.publish_many([Number(2), Number(3)])
            stop = Stop()
            worker = asyncio.ensure_future(serve(app, stop))

            async def settled() -> bool:
                groups = await inspector.groups("numbers")
                return [(g.handled, g.dead, g.missing) for g in groups] == [(3, 1, 0)]

            inspector = RedisInspector(Client(Settings(url=server.url)))
            await wait_until_async(settled, "three are handled, and one is dead")
            await inspector.aclose()
            stop.ask()
            await worker
        assert sorted(seen) == [1, 2, 3]
        ((_, fields),) = server.command("XRANGE", "{numbers}:dead:g", "-", "+")
        dead = dict(zip(fields[::2], fields[1::2], strict=True))
        assert b"no event has more than 3500" in dead[b"reason"]
        assert int(dead[b"cut"]) == 5_000 + 4 - 7_900 // 2

    asyncio.run(play())


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("how", [Verdict.RETURN, Verdict.RETRY])
def test_it_can_be_handed_back(server: Server, how: Verdict, *, ordered: bool) -> None:
    async def play(backend: RedisBackend, inspector: RedisInspector) -> None:
        await backend.publish(ORDERS, [Record(b"1", key=b"a")])
        server.command("XADD", "orders", "*", *WIDE)
        await backend.publish(ORDERS, [Record(b"2", key=b"b")])
        feed = await backend.subscribe(subscription(ordered=ordered))
        first, wide, last = await take(feed, 3)
        assert not await feed.commit([first, Settlement(wide, how, delay_ms=100), last])
        (again,) = await take(feed, 1)
        assert again.fields[-2] == b"cut"
        assert not await feed.commit([Settlement(again, Verdict.DEAD, reason=b"too wide")])
        ((_, fields),) = server.command("XRANGE", "{orders}:dead:g", "-", "+")
        own = sum(name.startswith(b"field") for name in fields[::2])
        assert (fields[-2], int(fields[-1])) == (b"cut", 5_000 - own), "all that is missing, though it was cut twice"
        (group,) = await inspector.groups("orders")
        assert (group.handled, group.dead, group.missing) == (2, 1, 0)

    playing(server, play)


def test_it_does_not_hold_up_who_leaves(server: Server) -> None:
    async def play(backend: RedisBackend, inspector: RedisInspector) -> None:
        server.command("XADD", "orders", "*", *WIDE)
        feed = await backend.subscribe(subscription())
        await take(feed, 1)
        await feed.aclose()
        (group,) = await inspector.groups("orders")
        assert (group.pending, group.retrying, group.missing) == (0, 1, 0)

    playing(server, play)


EFFECTS: Sequence[tuple[tuple[str, ...], tuple[bytes, ...]]] = [
    ((), (b"HINCRBY", b"stock", b"a", b"-0")),
    ((), (b"HINCRBY", b"stock", b"a", b"007")),
    ((), (b"LTRIM", b"list", b"-0", b"1")),
    ((), (b"EXPIRE", b"stock", b"9223372036854775000")),
    ((), (b"PEXPIRE", b"stock", b"9223372036854775000")),
    ((), (b"ZADD", b"set", b"1e-400", b"a")),
    ((), (b"INCRBYFLOAT", b"sum", b"1e-5000")),
    (("HSET", "stock", "a", "007"), (b"HINCRBY", b"stock", b"a", b"1")),
    (("HSET", "stock", "a", " 7"), (b"HINCRBYFLOAT", b"stock", b"a", b"1")),
    (("HSET", "stock", "a", "1.5"), (b"HINCRBY", b"stock", b"a", b"1")),
]


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(("before", "effect"), EFFECTS, ids=[b" ".join(effect).decode() for _, effect in EFFECTS])
def test_an_effect_that_the_server_would_refuse_is_refused_before_anything_is_written(
    server: Server, before: tuple[str, ...], effect: tuple[bytes, ...], *, ordered: bool
) -> None:
    async def play(backend: RedisBackend, inspector: RedisInspector) -> None:
        server.command("HSET", "stock", "b", "1")
        if before:
            server.command(*before)
        await backend.publish(ORDERS, [Record(b"%d" % n, key=b"%d" % n) for n in range(3)])
        feed = await backend.subscribe(subscription(ordered=ordered))
        settled = await take(feed, 3)
        fine = (b"INCRBY", b"fine", b"1")
        wrong = Settlement(settled[1], Verdict.HANDLED, effects=(effect,))
        refused = await feed.commit(
            [
                Settlement(settled[0], Verdict.HANDLED, effects=(fine,)),
                wrong,
                Settlement(settled[2], Verdict.HANDLED, effects=(fine,)),
            ]
        )
        assert [r.settled for r in refused] == [wrong]
        await feed.commit([Settlement(settled[1], Verdict.DEAD, reason=b"refused")])
        (group,) = await inspector.groups("orders")
        assert (group.dead, group.missing) == (1, 0)
        if not ordered:
            assert (group.handled, server.command("GET", "fine")) == (2, b"2")

    playing(server, play)


def test_who_had_a_retry_in_hand_when_the_mode_changed_has_it_no_more(server: Server) -> None:
    """It is set aside for the new worker; the old one's word does not send it where nobody looks."""

    async def play(backend: RedisBackend, inspector: RedisInspector) -> None:
        await backend.publish(ORDERS, [Record(b"1", key=b"k")])
        old = await backend.subscribe(subscription())
        await old.commit([Settlement(one, Verdict.RETRY, delay_ms=1) for one in await take(old, 1)])
        (held,) = await take(old, 1)
        await inspector.seek("orders", "g", "latest")
        other = RedisBackend(Settings(url=server.url))
        await other.open()
        new = await other.subscribe(Subscription(ORDERS, "g", "new", "earliest", lease_s=0.6, ordered=True))
        await old.commit([Settlement(held, Verdict.RETRY, delay_ms=60_000)])
        await old.aclose()
        assert not await new.commit(await take(new, 1))
        (group,) = await inspector.groups("orders")
        assert (group.handled, group.delayed, group.retrying, group.missing) == (1, 0, 0, 0)
        await other.aclose()

    playing(server, play)


@pytest.mark.parametrize("ordered", [False, True], ids=["to shared", "to ordered"])
def test_what_waits_for_its_retry_goes_with_the_mode(server: Server, *, ordered: bool) -> None:
    """A group that is started anew in the other mode handles it again, and not before it is due."""

    async def play(backend: RedisBackend, inspector: RedisInspector) -> None:
        await backend.publish(ORDERS, [Record(b"%d" % n, key=b"k") for n in range(3)])
        feed = await backend.subscribe(subscription(ordered=not ordered))
        taken = await take(feed, 3)
        await feed.commit([Settlement(one, Verdict.RETRY, delay_ms=1_500) for one in taken])
        due_ms = server.command("TIME")
        await feed.aclose()
        await inspector.seek("orders", "g", "latest")
        feed = await backend.subscribe(subscription(ordered=ordered))
        got = await take(feed, 3)
        late_ms = server.command("TIME")
        passed = (int(late_ms[0]) - int(due_ms[0])) * 1000 + (int(late_ms[1]) - int(due_ms[1])) / 1000
        assert passed > 1_000, "not before their time"
        assert sorted(d.fields[-1] for d in got) == [b"0", b"1", b"2"]
        if ordered:
            assert [d.fields[-1] for d in got] == [b"0", b"1", b"2"]
        # In order, those behind one that fails have not failed themselves.
        assert {d.attempt for d in got} == ({2} if ordered else {1, 2})
        assert not await feed.commit(got)
        (group,) = await inspector.groups("orders")
        assert (group.delayed, group.retrying, group.missing) == (0, 0, 0)

    playing(server, play)


@pytest.mark.parametrize(("size", "at_once"), [(1, 1_000), (1 << 20, 16)])
def test_what_is_due_at_once_is_appended_by_bounded_calls(server: Server, size: int, at_once: int) -> None:
    """A thousand events of 1 MiB in one call would hold everybody up for seconds."""
    count = at_once * 5 // 2

    async def play(backend: RedisBackend, _inspector: RedisInspector) -> None:
        keys, bodies = (b"orders", b"{orders}:delayed"), [b"%d " % n + b"x" * (size - 8) for n in range(count)]
        for n, body in enumerate(bodies):
            server.command("ZADD", "{orders}:delayed", n + 1, b"4:data,%d:%b," % (len(body), body))
        lengths = list[int]()
        while not lengths or lengths[-1] < count:
            (wait_ms, _, _) = await backend.client.call("tend", keys, b"", 0, 1_000)
            lengths.append(server.command("XLEN", "orders"))
            assert wait_ms == (0 if lengths[-1] < count else -1)
        assert lengths == [at_once, 2 * at_once, count]
        entries = server.command("XRANGE", "orders", "-", "+")
        assert [fields[1] for _, fields in entries] == bodies

    playing(server, play)

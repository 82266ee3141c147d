"""Rows of handlers, what they publish and their acks are one unit, on real databases and a real server."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from headrace import ConfigurationError, Context, Headrace, Retry, Topic
from headrace.backends.contract import Delivery, Settlement, Verdict
from headrace.backends.redis.client import Client
from headrace.backends.redis.inspect import RedisInspector
from headrace.observe import LogObserver
from headrace.once import Inbox
from headrace.runtime.execute import Executor
from headrace.runtime.pruning import prune
from headrace.runtime.pump import Pump
from headrace.runtime.worker import start
from tests.postgres import Postgres
from tests.servers import Server, require
from tests.waiting import wait_until_async

DATABASES = {
    "asyncpg": "postgresql+asyncpg",
    "psycopg": "postgresql+psycopg",
    "psycopg, threads": "postgresql+psycopg",
    "sqlite": "sqlite+aiosqlite",
    "sqlite, threads": "sqlite",
}


class Order(Struct):
    id: str
    cents: int


class Bill(Struct):
    order: str


class Database:
    """One database, emptied, with a table of charges that takes repeats: they are what must not happen."""

    def __init__(self, name: str, url: str) -> None:
        self.threads = "threads" in name
        self.url = url
        make: Callable[..., Any] = create_engine if self.threads else create_async_engine
        self.engine = make(url, poolclass=NullPool) if "sqlite" in url else make(url, pool_size=20, max_overflow=10)
        self.inbox = Inbox(self.engine)
        self._plain = create_engine(url.replace("+aiosqlite", "").replace("+asyncpg", "+psycopg"), poolclass=NullPool)
        with self._plain.begin() as connection:
            connection.execute(text("DROP TABLE IF EXISTS charges"))
            connection.execute(text("DROP TABLE IF EXISTS elsewhere"))
            connection.execute(text("CREATE TABLE charges (id varchar(40), cents integer)"))
            self.inbox.metadata.drop_all(connection)
            self.inbox.metadata.create_all(connection)

    def rows(self, query: str = "SELECT id FROM charges ORDER BY id") -> list[Any]:
        with self._plain.connect() as connection:
            return [row[0] for row in connection.execute(text(query))]

    def do(self, statement: str) -> None:
        with self._plain.begin() as connection:
            connection.execute(text(statement))

    async def aclose(self) -> None:
        if self.threads:
            self.engine.dispose()
        else:
            await self.engine.dispose()


@pytest.fixture(params=DATABASES, ids=lambda name: name.replace(", ", "-"))
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    name: str = request.param
    if "sqlite" in name:
        return Database(name, f"{DATABASES[name]}:///{tmp_path}/orders.db")
    postgres: Postgres = request.getfixturevalue("postgres")
    return Database(name, f"{DATABASES[name]}://{postgres.address}")


@pytest.fixture(scope="module")
def live() -> Iterator[Server]:
    require("valkey")
    with Server("valkey") as server:
        yield server


INSERT = text("INSERT INTO charges (id, cents) VALUES (:id, :cents)")


def values(order: Order) -> dict[str, object]:
    return {"id": order.id, "cents": order.cents}


class Shop:
    """An app whose handler charges, publishes a bill, and does what the test adds."""

    def __init__(self, url: str, database: Database, *, batch: int = 0, **options: Any) -> None:
        self.app = Headrace(url)
        self.orders: Topic[Order] = self.app.topic("orders", Order, key="id")
        self.bills: Topic[Bill] = self.app.topic("bills", Bill)
        self.also: Callable[[Order, Context], None] = lambda order, ctx: None
        self.pauses_s: list[float] = []
        """Of the next calls, the last first."""
        self.calls = 0
        options = {"retry": Retry(attempts=3, first_s=0.01), "inbox": database.inbox, **options}
        subscribe = self.orders.subscribe("billing", **options)
        if batch:

            @subscribe
            async def charge_many(orders: list[Order], ctxs: list[Context]) -> None:
                self.calls += 1
                if rows := [values(o) for o in orders if o.cents >= 0]:
                    await ctxs[0].sql.execute(INSERT, rows)
                for order, ctx in zip(orders, ctxs, strict=True):
                    ctx.publish(self.bills, Bill(order.id))
                    self.also(order, ctx)
        elif database.threads:

            @subscribe
            def charge_here(order: Order, ctx: Context) -> None:
                self.calls += 1
                ctx.sql.execute(INSERT, values(order))
                ctx.publish(self.bills, Bill(order.id))
                ctx.redis.incrby("revenue", order.cents)
                threading.Event().wait(self.pauses_s.pop() if self.pauses_s else 0)
                self.also(order, ctx)
        else:

            @subscribe
            async def charge(order: Order, ctx: Context) -> None:
                self.calls += 1
                await ctx.sql.execute(INSERT, values(order))
                ctx.publish(self.bills, Bill(order.id))
                ctx.redis.incrby("revenue", order.cents)
                await asyncio.sleep(self.pauses_s.pop() if self.pauses_s else 0)
                self.also(order, ctx)

    @asynccontextmanager
    async def working(self) -> AsyncIterator[Pump]:
        threads = ThreadPoolExecutor(20)
        (pump,) = await start(self.app.groups.values(), self.app.backend(), threads, LogObserver(), 5.0)
        running = asyncio.ensure_future(pump.run())
        try:
            yield pump
        finally:
            await pump.drain(5.0)
            await running
            await asyncio.to_thread(threads.shutdown)  # they give their connections back to the pool

    @asynccontextmanager
    async def executor(self) -> AsyncIterator[Executor]:
        threads = ThreadPoolExecutor(20)
        (group,) = self.app.groups.values()
        yield Executor(group, frozenset({"INCRBY"}), threads, LogObserver())
        threads.shutdown(wait=False)


def playing(live: Server, database: Database, play: Callable[[Shop], Awaitable[None]], **options: Any) -> None:
    live.command("FLUSHALL")

    async def run() -> None:
        shop = Shop(live.url, database, **options)
        try:
            async with asyncio.timeout(60), shop.app:
                await play(shop)
        finally:
            await database.aclose()

    asyncio.run(run())


async def until(predicate: Callable[[], bool], what: str) -> None:
    async def holds() -> bool:
        return predicate()

    await wait_until_async(holds, what, 60.0)


def orders(count: int, cents: int = 5) -> list[Order]:
    return [Order(f"o-{n:04}", cents) for n in range(count)]


def ids(count: int) -> list[str]:
    return [o.id for o in orders(count)]


def handled(live: Server) -> int:
    return int(live.command("HGET", "{orders}:group:billing", "handled") or 0)


def delivery(order: Order, token: bytes = b"1-1") -> Delivery:
    body = b'{"id":"%s","cents":%d}' % (order.id.encode(), order.cents)
    return Delivery(token, [b"id", b"p.1." + order.id.encode(), b"type", b"Order", b"data", body], None)


def test_each_event_is_charged_once_though_the_group_begins_anew(live: Server, database: Database) -> None:
    """As after a failover that has lost the group's place: the stream's ids say nothing, the events' do."""

    async def play(shop: Shop) -> None:
        shop.also = lambda order, ctx: ctx.publish(shop.bills, Bill(order.id), id=f"bill {order.id}")
        await shop.orders.publish_many(orders(200))
        async with shop.working():
            await until(lambda: handled(live) == 200, "all orders are handled")
        inspector = RedisInspector(Client(shop.app.settings))
        await inspector.seek("orders", "billing", "earliest")
        await inspector.aclose()
        calls, bills = shop.calls, live.command("XLEN", "bills")
        async with shop.working():
            await until(lambda: handled(live) == 200, "all orders are handled again")
        assert shop.calls == calls == 200
        assert database.rows() == ids(200)
        named = [dict(zip(f[::2], f[1::2], strict=True))[b"id"] for _, f in live.command("XRANGE", "bills", "-", "+")]
        named = [name for name in named if name.startswith(b"bill ")]
        assert len(named) == len(set(named)) == 200, "published once, for each has an id of its own"
        assert live.command("XLEN", "bills") == bills + 200, "without one it comes again, as the guide says"

    playing(live, database, play)


def test_a_failed_event_leaves_no_row_and_is_charged_once(live: Server, database: Database) -> None:
    async def play(shop: Shop) -> None:
        failed: set[str] = set()

        def fail_once(order: Order, ctx: Context) -> None:
            if order.id not in failed and int(order.id[2:]) % 3 == 0:
                failed.add(order.id)
                raise ValueError("once")

        shop.also = fail_once
        await shop.orders.publish_many(orders(60))
        async with shop.working():
            await until(lambda: handled(live) == 60, "all orders are handled")
        assert len(failed) == 20
        assert database.rows() == ids(60)
        assert live.command("XLEN", "bills") == 60
        assert live.command("GET", "revenue") == b"300"

    playing(live, database, play)


def test_what_was_to_leave_with_the_ack_leaves_with_that_of_the_repeat(live: Server, database: Database) -> None:
    """The worker died between its two commits: the database has it, the server has not."""

    async def play(shop: Shop) -> None:
        order = Order("o-1", 5)
        async with shop.executor() as executor:
            first = await executor.execute(delivery(order), asyncio.get_running_loop().time())
            again = await executor.execute(delivery(order, b"9-9"), asyncio.get_running_loop().time())
        for settled in (first, again):
            assert isinstance(settled, Settlement)
            assert settled.verdict is Verdict.HANDLED
            ((route, record),) = settled.outputs
            assert (route.topic, record.body) == ("bills", b'{"order":"o-1"}')
            assert list(settled.effects) == [(b"INCRBY", b"revenue", b"5")]
        assert shop.calls == 1
        assert database.rows() == ["o-1"]

    playing(live, database, play)


def test_two_at_once_are_one(live: Server, database: Database) -> None:
    """A worker that was silent for too long and the one that took over: the second waits, and meets the row of the first."""

    async def play(shop: Shop) -> None:
        shop.pauses_s = [0.3]
        async with shop.executor() as executor:
            now = asyncio.get_running_loop().time()
            copies = [delivery(Order("o-1", 5), b"%d-1" % n) for n in range(5)]
            settled = await asyncio.gather(*(executor.execute(copy, now) for copy in copies))
        assert shop.calls == 1
        assert database.rows() == ["o-1"]
        assert all(isinstance(s, Settlement) and s.verdict is Verdict.HANDLED for s in settled)

    playing(live, database, play)


@pytest.mark.parametrize("database", ["asyncpg", "psycopg", "sqlite"], indirect=True)
def test_a_batch_is_one_transaction(live: Server, database: Database) -> None:
    async def play(shop: Shop) -> None:
        seen: set[str] = set()

        def fail_some(order: Order, ctx: Context) -> None:
            if order.cents < 0 and order.id not in seen:
                seen.add(order.id)
                ctx.fail("not yet")
            elif order.id == "o-0007" and order.id not in seen:
                seen.add(order.id)
                raise ValueError("all of them")

        shop.also = fail_some
        await shop.orders.publish_many([*orders(100), Order("x-1", -1), Order("x-2", -1)])
        async with shop.working():
            await until(lambda: handled(live) == 102, "all orders are handled")
        assert database.rows() == ids(100)
        assert database.rows("SELECT count(*) FROM headrace_inbox") == [102]
        assert live.command("XLEN", "bills") == 102
        assert shop.calls < 40

    playing(live, database, play, batch=25, lanes=2)


def test_a_deadline_leaves_nothing_behind(live: Server, database: Database) -> None:
    """Also a thread that cannot be stopped: it writes nothing, or all of it once."""

    async def play(shop: Shop) -> None:
        shop.pauses_s = [0.6, 0.6]
        await shop.orders.publish_many(orders(2))
        async with shop.working():
            await until(lambda: handled(live) == 2, "both are handled")
            await asyncio.sleep(1.0)  # a thread that was left alone has ended by now
        assert database.rows() == ids(2)
        assert live.command("XLEN", "bills") == 2

    playing(live, database, play, timeout_s=0.2, retry=Retry(attempts=10, first_s=0.01))


def test_a_database_without_the_table_is_waited_for(
    live: Server, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """The events are not to blame: no attempt is counted, and the log says what to do."""

    async def play(shop: Shop) -> None:
        database.do("ALTER TABLE headrace_inbox RENAME TO elsewhere")
        await shop.orders.publish_many(orders(30))
        async with shop.working():
            await until(lambda: "headrace sql init" in caplog.text, "the log says what to do")
            await asyncio.sleep(1.5)
            database.do("ALTER TABLE elsewhere RENAME TO headrace_inbox")
            await until(lambda: handled(live) == 30, "all orders are handled")
        assert database.rows() == ids(30)
        assert live.command("XLEN", "{orders}:dead:billing") == 0

    with caplog.at_level(logging.WARNING):
        playing(live, database, play)


def test_what_is_old_is_forgotten(live: Server, database: Database) -> None:
    async def play(shop: Shop) -> None:
        await shop.orders.publish_many(orders(20))
        async with shop.working():
            await until(lambda: handled(live) == 20, "all orders are handled")
        (group,) = shop.app.groups.values()
        assert await prune(group, database.inbox, shop.app.settings) == 0
        database.do("UPDATE headrace_inbox SET handled_at = '2020-01-01 00:00:00' WHERE event_id LIKE '%.1'")
        database.do(
            "INSERT INTO headrace_inbox (topic, consumer_group, event_id, handled_at) VALUES ('orders', 'other', 'e', '2020-01-01 00:00:00')"
        )
        assert await prune(group, database.inbox, shop.app.settings) == 1
        assert database.rows("SELECT count(*) FROM headrace_inbox") == [20]

    playing(live, database, play)


def test_nothing_is_forgotten_while_an_old_event_waits(live: Server, tmp_path: Path) -> None:
    """It may be one that was handled, and whose ack was lost with a server that was away for as long."""
    database = Database("sqlite", f"sqlite+aiosqlite:///{tmp_path}/orders.db")
    database.inbox.keep_s = 0.2

    async def play(shop: Shop) -> None:
        await shop.orders.publish_many(orders(2))
        async with shop.working():
            await until(lambda: handled(live) == 2, "all orders are handled")
        (group,) = shop.app.groups.values()
        database.do("UPDATE headrace_inbox SET handled_at = '2020-01-01 00:00:00'")
        await shop.orders.publish(Order("later", 1))
        await asyncio.sleep(0.5)
        assert await prune(group, database.inbox, shop.app.settings) == 0
        async with shop.working():
            await until(lambda: handled(live) == 3, "the last is handled")
        database.inbox.keep_s = 3_600
        assert await prune(group, database.inbox, shop.app.settings) == 2

    playing(live, database, play)


def test_what_an_operator_replays_is_handled_again(live: Server, database: Database) -> None:
    """Else a range could not be replayed to a handler that was corrected."""

    async def play(shop: Shop) -> None:
        await shop.orders.publish_many(orders(5))
        async with shop.working():
            await until(lambda: handled(live) == 5, "all orders are handled")
            inspector = RedisInspector(Client(shop.app.settings))
            await inspector.replay("orders", "billing", "-", "+")
            await inspector.aclose()
            await until(lambda: handled(live) == 10, "all orders are handled again")
        assert database.rows() == sorted([*ids(5), *ids(5)])

    playing(live, database, play)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg", "psycopg, threads"])
def test_a_database_that_crashes_is_waited_for(live: Server, driver: str) -> None:
    """Killed again and again in the middle of transactions."""
    with Postgres() as postgres:
        database = Database(driver, f"{DATABASES[driver]}://{postgres.address}")

        async def play(shop: Shop) -> None:
            await shop.orders.publish_many(orders(3_000))
            async with shop.working():
                for n in (300, 900, 1_800):
                    await until(lambda n=n: handled(live) >= n, f"{n} orders are handled")  # type: ignore[misc]
                    await asyncio.to_thread(postgres.kill)
                    await asyncio.sleep(0.5)
                    await asyncio.to_thread(postgres.start)
                await until(
                    lambda: handled(live) + int(live.command("XLEN", "{orders}:dead:billing")) == 3_000,
                    "all are handled",
                )
            assert live.command("XLEN", "{orders}:dead:billing") == 0
            assert database.rows() == ids(3_000)
            assert live.command("XLEN", "bills") == 3_000
            assert live.command("GET", "revenue") == b"15000"

        playing(live, database, play, lanes=10, retry=Retry(attempts=1))


def test_what_cannot_be_meant(tmp_path: Path) -> None:
    sync, other = (
        create_engine(f"sqlite:///{tmp_path}/a.db"),
        create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/a.db"),
    )
    orders: Topic[Order] = Headrace("redis://127.0.0.1:1").topic("orders", Order)

    async def wait(order: Order, ctx: Context) -> None:
        """Asynchronous."""

    def block(order: Order, ctx: Context) -> None:
        """Plain."""

    with pytest.raises(ConfigurationError, match="async def handlers needs an engine made by create_async_engine"):
        orders.subscribe("g", inbox=Inbox(sync))(wait)
    with pytest.raises(ConfigurationError, match="plain def handlers needs an engine made by create_engine"):
        orders.subscribe("h", inbox=Inbox(other))(block)
    with pytest.raises(ConfigurationError, match="expected an Engine, AsyncEngine"):
        Inbox("sqlite:///a.db")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="keep_s: expected a positive number"):
        Inbox(sync, keep_s=0)


def test_without_an_inbox_there_is_no_session() -> None:
    async def play() -> None:
        app = Headrace("redis://127.0.0.1:1")
        topic: Topic[Order] = app.topic("orders", Order)

        @topic.subscribe("g", retry=Retry(attempts=1))
        async def handle(order: Order, ctx: Context) -> None:
            ctx.sql.execute("")

        async with app.testing() as t:
            await topic.publish(Order("o", 1))
            await t.drain()
            (letter,) = await t.dead(topic, "g")
            assert "declare it with subscribe(..., inbox=Inbox(engine))" in letter.reason

    asyncio.run(play())

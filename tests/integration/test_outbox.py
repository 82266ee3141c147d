"""What a transaction publishes is sent once if it commits, and never if it does not; in the order of each key."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct, structs
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from headrace import ConfigurationError, Headrace, NotConnected, Refused, Topic
from headrace.backends.contract import Record, Route
from headrace.once import Outbox
from headrace.once.relay import Relay
from tests.postgres import Postgres
from tests.servers import Server, require
from tests.waiting import wait_until_async

DATABASES = {
    "asyncpg": "postgresql+asyncpg",
    "psycopg": "postgresql+psycopg",
    "sqlite": "sqlite+aiosqlite",
    "psycopg, threads": "postgresql+psycopg",
}


class Order(Struct):
    id: int
    customer: str


@pytest.fixture(scope="module")
def live() -> Iterator[Server]:
    require("valkey")
    with Server("valkey") as server:
        yield server


class Database:
    def __init__(self, name: str, url: str) -> None:
        self.threads = "threads" in name
        make: Callable[..., Any] = create_engine if self.threads else create_async_engine
        self.engine = make(url, poolclass=NullPool) if "sqlite" in url else make(url, pool_size=20, max_overflow=10)
        self.outbox = Outbox(self.engine)
        patience = {"connect_args": {"timeout": 30}} if "sqlite" in url else {}
        self.plain = create_engine(
            url.replace("+aiosqlite", "").replace("+asyncpg", "+psycopg"), poolclass=NullPool, **patience
        )
        with self.plain.begin() as connection:
            self.outbox.metadata.drop_all(connection)
            self.outbox.metadata.create_all(connection)

    @asynccontextmanager
    async def transaction(self) -> Any:
        if self.threads:
            with Session(self.engine) as session, session.begin():
                yield session
        else:
            async with AsyncSession(self.engine) as waiting, waiting.begin():
                yield waiting

    def do(self, statement: str) -> None:
        with self.plain.begin() as connection:
            connection.execute(text(statement))

    def one(self, query: str) -> Any:
        with self.plain.connect() as connection:
            return connection.execute(text(query)).scalar()

    async def aclose(self) -> None:
        if not self.threads:
            await self.engine.dispose()

    def close(self) -> None:
        """After the event loop, which waits for its threads: they give their connections back to the pool."""
        if self.threads:
            self.engine.dispose()


@pytest.fixture(params=DATABASES, ids=lambda name: name.replace(", ", "-"))
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    name: str = request.param
    if "sqlite" in name:
        return Database(name, f"{DATABASES[name]}:///{tmp_path}/orders.db")
    postgres: Postgres = request.getfixturevalue("postgres")
    return Database(name, f"{DATABASES[name]}://{postgres.address}")


class Shop:
    def __init__(self, url: str, database: Database) -> None:
        self.database = database
        self.app = Headrace(url, outbox=database.outbox)
        self.orders: Topic[Order] = self.app.topic("orders", Order, key="customer", partitions=3)

    @asynccontextmanager
    async def relaying(self) -> Any:
        task = asyncio.ensure_future(self.app.relay())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def emptied(self) -> None:
        async def empty() -> bool:
            count: int = await asyncio.to_thread(self.database.one, "SELECT count(*) FROM headrace_outbox")
            return count == 0

        await wait_until_async(empty, "the outbox is empty")


def playing(live: Server, database: Database, play: Callable[[Shop], Awaitable[None]]) -> None:
    live.command("FLUSHALL")

    async def run() -> None:
        shop = Shop(live.url, database)
        try:
            async with asyncio.timeout(60), shop.app:
                await play(shop)
        finally:
            await database.aclose()

    try:
        asyncio.run(run())
    finally:
        database.close()


def sent(live: Server) -> dict[str, list[int]]:
    """The numbers of each customer's orders, in the order of the stream."""
    found: dict[str, list[int]] = {}
    for n in range(3):
        for _, fields in live.command("XRANGE", f"orders.{n}", "-", "+"):
            own = dict(zip(fields[::2], fields[1::2], strict=True))
            found.setdefault(own[b"key"].decode(), []).append(int(own[b"data"].split(b":")[1].split(b",")[0]))
    return found


def test_what_is_committed_is_sent_and_what_is_not_is_not(live: Server, database: Database) -> None:
    async def play(shop: Shop) -> None:
        async with shop.relaying():
            async with database.transaction() as session:
                for n in range(3):
                    await shop.orders.publish(Order(n, "ann"), sql=session)
            with pytest.raises(ValueError, match="no"):
                async with database.transaction() as session:
                    await shop.orders.publish(Order(3, "ann"), sql=session)
                    raise ValueError("no")
            await shop.emptied()
            async with database.transaction() as session:
                await shop.orders.publish(Order(4, "ann"), sql=session)
            await shop.emptied()
        assert sent(live) == {"ann": [0, 1, 2, 4]}

    playing(live, database, play)


@pytest.mark.parametrize("database", ["asyncpg", "psycopg"], indirect=True)
def test_transactions_that_commit_out_of_order_are_not_overtaken(live: Server, database: Database) -> None:
    """A later row waits for an earlier one whose transaction is still running."""

    async def play(shop: Shop) -> None:
        async with shop.relaying():
            async with database.transaction() as slow:
                await shop.orders.publish(Order(0, "ann"), sql=slow)
                async with database.transaction() as quick:
                    await shop.orders.publish(Order(1, "ann"), sql=quick)
                await asyncio.sleep(1.2)
                assert sent(live) == {}
            await shop.emptied()
        assert sent(live) == {"ann": [0, 1]}

    playing(live, database, play)


def test_relays_die_between_sending_and_deleting(live: Server, database: Database) -> None:
    """Several of them, one after the other and side by side; each event is there once, in order."""

    class Mortal(Relay):
        """Dies after a batch was sent, before its rows are deleted."""

        async def _do(self, step: Callable[[Any], Any]) -> Any:
            if getattr(step, "__name__", "") == "<lambda>" and random.random() < 0.5:
                raise asyncio.CancelledError
            return await super()._do(step)

    async def play(shop: Shop) -> None:
        routes = {t.name: t.route for t in shop.app.topics.values()}
        numbers = dict.fromkeys(("ann", "bob", "eve"), 0)

        async def fill() -> None:
            for _ in range(60):
                async with database.transaction() as session:
                    for _ in range(random.randrange(1, 10)):
                        customer = random.choice(list(numbers))
                        await shop.orders.publish(Order(numbers[customer], customer), sql=session)
                        numbers[customer] += 1
                await asyncio.sleep(0.005)

        filling = asyncio.ensure_future(fill())
        while not filling.done():
            relays = [
                asyncio.ensure_future(Mortal(database.outbox, shop.app.backend(), routes).run()) for _ in range(2)
            ]
            await asyncio.wait([filling, *relays], timeout=0.3, return_when=asyncio.FIRST_COMPLETED)
            for relay in relays:
                relay.cancel()
            await asyncio.gather(*relays, return_exceptions=True)
            await asyncio.to_thread(database.do, "UPDATE headrace_outbox_relay SET until = 0")
        await filling
        async with shop.relaying():
            await shop.emptied()
        assert sent(live) == {customer: list(range(count)) for customer, count in numbers.items()}

    playing(live, database, play)


def test_one_relay_at_a_time_is_at_work(live: Server, database: Database) -> None:
    async def play(shop: Shop) -> None:
        routes = {t.name: t.route for t in shop.app.topics.values()}
        relays = [Relay(database.outbox, shop.app.backend(), routes) for _ in range(3)]
        running = [asyncio.ensure_future(relay.run()) for relay in relays]
        for n in range(10):
            async with database.transaction() as session:
                await shop.orders.publish(Order(n, "ann"), sql=session)
        await shop.emptied()

        async def counted() -> bool:
            return sum(relay.sent for relay in relays) == 10

        await wait_until_async(counted, "the relay has heard of its commit")
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        assert sorted(relay.sent for relay in relays) == [0, 0, 10]
        assert sent(live) == {"ann": list(range(10))}

    playing(live, database, play)


def test_rows_in_doubt_for_longer_than_ids_are_remembered_stop_the_relay(live: Server, database: Database) -> None:
    async def play(shop: Shop) -> None:
        class Broken:
            async def publish(self, route: Route, records: list[Record]) -> None:
                raise NotConnected("the answer was lost")

        routes = {t.name: t.route for t in shop.app.topics.values()}
        async with database.transaction() as session:
            await shop.orders.publish(Order(0, "ann"), sql=session)
        relay = Relay(database.outbox, Broken(), routes)  # type: ignore[arg-type]
        with pytest.raises(NotConnected):
            await relay._send_some()
        await relay._leave()
        await asyncio.to_thread(database.do, "UPDATE headrace_outbox_relay SET doubt_since = doubt_since - 90000")
        with pytest.raises(Refused, match="and topic orders remembers ids for"):
            await shop.app.relay()
        assert sent(live) == {}
        await asyncio.to_thread(database.do, "UPDATE headrace_outbox_relay SET doubt_last = NULL")
        async with shop.relaying():
            await shop.emptied()
        assert sent(live) == {"ann": [0]}

    playing(live, database, play)


@pytest.mark.parametrize("database", ["asyncpg", "sqlite"], indirect=True)
def test_an_outage_longer_than_ids_are_remembered_leaves_nothing_in_doubt(live: Server, database: Database) -> None:
    """What could not be sent is sent when the server is back; what may have been sent before the outage stays in doubt."""

    async def play(shop: Shop) -> None:
        routes = {"orders": structs.replace(shop.orders.route, id_window_s=2.0)}
        async with database.transaction() as session:
            await shop.orders.publish(Order(0, "ann"), sql=session)
        relay = Relay(database.outbox, shop.app.backend(), routes)
        task = asyncio.ensure_future(relay.run())
        await shop.emptied()
        await asyncio.to_thread(live.kill)
        async with database.transaction() as session:
            await shop.orders.publish(Order(1, "ann"), sql=session)
        await asyncio.sleep(3.5)  # the outage itself
        assert await asyncio.to_thread(database.one, "SELECT doubt_last FROM headrace_outbox_relay") is None
        await asyncio.to_thread(live.start)
        await shop.emptied()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert sent(live) == {"ann": [0, 1]}

        class Torn:
            """Its answers are lost from now on."""

            async def reach(self, route: Route) -> None:
                await shop.app.backend().reach(route)  # type: ignore[attr-defined]  # of Redis

            async def publish(self, route: Route, records: list[Record]) -> None:
                await shop.app.backend().publish(route, records)
                await asyncio.to_thread(live.kill)
                raise NotConnected("the answer was lost")

        async with database.transaction() as session:
            await shop.orders.publish(Order(2, "ann"), sql=session)
        relay = Relay(database.outbox, Torn(), routes)  # type: ignore[arg-type]
        task = asyncio.ensure_future(relay.run())
        await asyncio.sleep(3.5)
        assert not task.done()
        await asyncio.to_thread(live.start)
        with pytest.raises(Refused, match="and topic orders remembers ids for"):
            await task
        assert sent(live) == {"ann": [0, 1, 2]}

    playing(live, database, play)


def test_an_own_id_and_a_delay_travel_along(live: Server, database: Database) -> None:
    async def play(shop: Shop) -> None:
        async with database.transaction() as session:
            for _ in range(2):
                await shop.orders.publish(Order(1, "ann"), id="o-1", headers={"tenant": "blue"}, sql=session)
            await shop.orders.publish(Order(2, "ann"), delay_s=60, sql=session)
        async with shop.relaying():
            await shop.emptied()
        assert sent(live) == {"ann": [1]}
        assert sum(live.command("ZCARD", f"{{orders.{n}}}:delayed") for n in range(3)) == 1

    playing(live, database, play)


def test_what_cannot_be_meant(live: Server, tmp_path: Path) -> None:
    database = Database("sqlite", f"sqlite+aiosqlite:///{tmp_path}/orders.db")

    async def play(shop: Shop) -> None:
        with pytest.raises(ConfigurationError, match="sql: expected a Session, AsyncSession or AsyncConnection"):
            await shop.orders.publish(Order(1, "ann"), sql="session")
        without = Headrace(live.url)
        topic: Topic[Order] = without.topic("orders", Order, key="customer", partitions=3)
        async with database.transaction() as session:
            with pytest.raises(ConfigurationError, match=r"needs an outbox: Headrace\(outbox=Outbox\(engine\)\)"):
                await topic.publish(Order(1, "ann"), sql=session)
        with pytest.raises(ConfigurationError, match="there is nothing to relay"):
            await without.relay()
        with pytest.raises(ConfigurationError, match="outbox: expected an Engine or AsyncEngine"):
            Outbox("sqlite://")  # type: ignore[arg-type]
        async with database.transaction() as session:
            await database.outbox.add(session, "elsewhere", Record(b"{}"))
        with pytest.raises(Refused, match="is for topic elsewhere, which this program does not declare"):
            await shop.app.relay()

    playing(live, database, play)

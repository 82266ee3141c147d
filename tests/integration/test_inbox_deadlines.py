"""A database that keeps its clients waiting is waited for: no event is to blame, and what was committed meanwhile counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from msgspec import Struct
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from headrace import Context, Headrace, Retry, limits
from headrace.once import Inbox
from tests.postgres import Postgres
from tests.waiting import wait_until_async

DRIVERS = {"asyncpg": "postgresql+asyncpg", "psycopg": "postgresql+psycopg", "threads": "postgresql+psycopg"}
ADD = text("INSERT INTO charges (id) VALUES (:id)")


class Order(Struct):
    id: str


@pytest.fixture
def owner(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """Of a database with an empty table of charges and an inbox; statements of it are committed one by one, and wait for nobody."""
    monkeypatch.setattr(limits, "database_pause_s", 0.05)
    options = "-csynchronous_commit=local"
    engine = create_engine(
        f"postgresql+psycopg://{postgres.address}",
        poolclass=NullPool,
        isolation_level="AUTOCOMMIT",
        connect_args={"options": options},
    )
    run(engine, "DROP TABLE IF EXISTS charges", "CREATE TABLE charges (id varchar(40))")
    metadata = Inbox(create_engine("sqlite://")).metadata
    metadata.drop_all(engine)
    metadata.create_all(engine)
    yield engine
    run(engine, "ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")


def run(engine: Engine, *statements: str) -> None:
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))


class Shop:
    """An app with a handler that has 0.3 s and one attempt."""

    def __init__(self, driver: str, address: str) -> None:
        self.app = Headrace()
        self.orders = self.app.topic("orders", Order)
        self.attempts: list[int] = []
        make: Callable[..., Any] = create_engine if driver == "threads" else create_async_engine
        inbox = Inbox(make(f"{DRIVERS[driver]}://{address}", poolclass=NullPool))
        subscribe = self.orders.subscribe("g", timeout_s=0.3, retry=Retry(attempts=1), inbox=inbox)
        if driver == "threads":

            @subscribe
            def charge_here(order: Order, ctx: Context) -> None:
                self.attempts.append(ctx.attempt)
                ctx.sql.execute(ADD, {"id": order.id})
        else:

            @subscribe
            async def charge(order: Order, ctx: Context) -> None:
                self.attempts.append(ctx.attempt)
                await ctx.sql.execute(ADD, {"id": order.id})

    async def settle(self, waits: Callable[[], bool], goes_on: Callable[[], None]) -> None:
        """Handles one event although the database lets it wait; `goes_on` ends that, some time after it `waits`."""

        async def waiting() -> bool:
            return waits()

        async with self.app.testing() as t:
            await self.orders.publish(Order("o-1"))
            draining = asyncio.ensure_future(t.drain(timeout_s=30))
            await wait_until_async(waiting, "it is waited for")
            await asyncio.sleep(1.0)
            await asyncio.to_thread(goes_on)
            await draining
            ledger = await t.ledger(self.orders, "g")
            assert [letter.reason for letter in await t.dead(self.orders, "g")] == []
            assert (ledger.handled, ledger.missing) == (1, 0)


@pytest.mark.parametrize("driver", DRIVERS)
def test_another_has_the_inbox_locked(driver: str, owner: Engine, postgres: Postgres, caplog: Any) -> None:
    shop = Shop(driver, postgres.address)
    with owner.connect().execution_options(isolation_level="READ COMMITTED") as other:
        other.execute(text("LOCK TABLE headrace_inbox"))
        asyncio.run(shop.settle(lambda: "before its handler was called" in caplog.text, other.rollback))
    assert shop.attempts == [1]
    with owner.connect() as connection:
        assert connection.execute(text("SELECT id FROM charges")).scalars().all() == ["o-1"]


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_commit_waits_for_a_standby(driver: str, owner: Engine, postgres: Postgres, caplog: Any) -> None:
    shop = Shop(driver, postgres.address)
    run(owner, "ALTER SYSTEM SET synchronous_standby_names = 'away'", "SELECT pg_reload_conf()")

    def comes_back() -> None:
        run(owner, "ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")

    asyncio.run(shop.settle(lambda: "after its handler had returned" in caplog.text, comes_back))
    assert set(shop.attempts) == {1}
    with owner.connect() as connection:
        assert connection.execute(text("SELECT id FROM charges")).scalars().all() == ["o-1"]

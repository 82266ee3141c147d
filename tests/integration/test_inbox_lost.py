"""Connections that are lost while a handler runs: its event waits, whatever the driver says, and is charged once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from msgspec import Struct
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from headrace import Context, Headrace, Retry
from headrace.once import Inbox
from tests.postgres import Postgres

ADD = text("INSERT INTO charges (id) VALUES ('o-1')")
DRIVERS = ["asyncpg", "psycopg", "psycopg, threads"]
ASYNCHRONOUS = DRIVERS[:2]


class Order(Struct):
    id: str


class Refused(Exception):
    """Of a handler that has its own words for what a database says."""


Loses = Callable[[Session, Connection], None]


def is_ended(session: Session, other: Connection) -> None:
    """By the database: the session's next statement tells."""
    end(session, other)
    session.execute(ADD)


def is_ended_before_the_commit(session: Session, other: Connection) -> None:
    """By the database, and the handler does not see it."""
    session.execute(ADD)
    end(session, other)


def is_ended_in_other_words(session: Session, other: Connection) -> None:
    """By the database, and the handler says it in its own words."""
    try:
        is_ended(session, other)
    except Exception as e:
        raise Refused from e


def is_ended_and_rolled_back(session: Session, other: Connection) -> None:
    """By the database, and the handler puts its session in order."""
    try:
        is_ended(session, other)
    except Exception:
        session.rollback()
        raise


def is_ended_and_closed(session: Session, other: Connection) -> None:
    """By the database, and the handler is done with its session."""
    try:
        is_ended(session, other)
    except Exception:
        session.close()
        raise


def is_ended_and_nobody_tells(session: Session, other: Connection) -> None:
    """By the database, and the handler goes on as if nothing had happened."""
    with suppress(Exception):
        is_ended(session, other)


def is_ended_among_others(session: Session, other: Connection) -> None:
    """By the database, and the error comes with others, as out of a task group."""
    try:
        is_ended(session, other)
    except Exception as e:
        group = ExceptionGroup("two tasks", [e, ValueError()])
    raise group


def is_ended_in_a_part(session: Session, other: Connection) -> None:
    """By the database, inside a savepoint."""
    with session.begin_nested():
        is_ended(session, other)


def is_broken(session: Session, _other: Connection) -> None:
    """As psycopg's is for a moment when a server dies: it takes nothing, and does not know why."""
    half_sent(session)
    session.execute(ADD)


def is_broken_before_the_commit(session: Session, _other: Connection) -> None:
    """As above, when the handler is done."""
    session.execute(ADD)
    half_sent(session)


def end(session: Session, other: Connection) -> None:
    other.execute(
        text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": session.scalar(text("SELECT pg_backend_pid()"))}
    )


def half_sent(session: Session) -> None:
    driver: Any = session.connection().connection.driver_connection
    driver.pgconn.send_query(b"SELECT 1")


ENDED = [
    is_ended,
    is_ended_before_the_commit,
    is_ended_in_other_words,
    is_ended_and_rolled_back,
    is_ended_and_closed,
    is_ended_and_nobody_tells,
    is_ended_among_others,
    is_ended_in_a_part,
]


@pytest.mark.parametrize(
    ("driver", "its_connection"),
    [(d, c) for d in DRIVERS for c in ENDED]
    + [(d, c) for d in DRIVERS if "psycopg" in d for c in (is_broken, is_broken_before_the_commit)],
)
def test_the_event_waits(postgres: Postgres, driver: str, its_connection: Loses) -> None:
    assert playing(postgres, driver, its_connection) == (2, [], ["o-1"])


async def leaves_one_running(session: AsyncSession) -> None:
    slow, late = (session.execute(text(f"SELECT pg_sleep({s})")) for s in (0.3, 0))
    await asyncio.gather(slow, asyncio.wait_for(late, 0.1))


async def gives_up_while_one_runs(session: AsyncSession) -> None:
    async def refused() -> None:
        await asyncio.sleep(0.05)
        raise Refused

    await asyncio.gather(session.execute(text("SELECT pg_sleep(0.3)")), refused())


async def waits_no_longer(session: AsyncSession) -> None:
    await asyncio.wait_for(session.execute(text("SELECT pg_sleep(10)")), 0.1)


FOREIGN = text("DO $$ BEGIN RAISE EXCEPTION 'could not connect to server elsewhere' USING ERRCODE = '08001'; END $$")
"""As a foreign table says it whose server is away."""


async def asks_too_much(session: AsyncSession) -> None:
    many = {f"p{n}": n for n in range(70_000)}
    await session.execute(text(f"SELECT 1 WHERE 1 IN ({', '.join(f':{name}' for name in many)})"), many)


async def idles(session: AsyncSession) -> None:
    await session.execute(text("SET LOCAL idle_in_transaction_session_timeout = 50"))
    await asyncio.sleep(0.3)
    await session.execute(ADD)


async def charges_at_once(session: AsyncSession) -> None:
    await session.execute(ADD)


async def reads_a_foreign_table(session: AsyncSession) -> None:
    await session.execute(FOREIGN)


async def reaches_for_another(_session: AsyncSession) -> None:
    async with create_async_engine("postgresql+psycopg://127.0.0.1:1/elsewhere", poolclass=NullPool).connect():
        raise AssertionError


@pytest.mark.parametrize("driver", ASYNCHRONOUS)
@pytest.mark.parametrize(
    "handler",
    [
        leaves_one_running,
        gives_up_while_one_runs,
        waits_no_longer,
        reaches_for_another,
        reads_a_foreign_table,
        asks_too_much,
    ],
)
def test_it_is_the_handlers_fault(postgres: Postgres, driver: str, handler: Callable[..., Any]) -> None:
    """Else its event would come again for ever."""
    (calls, reasons, charges) = playing(postgres, driver, handler, always=True)
    assert (calls, len(reasons), charges) == (1, 1, [])


def test_a_server_that_ends_idle_transactions(postgres: Postgres) -> None:
    """Only psycopg says so; through asyncpg it looks like a loss."""
    ways = [charges_at_once, idles]

    async def idles_once(session: AsyncSession) -> None:
        await ways.pop()(session)

    assert playing(postgres, "asyncpg", idles_once, always=True) == (2, [], ["o-1"])
    calls, (reason,), charges = playing(postgres, "psycopg", idles, always=True)
    assert (calls, charges) == (1, [])
    assert "idle-in-transaction timeout" in reason


@pytest.mark.parametrize("driver", ASYNCHRONOUS)
def test_a_part_may_fail_for_another_server(postgres: Postgres, driver: str) -> None:
    async def falls_back(session: AsyncSession) -> None:
        with suppress(DBAPIError):
            async with session.begin_nested():
                await session.execute(FOREIGN)
        await session.execute(ADD)

    assert playing(postgres, driver, falls_back, always=True) == (1, [], ["o-1"])


@pytest.mark.parametrize("driver", ASYNCHRONOUS)
def test_its_transaction_does_not_go_on_in_the_pool(postgres: Postgres, driver: str) -> None:
    """Else the repeat would wait for the row of the event that it holds."""

    async def once(session: AsyncSession) -> None:
        raised.append(True)
        if len(raised) == 1:
            await gives_up_while_one_runs(session)
        else:
            await session.execute(ADD)

    raised: list[bool] = []
    assert playing(postgres, driver, once, always=True, retry=Retry(attempts=2, first_s=0.01)) == (2, [], ["o-1"])


def playing(
    postgres: Postgres, driver: str, does: Callable[..., Any], *, always: bool = False, retry: Retry | None = None
) -> tuple[int, list[str], list[str]]:
    """Handles an event, with the trouble at the first call only; returns calls, reasons of dead letters, and charges."""
    url = f"postgresql+{driver.split(',', maxsplit=1)[0]}://{postgres.address}"
    plain = create_engine(f"postgresql+psycopg://{postgres.address}", isolation_level="AUTOCOMMIT", poolclass=NullPool)
    threads = "threads" in driver
    engine: Any = create_engine(url, pool_size=5) if threads else create_async_engine(url, pool_size=5)
    inbox = Inbox(engine)
    app = Headrace("redis://127.0.0.1:1")
    orders = app.topic("orders", Order)
    subscribe = orders.subscribe("billing", retry=retry or Retry(attempts=1), inbox=inbox)
    calls = 0

    with plain.connect() as other:
        other.execute(text("DROP TABLE IF EXISTS charges"))
        other.execute(text("CREATE TABLE charges (id varchar(8))"))
        inbox.metadata.drop_all(other)
        inbox.metadata.create_all(other)

        if threads:

            @subscribe
            def bill_here(order: Order, ctx: Context) -> None:
                nonlocal calls
                calls += 1
                ctx.sql.execute(ADD) if calls > 1 else does(ctx.sql, other)
        else:

            @subscribe
            async def bill(order: Order, ctx: Context) -> None:
                nonlocal calls
                calls += 1
                if always:
                    await does(ctx.sql)
                else:
                    await ctx.sql.run_sync(lambda session: session.execute(ADD) if calls > 1 else does(session, other))

        async def play() -> list[str]:
            if not threads:
                async with engine.connect() as one, engine.connect() as two:  # the pool has a choice afterwards
                    await one.execute(text("SELECT 1"))
                    await two.execute(text("SELECT 1"))
            async with app.testing() as t:
                await orders.publish(Order("o-1"))
                await t.drain()
                reasons = [letter.reason for letter in await t.dead(orders, "billing")]
            if not threads:
                await engine.dispose()
            return reasons

        reasons = asyncio.run(play())
        if threads:
            engine.dispose()
        return calls, reasons, [row[0] for row in other.execute(text("SELECT id FROM charges"))]

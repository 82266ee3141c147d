"""Handlers that do with their session what they should not, or what looks harmless: nothing of it is acked without its rows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import NullPool

from headrace import Context, Headrace, Retry
from headrace.backends.contract import Delivery
from headrace.backends.entry import copy_of
from headrace.once import Inbox
from headrace.once.unit import identity
from tests.postgres import Postgres

DRIVERS = {"asyncpg": "postgresql+asyncpg", "psycopg": "postgresql+psycopg", "sqlite": "sqlite+aiosqlite"}
ADD = text("INSERT INTO charges (id) VALUES (:id)")
ONE = {"id": "o-1"}


class Order(Struct):
    id: str


class Base(DeclarativeBase):
    pass


class Charge(Base):
    __tablename__ = "charges"
    id: Mapped[str] = mapped_column(primary_key=True)


@pytest.fixture(params=DRIVERS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a database with an empty table `charges` that takes no repeats and no id longer than eight, and an inbox."""
    name: str = request.param
    if name == "sqlite":
        url = f"{DRIVERS[name]}:///{tmp_path}/shop.db"
    else:
        postgres: Postgres = request.getfixturevalue("postgres")
        url = f"{DRIVERS[name]}://{postgres.address}"
    with plain(url) as connection:
        connection.execute(text("DROP TABLE IF EXISTS charges"))
        connection.execute(text("CREATE TABLE charges (id varchar(8) PRIMARY KEY CHECK (length(id) < 9))"))
        metadata = Inbox(create_engine("sqlite://")).metadata
        metadata.drop_all(connection)
        metadata.create_all(connection)
    return url


@contextmanager
def plain(url: str) -> Iterator[Any]:
    engine = create_engine(url.replace("+aiosqlite", "").replace("+asyncpg", "+psycopg"), poolclass=NullPool)
    with engine.begin() as connection:
        yield connection


def rows(url: str, table: str = "charges") -> list[str]:
    column = "id" if table == "charges" else "event_id"
    with plain(url) as connection:
        return [row[0] for row in connection.execute(text(f"SELECT {column} FROM {table}"))]  # noqa: S608 - names of this file


async def catches(session: AsyncSession) -> None:
    await session.execute(ADD, ONE)
    with suppress(IntegrityError):
        await session.execute(ADD, ONE)


async def rolls_back(session: AsyncSession) -> None:
    await session.execute(ADD, ONE)
    await session.rollback()
    await session.execute(ADD, ONE)


async def commits(session: AsyncSession) -> None:
    await session.execute(ADD, ONE)
    await session.commit()


async def leaves_what_cannot_be_written(session: AsyncSession) -> None:
    session.add(Charge(id="longer than eight"))


async def tries_a_part(session: AsyncSession) -> None:
    await session.execute(ADD, ONE)
    try:
        async with session.begin_nested():
            await session.execute(ADD, ONE)
    except IntegrityError:
        pass


def playing(url: str, does: Callable[[AsyncSession], Any], *, isolation: str | None = None) -> list[str]:
    """Handles one event twice, the second time as a new life of its group would; returns the reasons of dead letters."""

    async def play() -> list[str]:
        options = {} if isolation is None else {"isolation_level": isolation}
        engine = create_async_engine(url, poolclass=NullPool, **options)
        app = Headrace("redis://127.0.0.1:1")
        orders = app.topic("orders", Order)

        @orders.subscribe("billing", retry=Retry(attempts=2, first_s=0.01), inbox=Inbox(engine))
        async def bill(order: Order, ctx: Context) -> None:
            await does(ctx.sql)

        async with app.testing() as t:
            await orders.publish(Order("o-1"))
            await t.drain()
            return [letter.reason for letter in await t.dead(orders, "billing")]

    return asyncio.run(play())


@pytest.mark.parametrize(
    ("does", "says"),
    [
        (rolls_back, "the handler has rolled ctx.sql back"),
        (commits, "ctx.sql is committed with the ack"),
        (leaves_what_cannot_be_written, ""),
    ],
)
def test_it_fails_and_leaves_nothing(url: str, does: Callable[[AsyncSession], Any], says: str) -> None:
    (reason,) = playing(url, does)
    assert says in reason
    assert (rows(url), rows(url, "headrace_inbox")) == ([], [])


def test_a_statement_that_failed_is_no_reason_to_forget_the_others(url: str) -> None:
    """PostgreSQL takes back all of a transaction in which a statement has failed; SQLite only the statement."""
    reasons = playing(url, catches)
    if "sqlite" in url:
        assert (reasons, rows(url), len(rows(url, "headrace_inbox"))) == ([], ["o-1"], 1)
    else:
        assert "put what may fail into `ctx.sql.begin_nested()`" in reasons[0]
        assert (rows(url), rows(url, "headrace_inbox")) == ([], [])


def test_a_part_may_fail(url: str) -> None:
    assert playing(url, tries_a_part) == []
    assert (rows(url), len(rows(url, "headrace_inbox"))) == (["o-1"], 1)


def test_an_engine_that_takes_nothing_back_is_refused(url: str) -> None:
    async def never(_session: AsyncSession) -> None:
        raise AssertionError

    (reason,) = playing(url, never, isolation="AUTOCOMMIT")
    assert "the engine is in AUTOCOMMIT" in reason


def test_an_entry_without_an_id_is_known_by_its_place_and_partition() -> None:
    """Places of two partitions can be the same; a copy for a retry is the same event."""

    class Second:
        partition = "orders.1"

    entry = Delivery(b"1-1", [b"data", b"{}"], Second())
    copy = Delivery(b"9-9", copy_of(b"1-1", entry.fields, 2, b""), Second())
    ours = Delivery(b"1-1", [b"id", b"p.1.1", b"data", b"{}"], Second())
    assert [identity(d, "orders") for d in (entry, copy, ours)] == ["orders.1 1-1", "orders.1 1-1", "p.1.1"]


def test_a_plain_handler_may_not_commit_either(url: str) -> None:
    engine = create_engine(url.replace("+aiosqlite", "").replace("+asyncpg", "+psycopg"), poolclass=NullPool)
    app = Headrace("redis://127.0.0.1:1")
    orders = app.topic("orders", Order)

    @orders.subscribe("billing", retry=Retry(attempts=1), inbox=Inbox(engine))
    def bill(order: Order, ctx: Context) -> None:
        session: Session = ctx.sql
        session.execute(ADD, ONE)
        session.commit()

    async def play() -> str:
        async with app.testing() as t:
            await orders.publish(Order("o-1"))
            await t.drain()
            (letter,) = await t.dead(orders, "billing")
            return letter.reason

    assert "ctx.sql is committed with the ack" in asyncio.run(play())
    assert rows(url) == []

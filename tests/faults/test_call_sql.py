"""Every single call to the server, and every statement and commit in the database, fails once: before it has happened, and after.

Transactions publish through an outbox, a relay sends, an ordered group books each event in SQL with an inbox and publishes in turn. Each time all of
it ends exact and in order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from msgspec import Struct
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from headrace import Context, Headrace, Retry
from headrace.once import Inbox, Outbox
from headrace.runtime.signals import Stop
from headrace.runtime.worker import serve
from headrace.testing.faults import Fault, Proxy
from tests.postgres import Postgres
from tests.servers import Server, require
from tests.waiting import wait_until_async

EVENTS, KEYS = 6, 2
AT_ONCE = 12
CALLS_MAX = 48
"""What comes later is the same again: a relay that looks for rows, leases that are renewed."""


class Order(Struct):
    key: str
    n: int


class Database:
    """One database for all runs, each with an outbox of its own."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.plain = create_engine(f"postgresql+psycopg://{address}", poolclass=NullPool)
        with self.plain.begin() as connection:
            connection.execute(text("DROP TABLE IF EXISTS booked"))
            connection.execute(text("CREATE TABLE booked (id bigserial, run text, key text, n integer)"))

    def prepare(self, run: str, engine: AsyncEngine) -> Headrace:
        """Tables of a run; the app is not connected."""
        outbox = Outbox(engine, table=f"outbox_{run}")
        with self.plain.begin() as connection:
            outbox.metadata.drop_all(connection)
            outbox.metadata.create_all(connection)
            Inbox(engine).metadata.create_all(connection)
        return Headrace("redis://nowhere", outbox=outbox, lease_s=1.0)

    def rows(self, query: str, **values: object) -> list[Any]:
        with self.plain.connect() as connection:
            return [tuple(row) for row in connection.execute(text(query), values)]

    def cut(self, pid: int) -> None:
        with self.plain.begin() as connection:
            connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})


class Statements:
    """The n-th statement or commit of an engine breaks its connection: before it is sent, or after it has happened."""

    def __init__(self, database: Database, engine: AsyncEngine, nth: int, *, after: bool) -> None:
        self._database, self._left, self._after = database, nth, after
        self.fired = False
        sync = engine.sync_engine
        event.listen(sync, "after_cursor_execute" if after else "before_cursor_execute", self._statement)
        commit = sync.dialect.do_commit

        def do_commit(connection: Any) -> None:
            if after:
                commit(connection)
                self._count(connection)
            else:
                self._count(connection)
                commit(connection)

        sync.dialect.do_commit = do_commit  # type: ignore[method-assign,assignment]

    def _statement(self, connection: Any, *_: Any) -> None:
        self._count(connection.connection.dbapi_connection)

    def _count(self, connection: Any) -> None:
        self._left -= 1
        if self._left == 0:
            self.fired = True
            driver = getattr(connection, "driver_connection", None) or connection._connection
            self._database.cut(driver.get_server_pid())
            if self._after:
                driver.terminate()
                raise ConnectionResetError("the answer is lost")


async def play(database: Database, server: Server, run: str, url: str, engine: AsyncEngine) -> None:
    """The scenario."""
    app = database.prepare(run, engine)
    app.settings = type(app.settings)(url=url)
    orders = app.topic(f"orders{run}", Order, key="key")
    booked = app.topic(f"booked{run}", Order)

    @orders.subscribe("g", ordered=True, inbox=Inbox(engine), retry=Retry(attempts=50, first_s=0.01, max_s=0.05))
    async def book(order: Order, ctx: Context) -> None:
        values = {"run": run, "key": order.key, "n": order.n}
        await ctx.sql.execute(text("INSERT INTO booked (run, key, n) VALUES (:run, :key, :n)"), values)
        ctx.publish(booked, order)

    stop = Stop()
    worker = asyncio.ensure_future(serve(app, stop))
    await wait_until_async(lambda: _connected(app, worker), "the worker is connected")
    relay = asyncio.ensure_future(app.relay())
    for first in range(0, EVENTS, 3):
        try:
            async with AsyncSession(engine) as session, session.begin():
                for n in range(first, first + 3):
                    await orders.publish(Order(f"k{n % KEYS}", n), sql=session)
        except (DBAPIError, OSError):
            pass  # the connection of this transaction is the one that broke; the outbox knows whether it happened

    async def settled() -> bool:
        assert not worker.done(), worker
        await asyncio.sleep(0.1)  # looking is not free
        counts = f"SELECT (SELECT count(*) FROM outbox_{run}), (SELECT count(*) FROM booked WHERE run = '{run}')"  # noqa: S608
        waiting, rows = (await asyncio.to_thread(database.rows, counts))[0]
        handled = int(server.command("HGET", f"{{orders{run}}}:group:g", "handled") or 0)
        return not waiting and rows >= EVENTS - 3 and handled == server.command("XLEN", f"orders{run}")

    await wait_until_async(settled, f"run {run} is settled", timeout_s=30.0)
    relay.cancel()
    await asyncio.gather(relay, return_exceptions=True)
    stop.ask()
    assert await asyncio.wait_for(worker, 15) is None


async def _connected(app: Headrace, worker: asyncio.Future[Any]) -> bool:
    assert not worker.done(), worker
    return app._backend is not None


def check(database: Database, server: Server, run: str) -> None:
    """Each event that is in the topic was booked once, in the order of its key, and published once."""
    entries = server.command("XRANGE", f"orders{run}", "-", "+")
    sent = [int(fields[-1].split(b'"n":')[1].rstrip(b"}")) for _, fields in entries]
    rows = database.rows("SELECT key, n FROM booked WHERE run = :run ORDER BY id", run=run)
    assert len(set(sent)) == len(sent) >= EVENTS - 3, sent
    for key in range(KEYS):
        own = [n for k, n in rows if k == f"k{key}"]
        assert own == [n for n in sent if n % KEYS == key] == sorted(own), run
    outputs = [fields[-1] for _, fields in server.command("XRANGE", f"booked{run}", "-", "+")]
    assert len(set(outputs)) == len(outputs) == len(sent), run


Fail = Callable[[Database, Server, int], Awaitable[bool]]


def failing_call(fault: Fault) -> Fail:
    async def one(database: Database, server: Server, nth: int) -> bool:
        engine = create_async_engine(f"postgresql+asyncpg://{database.address}")
        with Proxy(server.url) as proxy:
            proxy.fail(fault, nth)
            await play(database, server, f"{fault.name.lower()}{nth}", proxy.url, engine)
            await engine.dispose()
            return proxy.fired.is_set()

    return one


def failing_statement(*, after: bool) -> Fail:
    async def one(database: Database, server: Server, nth: int) -> bool:
        engine = create_async_engine(f"postgresql+asyncpg://{database.address}")
        statements = Statements(database, engine, nth, after=after)
        await play(database, server, f"{'after' if after else 'before'}{nth}", server.url, engine)
        await engine.dispose()
        return statements.fired

    return one


FAULTS: dict[str, tuple[str, Fail]] = {
    "request lost": ("lose_request", failing_call(Fault.LOSE_REQUEST)),
    "reply lost": ("lose_reply", failing_call(Fault.LOSE_REPLY)),
    "statement lost": ("before", failing_statement(after=False)),
    "result lost": ("after", failing_statement(after=True)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS, ids=lambda name: name.replace(" ", "-"))
def test_every_call(postgres: Postgres, name: str) -> None:
    prefix, fail = FAULTS[name]
    require("valkey")
    database = Database(postgres.address)

    async def run(server: Server) -> int:
        first = 1
        while first < CALLS_MAX:
            fired = await asyncio.gather(*(fail(database, server, n) for n in range(first, first + AT_ONCE)))
            first += AT_ONCE
            if not any(fired):
                break
        return first

    with Server("valkey") as server:
        calls = asyncio.run(run(server))
        assert calls > 30
        for nth in range(1, calls):
            check(database, server, f"{prefix}{nth}")

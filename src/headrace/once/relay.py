"""Moves events from the outbox to their topics, in the order of their rows, each once.

One relay at a time is at work, by a lease in the database; others wait for it to end. Before a batch is sent its rows are noted as in doubt,
and after it they are deleted. While the server does not answer no row is touched, so an outage leaves only what was on its way when it
began in doubt. A relay that dies in between leaves the note; the next one sends the same rows with the same ids, and the
topic drops what it has. If more time has passed than the topic remembers ids, nobody can tell: then it stops and says which rows they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

from msgspec import Struct, structs
from sqlalchemy import Connection, delete, exc, func, literal_column, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from headrace import limits
from headrace.backends.contract import Backend, Record, Route
from headrace.backoff import Backoff
from headrace.errors import NotConnected, Overloaded, Refused
from headrace.once.outbox import CHANNEL, Outbox, decode

log = logging.getLogger("headrace")
T = TypeVar("T")
_INSERTS: Final[dict[str, Any]] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}
_NOW: Final[dict[str, Any]] = {
    "postgresql": literal_column("extract(epoch from clock_timestamp())::float8"),
    "sqlite": literal_column("(julianday('now') - 2440587.5) * 86400.0"),
}
_DONE: Final[Any] = literal_column("pg_snapshot_xmin(pg_current_snapshot())::text::bigint")
"""PostgreSQL: every transaction with a lower number has ended."""


@runtime_checkable
class Reachable(Protocol):
    """A backend that can be asked whether its server is there."""

    async def reach(self, route: Route) -> None:
        """Returns when whoever has a part of the topic has answered; writes nothing. Raises NotConnected, Overloaded, Refused, Closed."""
        ...


class Load(Struct, frozen=True):
    """Rows to be sent."""

    identity: str
    rows: list[tuple[int, str, Record]]
    """Place, topic, event."""


class Relay:
    """One relay of an outbox."""

    def __init__(self, outbox: Outbox, backend: Backend, routes: Mapping[str, Route]) -> None:
        """`routes`: of the topics that the outbox may have events of, by name."""
        self._outbox, self._backend, self._routes = outbox, backend, routes
        self._table, self._state = outbox.table, outbox.relay
        self._me = secrets.token_hex(8)
        self._dialect = outbox.engine.dialect.name
        self._woken = asyncio.Event()
        self._listener: tuple[AsyncConnection, Any] | None = None
        """A connection, and the driver's own below it."""
        self.sent = 0
        """Events so far."""

    async def run(self) -> None:
        """Sends until it is cancelled. Waits for a database or a server that is away. Raises Refused for rows in doubt and unknown topics."""
        backoff = Backoff("the relay of the outbox")
        try:
            while True:
                try:
                    await self._listen()
                    full = await self._send_some()
                except (exc.DBAPIError, exc.TimeoutError, OSError) as e:
                    await backoff.wait(NotConnected(str(getattr(e, "orig", None) or e).splitlines()[0]))
                except (NotConnected, Overloaded) as e:
                    await backoff.wait(e)
                else:
                    backoff.over()
                    if not full:
                        await self._wait()
        finally:
            await self._leave()

    async def _send_some(self) -> bool:
        """Sends a batch; whether there may be more at once."""
        if isinstance(self._backend, Reachable):
            for topic in await self._do(self._next):
                if topic in self._routes:
                    await self._backend.reach(self._routes[topic])
        sent_at = asyncio.get_running_loop().time()
        load = await self._do(self._take)
        if load is None or not load.rows:
            return False
        for topic, rows in groupby(load.rows, lambda row: row[1]):
            records = [structs.replace(r, id=r.id or f"{load.identity}.{n}".encode()) for n, _, r in rows]
            if asyncio.get_running_loop().time() - sent_at > limits.relay_lease_s:
                return True  # another relay may be at work by now
            await self._backend.publish(self._routes[topic], records)
        await self._do(lambda connection: self._settle(connection, load))
        self.sent += len(load.rows)
        return len(load.rows) == limits.relay_records

    # In the database

    async def _do(self, step: Callable[[Connection], T]) -> T:
        """One transaction."""
        engine = self._outbox.engine
        if isinstance(engine, AsyncEngine):
            async with engine.begin() as connection:
                return await connection.run_sync(step)
        return await asyncio.to_thread(self._do_here, step)

    def _do_here(self, step: Callable[[Connection], T]) -> T:
        with self._outbox.engine.begin() as connection:  # type: ignore[union-attr]  # not an AsyncEngine
            return step(connection)

    def _next(self, connection: Connection) -> list[str]:
        """Topics of the rows that are next, or soon: nothing is noted."""
        first = select(self._table.c.topic).order_by(self._table.c.id).limit(limits.relay_records).subquery()
        return list(connection.scalars(select(first.c.topic).distinct()))

    def _take(self, connection: Connection) -> Load | None:
        """Takes the lease, reads what can be sent, notes it as in doubt. None: another relay is at work."""
        state, c, now = self._state, self._state.c, _NOW[self._dialect]
        first = {"one": 1, "identity": secrets.token_hex(6), "holder": "", "until": 0.0}
        connection.execute(_INSERTS[self._dialect](state).values(first).on_conflict_do_nothing())
        ours = (c.holder == self._me) | (c.until < now)
        taken = connection.execute(update(state).where(ours).values(holder=self._me, until=now + limits.relay_lease_s))
        if not taken.rowcount:
            return None
        identity, doubt, since, age_s = connection.execute(
            select(c.identity, c.doubt_last, c.doubt_since, now - func.coalesce(c.doubt_since, now))
        ).one()
        rows = select(self._table.c.id, self._table.c.topic, self._table.c.record)
        if self._dialect == "postgresql":
            rows = rows.where(self._table.c.transaction < _DONE)
        found = connection.execute(rows.order_by(self._table.c.id).limit(limits.relay_records)).all()
        load = Load(identity, [(id_, topic, decode(record)) for id_, topic, record in found])
        self._check(load, doubt, age_s)
        if load.rows:
            known = doubt is not None and load.rows[0][0] <= doubt
            connection.execute(
                update(state).values(
                    doubt_first=load.rows[0][0], doubt_last=load.rows[-1][0], doubt_since=since if known else now
                )
            )
        return load

    def _check(self, load: Load, doubt: int | None, age_s: float) -> None:
        """Raises Refused for what must not be sent."""
        for id_, topic, record in load.rows:
            route = self._routes.get(topic)
            if route is None:
                raise Refused(
                    f"row {id_} of {self._table.name} is for topic {topic}, which this program does not declare: declare it, or run the "
                    "relay of the program that does"
                )
            if doubt is not None and id_ <= doubt and record.id is None and age_s > route.id_window_s:
                raise Refused(
                    f"rows {load.rows[0][0]} to {doubt} of {self._table.name} were being sent {age_s:.0f} s ago, longer than topic {topic} "
                    f"remembers ids ({route.id_window_s:.0f} s): look whether it has them (their ids are {load.identity}.ROW), delete those "
                    f"rows, and then set doubt_last of {self._state.name} to NULL"
                )

    def _settle(self, connection: Connection, load: Load) -> None:
        connection.execute(delete(self._table).where(self._table.c.id.in_([row[0] for row in load.rows])))
        connection.execute(
            update(self._state)
            .where(self._state.c.holder == self._me)
            .values(doubt_first=None, doubt_last=None, doubt_since=None)
        )

    async def _leave(self) -> None:
        """Gives the lease up, so that another relay can begin at once."""
        with contextlib.suppress(exc.DBAPIError, exc.TimeoutError, OSError):
            async with asyncio.timeout(limits.connect_s):
                await self._deafen()
                await self._do(self._give_up)

    def _give_up(self, connection: Connection) -> None:
        connection.execute(update(self._state).where(self._state.c.holder == self._me).values(until=0.0))

    # Waiting

    async def _listen(self) -> None:
        """Has PostgreSQL tell us of new rows, where the driver can; else they are found by looking."""
        engine = self._outbox.engine
        if not isinstance(engine, AsyncEngine) or engine.dialect.driver != "asyncpg":
            return
        if self._listener is not None:
            if not self._listener[1].is_closed():
                return
            await self._deafen()
        connection = await engine.connect()
        driver: Any = (await connection.get_raw_connection()).driver_connection
        self._listener = (connection, driver)
        try:
            await driver.add_listener(CHANNEL, lambda *_: self._woken.set())
        except Exception as e:  # noqa: BLE001 - whatever the driver raises: rows are found by looking, too
            log.debug("the relay of the outbox cannot listen: %s", e)
            driver.terminate()

    async def _deafen(self) -> None:
        """Gives up the connection that listens."""
        if self._listener is not None:
            connection, driver = self._listener
            self._listener = None
            driver.terminate()
            await connection.invalidate()
            await connection.close()

    async def _wait(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limits.relay_poll_s):
                await self._woken.wait()
        self._woken.clear()

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
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

from sqlalchemy import Connection, Select, delete, exc, func, literal_column, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from headrace import limits
from headrace.backends.contract import Backend, Record, Route
from headrace.backoff import Backoff
from headrace.errors import NotConnected, Overloaded, Refused
from headrace.once.outbox import CHANNEL, Outbox, decode
from headrace.once.verdict import first_line

log = logging.getLogger("headrace")
T = TypeVar("T")
_INSERTS: Final[dict[str, Any]] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}
_NOW: Final[dict[str, Any]] = {
    "postgresql": literal_column("extract(epoch from clock_timestamp())::float8"),
    "sqlite": literal_column("(julianday('now') - 2440587.5) * 86400.0"),
}
_DONE: Final[Any] = literal_column("pg_snapshot_xmin(pg_current_snapshot())::text::bigint")
"""PostgreSQL: every transaction with a lower number has ended."""
_SHOWN: Final = 10
"""Ids that a message names."""
_BEGUN: Final[Any] = literal_column("pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
"""No transaction with this number or a higher one can be seen; a row that has one comes from another server, by a dump."""


@runtime_checkable
class Reachable(Protocol):
    """A backend that can be asked whether its server is there."""

    async def reach(self, route: Route) -> None:
        """Returns when whoever has a part of the topic has answered; writes nothing. Raises NotConnected, Overloaded, Refused, Closed."""
        ...


Row = tuple[int, str, Record]
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
        database = self._outbox.engine.url.set(query={}).render_as_string()  # a query, too, may hold secrets
        topics = ", ".join(self._routes) or "none"
        log.info("relaying the outbox %s in %s; topics: %s", self._table.fullname, database, topics)
        backoff = Backoff("the relay of the outbox")
        try:
            while True:
                try:
                    await self._listen()
                    full = await self._send_some()
                except (exc.DBAPIError, exc.TimeoutError, OSError) as e:
                    await backoff.wait(NotConnected(first_line(e)))
                except (NotConnected, Overloaded) as e:
                    await backoff.wait(e)
                except Refused as e:
                    log.error("the relay of the outbox ends: %s", e)
                    raise
                else:
                    backoff.over()
                    if not full:
                        await self._wait()
        finally:
            await self._leave()

    async def _send_some(self) -> bool:
        """Sends a batch; whether there may be more at once."""
        topics = await self._do(self._next)
        if isinstance(self._backend, Reachable):
            for topic in topics:
                if topic in self._routes:
                    await self._backend.reach(self._routes[topic])
        sent_at = asyncio.get_running_loop().time()
        rows = await self._do(partial(self._take, topics=topics)) if topics else []
        if not rows:
            return False
        done: list[int] = []
        for topic in dict.fromkeys(topic for _, topic, _ in rows):
            if asyncio.get_running_loop().time() - sent_at > limits.relay_lease_s:
                break  # another relay may be at work by now
            own = [row for row in rows if row[1] == topic]
            await self._backend.publish(self._routes[topic], [record for _, _, record in own])
            done += [number for number, _, _ in own]
        await self._do(lambda connection: self._settle(connection, done))
        self.sent += len(done)
        return True

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

    def _take(self, connection: Connection, topics: Sequence[str]) -> list[Row]:
        """Takes the lease, reads what can be sent of these topics, whose servers have just answered, and notes it as in doubt.

        Nothing: another relay is at work, or there is none.
        """
        state, c, now = self._state, self._state.c, _NOW[self._dialect]
        first = {"one": 1, "holder": "", "until": 0.0}
        connection.execute(_INSERTS[self._dialect](state).values(first).on_conflict_do_nothing())
        # A lease that ends later than any can was taken before the database's clock was set back.
        ours = (c.holder == self._me) | (c.until < now) | (c.until > now + limits.relay_lease_s)
        taken = connection.execute(update(state).where(ours).values(holder=self._me, until=now + limits.relay_lease_s))
        if not taken.rowcount:
            return []
        of_last: Any = select(c.doubt_last, c.doubt_since, now - func.coalesce(c.doubt_since, now))
        doubt, since, age_s = connection.execute(of_last).one()
        rows = [(id_, topic, decode(record)) for id_, topic, record in connection.execute(self._first_rows(topics))]
        if not rows:
            return []
        self._check(rows, doubt, age_s)
        known = doubt is not None and rows[0][0] <= doubt
        last = max(rows[-1][0], doubt) if known else rows[-1][0]
        connection.execute(
            update(state).values(doubt_first=rows[0][0], doubt_last=last, doubt_since=since if known else now)
        )
        return rows

    def _first_rows(self, topics: Sequence[str]) -> Select[Any]:
        """The rows that are next: no more than one batch, and no more bytes than a publisher would hold."""
        c = self._table.c
        rows = select(c.id, c.topic, c.record, func.sum(func.length(c.record)).over(order_by=c.id).label("bytes"))
        rows = rows.where(c.topic.in_(topics))
        if self._dialect == "postgresql":
            rows = rows.where((c.transaction < _DONE) | (c.transaction >= _BEGUN))
        found = rows.order_by(c.id).limit(limits.relay_records).subquery()
        few = found.c.bytes - func.length(found.c.record) < limits.publish_buffer_bytes_max
        return select(found.c.id, found.c.topic, found.c.record).where(few).order_by(found.c.id)

    def _check(self, rows: Sequence[Row], doubt: int | None, age_s: float) -> None:
        """Raises Refused for what must not be sent."""
        for id_, topic, _ in rows:
            route = self._routes.get(topic)
            if route is None:
                raise Refused(
                    f"row {id_} of {self._table.name} is for topic {topic}, which this program does not declare: declare it, or run the "
                    "relay of the program that does"
                )
            margin_s = min(limits.publish_wait_s, route.id_window_s / 2)  # so long may sending them now take
            if doubt is not None and id_ <= doubt and age_s > route.id_window_s - margin_s:
                ids = [(record.id or b"").decode(errors="replace") for number, _, record in rows if number <= doubt]
                raise Refused(
                    f"rows {rows[0][0]} to {doubt} of {self._table.name} were being sent {age_s:.0f} s ago, and topic {topic} "
                    f"remembers ids for {route.id_window_s:.0f} s: look whether it has them (their ids are {_few(ids)}), delete those "
                    f"rows, and then set doubt_last of {self._state.name} to NULL"
                )

    def _settle(self, connection: Connection, sent: Sequence[int]) -> None:
        connection.execute(delete(self._table).where(self._table.c.id.in_(sent)))
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


def _few(ids: Sequence[str]) -> str:
    """The first of them, and how many more."""
    shown = ", ".join(ids[:_SHOWN])
    return shown if len(ids) <= _SHOWN else f"{shown} and {len(ids) - _SHOWN} more"

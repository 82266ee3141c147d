"""What a handler writes to SQL, the events that it publishes and its ack are one unit.

The transaction that the handler writes in also writes the event's identity; a repeat meets it and is not handled again. What is to leave
with the ack (`ctx.publish`, `ctx.redis`) is kept with the identity, so that a repeat still sends it if the worker died in between.
Identity, not place: it also holds when the stream was set back to an older state, by a failover or a restore.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Executor as Threads
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Engine, MetaData, delete, event, exc, func, literal
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from headrace.context import Context
from headrace.errors import ConfigurationError, HandlerError
from headrace.once import tables
from headrace.once.unit import AllFailed, Unit
from headrace.once.verdict import ABORTED, first_line, is_away, sqlstate
from headrace.transaction import Call, Unavailable

KEEP_S: Final = 30 * 86_400.0


class Inbox:
    """Runs handlers in transactions of a database, each event once. Implements transaction.Transactions.

    PostgreSQL (asyncpg, psycopg) and SQLite; an AsyncEngine or async_sessionmaker for `async def` handlers, an Engine or sessionmaker for
    plain ones. `keep_s`: how long an event is known after it was handled; longer than an outage or a restore may set the stream back.
    """

    def __init__(
        self,
        engine: Engine | AsyncEngine | sessionmaker[Session] | async_sessionmaker[AsyncSession],
        *,
        table: str = "headrace_inbox",
        schema: str | None = None,
        keep_s: float = KEEP_S,
    ) -> None:
        """Connects on first use. Raises ConfigurationError for what cannot be meant."""
        self.asynchronous = isinstance(engine, AsyncEngine | async_sessionmaker)
        if isinstance(engine, AsyncEngine):
            engine = async_sessionmaker(engine, expire_on_commit=False)
        elif isinstance(engine, Engine):
            engine = sessionmaker(engine, expire_on_commit=False)
        if not isinstance(engine, sessionmaker | async_sessionmaker):
            raise ConfigurationError(
                f"inbox: expected an Engine, AsyncEngine, sessionmaker or async_sessionmaker, got {engine!r}"
            )
        if keep_s <= 0:
            raise ConfigurationError(f"keep_s: expected a positive number of seconds, got {keep_s!r}")
        self._sessions: Any = engine
        self.keep_s = keep_s
        self.metadata = MetaData()
        self.table = tables.inbox(table, schema, self.metadata)
        self._lock: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None

    # One unit

    async def run(
        self, topic: str, group: str, contexts: Sequence[Context], call: Call, threads: Threads
    ) -> Sequence[Context]:
        """See transaction.Transactions."""
        unit = Unit(self.table, topic, group, contexts)
        with contextlib.suppress(AllFailed):
            if self.asynchronous:
                await self._run(unit, call)
            else:
                await self._run_in_thread(unit, call, threads)
        return contexts

    async def _run(self, unit: Unit, call: Call) -> None:
        async with self._alone(), self._sessions() as session:
            try:
                await self._run_in(session, unit, call)
            except (Exception, asyncio.CancelledError):
                await session.run_sync(unit.take_back)
                raise

    async def _run_in(self, session: AsyncSession, unit: Unit, call: Call) -> None:
        with _ours():
            fresh = await session.run_sync(unit.claim)
        if fresh:
            with _unless_lost(unit), _given(session, fresh, session.sync_session):
                await call(fresh)
                await session.run_sync(unit.flush)
            with _ours():
                await session.run_sync(unit.note)
        with _outcome():
            await session.commit()

    async def _run_in_thread(self, unit: Unit, call: Call, threads: Threads) -> None:
        given_up = threading.Event()
        try:
            async with self._alone():
                await asyncio.get_running_loop().run_in_executor(threads, self._run_here, unit, call, given_up.is_set)
        except asyncio.CancelledError:
            given_up.set()  # the thread cannot be stopped; it writes nothing more
            raise

    def _run_here(self, unit: Unit, call: Call, given_up: Callable[[], bool]) -> None:
        with self._sessions() as session:
            try:
                self._run_here_in(session, unit, call, given_up)
            except Exception:
                unit.take_back(session)
                raise

    def _run_here_in(self, session: Session, unit: Unit, call: Call, given_up: Callable[[], bool]) -> None:
        with _ours():
            fresh = unit.claim(session)
        if given_up():
            return
        if fresh:
            with _unless_lost(unit), _given(session, fresh, session):
                call(fresh)
                unit.flush(session)
            with _ours():
                unit.note(session)
        if not given_up():
            with _outcome():
                session.commit()

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """SQLite has one writer at a time: here they wait in line, and not for a lock of the file."""
        if self._dialect() != "sqlite":
            yield
            return
        loop = asyncio.get_running_loop()
        if self._lock is None or self._lock[0] is not loop:
            self._lock = (loop, asyncio.Lock())
        async with self._lock[1]:
            yield

    def _dialect(self) -> str:
        bind = self._sessions.kw.get("bind")
        return "" if bind is None else str(bind.dialect.name)

    # Keeping house

    async def prune(self, topic: str, group: str) -> int:
        """See transaction.Transactions."""
        c = self.table.c
        statement = delete(self.table).where(c.topic == topic, c.consumer_group == group, c.handled_at < self._old())
        async with self._alone():
            if not self.asynchronous:
                return await asyncio.to_thread(self._execute, statement)
            async with self._sessions() as session:
                with _ours():
                    count = int((await session.execute(statement)).rowcount)
                    await session.commit()
                return count

    def _old(self) -> Any:
        """The moment before which events are forgotten, by the database's clock, which has noted when they were handled."""
        if self._dialect() == "sqlite":
            return func.datetime("now", f"-{self.keep_s} seconds")
        return func.now() - literal(timedelta(seconds=self.keep_s))

    def _execute(self, statement: Any) -> int:
        with self._sessions() as session, _ours():
            count = int(session.execute(statement).rowcount)
            session.commit()
            return count


@contextlib.contextmanager
def _ours() -> Iterator[None]:
    """Statements of ours: no event is to blame if they fail, but for one whose id the database cannot take, or whose handler went on."""
    try:
        yield
    except exc.DBAPIError as e:
        if sqlstate(e) == ABORTED:
            raise HandlerError(
                "a statement of the handler failed, and with it all that it wrote; put what may fail into `ctx.sql.begin_nested()`"
            ) from e
        if sqlstate(e).startswith("22"):
            raise
        raise Unavailable(
            f"{first_line(e)} (has the table been made? `headrace sql init` does)" if _is_schema(e) else first_line(e)
        ) from e
    except (exc.TimeoutError, OSError) as e:
        raise Unavailable(first_line(e)) from e


@contextlib.contextmanager
def _given(session: Session | AsyncSession, contexts: Sequence[Context], inner: Session) -> Iterator[None]:
    """The session is theirs while the handler runs, but for its end. `inner`: the same, without its asynchronous shell."""
    event.listen(inner, "before_commit", _not_theirs)
    for ctx in contexts:
        ctx.session = session
    try:
        yield
    finally:
        for ctx in contexts:
            ctx.session = None
        event.remove(inner, "before_commit", _not_theirs)


def _not_theirs(session: Session) -> None:
    if session.get_nested_transaction() is None:
        raise HandlerError("ctx.sql is committed with the ack: the handler may not; parts of it can use begin_nested()")


@contextlib.contextmanager
def _unless_lost(unit: Unit) -> Iterator[None]:
    """What a handler does: it is to blame, unless the connection was lost, whatever it made of that."""
    try:
        yield
    except Exception as e:
        if unit.loss:
            raise Unavailable(unit.loss) from e
        raise
    if unit.loss:
        raise Unavailable(unit.loss)


@contextlib.contextmanager
def _outcome() -> Iterator[None]:
    """The commit: unknown if the connection broke, and then the repeat finds out. Else a constraint or trigger that is checked at the end."""
    try:
        yield
    except exc.DBAPIError as e:
        if is_away(e):
            raise Unavailable(first_line(e)) from e
        raise
    except OSError as e:
        raise Unavailable(first_line(e)) from e


def _is_schema(error: BaseException) -> bool:
    """Whether a table or column is not there: databases have words for it, and no common code."""
    return any(words in str(error) for words in ("no such table", "no such column", "has no column", "does not exist"))

"""One transaction's events: which of them are new, and what is noted of them. Statements only; the transaction is somebody else's."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Table, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from headrace.backends.contract import Delivery, Effect, Record, Route
from headrace.context import Context
from headrace.errors import ConfigurationError, HandlerError
from headrace.once import losses
from headrace.once.verdict import first_line

log = logging.getLogger("headrace")

ID_MAX: Final = 512
_INSERTS: Final[dict[str, Any]] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}


class Writes(msgspec.Struct, frozen=True, array_like=True):
    """What leaves with an ack."""

    outputs: list[tuple[Route, Record]]
    effects: list[Effect]


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Writes).decode


class AllFailed(Exception):
    """Every event of the transaction failed by `ctx.fail` or `ctx.reject`: nothing of it is to stay."""


def identity(delivery: Delivery, topic: str) -> str:
    """What an event is known by: its id, whatever its place; what an operator has replayed is a new one."""
    raw = delivery.id
    partition = delivery.partition or topic
    if partition != topic and raw == (delivery.get(b"origin") or delivery.token):  # of another tool: its place names it
        raw = partition.encode() + b" " + raw
    replay = delivery.get(b"replay")
    if replay is not None:
        raw = raw + b" replayed " + replay
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = ""
    if not text or len(text) > ID_MAX or "\0" in text:
        return f"sha256:{hashlib.sha256(raw).hexdigest()}"
    return text


def _commits_by_itself(connection: Connection) -> bool:
    """Whether a statement was no transaction's part: the drivers know, each in its way."""
    driver = connection.connection
    if connection.dialect.name == "sqlite":
        return not getattr(driver.driver_connection, "in_transaction", True)
    return getattr(driver.dbapi_connection, "autocommit", False) is True


class Unit:
    """Some events of one group, to be handled in one transaction."""

    def __init__(self, table: Table, topic: str, group: str, contexts: Sequence[Context]) -> None:
        """`table`: see tables.inbox."""
        self._table, self._topic, self._group = table, topic, group
        self._contexts = contexts
        self._ids = [identity(ctx.delivery, topic) for ctx in contexts]
        self._fresh: list[tuple[str, Context]] = []
        self._transaction: object = None
        self._connection: Connection | None = None
        self._watch: losses.Watch | None = None

    def claim(self, session: Session) -> list[Context]:
        """Notes all of them as handled; returns those that were not before.

        A transaction that claims the same waits here until this one ends. What the others were to write with their ack is given to them.
        """
        self._connection = session.connection()
        self._watch = losses.watch(self._connection)
        table, dialect = self._table, self._connection.dialect.name
        if dialect not in _INSERTS:
            raise ConfigurationError(f"inbox: expected a database of {' or '.join(_INSERTS)}, got {dialect}")
        rows = [
            {"topic": self._topic, "consumer_group": self._group, "event_id": id_} for id_ in sorted(set(self._ids))
        ]
        insert = _INSERTS[dialect](table).values(rows).on_conflict_do_nothing().returning(table.c.event_id)
        new = set(session.scalars(insert))
        if _commits_by_itself(self._connection):
            raise ConfigurationError(
                "inbox: the engine is in AUTOCOMMIT, where nothing can be taken back: use a transaction's isolation level"
            )
        if len(new) < len(rows):
            self._remember(session, [row["event_id"] for row in rows if row["event_id"] not in new])
        for id_, ctx in zip(self._ids, self._contexts, strict=True):
            if id_ in new:
                new.discard(id_)  # a second copy of it in this transaction is a repeat
                self._fresh.append((id_, ctx))
        self._transaction = session.get_transaction()
        return [ctx for _, ctx in self._fresh]

    def _remember(self, session: Session, known: Sequence[str]) -> None:
        table = self._table
        found = session.execute(
            select(table.c.event_id, table.c.writes).where(self._is(known), table.c.writes.is_not(None))
        )
        writes = {id_: _decode(raw) for id_, raw in found}
        for id_, ctx in zip(self._ids, self._contexts, strict=True):
            if id_ in writes:
                ctx.outputs, ctx.effects = writes[id_].outputs, writes[id_].effects

    def flush(self, session: Session) -> None:
        """After the handler: writes what it has left to the session. Raises HandlerError if it has ended the transaction."""
        if session.get_transaction() is not self._transaction:
            raise HandlerError("the handler has rolled ctx.sql back: raise instead, or use begin_nested() for a part")
        session.flush()

    @property
    def loss(self) -> str:
        """What was said when its connection was lost, if it was."""
        return "" if self._watch is None else self._watch.loss

    def take_back(self, session: Session) -> None:
        """After a failure. A connection that does not roll back is thrown away: its transaction may still be open."""
        connection = self._connection
        if connection is None or connection.closed or connection.invalidated:
            return
        try:
            connection.connection.rollback()  # the driver's own: the session's would give the connection back even if it fails
        except BaseException as e:  # whatever drivers raise, or cut off while it waits
            log.debug("a connection is thrown away, it does not roll back: %s", first_line(e))
            session.invalidate()
            if not isinstance(e, Exception):
                raise

    def note(self, session: Session) -> None:
        """After that: what is to leave with the ack, and which events failed one by one.

        Raises AllFailed; HandlerError if the database has given the transaction up, and with it the claim.
        """
        table = self._table
        failed = [id_ for id_, ctx in self._fresh if ctx.failure is not None]
        if len(failed) == len(self._fresh):
            raise AllFailed
        if failed:
            session.execute(delete(table).where(self._is(failed)))
        good = [(id_, ctx) for id_, ctx in self._fresh if ctx.failure is None]
        proven = 0
        """Events whose claim is seen to be still there."""
        for id_, ctx in good:
            if ctx.outputs or ctx.effects:
                writes = _encode(Writes(ctx.outputs or [], ctx.effects or []))
                noted: Any = session.execute(update(table).where(self._is((id_,))).values(writes=writes))
                proven += noted.rowcount
        if not proven:
            claimed = select(func.count()).select_from(table).where(self._is([id_ for id_, _ in good]))
            proven = session.scalar(claimed) or 0
        if not proven:
            raise HandlerError("a statement of the handler failed, and the database has rolled back all that it wrote")

    def _is(self, ids: Sequence[str]) -> Any:
        c = self._table.c
        return (c.topic == self._topic) & (c.consumer_group == self._group) & c.event_id.in_(ids)

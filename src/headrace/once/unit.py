"""One transaction's events: which of them are new, and what is noted of them. Statements only; the transaction is somebody else's."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Table, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from headrace.backends.contract import Delivery, Effect, Record, Route
from headrace.context import Context
from headrace.errors import ConfigurationError

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


def identity(delivery: Delivery) -> str:
    """What an event is known by: its id, whatever its place; what an operator has replayed is a new one."""
    raw = delivery.id
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


class Unit:
    """Some events of one group, to be handled in one transaction."""

    def __init__(self, table: Table, topic: str, group: str, contexts: Sequence[Context]) -> None:
        """`table`: see tables.inbox."""
        self._table, self._topic, self._group = table, topic, group
        self._contexts = contexts
        self._ids = [identity(ctx.delivery) for ctx in contexts]
        self._fresh: list[tuple[str, Context]] = []

    def claim(self, session: Session) -> list[Context]:
        """Notes all of them as handled; returns those that were not before.

        A transaction that claims the same waits here until this one ends. What the others were to write with their ack is given to them.
        """
        table = self._table
        dialect = session.get_bind().dialect.name
        if dialect not in _INSERTS:
            raise ConfigurationError(f"inbox: expected a database of {' or '.join(_INSERTS)}, got {dialect}")
        rows = [
            {"topic": self._topic, "consumer_group": self._group, "event_id": id_} for id_ in sorted(set(self._ids))
        ]
        insert = _INSERTS[dialect](table).values(rows).on_conflict_do_nothing().returning(table.c.event_id)
        new = set(session.scalars(insert))
        if len(new) < len(rows):
            self._remember(session, [row["event_id"] for row in rows if row["event_id"] not in new])
        for id_, ctx in zip(self._ids, self._contexts, strict=True):
            if id_ in new:
                new.discard(id_)  # a second copy of it in this transaction is a repeat
                self._fresh.append((id_, ctx))
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

    def note(self, session: Session) -> None:
        """After the handler: what is to leave with the ack, and which events failed one by one. Raises AllFailed."""
        table = self._table
        failed = [id_ for id_, ctx in self._fresh if ctx.failure is not None]
        if len(failed) == len(self._fresh):
            raise AllFailed
        if failed:
            session.execute(delete(table).where(self._is(failed)))
        for id_, ctx in self._fresh:
            if ctx.failure is None and (ctx.outputs or ctx.effects):
                writes = _encode(Writes(ctx.outputs or [], ctx.effects or []))
                session.execute(update(table).where(self._is((id_,))).values(writes=writes))

    def _is(self, ids: Sequence[str]) -> Any:
        c = self._table.c
        return (c.topic == self._topic) & (c.consumer_group == self._group) & c.event_id.in_(ids)

"""The tables that Headrace keeps in a user's database, documented once. `headrace sql show` prints them."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, DateTime, Double, Integer, LargeBinary, MetaData, String, Table, func
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

VERSION: Final = 1
"""Of the tables; part of no name: a later version says how to get there."""


def inbox(name: str, schema: str | None, metadata: MetaData) -> Table:
    """One row for each event that a group has handled.

    `topic`, `consumer_group`, `event_id`: the event's identity, whatever its place in the stream. `handled_at`: the database's clock.
    `writes`: what leaves with the ack (events, effects in Redis), in case the worker dies between the two; NULL if nothing does.
    """
    return Table(
        name,
        metadata,
        Column("topic", String(128), primary_key=True),
        Column("consumer_group", String(128), primary_key=True),
        Column("event_id", String(512), primary_key=True),
        Column("handled_at", DateTime(timezone=True), nullable=False, server_default=func.now(), index=True),
        Column("writes", LargeBinary, nullable=True),
        schema=schema,
    )


class _Transaction(FunctionElement[int]):
    """The number of the transaction: what is committed later may have a lower one, what is running has none below the oldest."""

    inherit_cache = True


@compiles(_Transaction)
def _none(*_: object, **__: object) -> str:
    """Where there is one writer at a time."""
    return "0"


@compiles(_Transaction, "postgresql")
def _number(*_: object, **__: object) -> str:
    return "(pg_current_xact_id()::text::bigint)"


def outbox(name: str, schema: str | None, metadata: MetaData) -> Table:
    """One row for each event that was published by a transaction and is not yet on the server.

    `id`: its place. `transaction`: the number of the transaction that wrote it; a row is sent when no transaction with such a number or a
    lower one is running any more, so that what began to write earlier is sent first. `record`: the event as it will travel (msgpack).
    """
    return Table(
        name,
        metadata,
        Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
        Column("transaction", BigInteger, nullable=False, server_default=_Transaction()),
        Column("topic", String(128), nullable=False),
        Column("record", LargeBinary, nullable=False),
        schema=schema,
        sqlite_autoincrement=True,  # a number that was deleted is never used again: `doubt_last` tells by it what was sent
    )


def relay(name: str, schema: str | None, metadata: MetaData) -> Table:
    """One row: who sends what is in the outbox.

    `holder`, `until`: the relay at work, and when others may take over (Unix s, the database's clock). `doubt_first`, `doubt_last`,
    `doubt_since`: rows that are being sent, and since when.
    """
    return Table(
        f"{name}_relay",
        metadata,
        Column("one", Integer, primary_key=True, autoincrement=False),
        Column("holder", String(128), nullable=False, default=""),
        Column("until", Double, nullable=False, default=0.0),
        Column("doubt_first", BigInteger, nullable=True),
        Column("doubt_last", BigInteger, nullable=True),
        Column("doubt_since", Double, nullable=True),
        schema=schema,
    )

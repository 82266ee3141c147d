"""An event that a transaction publishes: it is in the outbox if the transaction commits, and a relay sends it from there.

Such an event has its id from the beginning, a random one unless the caller gives one, so a relay that dies between sending and deleting sends
it again without a second event, for as long as the topic remembers ids.
"""

from __future__ import annotations

import secrets
from typing import Any, Final

import msgspec
from sqlalchemy import Engine, MetaData, insert, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from headrace.backends.contract import Record
from headrace.errors import ConfigurationError
from headrace.once import tables

CHANNEL: Final = "headrace_outbox"
"""PostgreSQL tells relays by it that there is something to send."""
encode: Final = msgspec.msgpack.Encoder().encode
decode: Final = msgspec.msgpack.Decoder(Record).decode


class Outbox:
    """The table that `publish(..., sql=session)` writes to. Implements transaction.Outgoing.

    PostgreSQL (asyncpg, psycopg) and SQLite. `engine`: for the relay; the session of a publish is the caller's.
    """

    def __init__(
        self, engine: Engine | AsyncEngine, *, table: str = "headrace_outbox", schema: str | None = None
    ) -> None:
        """Connects on first use. Raises ConfigurationError for what cannot be meant."""
        if not isinstance(engine, Engine | AsyncEngine):
            raise ConfigurationError(f"outbox: expected an Engine or AsyncEngine, got {engine!r}")
        self.engine = engine
        self.metadata = MetaData()
        self.table = tables.outbox(table, schema, self.metadata)
        self.relay = tables.relay(table, schema, self.metadata)

    async def add(self, session: Any, topic: str, record: Record) -> None:
        """Writes one event in the caller's transaction. Raises ConfigurationError for what is no session, and what the driver raises."""
        if isinstance(session, AsyncSession | AsyncConnection):
            await session.execute(insert(self.table), _row(topic, record))
            dialect = session.dialect if isinstance(session, AsyncConnection) else session.get_bind().dialect
            if dialect.name == "postgresql":
                await session.execute(text(f"NOTIFY {CHANNEL}"))
        else:
            self.add_here(session, topic, record)

    def add_here(self, session: Any, topic: str, record: Record) -> None:
        """The same for a Session, in a program without an event loop."""
        if not isinstance(session, Session):
            raise ConfigurationError(f"sql: expected a Session, AsyncSession or AsyncConnection, got {session!r}")
        session.execute(insert(self.table), _row(topic, record))
        if session.get_bind().dialect.name == "postgresql":
            session.execute(text(f"NOTIFY {CHANNEL}"))


def _row(topic: str, record: Record) -> dict[str, object]:
    if record.id is None:
        record = msgspec.structs.replace(record, id=secrets.token_hex(12).encode())
    return {"topic": topic, "record": encode(record)}

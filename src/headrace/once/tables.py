"""The tables that Headrace keeps in a user's database, documented once. `headrace sql show` prints them."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Column, DateTime, LargeBinary, MetaData, String, Table, func

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

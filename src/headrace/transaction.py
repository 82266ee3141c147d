"""The seam to a user's database: handlers run inside a transaction there, each event once. `headrace.once.Inbox` implements it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor as Threads
from typing import Any, Protocol

from headrace.backends.contract import Record
from headrace.context import Context

Call = Callable[[Sequence[Context]], Any]
"""Calls the handler with these; its awaitable is returned unawaited by asynchronous handlers."""


class Transactions(Protocol):
    """What `subscribe(..., inbox=...)` takes."""

    asynchronous: bool
    """For `async def` handlers; else for plain ones, which run in a thread."""

    def run(
        self, topic: str, group: str, contexts: Sequence[Context], call: Call, threads: Threads
    ) -> Awaitable[Sequence[Context]]:
        """Calls the handler with those that were not handled before, in one transaction that also notes them as handled.

        Each has `ctx.sql` meanwhile. The others get back what they were to write with their ack (`outputs`, `effects`). Returns what was
        given. If the call raises, or the transaction does, nothing is noted, and it is raised. Raises Unavailable if the database is not there.
        """
        ...

    keep_s: float
    """How long an event is known after it was handled, at least."""

    async def prune(self, topic: str, group: str) -> int:
        """Forgets what a group handled more than `keep_s` ago; returns how many. Raises Unavailable.

        Only right while no event of the group is unsettled for as long as that, for it could be one that was handled and not acked.
        """
        ...


class Outgoing(Protocol):
    """What `Headrace(outbox=...)` takes."""

    async def add(self, session: Any, topic: str, record: Record) -> None:
        """Writes an event in the caller's transaction. Raises ConfigurationError for what is no session."""
        ...


class Unavailable(Exception):
    """The database is not there, or not now: the event is not to blame, and is handled later without counting an attempt."""

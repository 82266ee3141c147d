"""What may be decided about a group beside its name, retries and deadline."""

from __future__ import annotations

from typing import Literal, TypedDict

from headrace.backends.contract import OnFailure
from headrace.transaction import Transactions


class GroupOptions(TypedDict, total=False):
    """Keyword arguments of `Topic.subscribe`."""

    start: Literal["earliest", "latest"]
    """Where the group begins (`earliest`); counts only when it is created."""
    lanes: int
    """Handlers at work at once in one process (100)."""
    batch: int
    """Events per call of a batch handler, at most (100)."""
    ordered: bool
    """Events of one key are handled one after the other, in publish order, each partition by one worker; the topic needs a key."""
    on_failure: OnFailure
    """Ordered: what becomes of later events while one waits for its retry. `park` (default): those of its key wait behind it; `skip`: there
    is no retry, it is dead-lettered at once; `stop`: its whole partition waits, for as long as it takes."""
    inbox: Transactions | None
    """headrace.once.Inbox: the handler's rows in SQL, what it publishes and its ack are one unit; see `ctx.sql`."""

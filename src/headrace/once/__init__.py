"""Exactly once in SQL: `Inbox` for what handlers write, `Outbox` for what transactions publish. Needs `headrace[sql]`."""

from headrace.once.inbox import Inbox
from headrace.once.outbox import Outbox

__all__ = ["Inbox", "Outbox"]

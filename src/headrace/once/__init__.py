"""Exactly once in SQL: `Inbox` for what handlers write. Needs `headrace[sql]`."""

from headrace.once.inbox import Inbox

__all__ = ["Inbox"]

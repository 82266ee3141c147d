"""Connections that are lost while handlers use them.

What a handler raises does not tell: it may be in its own words, be swallowed, come out of a task group, or be of another database. The
engine knows which connection each error was on.
"""

from __future__ import annotations

import weakref

from sqlalchemy import Connection, Dialect, event, exc
from sqlalchemy.engine import ExceptionContext

from headrace.once.verdict import first_line, sqlstate

_ENDED = "57P"
"""SQLSTATEs of a server that is going down or was told to end the connection."""
_watches: weakref.WeakKeyDictionary[Connection, Watch] = weakref.WeakKeyDictionary()
_dialects: weakref.WeakSet[Dialect] = weakref.WeakSet()


class Watch:
    """One connection while a unit uses it."""

    def __init__(self) -> None:
        """Nothing has happened."""
        self.loss = ""
        """What the database or its driver said when it was lost."""
        self._cut = False

    def see(self, context: ExceptionContext) -> None:
        """An error on it. One that follows on a statement which the handler itself has cancelled is no loss."""
        error = context.sqlalchemy_exception
        if not isinstance(context.original_exception, Exception):
            self._cut = True
        elif isinstance(error, exc.DBAPIError) and not self._cut and not self.loss and _is_loss(context, error):
            self.loss = first_line(error)
            context.is_disconnect = True


def watch(connection: Connection) -> Watch:
    """From now on."""
    if connection.dialect not in _dialects:
        _dialects.add(connection.dialect)
        event.listen(connection.engine, "handle_error", _see)
    _watches[connection] = anew = Watch()
    return anew


def _see(context: ExceptionContext) -> None:
    watch = None if context.connection is None else _watches.get(context.connection)
    if watch is not None:
        watch.see(context)


def _is_loss(context: ExceptionContext, error: exc.DBAPIError) -> bool:
    """What the error says is not enough: a handler's statement can bring about errors of connections, of another server for instance."""
    state = sqlstate(error)
    if state and not state.startswith("08"):
        return state.startswith(_ENDED)
    return context.is_disconnect or _is_stuck(context.connection)


def _is_stuck(connection: Connection | None) -> bool:
    """Whether psycopg waits for an answer on it: it may fail on a lost connection before it says that it is broken."""
    info = None if connection is None else getattr(connection.connection.driver_connection, "info", None)
    status = getattr(info, "transaction_status", None)
    return status is not None and status.name in ("ACTIVE", "UNKNOWN")

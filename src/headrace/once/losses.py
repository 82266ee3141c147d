"""Connections that are lost while handlers use them.

What a handler raises does not tell: it may be in its own words, be swallowed, come out of a task group, or be of another database. The
engine knows which connection each error was on.
"""

from __future__ import annotations

import weakref

from sqlalchemy import Connection, Dialect, event, exc
from sqlalchemy.engine import ExceptionContext

from headrace.once.verdict import first_line, sqlstate

_ENDED = ("08", "57P")
"""Classes of SQLSTATE: connection, and the operator's end of it."""


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


class Losses:
    """Watches of the connections of some engines."""

    def __init__(self) -> None:
        """None yet."""
        self._watches: weakref.WeakKeyDictionary[Connection, Watch] = weakref.WeakKeyDictionary()
        self._dialects: weakref.WeakSet[Dialect] = weakref.WeakSet()

    def watch(self, connection: Connection) -> Watch:
        """From now on."""
        if connection.dialect not in self._dialects:
            self._dialects.add(connection.dialect)
            event.listen(connection.engine, "handle_error", self._see)
        watch = self._watches[connection] = Watch()
        return watch

    def _see(self, context: ExceptionContext) -> None:
        watch = None if context.connection is None else self._watches.get(context.connection)
        if watch is not None:
            watch.see(context)


def _is_loss(context: ExceptionContext, error: exc.DBAPIError) -> bool:
    """`is_disconnect` does not tell all: psycopg may fail on a lost connection before it says that it is broken."""
    if state := sqlstate(error):
        return state.startswith(_ENDED)
    return context.is_disconnect or (context.dialect.name == "postgresql" and isinstance(error, exc.OperationalError))

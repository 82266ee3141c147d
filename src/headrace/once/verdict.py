"""What an error of the database means: that it is not there, or that somebody's statement is wrong."""

from __future__ import annotations

from typing import Final

from sqlalchemy import exc

_AWAY: Final = ("08", "40", "53", "55", "57", "58")
"""Classes of SQLSTATE: connection, rollback for another transaction, resources, not now, operator, system."""
ABORTED: Final = "25P02"
"""An earlier statement of the transaction failed."""


def sqlstate(error: BaseException) -> str:
    """The standard's code of an error, as PostgreSQL's drivers tell it; else ''."""
    return str(getattr(getattr(error, "orig", None), "sqlstate", None) or "")


def is_away(error: exc.DBAPIError) -> bool:
    """Whether the database is not there, or not now: whoever asks it the same later may get it."""
    if error.connection_invalidated:
        return True
    state = sqlstate(error)
    return state.startswith(_AWAY) if state else isinstance(error, exc.OperationalError | exc.InterfaceError)


def first_line(error: BaseException) -> str:
    """What it says, without the statement."""
    text = str(getattr(error, "orig", None) or error)
    return text.splitlines()[0] if text else type(error).__name__

"""Places in a topic as people say them: `-1h`, `2026-11-23T10:00:00+01:00`, `now`, or a stream id.

A stream id is `milliseconds-sequence`, milliseconds of Unix time by the server's clock. Relative times use this machine's clock.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import Final

from headrace.errors import ConfigurationError

_SEQUENCE_MAX: Final = (1 << 64) - 1
_UNIT_MS: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_BEFORE_MS: Final = -1
"""Some time before 1970: no stream reaches back that far, and no delay either."""
_RELATIVE: Final = re.compile(r"-(\d+(?:\.\d+)?)([smhd])")
_ID: Final = re.compile(r"(\d{1,20})-(\d{1,20})")
_EXPECTED: Final = "expected a time with its offset (2026-11-23T10:00:00+01:00), one relative to now (-30s, -15m, -2h, -1d), `now`, or a stream id"
_EXPECTED_DUE: Final = "expected a time with its offset (2026-11-23T10:00:00+01:00), or in so many seconds by --delay"

Place = tuple[int, int]
"""A stream id as numbers, which order it."""


def instant_ms(text: str, expected: str = _EXPECTED) -> int:
    """A time as Unix milliseconds; negative if it is relative and before 1970. Raises ConfigurationError, which says what was `expected`."""
    if text == "now":
        return round(time.time() * 1_000)
    if relative := _RELATIVE.fullmatch(text):
        return round(max(time.time() * 1_000 - float(relative[1]) * _UNIT_MS[relative[2]], _BEFORE_MS))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(f"time: {expected}, got {text!r}") from None
    if moment.tzinfo is None:
        raise ConfigurationError(f"time: {text!r} does not say its offset from UTC: append Z or +01:00")
    milliseconds = round(moment.timestamp() * 1_000)
    if milliseconds < 0:
        raise ConfigurationError(f"time: expected 1970 or later, got {text!r}")
    return milliseconds


def due(text: str) -> datetime:
    """When an event is to be handled. Raises ConfigurationError."""
    milliseconds = instant_ms(text, _EXPECTED_DUE)
    if milliseconds < 0:
        raise ConfigurationError(f"time: expected 1970 or later, got {text!r:.100}")
    try:
        return datetime.fromtimestamp(milliseconds / 1_000, UTC)
    except (ValueError, OverflowError):  # its offset puts it past the last year of the calendar
        raise ConfigurationError(f"time: expected the year 9999 or earlier, got {text!r:.100}") from None


def is_id(text: str) -> bool:
    """Whether it is a stream id, which is a place in one stream, and not a time."""
    return _ID.fullmatch(text) is not None


def first(text: str) -> str:
    """The first stream id that a range beginning there may hold. Raises ConfigurationError."""
    return text if is_id(text) else f"{max(instant_ms(text), 0)}-0"


def last(text: str) -> str:
    """The last stream id that a range ending there may hold. Raises ConfigurationError."""
    return text if is_id(text) else f"{max(instant_ms(text), 0)}-{_SEQUENCE_MAX}"


def before(token: str) -> str:
    """What to read after, so that the entry `token` comes first: the id before it, or `-`. Raises ConfigurationError."""
    parts = _ID.fullmatch(token)
    if parts is None:
        raise ConfigurationError(f"id: expected a stream id like 1763892000000-0, got {token!r}")
    milliseconds, sequence = int(parts[1]), int(parts[2])
    if sequence:
        return f"{milliseconds}-{sequence - 1}"
    return f"{milliseconds - 1}-{_SEQUENCE_MAX}" if milliseconds else "-"


def place(token: str) -> Place:
    """Where an event is in its stream, zeros if its token does not say; events that share an entry have one place."""
    parts = _ID.fullmatch(token.partition("/")[0])
    return (int(parts[1]), int(parts[2])) if parts else (0, 0)


def token_ms(token: str) -> int:
    """When an entry was written: Unix milliseconds, or 0 if its token does not say."""
    return place(token)[0]


def said(milliseconds: int) -> str:
    """Unix milliseconds for people: UTC, to the millisecond; as they are if the calendar does not reach that far."""
    try:
        moment = datetime.fromtimestamp(milliseconds / 1_000, UTC)
    except (ValueError, OverflowError):  # a stream id that was given by hand
        return f"{milliseconds}ms"
    return moment.strftime("%Y-%m-%d %H:%M:%S.") + f"{moment.microsecond // 1_000:03d}Z"

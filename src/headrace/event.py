"""What surrounds an event's body: key, id, headers and due time, checked before anything is sent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from headrace import limits
from headrace.errors import ConfigurationError, InvalidEvent

ATTRIBUTES: Final = frozenset(
    {"source", "time", "subject", "datacontenttype", "dataschema", "traceparent", "tracestate"}
)
"""CloudEvents attributes that travel under their own name; every other header travels as `x-name`."""
_HEADER: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")


def check_name(kind: str, name: str) -> str:
    """The name of a topic or group, or ConfigurationError."""
    if not isinstance(name, str) or not limits.NAME.fullmatch(name):
        raise ConfigurationError(f"{kind} name: expected 1 to 128 of A-Z a-z 0-9 . _ -, got {name!r:.200}")
    return name


def key_bytes(key: object) -> bytes:
    """An ordering key as it travels. Text, or an integer written as text."""
    if isinstance(key, int) and not isinstance(key, bool):
        key = str(key)
    if not isinstance(key, str):
        raise InvalidEvent(f"key: expected text or an integer, got {key!r:.200}")
    return _bounded("key", key, limits.key_bytes_max)


def id_bytes(value: object) -> bytes:
    """A caller-given id as it travels."""
    if not isinstance(value, str) or not value:
        raise InvalidEvent(f"id: expected text, got {value!r:.200}")
    return _bounded("id", value, limits.id_bytes_max)


def header_pairs(headers: Mapping[str, str] | None) -> tuple[tuple[bytes, bytes], ...]:
    """Headers as attributes: CloudEvents names as they are, all others with `x-` before them."""
    if not headers:
        return ()
    if len(headers) > limits.headers_max:
        raise InvalidEvent(f"headers: expected at most {limits.headers_max}, got {len(headers)}")
    pairs = []
    for name, value in headers.items():
        if not isinstance(name, str) or not _HEADER.fullmatch(name):
            raise InvalidEvent(f"header name: expected 1 to 63 of a-z 0-9 . _ -, got {name!r:.100}")
        if not isinstance(value, str):
            raise InvalidEvent(f"header {name}: expected text, got {value!r:.100}")
        wire = name if name in ATTRIBUTES else f"x-{name}"
        pairs.append((wire.encode(), _bounded(f"header {name}", value, limits.header_bytes_max)))
    return tuple(pairs)


def due_ms(delay_s: float | None, at: datetime | None) -> tuple[int, int]:
    """(delay in ms, Unix time in ms) of a delayed event; zeros for one that is due at once."""
    if delay_s is not None and at is not None:
        raise InvalidEvent("expected delay_s or at, got both")
    if delay_s is not None:
        if not 0 <= delay_s <= limits.delay_s_max:
            raise InvalidEvent(f"delay_s: expected 0 to {limits.delay_s_max} (a year), got {delay_s}")
        return round(delay_s * 1000), 0
    if at is not None:
        if at.tzinfo is None:
            raise InvalidEvent(
                f"at: expected a datetime with a time zone, got {at!r}; say at.replace(tzinfo=UTC) or use delay_s"
            )
        if (at - datetime.now(UTC)).total_seconds() > limits.delay_s_max:
            raise InvalidEvent(f"at: expected at most a year ahead, got {at.isoformat()}")
        return 0, max(round(at.timestamp() * 1000), 1)
    return 0, 0


def too_large(body: bytes) -> InvalidEvent:
    """The error for a body of more than `limits.body_bytes_max`."""
    return InvalidEvent(
        f"the event is {len(body):,} bytes as JSON; at most {limits.body_bytes_max:,} are sent. Store the rest elsewhere and send its name"
    )


def _bounded(what: str, text: str, limit: int) -> bytes:
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        raise InvalidEvent(f"{what}: expected text that UTF-8 can carry, got {text!r:.100}") from None
    if len(raw) > limit:
        raise InvalidEvent(f"{what}: expected at most {limit} bytes, got {len(raw)}")
    return raw

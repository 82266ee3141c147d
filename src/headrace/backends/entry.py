"""What an entry looks like: attribute names and values in turn, `id` first, `data` last. The same on every backend."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.backends.contract import Delivery, Record

_REPLACED = (b"id", b"attempt", b"origin", b"reason", b"due")


def derived_id(delivery: Delivery, group: str, n: int) -> bytes:
    """The identity of the n-th output of an event handled by a group: the same however often it is handled."""
    return b"%b:%b:%d" % (delivery.id, group.encode(), n)


def fields_of(record: Record, id_: bytes) -> list[bytes]:
    """The fields of a record that is published under this id, unless it brings its own."""
    out = [b"id", record.id or id_]
    if record.type:
        out += (b"type", record.type)
    for pair in record.headers:
        out += pair
    if record.key is not None:
        out += (b"key", record.key)
    out += (b"data", record.body)
    return out


def copy_of(token: bytes, fields: Sequence[bytes], attempt: int, reason: bytes = b"") -> list[bytes]:
    """The fields of a copy for the retries or the dead letters: all of the original, preceded by where it came from."""
    out = [b"id", token, b"attempt", b"%d" % attempt, b"origin", token]
    if reason:
        out += (b"reason", reason)
    for i in range(0, len(fields) - 1, 2):
        name, value = fields[i], fields[i + 1]
        if name == b"id":
            out[1] = value
        elif name == b"origin":
            out[5] = value
        elif name not in _REPLACED:
            out += (name, value)
    return out


def attempt_of(fields: Sequence[bytes]) -> int:
    """The attempt of a copy, which says it right behind its id; of any other entry 1."""
    if len(fields) > 3 and fields[2] == b"attempt" and fields[3].isdigit():  # noqa: PLR2004 - id and attempt come first
        return int(fields[3])
    return 1

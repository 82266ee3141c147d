"""`ctx.redis`: records writes to Redis that are applied with the ack. Method names and arguments are those of redis-py."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from msgspec import Struct

from headrace import limits
from headrace.backends.contract import Effect
from headrace.errors import HandlerError, InvalidEvent

Value = str | bytes | int | float


def _raw(value: Value) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidEvent(f"ctx.redis: expected text, bytes or a number, got {value!r:.100}")
    return repr(value).encode()


def _whole(value: int) -> bytes:
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise InvalidEvent(f"ctx.redis: expected a 64-bit integer, got {value!r:.100}")
    return b"%d" % value


def _number(value: float) -> bytes:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidEvent(f"ctx.redis: expected a finite number, got {value!r:.100}")
    return repr(value).encode()


class RedisEffects(Struct, eq=False):
    """Records writes; nothing is sent before the ack. There are no answers, because nothing has happened yet."""

    _effects: list[Effect]
    """Collects what is recorded."""
    _allowed: frozenset[str]
    """What the backend can do."""
    _count: Callable[[], None]
    """Counts one more, or raises if no more may be recorded."""

    def _add(self, command: str, key: str | bytes, *arguments: bytes) -> None:
        if command not in self._allowed:
            raise HandlerError(
                f"ctx.redis.{command.lower()}: this backend cannot write it with the ack; use ctx.publish, or a SQL transaction"
            )
        if not key:
            raise InvalidEvent("ctx.redis: expected a key, got an empty one")
        self._count()
        self._effects.append((command.encode(), _raw(key), *arguments))

    # Strings
    def set(self, key: str | bytes, value: Value, *, ex: int | None = None, px: int | None = None) -> None:
        """Sets a string, with a time to live in seconds (`ex`) or milliseconds (`px`) if given."""
        if ex is not None and px is not None:
            raise InvalidEvent("ctx.redis.set: expected ex or px, got both")
        self._add("SET", key, _raw(value))
        if ex is not None:
            self.expire(key, ex)
        if px is not None:
            self.pexpire(key, px)

    def setnx(self, key: str | bytes, value: Value) -> None:
        """Sets a string if the key is absent."""
        self._add("SETNX", key, _raw(value))

    def append(self, key: str | bytes, value: Value) -> None:
        """Appends to a string."""
        self._add("APPEND", key, _raw(value))

    def incrby(self, key: str | bytes, amount: int = 1) -> None:
        """Adds to an integer."""
        self._add("INCRBY", key, _whole(amount))

    incr = incrby

    def decrby(self, key: str | bytes, amount: int = 1) -> None:
        """Subtracts from an integer."""
        self._add("INCRBY", key, _whole(-amount))

    decr = decrby

    def incrbyfloat(self, key: str | bytes, amount: float = 1.0) -> None:
        """Adds to a number."""
        self._add("INCRBYFLOAT", key, _number(amount))

    # Any key
    def delete(self, *keys: str | bytes) -> None:
        """Deletes keys of any type."""
        for key in keys:
            self._add("DEL", key)

    def expire(self, key: str | bytes, seconds: int) -> None:
        """Gives a key a time to live in seconds."""
        self._add("EXPIRE", key, _positive(seconds))

    def pexpire(self, key: str | bytes, milliseconds: int) -> None:
        """Gives a key a time to live in milliseconds."""
        self._add("PEXPIRE", key, _positive(milliseconds))

    # Hashes
    def hset(
        self,
        key: str | bytes,
        field: Value | None = None,
        value: Value | None = None,
        mapping: Mapping[Any, Value] | None = None,
    ) -> None:
        """Sets fields of a hash: one by `field` and `value`, several by `mapping`."""
        pairs: list[bytes] = []
        if field is not None and value is not None:
            pairs += (_raw(field), _raw(value))
        for f, v in (mapping or {}).items():
            pairs += (_raw(f), _raw(v))
        if not pairs:
            raise InvalidEvent("ctx.redis.hset: expected field and value, or a mapping, got nothing to set")
        self._add("HSET", key, *_few(pairs))

    def hsetnx(self, key: str | bytes, field: Value, value: Value) -> None:
        """Sets a field of a hash if it is absent."""
        self._add("HSETNX", key, _raw(field), _raw(value))

    def hdel(self, key: str | bytes, *fields: Value) -> None:
        """Deletes fields of a hash."""
        self._add("HDEL", key, *_some(fields))

    def hincrby(self, key: str | bytes, field: Value, amount: int = 1) -> None:
        """Adds to an integer in a hash."""
        self._add("HINCRBY", key, _raw(field), _whole(amount))

    def hincrbyfloat(self, key: str | bytes, field: Value, amount: float = 1.0) -> None:
        """Adds to a number in a hash."""
        self._add("HINCRBYFLOAT", key, _raw(field), _number(amount))

    # Lists
    def lpush(self, key: str | bytes, *values: Value) -> None:
        """Puts values before a list."""
        self._add("LPUSH", key, *_some(values))

    def rpush(self, key: str | bytes, *values: Value) -> None:
        """Puts values behind a list."""
        self._add("RPUSH", key, *_some(values))

    def ltrim(self, key: str | bytes, start: int, end: int) -> None:
        """Keeps only this range of a list."""
        self._add("LTRIM", key, _whole(start), _whole(end))

    def lrem(self, key: str | bytes, count: int, value: Value) -> None:
        """Removes values from a list."""
        self._add("LREM", key, _whole(count), _raw(value))

    # Sets
    def sadd(self, key: str | bytes, *members: Value) -> None:
        """Adds members to a set."""
        self._add("SADD", key, *_some(members))

    def srem(self, key: str | bytes, *members: Value) -> None:
        """Removes members from a set."""
        self._add("SREM", key, *_some(members))

    # Sorted sets
    def zadd(self, key: str | bytes, mapping: Mapping[Any, float]) -> None:
        """Sets scores: member -> score."""
        pairs: list[bytes] = []
        for member, score in mapping.items():
            pairs += (_number(score), _raw(member))
        if not pairs:
            raise InvalidEvent("ctx.redis.zadd: expected a mapping of members to scores, got an empty one")
        self._add("ZADD", key, *_few(pairs))

    def zrem(self, key: str | bytes, *members: Value) -> None:
        """Removes members from a sorted set."""
        self._add("ZREM", key, *_some(members))

    def zincrby(self, key: str | bytes, amount: float, member: Value) -> None:
        """Adds to a member's score."""
        self._add("ZINCRBY", key, _number(amount), _raw(member))

    def __getattr__(self, name: str) -> NoReturn:
        """Every other command is refused, with the reason."""
        if name.startswith("__"):
            raise AttributeError(name)
        raise HandlerError(
            f"ctx.redis.{name}: not a write that can happen with the ack. It records writes of strings, hashes, lists, sets and sorted sets; "
            "read with a client of your own, before"
        )


def _positive(value: int | None) -> bytes:
    if value is None or isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**53:
        raise InvalidEvent(f"ctx.redis: expected a positive integer, got {value!r:.100}")
    return b"%d" % value


def _some(values: tuple[Value, ...]) -> list[bytes]:
    if not values:
        raise InvalidEvent("ctx.redis: expected at least one value, got none")
    return _few([_raw(v) for v in values])


def _few(words: list[bytes]) -> list[bytes]:
    if len(words) > limits.unpack_values_max - 10:
        raise InvalidEvent(
            f"ctx.redis: one write may carry at most {limits.unpack_values_max - 10} values, got {len(words)}"
        )
    return words

"""The small part of Redis that effects write to, in memory: strings, hashes, lists, sets, sorted sets and times to live.

A batch of effects is applied entirely or not at all. Types, numbers and replies to wrong use follow Redis; there are no reads but
`value`, which is for tests.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Final, TypeVar

from headrace.backends.contract import Effect
from headrace.backends.effects import EFFECTS, EffectSpec

Value = bytes | dict[bytes, bytes] | list[bytes] | set[bytes] | dict[bytes, float]
"""What a test sees of a key."""

_INTEGER: Final = re.compile(rb"0|-?[1-9][0-9]*")
_FLOAT: Final = re.compile(rb"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_INTEGER_MAX: Final = (1 << 63) - 1


class String(bytearray):
    """The value of a string key."""


class Hash(dict[bytes, bytes]):
    """The value of a hash key."""


class List(list[bytes]):
    """The value of a list key."""


class Members(set[bytes]):
    """The value of a set key."""


class Scores(dict[bytes, float]):
    """The value of a sorted set key: member -> score."""


_TYPES: Final[dict[str, type]] = {"string": String, "hash": Hash, "list": List, "set": Members, "zset": Scores}
_T = TypeVar("_T", String, Hash, List, Members, Scores)


class Wrong(Exception):
    """An effect that cannot be made; the message says why. Never leaves this module."""


def integer(text: bytes, what: str) -> int:
    """The 64-bit integer that Redis reads here. Raises Wrong."""
    if not _INTEGER.fullmatch(text) or not -_INTEGER_MAX - 1 <= int(text) <= _INTEGER_MAX:
        raise Wrong(f"{what} is not a 64-bit integer")
    return int(text)


def decimal(text: bytes, what: str) -> Decimal:
    """The finite number that Redis reads here. Raises Wrong."""
    if not _FLOAT.fullmatch(text):
        raise Wrong(f"{what} is not a number")
    return Decimal(text.decode())


def _plain(number: Decimal) -> bytes:
    """A number as INCRBYFLOAT writes it: up to 17 places, no exponent, no zeros at the end."""
    text = f"{number:.17f}".rstrip("0").rstrip(".")
    return b"0" if text in ("", "-0") else text.encode()


def _checked(effect: Effect) -> tuple[str, bytes, Sequence[bytes], EffectSpec]:
    """Command, key, arguments and spec of an effect that is well formed. Raises Wrong."""
    name = effect[0].decode(errors="replace").upper() if effect else ""
    spec = EFFECTS.get(name)
    if spec is None:
        raise Wrong(f"command {name!r} is not one that an effect may use: {', '.join(EFFECTS)}")
    if len(effect) < 2:  # noqa: PLR2004 - command and key
        raise Wrong(f"{name} needs a key")
    key, args = effect[1], effect[2:]
    if len(args) < spec.min_args or (spec.max_args is not None and len(args) > spec.max_args) or len(args) % spec.step:
        raise Wrong(f"{name}: wrong number of arguments, {len(args)} after the key")
    for start in range(0, len(args), spec.step):
        for place in spec.integers:
            integer(args[start + place], f"{name}: argument {args[start + place]!r}")
        for place in spec.floats:
            decimal(args[start + place], f"{name}: argument {args[start + place]!r}")
        if spec.step == 1:
            break
    return name, key, args, spec


class RedisData:
    """The keys that effects have written."""

    def __init__(self, now: Callable[[], float]) -> None:
        """Empty. `now` is the server's clock in seconds."""
        self._now = now
        self._values: dict[bytes, String | Hash | List | Members | Scores] = {}
        self._ends: dict[bytes, float] = {}
        """Key -> moment at which it is gone."""

    def value(self, key: bytes) -> Value | None:
        """What a key holds as plain Python: bytes, dict, list or set; None if there is none."""
        self._expire(key)
        found = self._values.get(key)
        match found:
            case None:
                return None
            case String():
                return bytes(found)
            case Hash():
                return dict(found)
            case List():
                return list(found)
            case Members():
                return set(found)
            case Scores():
                return dict(found)

    def apply(self, effects: Sequence[Effect]) -> str:
        """Makes all of them, in order, or none. Returns '' or why not."""
        before = {e[1]: (copy.copy(self._values.get(e[1])), self._ends.get(e[1])) for e in effects if len(e) > 1}
        try:
            for effect in effects:
                self._one(effect)
        except Wrong as e:  # the caller is told; what was already made is taken back
            for key, (value, end) in before.items():
                self._restore(key, value, end)
            return str(e)
        return ""

    def _restore(self, key: bytes, value: String | Hash | List | Members | Scores | None, end: float | None) -> None:
        self._drop(key)
        if value is not None:
            self._values[key] = value
        if end is not None:
            self._ends[key] = end

    def _drop(self, key: bytes) -> None:
        self._values.pop(key, None)
        self._ends.pop(key, None)

    def _expire(self, key: bytes) -> None:
        if key in self._ends and self._ends[key] <= self._now():
            self._drop(key)

    def _get(self, key: bytes, kind: type[_T]) -> _T:
        """The value of a key whose type was checked; made if absent."""
        found = self._values.setdefault(key, kind())
        if not isinstance(found, kind):
            raise TypeError(f"{key!r} holds a {type(found).__name__}, not a {kind.__name__}")
        return found

    def _one(self, effect: Effect) -> None:
        name, key, args, spec = _checked(effect)
        self._expire(key)
        found = self._values.get(key)
        if spec.type != "any" and found is not None and not isinstance(found, _TYPES[spec.type]):
            held = next(n for n, t in _TYPES.items() if isinstance(found, t))
            raise Wrong(f"{key.decode(errors='replace')} holds a {held}, {name} needs a {spec.type}")
        writes = {
            "any": self._any,
            "string": self._string,
            "hash": self._hash,
            "list": self._list,
            "set": self._set,
            "zset": self._zset,
        }
        writes[spec.type](name, key, args)
        left = self._values.get(key)
        if left is not None and not left and not isinstance(left, String):
            self._drop(key)  # Redis keeps no empty collections

    def _any(self, name: str, key: bytes, args: Sequence[bytes]) -> None:
        match name:
            case "DEL":
                self._drop(key)
            case "SET":
                self._drop(key)
                self._values[key] = String(args[0])
            case "SETNX":
                self._values.setdefault(key, String(args[0]))
            case _:
                seconds = int(args[0]) / (1000 if name == "PEXPIRE" else 1)
                if key in self._values:
                    self._ends[key] = self._now() + seconds
                    self._expire(key)

    def _sum(self, name: str, what: str, old: bytes, by: bytes) -> bytes:
        if name.endswith("FLOAT"):
            return _plain(decimal(old, what) + Decimal(by.decode()))
        total = integer(old, what) + int(by)
        return b"%d" % integer(b"%d" % total, f"{what} plus {int(by)}")

    def _string(self, name: str, key: bytes, args: Sequence[bytes]) -> None:
        old = bytes(self._get(key, String)) if key in self._values else b"0"
        text = self._get(key, String)
        if name == "APPEND":
            text += args[0]
        else:
            text[:] = self._sum(name, key.decode(errors="replace"), old, args[0])

    def _hash(self, name: str, key: bytes, args: Sequence[bytes]) -> None:
        fields = self._get(key, Hash)
        match name:
            case "HSET":
                fields.update(zip(args[::2], args[1::2], strict=True))
            case "HSETNX":
                fields.setdefault(args[0], args[1])
            case "HDEL":
                for field in args:
                    fields.pop(field, None)
            case _:
                what = f"{key.decode(errors='replace')} {args[0].decode(errors='replace')}"
                fields[args[0]] = self._sum(name, what, fields.get(args[0], b"0"), args[1])

    def _list(self, name: str, key: bytes, args: Sequence[bytes]) -> None:
        items = self._get(key, List)
        match name:
            case "LPUSH":
                items[:0] = reversed(args)
            case "RPUSH":
                items += args
            case "LTRIM":
                first, last = (i if i >= 0 else i + len(items) for i in map(int, args))
                items[:] = items[max(first, 0) : max(last + 1, 0)]
            case _:
                _remove(items, int(args[0]), args[1])

    def _set(self, name: str, key: bytes, args: Sequence[bytes]) -> None:
        members = self._get(key, Members)
        if name == "SADD":
            members.update(args)
        else:
            members.difference_update(args)

    def _zset(self, name: str, key: bytes, args: Sequence[bytes]) -> None:
        scores = self._get(key, Scores)
        match name:
            case "ZADD":
                scores.update((member, float(score)) for score, member in zip(args[::2], args[1::2], strict=True))
            case "ZREM":
                for member in args:
                    scores.pop(member, None)
            case _:
                scores[args[1]] = scores.get(args[1], 0.0) + float(args[0])


def _remove(items: List, count: int, value: bytes) -> None:
    """LREM: the first `count` equal ones, the last if negative, all if 0."""
    places = [i for i, item in enumerate(items) if item == value]
    chosen = places[:count] if count > 0 else places[count:]  # count 0: [0:], all of them
    for place in reversed(chosen):
        del items[place]

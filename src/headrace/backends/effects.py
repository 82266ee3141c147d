"""The Redis commands that a handler may record through `ctx.redis`: which key they need, how many arguments, which must be numbers.

A backend checks an effect against this table and against the key's type before it writes anything, so that a commit is applied
entirely or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

from msgspec import Struct

KeyType = Literal["string", "hash", "list", "set", "zset", "any"]


class EffectSpec(Struct, frozen=True):
    """What one command asks of its key and arguments. Arguments are counted after the key."""

    type: KeyType
    """The type that the key must have if it exists; `any`: the command does not look at it."""
    min_args: int
    max_args: int | None
    """None: any number."""
    integers: tuple[int, ...] = ()
    """Places (from 0) of arguments that must be 64-bit integers."""
    floats: tuple[int, ...] = ()
    """Places of arguments that must be finite decimal numbers."""
    step: int = 1
    """Arguments come in groups of this many (HSET: field and value). `integers` and `floats` then count within each group."""


EFFECTS: Final[Mapping[str, EffectSpec]] = MappingProxyType({
    "SET": EffectSpec("any", 1, 1),
    "SETNX": EffectSpec("any", 1, 1),
    "APPEND": EffectSpec("string", 1, 1),
    "INCRBY": EffectSpec("string", 1, 1, integers=(0,)),
    "INCRBYFLOAT": EffectSpec("string", 1, 1, floats=(0,)),
    "DEL": EffectSpec("any", 0, 0),
    "EXPIRE": EffectSpec("any", 1, 1, integers=(0,)),
    "PEXPIRE": EffectSpec("any", 1, 1, integers=(0,)),
    "HSET": EffectSpec("hash", 2, None, step=2),
    "HSETNX": EffectSpec("hash", 2, 2),
    "HDEL": EffectSpec("hash", 1, None),
    "HINCRBY": EffectSpec("hash", 2, 2, integers=(1,)),
    "HINCRBYFLOAT": EffectSpec("hash", 2, 2, floats=(1,)),
    "LPUSH": EffectSpec("list", 1, None),
    "RPUSH": EffectSpec("list", 1, None),
    "LTRIM": EffectSpec("list", 2, 2, integers=(0, 1)),
    "LREM": EffectSpec("list", 2, 2, integers=(0,)),
    "SADD": EffectSpec("set", 1, None),
    "SREM": EffectSpec("set", 1, None),
    "ZADD": EffectSpec("zset", 2, None, floats=(0,), step=2),
    "ZREM": EffectSpec("zset", 1, None),
    "ZINCRBY": EffectSpec("zset", 2, 2, floats=(0,)),
})  # fmt: skip
"""Command, in capitals -> its spec. Commands whose outcome depends on the server's clock or chance, or that read, are not here."""

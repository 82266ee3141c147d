"""One frozen configuration, read once. The environment fills what the program does not say."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import msgspec
from msgspec import Struct

from headrace import limits
from headrace.errors import ConfigurationError

_HOST: Final = r"(?:[\w.-]*|\[[\w.:%]*\])(?::\d*)?"
_SOCKET: Final = re.compile(r"(unix)://([^/?#\[\]]*@)?(/[^?#]*)(\?[^#@]*)?\s*")
_SERVERS: Final = re.compile(rf"([a-z][a-z+]*)://([^/?#\[\]]*@)?({_HOST}(?:,{_HOST})*(?:/[^?#@]*)?)(\?[^#@]*)?\s*")
"""Scheme, user and password, hosts and path, query. Stricter than the standard: what may be a part of a password is nothing else."""


class Durability(StrEnum):
    """What must be true of the server before a publish counts as acknowledged."""

    FSYNC = "fsync"
    """On disk before the answer (`appendonly yes`, `appendfsync always`). Survives a crash and a power cut."""
    QUORUM = "quorum"
    """On disk and received by at least one replica (`WAIT 1`) before the answer. Survives the loss of the server."""
    RELAXED = "relaxed"
    """In memory, on disk a moment later. A crash of the server may lose the last seconds."""


class Settings(Struct, frozen=True):
    """Everything a program may decide about its server."""

    url: str = ""
    """`redis://`, `rediss://`, `unix://`; empty: the embedded server of this project."""
    durability: Durability = Durability.FSYNC
    replicas: int = 1
    """Replicas that must confirm at level `quorum`."""
    connect_s: float = limits.connect_s
    request_s: float = limits.request_s
    publish_wait_s: float = limits.publish_wait_s


def load(
    url: str | None = None, durability: str | None = None, environment: Mapping[str, str] | None = None
) -> Settings:
    """Settings from arguments, else the environment (HEADRACE_URL, REDIS_URL, HEADRACE_DURABILITY), else defaults.

    Raises ConfigurationError, naming what was expected and what was got.
    """
    env = os.environ if environment is None else environment
    level = durability or env.get("HEADRACE_DURABILITY") or Durability.FSYNC.value
    try:
        chosen = Durability(level)
    except ValueError:
        names = ", ".join(d.value for d in Durability)
        raise ConfigurationError(f"durability: expected one of {names}, got {level!r}") from None
    where = url if url is not None else env.get("HEADRACE_URL") or env.get("REDIS_URL") or ""
    if where and _parts(where) is None:
        raise ConfigurationError(
            f"url: {redacted(where)}: expected one like redis://user:password@host:6379/0 or unix:///path; in a user name, a password and an "
            "option, special characters are percent-encoded: / is %2F, ? %3F, # %23, @ %40, [ %5B, ] %5D, % %25"
        )
    return Settings(url=where, durability=chosen)


def _parts(url: str) -> tuple[str | None, ...] | None:
    """Scheme, user and password with their @, hosts and path, query; None: it cannot be read."""
    found = _SOCKET.fullmatch(url) if url.startswith("unix:") else _SERVERS.fullmatch(url)
    return None if found is None else found.groups()


def redacted(url: str) -> str:
    """The URL without its secrets, for people and logs; of one that cannot be read, the scheme."""
    if not url:
        return "embedded"
    parts = _parts(url)
    if parts is None:
        begun = re.match(r"[a-z+]+://", url)
        return f"{begun[0] if begun else ''}***"
    scheme, user, place, query = parts
    return f"{scheme}://{'***@' if user else ''}{place}{'?***' if query else ''}"


def at(settings: Settings, url: str) -> Settings:
    """The same settings for another server."""
    return msgspec.structs.replace(settings, url=url)

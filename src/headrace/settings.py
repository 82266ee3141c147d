"""One frozen configuration, read once. The environment fills what the program does not say."""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import StrEnum

import msgspec
from msgspec import Struct

from headrace import limits
from headrace.errors import ConfigurationError


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
    return Settings(
        url=url if url is not None else env.get("HEADRACE_URL") or env.get("REDIS_URL") or "", durability=chosen
    )


def redacted(url: str) -> str:
    """The URL without its secrets, for people and logs."""
    if not url:
        return "embedded"
    scheme, _, rest = url.partition("://")
    place, question, _ = rest.partition("?")
    secret, at_sign, host = place.rpartition("@")
    return f"{scheme}://{'***@' if secret or at_sign else ''}{host}{'?***' if question else ''}"


def at(settings: Settings, url: str) -> Settings:
    """The same settings for another server."""
    return msgspec.structs.replace(settings, url=url)

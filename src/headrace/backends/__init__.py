"""Backends, by URL. The client library of a backend is imported only when its URL is used."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from headrace.backends.contract import Backend, Inspector
from headrace.errors import ConfigurationError
from headrace.settings import Settings, redacted

if TYPE_CHECKING:
    from headrace.backends.redis.durability import Report

_REDIS = ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel")


def _check(settings: Settings) -> None:
    scheme = urlsplit(settings.url).scheme
    if scheme not in _REDIS:
        known = ", ".join(f"{s}://" for s in _REDIS)
        raise ConfigurationError(f"url: expected one that begins with {known}, got {redacted(settings.url)!r}")


async def connect(settings: Settings) -> Backend:
    """The backend of the URL, connected. Raises ConfigurationError, DurabilityError, NotConnected, Refused."""
    _check(settings)
    from headrace.backends.redis.backend import RedisBackend  # noqa: PLC0415 - its client library is imported only when used

    backend = RedisBackend(settings)
    await backend.open()
    return backend


async def inspector(settings: Settings) -> Inspector:
    """The inspector of the URL. Raises ConfigurationError."""
    _check(settings)
    from headrace.backends.redis.client import Client  # noqa: PLC0415 - as above
    from headrace.backends.redis.inspect import RedisInspector  # noqa: PLC0415 - as above

    return RedisInspector(Client(settings))


async def doctor(settings: Settings) -> Report:
    """What the durability gate sees, without refusing anything. Raises ConfigurationError, NotConnected, Refused."""
    _check(settings)
    from headrace.backends.redis.client import Client  # noqa: PLC0415 - as above
    from headrace.backends.redis.durability import examine  # noqa: PLC0415 - as above

    client = Client(settings)
    try:
        return await examine(client, settings)
    finally:
        await client.aclose()

"""Which servers a URL names, and how redis-py connects to them.

redis://user:password@host:port/db          one server; rediss:// with TLS, unix:///path through a socket file
redis+cluster://user:password@host:port,host:port        a Cluster, found through any of these nodes
redis+sentinel://user:password@host:port,host:port/service/db     the primary that these sentinels name
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from msgspec import Struct
from redis.asyncio.connection import AbstractConnection, Connection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from headrace.errors import ConfigurationError
from headrace.settings import Settings, redacted

Address = tuple[str, int]
"""Host and port."""
_PORTS: Final = {"cluster": 6379, "sentinel": 26379}


class Place(Struct, frozen=True):
    """What a URL says."""

    kind: str
    """`single`, `cluster` or `sentinel`."""
    connection: type[AbstractConnection]
    arguments: dict[str, Any]
    """Of `connection`; of a Cluster or Sentinel without host and port."""
    seeds: tuple[Address, ...] = ()
    """Nodes of the Cluster, or sentinels."""
    service: str = ""
    """The name of the primary among the sentinels."""
    secure: bool = False


def parse(settings: Settings) -> Place:
    """The place of the URL. Raises ConfigurationError."""
    where = f"url: {redacted(settings.url)}"
    try:
        return _parse(settings, where)
    except ValueError:  # what it says may have a part of a password in it
        raise ConfigurationError(
            f"{where}: it cannot be read; ports are 1 to 65535, options those of redis-py, and special characters in a password percent-encoded"
        ) from None


def _parse(settings: Settings, where: str) -> Place:
    parts = urlsplit(settings.url)
    scheme, _, kind = parts.scheme.partition("+")
    if not kind:
        connection, arguments = _arguments(settings, settings.url)
        return Place("single", connection, arguments)
    user, at, hosts = parts.netloc.rpartition("@")
    service, _, db = parts.path.strip("/").partition("/")
    if kind == "cluster" and service not in ("", "0"):
        raise ConfigurationError(f"{where}: a Cluster has only database 0")
    if kind == "sentinel" and not service:
        raise ConfigurationError(
            f"{where}: expected the name of the service behind the sentinels, as in redis+sentinel://host:26379/NAME"
        )
    seeds = [_address(host, _PORTS[kind]) for host in hosts.split(",")]
    if not all(host for host, _ in seeds):
        raise ConfigurationError(f"{where}: expected hosts as host:port,host:port")
    plain = (scheme, f"{user}{at}{seeds[0][0]}:{seeds[0][1]}", f"/{db or 0}", parts.query, "")
    connection, arguments = _arguments(settings, urlunsplit(plain))
    for name in ("host", "port", *(("db",) if kind == "cluster" else ())):
        arguments.pop(name, None)
    return Place(kind, connection, arguments, tuple(seeds), service if kind == "sentinel" else "", scheme == "rediss")


def _address(text: str, port: int) -> Address:
    """`host`, `host:port` or `[::1]:port`; an empty host if there is none."""
    parts = urlsplit(f"//{text}")
    return parts.hostname or "", parts.port or port


def _arguments(settings: Settings, url: str) -> tuple[type[AbstractConnection], dict[str, Any]]:
    """The connection class of the client library for a plain URL, and its arguments. Raises ValueError."""
    arguments: dict[str, Any] = dict(parse_url(url))
    kind = arguments.pop("connection_class", Connection)
    arguments |= {
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),  # its own retries would publish twice; ours repeat only what is idempotent
        "socket_connect_timeout": settings.connect_s,
        "socket_timeout": None,  # opening has a deadline of its own; for this one it uses asyncio.wait_for, which can swallow a cancellation
    }
    if kind is Connection:
        arguments["socket_keepalive"] = True
    return kind, arguments

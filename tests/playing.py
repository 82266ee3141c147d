"""Plays a test's coroutine against a server, with a backend that is open meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from headrace.backends.contract import Record
from headrace.backends.redis.backend import RedisBackend
from headrace.backends.redis.client import Client
from headrace.backends.redis.inspect import RedisInspector
from headrace.settings import Settings
from tests.servers import Server


def with_backend(server: Server, play: Callable[[RedisBackend], Awaitable[None]], **settings: Any) -> None:
    """With a backend alone."""

    async def run() -> None:
        backend = RedisBackend(Settings(url=server.url, **settings))
        await backend.open()
        try:
            await play(backend)
        finally:
            await backend.aclose()

    asyncio.run(run())


def with_inspector(server: Server, play: Callable[[RedisBackend, RedisInspector], Awaitable[None]]) -> None:
    """With an inspector beside it; for a minute at most."""

    async def both(backend: RedisBackend) -> None:
        inspector = RedisInspector(Client(backend.client.settings))
        try:
            async with asyncio.timeout(60):
                await play(backend, inspector)
        finally:
            await inspector.aclose()

    with_backend(server, both)


def bodies(server: Server, key: str = "orders") -> list[bytes]:
    """Of the entries of a stream."""
    return [fields[-1] for _, fields in server.command("XRANGE", key, "-", "+")]


def records(count: int, first: int = 0) -> list[Record]:
    """Numbered."""
    return [Record(b"%d" % i) for i in range(first, first + count)]

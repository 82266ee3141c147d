"""The conformance harness for real Redis and Valkey servers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec

from headrace.backends.contract import Backend, Feed, Inspector, Record, Route
from headrace.backends.redis.backend import RedisBackend
from headrace.backends.redis.client import Client
from headrace.backends.redis.inspect import RedisInspector
from headrace.backends.redis.node import Script
from headrace.backends.redis.ordered import OrderedFeed
from headrace.backends.redis.shared import SharedFeed
from headrace.settings import Settings
from headrace.testing.conformance.harness import Value
from tests.servers import Server


class PackedBackend(RedisBackend):
    """Publishes as to topics with packing, whatever the route says."""

    async def publish(self, route: Route, records: Sequence[Record]) -> None:
        await super().publish(msgspec.structs.replace(route, packing=3), records)


class RedisHarness:
    """One server, emptied; implements the Harness protocol."""

    features = RedisBackend.features
    lease_s = 1.0

    def __init__(
        self,
        server: Server,
        scripts: dict[str, Script] | None = None,
        kind: type[RedisBackend] = RedisBackend,
    ) -> None:
        self._kind = kind
        self._settings = Settings(url=server.url, publish_wait_s=0.3)
        self._scripts = scripts
        self._client = Client(self._settings)
        self._opened: list[Any] = []

    async def backend(self) -> Backend:
        backend = self._kind(self._settings, self._scripts)
        await backend.open()
        self._opened.append(backend)
        return backend

    def inspector(self) -> Inspector:
        inspector = RedisInspector(Client(self._settings))
        self._opened.append(inspector)
        return inspector

    async def crash(self, feed: Feed) -> None:
        assert isinstance(feed, SharedFeed | OrderedFeed)
        feed.abandon()

    async def pause(self, feed: Feed) -> None:
        if isinstance(feed, OrderedFeed):
            feed.pause()
            return
        assert isinstance(feed, SharedFeed)
        feed._presence.stop()

    async def elapse(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def now(self) -> float:
        seconds, micros = await self._client.command("TIME")
        return int(seconds) + int(micros) / 1e6

    async def redis_value(self, key: str) -> Value:
        kind = (await self._client.command("TYPE", key)).decode()
        if kind == "string":
            return await self._client.command("GET", key)  # type: ignore[no-any-return]
        if kind == "hash":
            flat = await self._client.command("HGETALL", key)
            return dict(zip(flat[::2], flat[1::2], strict=True))
        if kind == "list":
            return await self._client.command("LRANGE", key, 0, -1)  # type: ignore[no-any-return]
        if kind == "set":
            return set(await self._client.command("SMEMBERS", key))
        if kind == "zset":
            flat = await self._client.command("ZRANGE", key, 0, -1, "WITHSCORES")
            return {member: float(score) for member, score in zip(flat[::2], flat[1::2], strict=True)}
        return None

    async def empty(self) -> None:
        await self._client.command("FLUSHALL")

    async def aclose(self) -> None:
        for one in reversed(self._opened):
            await one.aclose()
        await self._client.aclose()


@contextlib.asynccontextmanager
async def redis_harness(
    server: Server, scripts: dict[str, Script] | None = None, kind: type[RedisBackend] = RedisBackend
) -> AsyncIterator[RedisHarness]:
    """An empty server; leaving it closes every client."""
    harness = RedisHarness(server, scripts, kind)
    await harness.empty()
    try:
        yield harness
    finally:
        await harness.aclose()

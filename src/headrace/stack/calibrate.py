"""Measures what an event costs on the user's server: publishes and handles some of two sizes, and deletes them again."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import platform
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from msgspec import Struct

from headrace.app import Headrace
from headrace.backends.redis import keys
from headrace.backends.redis.client import Client
from headrace.observe import LogObserver
from headrace.runtime.worker import start
from headrace.settings import Settings
from headrace.stack.facts import Facts

_SMALL, _LARGE = 100, 1_000
_LEASE_S: Final = 15.0


class Probe(Struct):
    """An event of nothing but its size."""

    text: str


class _Costs(Struct):
    """Per event."""

    body_bytes: int
    memory_bytes: float
    file_bytes: float
    publish_cpu_us: float
    handle_cpu_us: float
    worker_per_s: float


class _Sample(Struct):
    """What the server has used so far."""

    cpu_s: float
    file_bytes: int


async def calibrate(settings: Settings, events: int, show: Callable[[str], None]) -> Facts:
    """Takes some seconds. `events`: of each size. Other traffic on the server is measured with it. Raises as the client does."""
    client = Client(settings)
    try:
        about = await _info(client, "server")
        small, large = [await _measure(settings, client, size, events, show) for size in (_SMALL, _LARGE)]
    finally:
        await client.aclose()
    version = about.get("valkey_version")
    return Facts(
        measured_on=dt.datetime.now(dt.UTC).date().isoformat(),
        server=f"Valkey {version}" if version else f"Redis {about['redis_version']}",
        machine=f"{os.cpu_count()} CPUs, {platform.system()} {platform.machine()}, Python {platform.python_version()}",
        small_body_bytes=small.body_bytes,
        large_body_bytes=large.body_bytes,
        small_memory_bytes=small.memory_bytes,
        large_memory_bytes=large.memory_bytes,
        small_file_bytes=small.file_bytes,
        large_file_bytes=large.file_bytes,
        publish_cpu_us=small.publish_cpu_us,
        handle_cpu_us=small.handle_cpu_us,
        worker_per_s=small.worker_per_s,
    )


async def _measure(settings: Settings, client: Client, size: int, events: int, show: Callable[[str], None]) -> _Costs:
    name = f"headrace-calibrate-{secrets.token_hex(4)}"
    app = Headrace(settings.url, durability=settings.durability)
    topic = app.topic(name, Probe)
    handled = asyncio.Event()
    count = 0

    @topic.subscribe("calibrate")
    async def handle(probe: Probe) -> None:  # noqa: ARG001 - it costs nothing
        nonlocal count
        count += 1
        if count >= events:
            handled.set()

    probe = Probe("x" * size)
    try:
        async with app:
            show(f"publishing {events:,} events of {size} B")
            before = await _sample(client)
            await topic.publish_many(probe for _ in range(events))
            published = await _sample(client)
            memory = await client.command("MEMORY", "USAGE", name, "SAMPLES", 0)
            show(f"handling {events:,} events of {size} B")
            began = time.perf_counter()
            await _handle_all(app, handled)
            took_s = time.perf_counter() - began
            ended = await _sample(client)
    finally:
        await _clean(client, name)
    return _Costs(
        body_bytes=len(topic.plain_record(probe).body),
        memory_bytes=memory / events,
        file_bytes=(ended.file_bytes - before.file_bytes) / events,
        publish_cpu_us=(published.cpu_s - before.cpu_s) / events * 1e6,
        handle_cpu_us=(ended.cpu_s - published.cpu_s) / events * 1e6,
        worker_per_s=events / took_s,
    )


async def _handle_all(app: Headrace, handled: asyncio.Event) -> None:
    threads = ThreadPoolExecutor(1)
    (pump,) = await start(app.groups.values(), app.backend(), threads, LogObserver(), _LEASE_S)
    running = asyncio.ensure_future(pump.run())
    await handled.wait()
    await pump.drain(10.0)
    await running
    threads.shutdown(wait=False)


async def _info(client: Client, section: str) -> dict[str, str]:
    text: Any = await client.command("INFO", section)
    return dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)


async def _sample(client: Client) -> _Sample:
    cpu, file = await _info(client, "cpu"), await _info(client, "persistence")
    return _Sample(
        float(cpu["used_cpu_user_main_thread"]) + float(cpu["used_cpu_sys_main_thread"]),
        int(file.get("aof_current_size", 0)),
    )


async def _clean(client: Client, name: str) -> None:
    """Nothing stays behind."""
    cursor: Any = b"0"
    while True:
        cursor, found = await client.command("SCAN", cursor, "MATCH", f"*{name}*", "COUNT", 1_000)
        if found:
            await client.command("UNLINK", *found)
        if cursor == b"0":
            break
    await client.command("HDEL", keys.TOPICS, name)

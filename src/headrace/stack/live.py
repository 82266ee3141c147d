"""What a server has of a service's topics right now, in the terms of its manifest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from msgspec import Struct

from headrace.backends.contract import Inspector, TopicInfo
from headrace.backends.partition import streams
from headrace.backends.redis.client import Client
from headrace.backends.redis.replies import ServerSaid
from headrace.errors import ConfigurationError
from headrace.stack.manifest import Manifest
from headrace.stack.quantity import Duration, Rate, Size


class Room(Struct, frozen=True):
    """The memory of a server."""

    used: Size
    most: Size
    """Its maxmemory; 0: none is set, or the server does not say."""


class Live(Struct, frozen=True):
    """Over all topics of the manifest."""

    rate: Rate
    """Published to all of its topics, while it was measured."""
    memory: Size
    retention: Duration
    """Age of the oldest event that is there."""
    behind: Duration
    """Age of the oldest event that a group has not settled."""
    absent: tuple[str, ...]
    """Topics that the server does not have."""
    missing: int
    """Events for which a group's ledger does not account."""
    room: Room
    """Of the server that is the fullest."""
    unnamed: tuple[str, ...] = ()
    """If the manifest names no topics: those of the server, which were looked at."""


async def measure(
    inspector: Inspector, client: Client, manifest: Manifest, seconds: float, show: Callable[[str], None]
) -> Live:
    """Looks twice, `seconds` apart. Raises ConfigurationError if the server has none of the topics, and as inspector and client do."""
    if manifest.events.type != "redis-streams":
        raise manifest.document.error(("quality", "events", "type"), "only redis-streams can be looked at")
    named = [stream.name for stream in manifest.events.streams]
    names = named or [topic.topic for topic in await inspector.topics()]
    before = await _topics(inspector, names)
    if not before:
        missing = f"no topic {', '.join(named)}" if named else "no topics"
        raise ConfigurationError(f"the server has {missing}; is it the right one?")
    began = time.monotonic()
    show(f"counting what is published in {seconds:g} s")
    await asyncio.sleep(seconds)
    after = await _topics(inspector, names)
    took_s = time.monotonic() - began
    published = sum(t.published for t in after) - sum(t.published for t in before)
    groups = [group for topic in after for group in await inspector.groups(topic.topic)]
    return Live(
        Rate(published / took_s),
        Size(sum(t.bytes for t in after)),
        await _oldest(inspector, after),
        Duration(max((g.oldest_s for g in groups), default=0.0)),
        tuple(name for name in names if name not in {t.topic for t in after}),
        sum(abs(g.missing) for g in groups),
        await _room(client),
        () if named else tuple(names),
    )


async def _topics(inspector: Inspector, names: Sequence[str]) -> list[TopicInfo]:
    return [topic for topic in await inspector.topics() if topic.topic in names]


async def _room(client: Client) -> Room:
    rooms = [Room(Size(0), Size(0))]
    for node in await client.nodes():
        try:
            raw: bytes = await node.command("INFO", "memory")
        except ServerSaid:  # not for this user: then nothing is said of it
            continue
        told = dict(line.split(":", 1) for line in raw.decode().splitlines() if ":" in line)
        rooms.append(Room(Size(told.get("used_memory", "0")), Size(told.get("maxmemory", "0"))))
    return max(rooms, key=lambda room: (room.used / room.most if room.most else 0.0, room.used))


async def _oldest(inspector: Inspector, topics: Sequence[TopicInfo]) -> Duration:
    now = time.time()
    ages = [0.0]
    for topic in topics:
        for stream in streams(topic.topic, topic.partitions):
            ages += [
                now - int(first.token.partition("-")[0]) / 1_000 for first in await inspector.read(stream, count=1)
            ]
    return Duration(max(ages))

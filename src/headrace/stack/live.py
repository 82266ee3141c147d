"""What a server has of a service's topics right now, in the terms of its manifest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from msgspec import Struct

from headrace.backends.contract import Inspector, TopicInfo
from headrace.backends.partition import streams
from headrace.errors import ConfigurationError
from headrace.stack.manifest import Manifest
from headrace.stack.quantity import Duration, Rate, Size


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


async def measure(inspector: Inspector, manifest: Manifest, seconds: float, show: Callable[[str], None]) -> Live:
    """Looks twice, `seconds` apart. Raises ConfigurationError if the server has none of the topics, and as the inspector does."""
    if manifest.events.type != "redis-streams":
        raise manifest.document.error(("quality", "events", "type"), "only redis-streams can be looked at")
    names = [stream.name for stream in manifest.events.streams]
    if not names:
        raise manifest.document.error(("quality", "events"), "expected streams: what is to be looked at")
    before = await _topics(inspector, names)
    if not before:
        raise ConfigurationError(f"the server has no topic {', '.join(names)}; is it the right one?")
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
    )


async def _topics(inspector: Inspector, names: Sequence[str]) -> list[TopicInfo]:
    return [topic for topic in await inspector.topics() if topic.topic in names]


async def _oldest(inspector: Inspector, topics: Sequence[TopicInfo]) -> Duration:
    now = time.time()
    ages = [0.0]
    for topic in topics:
        for stream in streams(topic.topic, topic.partitions):
            ages += [
                now - int(first.token.partition("-")[0]) / 1_000 for first in await inspector.read(stream, count=1)
            ]
    return Duration(max(ages))

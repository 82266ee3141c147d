"""Where every event of a topic stands for a group, from one script call for each partition."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Final

from msgspec import structs

from headrace.backends.contract import GroupInfo
from headrace.backends.redis import keys
from headrace.backends.redis.client import Client
from headrace.backends.redis.replies import ServerSaid

_ENTRY: Final = re.compile(rb"\d{1,20}-\d{1,20}")
_SUMMED: Final = (
    *("published", "replayed", "handled", "dead", "dropped"),
    *("pending", "unread", "delayed", "retrying"),
)


def _origin(fields: Sequence[bytes]) -> bytes:
    """The entry of the topic that a retry was copied from, or b''."""
    return next((value for name, value in zip(fields[::2], fields[1::2], strict=False) if name == b"origin"), b"")


def netstrings(packed: bytes) -> list[bytes]:
    """The fields of a delayed record (see keys.py)."""
    fields, at = [], 0
    while at < len(packed):
        colon = packed.index(b":", at)
        end = colon + 1 + int(packed[at:colon])
        fields.append(packed[colon + 1 : end])
        at = end + 1
    return fields


class Ledger:
    """Reads the ledgers of groups."""

    def __init__(self, client: Client) -> None:
        """Asks nobody yet."""
        self._client = client
        self._trusted: bytes | None = None

    async def of(self, stream: str, group: str, now_s: float) -> GroupInfo | None:
        """The ledger of one group on one partition; None if it vanished since it was listed."""
        part, own = keys.partition(stream), keys.group(stream, group)
        names = (part.stream, own.record, own.retry, part.delayed, own.delayed, own.dead, own.workers, part.packed)
        try:
            reply = await self._client.call("ledger", names, group, await self._trust())
        except ServerSaid as e:
            if "NOGROUP" in str(e) or "no such key" in str(e):
                return None
            raise
        (
            added,
            origin,
            replayed,
            handled,
            dead,
            dropped,
            pending,
            entries_read,
            delayed,
            retrying,
            workers,
            oldest,
            ordered,
            *extra,
        ) = reply
        if entries_read < 0:  # not known, and too much to count: take it that nothing is missing
            settled = handled + dead + dropped + pending + retrying - replayed - (extra[0] - extra[1] - extra[2])
            entries_read = max(origin, 0) + settled
        if origin < 0:  # made by another tool: what it settled in its own way is not ours to count
            origin = entries_read - pending
        ages = [oldest, *(await self._oldest_retries(own) if retrying else ())]
        first_ms = min(
            (int(token.split(b"-")[0]) for token in ages if _ENTRY.fullmatch(token.partition(b"/")[0])),
            default=None,
        )
        return GroupInfo(
            topic=stream,
            group=group,
            published=added - origin + delayed + extra[0],
            replayed=replayed,
            handled=handled,
            dead=dead,
            dropped=dropped,
            pending=pending + extra[2],
            unread=added - entries_read + extra[1],
            delayed=delayed,
            retrying=retrying,
            workers=workers,
            oldest_s=0.0 if first_ms is None else max(now_s - first_ms / 1e3, 0.0),
            ordered=bool(ordered),
        )

    async def _trust(self) -> bytes:
        """Whether the server's count of what a group has read survives its restart: Redis 7.0 begins again at 0 (seen on 7.0.15)."""
        if self._trusted is None:
            self._trusted = b"1" if b"valkey_version" in await self._client.command("INFO", "server") else b"0"
        return self._trusted

    async def _oldest_retries(self, own: keys.GroupKeys) -> list[bytes]:
        """Where the foremost retries came from in the topic: the one that waits for a worker, and the one that is due next."""
        stream, delayed = await asyncio.gather(
            self._client.command("XRANGE", own.retry, "-", "+", "COUNT", 1),
            self._client.command("ZRANGE", own.delayed, 0, 0),
        )
        return [_origin(fields) or token for token, fields in stream] + [
            _origin(netstrings(packed)) for packed in delayed
        ]

    async def together(self, topic: str, parts: Sequence[GroupInfo]) -> GroupInfo:
        """The ledger of a group over all partitions of a topic."""
        sums = {name: sum(getattr(p, name) for p in parts) for name in _SUMMED}
        workers = max(p.workers for p in parts)
        if parts[0].ordered:
            seconds, micros = await self._client.command("TIME")
            now_ms = int(seconds) * 1_000 + int(micros) // 1_000
            workers = await self._client.command("ZCOUNT", keys.members(topic, parts[0].group).workers, now_ms, "+inf")
        return structs.replace(parts[0], topic=topic, workers=workers, oldest_s=max(p.oldest_s for p in parts), **sums)

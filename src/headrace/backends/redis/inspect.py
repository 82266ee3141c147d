"""What operators see and do on a Redis or Valkey server.

Topics are those of the hash `headrace:topics` and nothing else: no KEYS, no SCAN, so that looking never costs the server more than
what is looked at. Numbers of one group come from one script, so they belong to one moment.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from msgspec import structs

from headrace.backends.contract import GroupInfo, Held, Inspector, Lease, Letter, TopicInfo
from headrace.backends.partition import streams
from headrace.backends.redis import keys, record_batch
from headrace.backends.redis.client import Client
from headrace.backends.redis.growth import grow
from headrace.backends.redis.ledger import Ledger
from headrace.backends.redis.replies import ServerSaid
from headrace.errors import Refused

_ID: Final = re.compile(r"\d{1,20}(-\d{1,20}(/\d{1,9})?)?")
_ENTRY: Final = re.compile(r"\d{1,20}-\d{1,20}")
_CHUNK: Final = 100
"""Entries per call where bodies travel or are copied: bounds the memory of a page and the time the server is busy with one call."""
_SEQ_MAX: Final = (1 << 64) - 1
_STARTS: Final = {"earliest": "0", "latest": "$"}

_Entry = tuple[bytes, Sequence[bytes]]


def _pairs(flat: Sequence[Any]) -> dict[bytes, Any]:
    """The map that a RESP2 reply writes as names and values in turn."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")


def _letter(entry: _Entry) -> Letter:
    """An entry as people look at it; bytes that are no UTF-8 become U+FFFD, `data` stays as it is."""
    token, fields = entry
    attributes = {
        _text(name): _text(value) for name, value in zip(fields[::2], fields[1::2], strict=True) if name != b"data"
    }
    data = next((value for name, value in zip(fields[::2], fields[1::2], strict=True) if name == b"data"), b"")
    return Letter(_text(token), attributes, data, attributes.get("reason", ""))


def _following(token: str) -> str:
    """The smallest id above `token`."""
    ms, seq = map(int, token.split("-"))
    return f"{ms}-{seq + 1}" if seq < _SEQ_MAX else f"{ms + 1}-0"


def _chunks(tokens: Sequence[str]) -> Iterator[Sequence[str]]:
    return (tokens[i : i + _CHUNK] for i in range(0, len(tokens), _CHUNK))


def _checked(token: str, others: tuple[str, ...] = (), pattern: re.Pattern[str] = _ID) -> str:
    """The token if it is one (of a packed event: its entry), or one of the words that stand for a place. Raises Refused."""
    if token in others or pattern.fullmatch(token):
        return token.partition("/")[0]
    forms = [
        "1700000000000-0 (a stream id)",
        *(["1700000000000 (Unix milliseconds)"] if pattern is _ID else []),
        *others,
    ]
    raise Refused(f"expected a token like {' or '.join(forms)}, got {token!r}")


class RedisInspector(Inspector):
    """Reads and moves on one server. All calls share one connection; none of them blocks the server for long."""

    def __init__(self, client: Client) -> None:
        """Takes over `client` and closes it at the end."""
        self._client = client
        self._ledger = Ledger(client)

    async def aclose(self) -> None:
        """Closes its connections. Idempotent."""
        await self._client.aclose()

    # What is there

    async def topics(self) -> Sequence[TopicInfo]:
        """Every topic on the server, by name. One whose stream was deleted is listed with zeros."""
        return await asyncio.gather(*(self._topic(topic) for topic in await self._names()))

    async def groups(self, topic: str | None = None) -> Sequence[GroupInfo]:
        """Every group of one topic or partition, or of all topics, by topic and name.

        Of a partition `workers` counts who may have it in ordered mode, which is the group's members.
        A group that another tool made has no record of ours: it is taken to begin at its oldest unsettled event, so what it settled
        before is in none of its numbers.
        """
        names = await self._names() if topic is None else [topic]
        seconds, micros = await self._client.command("TIME")
        now_s = int(seconds) + int(micros) / 1e6
        found = []
        for name in names:
            whole, own = (name, await self._streams(name)) if topic is None else await self._meant(topic)
            listed = await asyncio.gather(*(self._group_names(stream) for stream in own))
            for group in sorted({group for groups in listed for group in groups}):
                infos = await asyncio.gather(*(self._ledger.of(stream, group, now_s) for stream in own))
                there = [info for info in infos if info is not None]
                if there:
                    found.append(structs.replace(await self._ledger.together(whole, there), topic=name))
        return found

    async def leases(self, topic: str, group: str) -> Sequence[Lease]:
        """Who has which partition, by number, or who has the one that is named; none in shared mode."""
        whole, meant = await self._meant(topic)
        await self._known(whole, group)
        seconds, micros = await self._client.command("TIME")
        now_s = int(seconds) + int(micros) / 1e6
        found = []
        for number, stream in enumerate(await self._streams(whole)):
            if stream not in meant:
                continue
            own = keys.group(stream, group)
            mode, owner, until = await self._client.command("HMGET", own.record, "mode", "owner", "until")
            if mode != b"ordered":
                return []
            info = await self._ledger.of(stream, group, now_s)
            unread, waiting = (info.unread, info.retrying) if info is not None else (0, 0)
            found.append(Lease(number, _text(owner or b""), int(until or 0) / 1e3 - now_s, unread, waiting))
        return found

    async def pending(self, topic: str, group: str, count: int = 100) -> Sequence[Held]:
        """What workers hold, oldest entry first: of the topic, and of the group's retry stream."""
        await self._partition(topic, group, alive=True)
        found = await asyncio.gather(
            *(self._held(key, group, count) for key in (topic.encode(), keys.group(topic, group).retry))
        )
        rows = sorted((row for rows in found for row in rows), key=lambda row: int(row[0].partition(b"-")[0]))
        return [
            Held(_text(token), _text(name.rpartition(b"/")[0] or name), idle / 1e3, times)
            for token, name, idle, times in rows[:count]
        ]

    async def read(self, topic: str, after: str = "-", count: int = 100) -> Sequence[Letter]:
        """Entries of the topic after a token (`-`: from the first), oldest first.

        `$` gives exactly one letter without attributes and data, whose token is the place of the last entry ever appended (`0-0` if
        there was none): who follows a topic starts there and goes on with `after=<token of the last letter>`.
        """
        await self._partition(topic)
        if after == "$":
            return [Letter(_text((await self._facts(topic.encode())).get(b"last-generated-id", b"0-0")), {}, b"")]
        return await self._letters(topic.encode(), after, count)

    async def dead(self, topic: str, group: str, after: str = "-", count: int = 100) -> Sequence[Letter]:
        """Dead letters after a token, oldest first."""
        await self._partition(topic, group)
        return await self._letters(keys.group(topic, group).dead, after, count)

    # What can be done

    async def dead_replay(self, topic: str, group: str, tokens: Sequence[str]) -> int:
        """Moves dead letters back to the group, `attempt` 1 again. Returns how many were there."""
        return await self._move_dead("again", topic, group, tokens)

    async def dead_drop(self, topic: str, group: str, tokens: Sequence[str]) -> int:
        """Deletes dead letters for good; the ledger counts them. Returns how many were there."""
        return await self._move_dead("drop", topic, group, tokens)

    async def replay(self, topic: str, group: str, first: str, last: str, count: int = 1_000) -> tuple[int, str]:
        """Copies up to `count` retained entries of [first, last] to one group only. Returns how many, and the next `first` ('' at the end).

        Bounds are tokens, Unix milliseconds, or `-` and `+`. On a topic that is being written to, `+` moves on with every call. What
        the group has not read yet is copied too if it lies inside, and handled twice.
        """
        await self._partition(topic, group, alive=True)
        stream, own = topic.encode(), keys.group(topic, group)
        begin, end = _checked(first, ("-",)), _checked(last, ("+",))
        copied, seen = 0, 0
        while seen < count:
            page: list[_Entry] = await self._client.command(
                "XRANGE", stream, begin, end, "COUNT", min(_CHUNK, count - seen)
            )
            if not page:
                return copied, ""
            copied += await self._client.call(
                "move", (stream, own.retry, own.record), "copy", *(token for token, _ in page)
            )
            seen += len(page)
            begin = _following(_text(page[-1][0]))
        more = await self._client.command("XRANGE", stream, begin, end, "COUNT", 1)
        return copied, begin if more else ""

    async def seek(self, topic: str, group: str, start: str) -> None:
        """Creates the group anew at `earliest`, `latest` or a token (it reads on after it). Its counts start again.

        What its workers hold of the topic at this moment is theirs no more; dead letters and retries stay.
        """
        whole = start in _STARTS and await self._client.command("HEXISTS", keys.TOPICS, topic)
        await (self._known if whole else self._partition)(topic, group)
        place = _STARTS.get(start) or _checked(start, ("0", "$", *_STARTS))
        for stream in await self._streams(topic) if whole else [topic]:
            own = keys.group(stream, group)
            names = (stream.encode(), own.record, own.retry, own.dead, own.delayed, keys.partition(stream).packed)
            await self._client.call("seek", names, group, place)

    async def grow(self, topic: str, partitions: int) -> None:
        """Gives a topic more partitions, while it is used; see growth.py for the steps."""
        await grow(self._client, await self._known(topic), partitions)

    # How it is found out

    async def _names(self) -> list[str]:
        return sorted(_text(name) for name in await self._client.command("HKEYS", keys.TOPICS))

    async def _group_names(self, topic: str) -> list[str]:
        """Groups of the stream as the server lists them; none if there is no stream."""
        return [_text(_pairs(flat)[b"name"]) for flat in await self._or_none("XINFO", "GROUPS", topic) or ()]

    async def _known(self, topic: str, group: str | None = None, *, alive: bool = False) -> str:
        """The topic. Raises Refused if it or the group is unknown, naming those that exist.

        A group that was destroyed on the server is known by its record, unless it has to be `alive`.
        """
        if not await self._client.command("HEXISTS", keys.TOPICS, topic):
            names = ", ".join(await self._names()) or "none yet"
            raise Refused(f"no topic {topic!r} on this server; topics: {names} (see `headrace topics`)")
        if group is not None:
            await self._known_group((await self._streams(topic))[0], topic, group, alive=alive)
        return topic

    async def _partition(self, topic: str, group: str | None = None, *, alive: bool = False) -> str:
        """The stream that is meant: a topic of one partition, or a partition. Raises Refused as `_known` does, or asks for one partition."""
        whole, meant = await self._meant(topic)
        if len(meant) > 1:
            raise Refused(
                f"topic {topic} has {len(meant)} partitions: name one of them, {topic}.0 to {topic}.{len(meant) - 1}"
            )
        if whole == topic:
            return await self._known(topic, group, alive=alive)
        if group is not None:
            await self._known_group(topic, topic, group, alive=alive)
        return topic

    async def _meant(self, name: str) -> tuple[str, Sequence[str]]:
        """The topic that has this name, or a partition of this name, and which streams are meant: all of it, or the one. Raises Refused."""
        if own := await self._streams(name):
            return name, own
        whole, _, number = name.rpartition(".")
        if number.isdigit() and name in await self._streams(whole):
            return whole, [name]
        return await self._known(name), []  # raises, unless it was made in this moment

    async def _streams(self, topic: str) -> list[str]:
        """The partitions of a topic; none if it is unknown."""
        count = int(await self._client.command("HGET", keys.TOPICS, topic) or 0)
        return streams(topic, count) if count else []

    async def _known_group(self, stream: str, topic: str, group: str, *, alive: bool) -> None:
        names_ = sorted(await self._group_names(stream))
        own = keys.group(stream, group)
        if group not in names_ and (alive or not await self._client.command("EXISTS", own.record, own.dead)):
            raise Refused(
                f"no group {group!r} on topic {topic!r}; groups: {', '.join(names_) or 'none yet'} (see `headrace groups {topic}`)"
            )

    async def _or_none(self, *words: bytes | str | int) -> Any:
        """The reply to a command about a stream; None if stream or group is not there."""
        try:
            return await self._client.command(*words)
        except ServerSaid as e:
            if e.code == "NOGROUP" or "no such key" in str(e):
                return None
            raise

    async def _facts(self, stream: bytes) -> dict[bytes, Any]:
        """XINFO STREAM; empty if there is none."""
        return _pairs(await self._or_none("XINFO", "STREAM", stream) or ())

    async def _topic(self, topic: str) -> TopicInfo:
        parts = await asyncio.gather(*(self._stream(stream) for stream in await self._streams(topic)))
        sums = {name: sum(getattr(p, name) for p in parts) for name in ("events", "published", "delayed", "bytes")}
        groups = tuple(sorted({group for p in parts for group in p.groups}))
        return TopicInfo(topic=topic, groups=groups, partitions=len(parts), **sums)

    async def _stream(self, stream: str) -> TopicInfo:
        own = keys.partition(stream)
        facts, groups, delayed, size, packed = await asyncio.gather(
            self._facts(own.stream),
            self._group_names(stream),
            self._client.command("ZCARD", own.delayed),
            self._size(own.stream),
            self._client.command("HMGET", own.packed, "extra", "gone"),
        )
        extra, gone = (int(count or 0) for count in packed)
        return TopicInfo(
            topic=stream,
            events=facts.get(b"length", 0) + extra - gone,
            published=facts.get(b"entries-added", 0) + extra,
            delayed=delayed,
            groups=tuple(groups),
            bytes=size,
        )

    async def _size(self, stream: bytes) -> int:
        try:
            return await self._client.command("MEMORY", "USAGE", stream, "SAMPLES", 5) or 0
        except ServerSaid:  # forbidden or unknown, as on managed servers: the contract's 0 says "not told"
            return 0

    async def _held(self, stream: bytes, group: str, count: int) -> list[tuple[bytes, bytes, int, int]]:
        return await self._or_none("XPENDING", stream, group, "-", "+", count) or []

    async def _letters(self, stream: bytes, after: str, count: int) -> list[Letter]:
        start = "-" if after == "-" else "(" + _checked(after, ("-",))
        within = re.fullmatch(r"(\d+-\d+)/(\d+)", after)
        if within:  # the page before ended inside of a packed entry
            start = within[1]
        letters: list[Letter] = []
        while len(letters) < count:
            wanted = min(count - len(letters), _CHUNK)
            page: list[_Entry] = await self._client.command("XRANGE", stream, start, "+", "COUNT", wanted)
            for entry in page:
                packed = record_batch.unpacked(*entry)
                events = [entry] if packed is None else list(zip(*packed, strict=True))
                seen = int(within[2]) + 1 if within and _text(entry[0]) == within[1] else 0
                letters += [_letter(event) for event in events[seen:]]
            if len(page) < wanted:
                break
            start = "(" + _text(page[-1][0])
        return letters[:count]

    async def _move_dead(self, how: str, topic: str, group: str, tokens: Sequence[str]) -> int:
        """Moves dead letters in chunks. Raises Refused before the first move if a token is malformed."""
        await self._partition(topic, group)
        own = keys.group(topic, group)
        checked = [_checked(token, pattern=_ENTRY) for token in tokens]
        moved = 0
        for chunk in _chunks(checked):
            moved += await self._client.call("move", (own.dead, own.retry, own.record), how, *chunk)
        return moved

"""What operators see and do on a memory server."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Final

from headrace.backends.contract import GroupInfo, Held, Lease, Letter, TopicInfo
from headrace.backends.memory.server import MemoryServer
from headrace.backends.memory.state import Entry, Group, Topic
from headrace.errors import Closed, Refused

_ID: Final = re.compile(r"([0-9]+)(?:-([0-9]+))?")
_LAST: Final = (1 << 64) - 1

Place = tuple[int, int]
"""A token, comparable."""

_ENDS: Final[dict[str, Place]] = {"-": (0, 0), "+": (_LAST, _LAST)}


def _place(token: str, number: int = 0) -> Place:
    """`ms-number` or `ms`, which stands for its `number`; `-` and `+` for the first and the last. Raises Refused."""
    if token in _ENDS:
        return _ENDS[token]
    found = _ID.fullmatch(token)
    if found is None:
        raise Refused(f"expected a token like 1767225600000-1, got {token!r}")
    return int(found[1]), int(found[2]) if found[2] else number


def _entry_place(entry: Entry) -> Place:
    ms, _, number = entry.token.partition(b"-")
    return int(ms), int(number)


def _letter(entry: Entry) -> Letter:
    pairs = list(zip(entry.fields[::2], entry.fields[1::2], strict=True))
    attributes = {n.decode(errors="replace"): v.decode(errors="replace") for n, v in pairs if n != b"data"}
    return Letter(entry.token.decode(), attributes, dict(pairs).get(b"data", b""), attributes.get("reason", ""))


def _after(entries: Sequence[Entry], after: str, count: int) -> Sequence[Letter]:
    start = 0 if after == "-" else bisect_right(entries, _place(after), key=_entry_place)
    return [_letter(e) for e in entries[start : start + count]]


class MemoryInspector:
    """Implements contract.Inspector."""

    def __init__(self, server: MemoryServer) -> None:
        """Looks at this server."""
        self._server = server
        self._closed = False

    def _topic(self, name: str) -> Topic:
        if self._closed:
            raise Closed("the inspector was closed")
        topics = self._server.topics
        if name not in topics:
            raise Refused(f"no topic {name!r} on this server; topics: {', '.join(sorted(topics)) or 'none yet'}")
        self._server.promote(topics[name])
        return topics[name]

    def _group(self, topic: str, group: str) -> Group:
        groups = self._topic(topic).groups
        if group not in groups:
            raise Refused(f"no group {group!r} on topic {topic!r}; groups: {', '.join(sorted(groups)) or 'none yet'}")
        return groups[group]

    def _all(self) -> Sequence[Topic]:
        if self._closed:
            raise Closed("the inspector was closed")
        return [self._topic(name) for name in sorted(self._server.topics)]

    async def topics(self) -> Sequence[TopicInfo]:
        """See contract.Inspector."""
        return [topic.info() for topic in self._all()]

    async def groups(self, topic: str | None = None) -> Sequence[GroupInfo]:
        """See contract.Inspector."""
        topics = self._all() if topic is None else [self._topic(topic)]
        return [t.ledger(t.groups[name], self._server.now()) for t in topics for name in sorted(t.groups)]

    async def leases(self, topic: str, group: str) -> Sequence[Lease]:
        """None: there are no leases here."""
        self._group(topic, group)
        return []

    async def pending(self, topic: str, group: str, count: int = 100) -> Sequence[Held]:
        """See contract.Inspector."""
        held = sorted(self._group(topic, group).pending.values(), key=lambda p: _entry_place(p.entry))
        now = self._server.now()
        return [Held(p.entry.token.decode(), p.worker, now - p.since_s, p.deliveries) for p in held[:count]]

    async def read(self, topic: str, after: str = "-", count: int = 100) -> Sequence[Letter]:
        """See contract.Inspector. `$`: one letter without attributes and data, whose token is that of the last entry (`0-0`: none)."""
        entries = self._topic(topic).entries
        if after == "$":
            return [Letter(entries[-1].token.decode() if entries else "0-0", {}, b"")]
        return _after(entries, after, count)

    async def dead(self, topic: str, group: str, after: str = "-", count: int = 100) -> Sequence[Letter]:
        """See contract.Inspector."""
        return _after(list(self._group(topic, group).dead.values()), after, count)

    async def dead_replay(self, topic: str, group: str, tokens: Sequence[str]) -> int:
        """See contract.Inspector."""
        taken = self._exhume(self._group(topic, group), tokens)
        self._server.again(self._group(topic, group), taken)
        return len(taken)

    async def dead_drop(self, topic: str, group: str, tokens: Sequence[str]) -> int:
        """See contract.Inspector."""
        own = self._group(topic, group)
        taken = self._exhume(own, tokens)
        own.dropped += len(taken)
        return len(taken)

    def _exhume(self, group: Group, tokens: Sequence[str]) -> Sequence[Entry]:
        found = [group.dead.pop(token.encode(), None) for token in tokens]
        return [entry for entry in found if entry is not None]

    async def replay(self, topic: str, group: str, first: str, last: str, count: int = 1_000) -> tuple[int, str]:
        """See contract.Inspector."""
        own, entries = self._group(topic, group), self._topic(topic).entries
        begin = bisect_left(entries, _place(first), key=_entry_place)
        end = bisect_right(entries, _place(last, _LAST), key=_entry_place)
        copied = entries[begin : min(end, begin + count)]
        own.replayed += len(copied)
        self._server.again(own, copied)
        return len(copied), entries[begin + count].token.decode() if begin + count < end else ""

    async def grow(self, topic: str, partitions: int) -> None:
        """Refused: a topic in memory has one partition, whatever its route says."""
        raise Refused(
            f"topic {topic} is in memory, where a topic has one partition; {partitions} can only be had on a server"
        )

    async def seek(self, topic: str, group: str, start: str) -> None:
        """See contract.Inspector. At a token: reads on after it."""
        own = self._topic(topic)
        if start in ("earliest", "0"):
            place = own.trimmed
        elif start in ("latest", "$"):
            place = own.added
        else:
            place = own.trimmed + bisect_right(own.entries, _place(start), key=_entry_place)
        before = own.groups.get(group) or Group(group)
        held = {token: p for token, p in before.pending.items() if p.entry.place < 0}
        own.groups[group] = Group(
            group,
            place,
            place,
            before.carried(),
            pending=held,
            retry=before.retry,
            delayed=before.delayed,
            dead=before.dead,
            workers=before.workers,
        )
        self._server.wake()

    async def aclose(self) -> None:
        """See contract.Inspector."""
        self._closed = True

"""What the memory server keeps: topics, their entries and groups. Plain state; what is done with it is in server.py."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct, field

from headrace import limits
from headrace.backends.contract import GroupInfo, Record, Route, Subscription, TopicInfo
from headrace.errors import Refused

Fields = Sequence[bytes]
"""Attribute names and values in turn, `data` last."""


def _attribute(fields: Fields, wanted: bytes) -> bytes | None:
    return next((value for name, value in zip(fields[::2], fields[1::2], strict=False) if name == wanted), None)


def _key(fields: Fields) -> bytes | None:
    return _attribute(fields, b"key")


def _origin(entry: Entry) -> int:
    """The number that the entry had in its topic."""
    token = _attribute(entry.fields, b"origin") or entry.token
    number = token.partition(b"-")[2]
    return int(number) if number.isdigit() else 0


class Entry(Struct, frozen=True):
    """One event as it lies in a topic, among a group's retries or its dead letters."""

    token: bytes
    """`milliseconds-number`, unique on the server."""
    fields: Fields
    at_s: float
    """When it was appended, Unix time."""
    place: int = -1
    """How many entries were appended to the topic before it; -1: not in the topic (a retry, a dead letter)."""
    attempt: int = 1


class Delayed(Struct, frozen=True, order=True):
    """Fields that become an entry when they are due."""

    due_s: float
    number: int
    """Ties are broken by who came first."""
    fields: Fields
    attempt: int = 1


class Pending(Struct):
    """An entry that a worker holds."""

    entry: Entry
    worker: str
    since_s: float
    deliveries: int = 1
    """How many workers had it; those before the present one died with it."""


class Worker(Struct):
    """A worker's place in a group."""

    lease_s: float
    alive: bool = True
    """Renews its lease. A dead one (crashed, paused) does not."""
    lease_until_s: float = 0.0
    """When the lease of one that is not alive ends."""

    def dead(self, now_s: float) -> bool:
        """Its lease has ended: what it holds may be taken over."""
        return not self.alive and now_s >= self.lease_until_s


class Group(Struct):
    """A consumer group and its ledger."""

    name: str
    origin: int = 0
    """Entries of the topic before this group's first."""
    place: int = 0
    """Where it reads next."""
    replayed: int = 0
    handled: int = 0
    dropped: int = 0
    pending: dict[bytes, Pending] = field(default_factory=dict)
    retry: list[Entry] = field(default_factory=list)
    """Copies that wait for a worker."""
    delayed: list[Delayed] = field(default_factory=list)
    """Copies that wait for their time; a heap."""
    dead: dict[bytes, Entry] = field(default_factory=dict)
    workers: dict[str, Worker] = field(default_factory=dict)
    ordered: bool = False

    def in_order(self, new: Sequence[Entry], limit: int) -> tuple[list[Entry], list[Entry]]:
        """Of what waits and of new entries: those that may be handled now, and those that wait on.

        One event of a key at a time, the oldest first; it waits while one of its key is in a worker's hands or waits for its retry.
        """
        blocked = {_key(p.entry.fields) for p in self.pending.values()} | {_key(d.fields) for d in self.delayed}
        taken: list[Entry] = []
        waiting: list[Entry] = []
        for entry in sorted([*self.retry, *new], key=_origin):
            key = _key(entry.fields)
            (waiting if key in blocked or len(taken) == limit else taken).append(entry)
            blocked.add(key)
        return taken, waiting

    def ready(self) -> bool:
        """Whether anything waits that could be handled now."""
        return bool(self.in_order((), 1)[0] if self.ordered else self.retry)

    def carried(self) -> int:
        """Copies that outlive a new start of the group."""
        return (
            len(self.retry) + len(self.delayed) + len(self.dead) + sum(p.entry.place < 0 for p in self.pending.values())
        )


class Topic(Struct):
    """A stream, what is not yet in it, and who reads it."""

    route: Route
    entries: list[Entry] = field(default_factory=list)
    trimmed: int = 0
    """Entries removed from the front."""
    delayed: list[Delayed] = field(default_factory=list)
    """A heap."""
    ids: dict[bytes, float] = field(default_factory=dict)
    """Caller-given id -> when it is forgotten."""
    marks: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    """Producer -> (epoch, sequence of its last record)."""
    groups: dict[str, Group] = field(default_factory=dict)

    @property
    def added(self) -> int:
        """Entries ever appended."""
        return self.trimmed + len(self.entries)

    def group(self, subscription: Subscription) -> Group:
        """The group, which is made if absent. Raises Refused if it is used in the other mode."""
        group = self.groups.get(subscription.group)
        if group is None:
            start = self.trimmed if subscription.start == "earliest" else self.added
            group = Group(subscription.group, origin=start, place=start, ordered=subscription.ordered)
            self.groups[subscription.group] = group
        if group.ordered != subscription.ordered:
            raise Refused(
                f"group {group.name} of topic {self.route.topic} is {'ordered' if group.ordered else 'shared'}: "
                "choose another group name for the other mode"
            )
        return group

    def needed_from(self) -> int:
        """Place of the oldest entry that some group has still to settle."""
        held = [p.entry.place for g in self.groups.values() for p in g.pending.values() if p.entry.place >= 0]
        return min([*held, *(g.place for g in self.groups.values())], default=self.added)

    def unread(self, group: Group) -> Sequence[Entry]:
        """Entries that no worker of the group has had."""
        return self.entries[max(group.place - self.trimmed, 0) :]

    def info(self) -> TopicInfo:
        """What operators see of the topic."""
        size = sum(len(f) for e in self.entries for f in e.fields)
        return TopicInfo(
            self.route.topic, len(self.entries), self.added, len(self.delayed), tuple(sorted(self.groups)), size
        )

    def ledger(self, group: Group, now_s: float) -> GroupInfo:
        """Where every event of the topic stands for the group."""
        unread = self.unread(group)
        oldest = min(
            [e.at_s for e in (*unread[:1], *(p.entry for p in group.pending.values()), *group.retry)], default=now_s
        )
        return GroupInfo(
            topic=self.route.topic,
            group=group.name,
            published=self.added - group.origin + len(self.delayed),
            replayed=group.replayed,
            handled=group.handled,
            dead=len(group.dead),
            dropped=group.dropped,
            pending=len(group.pending),
            unread=self.added - group.place,
            delayed=len(self.delayed),
            retrying=len(group.retry) + len(group.delayed),
            workers=sum(not w.dead(now_s) for w in group.workers.values()),
            oldest_s=now_s - oldest,
        )


def due_s(record: Record, now_s: float) -> float:
    """When the record is appended: at once is 0."""
    return record.at_ms / 1000 if record.at_ms else now_s + record.delay_ms / 1000 if record.delay_ms else 0.0


def alone(pending: Pending) -> bool:
    """Whether so many workers died with it that it is handled without company."""
    return pending.deliveries >= limits.deaths_alone

"""Memory servers that give out events wrongly on purpose: takeover, leaving, trimming, delays, reads, groups."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from itertools import chain

from msgspec import structs

from headrace.backends.contract import (
    Delivery,
    Record,
    Route,
    Settled,
    Settlement,
    Subscription,
    Unsettled,
)
from headrace.backends.entry import copy_of
from headrace.backends.memory.server import MemoryServer
from headrace.backends.memory.state import Delayed, Entry, Fields, Group, Pending, Topic, Worker


class TakeoverTooEarly(MemoryServer):
    """A worker is taken for dead before its lease ends."""

    def _dead(self, worker: Worker) -> bool:
        return not worker.alive


class TakeoverOfTheLiving(MemoryServer):
    """An event's own timeout decides: what a live worker handles for long is given to another."""

    def _orphans(self, group: Group) -> Sequence[Pending]:
        return [p for p in group.pending.values() if self.now() - p.since_s > group.workers[p.worker].lease_s]


class NoTakeover(MemoryServer):
    """What a dead worker held is stuck."""

    def _dead(self, worker: Worker) -> bool:
        return False


class TakeoverFromOtherGroups(MemoryServer):
    """A worker takes over what another group's dead worker held."""

    def _orphans(self, group: Group) -> Sequence[Pending]:
        topic = next(t for t in self.topics.values() if group in t.groups.values())
        others = [p for g in topic.groups.values() for p in super(TakeoverFromOtherGroups, self)._orphans(g)]
        group.pending.update({p.entry.token: p for p in others})
        return others


class TakeoverCostsAttempt(MemoryServer):
    """Dying workers use up an event's attempts."""

    def _take_over(self, group: Group, worker: str, limit: int) -> Sequence[Entry]:
        return [
            Entry(e.token, e.fields, e.at_s, e.place, e.attempt + 1) for e in super()._take_over(group, worker, limit)
        ]


class PoisonForEver(MemoryServer):
    """An event that kills workers is handed out again and again."""

    def _bury(self, group: Group, held: Pending) -> None:
        held.deliveries = 4
        group.workers["next"] = Worker(0.0, alive=False)
        held.worker = "next"


class PoisonInCompany(MemoryServer):
    """An event that kills workers takes others with it every time."""

    def _take_over(self, group: Group, worker: str, limit: int) -> Sequence[Entry]:
        return [e for _ in range(limit) for e in super(PoisonInCompany, self)._take_over(group, worker, limit)]


class HandBackIsLost(MemoryServer):
    """What a worker held when it left is gone."""

    def _hand_back(self, group: Group, entry: Entry) -> None:
        return


class HandBackBurnsAttempt(MemoryServer):
    """A restart of a worker costs its events an attempt."""

    def _hand_back(self, group: Group, entry: Entry) -> None:
        self._again(group, copy_of(entry.token, entry.fields, entry.attempt + 1), entry.attempt + 1)


class NoHandBack(MemoryServer):
    """A worker that leaves keeps its lease until it ends."""

    def leave(self, subscription: Subscription) -> None:
        self.silence(subscription)
        self.wake()


class TrimsPending(MemoryServer):
    """Trimming looks at what groups have read, not at what they have settled."""

    def _keep_from(self, topic: Topic) -> int:
        return min(g.place for g in topic.groups.values())


class TrimsForTheFastest(MemoryServer):
    """Trimming looks at the fastest group, and the slow one loses events."""

    def _keep_from(self, topic: Topic) -> int:
        return max(g.place for g in topic.groups.values())


class WaitsForTheFirstGroup(MemoryServer):
    """A topic that nobody reads is kept for the first group when a commit writes to it, whatever its route says."""

    def _require_room_for_outputs(self, source: Topic, settlements: Sequence[Settlement]) -> None:
        kept = [
            structs.replace(
                s, outputs=[(structs.replace(r, keep_for_first_group=True), record) for r, record in s.outputs]
            )
            for s in settlements
        ]
        super()._require_room_for_outputs(source, kept)


class NeverTrims(MemoryServer):
    """Nothing is ever trimmed."""

    def trim(self, topic: Topic, room: int = 0) -> None:
        return


class NoCap(MemoryServer):
    """A topic grows without bound."""

    def _require_room(self, topic: Topic, count: int) -> None:
        return


class DropsAtTheCap(MemoryServer):
    """A full topic drops its oldest events, as XADD with MAXLEN does."""

    def _require_room(self, topic: Topic, count: int) -> None:
        excess = max(len(topic.entries) + count - topic.route.cap_events, 0)
        del topic.entries[:excess]
        topic.trimmed += excess


class CapAfterWrite(MemoryServer):
    """A publish that is refused for want of room has been written in part."""

    def _require_room(self, topic: Topic, count: int) -> None:
        room = topic.route.cap_events - len(topic.entries)
        for _ in range(room if room < count else 0):
            self._append(topic, (b"data", b"part"))
        super()._require_room(topic, count)


class PromotesEarly(MemoryServer):
    """What is delayed becomes due at the next look."""

    def _due(self, heap: list[Delayed]) -> Iterable[Delayed]:
        while heap:
            yield heapq.heappop(heap)


class DelayIgnored(MemoryServer):
    """Delayed events are appended at once."""

    def _accept(self, topic: Topic, record: Record, id_: bytes) -> None:
        super()._accept(topic, Record(record.body, record.type, record.key, record.id, record.headers), id_)


class DelayedTwice(MemoryServer):
    """What is due is appended and stays delayed, once."""

    def _due(self, heap: list[Delayed]) -> Iterable[Delayed]:
        for delayed in list(super()._due(heap)):
            yield delayed
            if delayed.number > 0:
                heapq.heappush(heap, Delayed(delayed.due_s, -1, delayed.fields, delayed.attempt))


class LimitIgnored(MemoryServer):
    """take() gives whatever is there."""

    def take(self, subscription: Subscription, limit: int) -> Sequence[Delivery]:
        return super().take(subscription, 1_000)


class NoGroups(MemoryServer):
    """Groups share their place: what one has read the other never gets."""

    def _take_new(self, topic: Topic, group: Group, worker: str, limit: int) -> Sequence[Entry]:
        taken = super()._take_new(topic, group, worker, limit)
        for other in topic.groups.values():
            other.place = group.place
        return taken


class NoSharing(MemoryServer):
    """Every worker of a group gets everything."""

    def __init__(self) -> None:
        super().__init__()
        self._places: dict[str, int] = {}

    def _take_new(self, topic: Topic, group: Group, worker: str, limit: int) -> Sequence[Entry]:
        group.place = self._places.get(worker, group.origin)
        taken = super()._take_new(topic, group, worker, limit)
        self._places[worker] = group.place
        return taken


class StartAgain(MemoryServer):
    """`start` counts for every worker, not only for the one that creates the group."""

    def join(self, subscription: Subscription) -> None:
        super().join(subscription)
        topic, group = self.open(subscription.route), self._group(subscription)
        if subscription.start == "latest":
            group.place = topic.added


class AlwaysEarliest(MemoryServer):
    """`start` is ignored."""

    def join(self, subscription: Subscription) -> None:
        route, group, consumer = subscription.route, subscription.group, subscription.consumer
        super().join(Subscription(route, group, consumer, lease_s=subscription.lease_s))


class HeadersLost(MemoryServer):
    """Empty attributes are left out."""

    def _append(self, topic: Topic, fields: Fields) -> None:
        pairs = zip(fields[::2], fields[1::2], strict=True)
        super()._append(topic, tuple(chain.from_iterable((n, v) for n, v in pairs if v or n == b"data")))


class CommitStopsAtTheFirst(MemoryServer):
    """One delivery that cannot be settled keeps those after it from being settled."""

    def _settle(self, group: Group, one: Settled, settlement: Settlement) -> Unsettled | None:
        answer = super()._settle(group, one, settlement)
        if answer is not None:
            group.workers["stopped"] = Worker(0.0)
        return answer

    def _wins(self, group: Group, token: bytes) -> bool:
        return "stopped" not in group.workers and super()._wins(group, token)


class HandledNotCounted(MemoryServer):
    """The ledger forgets what was handled with outputs."""

    def _end(self, group: Group, settlement: Settlement) -> None:
        super()._end(group, settlement)
        group.handled -= bool(settlement.outputs)


class PublishesTwice(MemoryServer):
    """A publish that had to be repeated is appended twice."""

    def publish(self, route: Route, producer: bytes, epoch: int, first: int, records: Sequence[Record]) -> None:
        super().publish(route, producer, epoch, first, records)
        super().publish(route, b"again " + producer, epoch, 1, records)
        self.open(route).marks.clear()

    def _repeated(self, topic: Topic, producer: bytes, epoch: int, first: int) -> int:
        return 0


class NewestFirst(MemoryServer):
    """Events of one read come in the wrong order."""

    def _take_new(self, topic: Topic, group: Group, worker: str, limit: int) -> Sequence[Entry]:
        return super()._take_new(topic, group, worker, limit)[::-1]

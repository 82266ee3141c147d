"""A server in memory: the state that several `MemoryBackend`s share, and everything that is done to it in one moment. For tests only.

Every public method is one indivisible step (nothing in it awaits), as a server script is. Time is virtual unless a clock is given:
it stands still until `advance` moves it, so tests of leases, delays and retries neither sleep nor depend on luck.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from headrace import limits
from headrace.backends.contract import (
    Delivery,
    Effect,
    Record,
    Route,
    Settled,
    Settlement,
    Subscription,
    Unsettled,
    Verdict,
)
from headrace.backends.entry import copy_of, derived_id, fields_of
from headrace.backends.memory.effects import RedisData
from headrace.backends.memory.state import (
    Delayed,
    Entry,
    Fields,
    Group,
    Pending,
    Topic,
    Worker,
    alone,
    due_s,
)
from headrace.errors import Overloaded, Refused

_BEGIN_S: Final = 1_767_225_600.0
"""Where virtual time begins: 2026-01-01T00:00:00Z."""


class MemoryServer:
    """Streams, groups, retries, dead letters, producers' marks, ids, and the Redis data that effects write."""

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        """Empty. `clock` gives Unix time in seconds, and waits then really wait; None: virtual time."""
        self.virtual = clock is None
        self._clock: Callable[[], float] = clock or (lambda: _BEGIN_S)
        self._ahead_s = 0.0
        self.topics: dict[str, Topic] = {}
        self.data = RedisData(self.now)
        self._number = 0
        self._waiters: set[asyncio.Future[None]] = set()

    # Time

    def now(self) -> float:
        """The server's clock, Unix time in seconds."""
        return self._clock() + self._ahead_s

    def advance(self, seconds: float) -> None:
        """Moves the clock forward and wakes whoever waits for something to become due."""
        self._ahead_s += seconds
        self.wake()

    def next_due(self) -> float | None:
        """The earliest moment at which something delayed or retrying becomes due (it may be past); None: nothing is."""
        heaps = [
            *(t.delayed for t in self.topics.values()),
            *(g.delayed for t in self.topics.values() for g in t.groups.values()),
        ]
        return min((heap[0].due_s for heap in heaps if heap), default=None)

    def idle(self) -> bool:
        """Nothing is unread, pending, waiting for a retry, or due now."""
        due = self.next_due()
        groups = [(t, g) for t in self.topics.values() for g in t.groups.values()]
        return (due is None or due > self.now()) and not any(
            g.pending or g.ready() or g.place < t.added for t, g in groups
        )

    def wake(self) -> None:
        """Something changed: whoever waits looks again."""
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def changed(self, until_s: float | None = None) -> None:
        """Returns after the next change; with a real clock also when something becomes due, or at `until_s`."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        moments = [m for m in (until_s, self.next_due(), self._next_lease_end()) if m is not None]
        if self.virtual or not moments:
            await waiter
        else:
            with contextlib.suppress(TimeoutError):  # it is time: the caller looks again
                async with asyncio.timeout(max(min(moments) - self.now(), 0.001)):
                    await waiter

    def _next_lease_end(self) -> float | None:
        workers = [w for t in self.topics.values() for g in t.groups.values() for w in g.workers.values()]
        return min((w.lease_until_s for w in workers if not w.alive and not w.dead(self.now())), default=None)

    # Publishing

    def new_producer(self) -> bytes:
        """A name that no other producer has."""
        return b"memory%d" % self._next()

    def publish(self, route: Route, producer: bytes, epoch: int, first: int, records: Sequence[Record]) -> None:
        """Appends what the producer's mark says is new. Raises Overloaded, Refused; then nothing was written."""
        topic = self.open(route)
        skip = self._repeated(topic, producer, epoch, first)
        fresh = records[skip:]
        if not fresh:
            return
        self._require_room(topic, len(fresh))
        for number, record in enumerate(fresh, first + skip):
            self._accept(topic, record, b"%b.%d.%d" % (producer, epoch, number))
        topic.marks[producer] = (epoch, first + len(records) - 1)
        self.wake()

    def open(self, route: Route) -> Topic:
        """The topic, made if absent; its bounds are those of the latest route."""
        topic = self.topics.get(route.topic)
        if topic is None:
            topic = self.topics[route.topic] = Topic(route)
        topic.route = route
        return topic

    def _repeated(self, topic: Topic, producer: bytes, epoch: int, first: int) -> int:
        """How many records from `first` on the producer has published before."""
        known, last = topic.marks.get(producer, (epoch, 0))
        if epoch < known:
            raise Refused(f"producer {producer.decode()} of epoch {epoch} was replaced by epoch {known}")
        if epoch > known:
            last = 0
        if first > last + 1:
            raise Refused(f"records {last + 1} to {first - 1} of producer {producer.decode()} are missing")
        return last - first + 1

    def _require_room(self, topic: Topic, count: int) -> None:
        self.trim(topic, count)
        cap = topic.route.cap_events
        if len(topic.entries) + count > cap:
            raise Overloaded(
                f"topic {topic.route.topic} holds {len(topic.entries)} events and its cap is {cap}: nothing was written. Publish again "
                f"when its groups have caught up; add workers, remove a group that nobody runs, or raise the topic's cap_events"
            )

    def _accept(self, topic: Topic, record: Record, id_: bytes) -> None:
        if record.id is not None and not self._new_id(topic, record.id):
            return
        fields, due = fields_of(record, id_), due_s(record, self.now())
        if due > self.now():
            heapq.heappush(topic.delayed, Delayed(due, self._next(), fields))
        else:
            self._append(topic, fields)

    def _new_id(self, topic: Topic, id_: bytes) -> bool:
        """Whether a caller-given id is not one of the window; from now on it is."""
        now = self.now()
        topic.ids = {i: end for i, end in topic.ids.items() if end > now}
        if id_ in topic.ids:
            return False
        topic.ids[id_] = now + topic.route.id_window_s
        return True

    def _append(self, topic: Topic, fields: Fields) -> None:
        topic.entries.append(Entry(self._token(), fields, self.now(), topic.added))

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _token(self) -> bytes:
        return b"%d-%d" % (self.now() * 1000, self._next())

    def promote(self, topic: Topic) -> None:
        """Appends what is due: to the topic, and to the retries of its groups."""
        for delayed in self._due(topic.delayed):
            self._append(topic, delayed.fields)
        for group in topic.groups.values():
            for delayed in self._due(group.delayed):
                self._again(group, delayed.fields, delayed.attempt)

    def _due(self, heap: list[Delayed]) -> Iterable[Delayed]:
        while heap and heap[0].due_s <= self.now():
            yield heapq.heappop(heap)

    def _again(self, group: Group, fields: Fields, attempt: int) -> None:
        group.retry.append(Entry(self._token(), fields, self.now(), attempt=attempt))

    def trim(self, topic: Topic, room: int = 0) -> None:
        """Removes entries that every group has settled and that need not be kept for replay, or that `room` events have no place beside."""
        route, count = topic.route, 0
        if not topic.groups and route.keep_for_first_group:
            return
        needed, kept = self._keep_from(topic), route.retain_events
        if room <= route.cap_events:  # else nothing helps
            kept = min(kept, route.cap_events - room)
        for entry in topic.entries:
            many = len(topic.entries) - count > kept
            if entry.place >= needed or not (many or entry.at_s < self.now() - route.retain_s):
                break
            count += 1
        del topic.entries[:count]
        topic.trimmed += count

    def _keep_from(self, topic: Topic) -> int:
        return topic.needed_from()

    # Workers

    def join(self, subscription: Subscription) -> None:
        """Takes a place in the group, which is made if absent. Raises Refused if it is used in the other mode."""
        group = self.open(subscription.route).group(subscription)
        group.workers[subscription.consumer] = Worker(subscription.lease_s)

    def silence(self, subscription: Subscription) -> None:
        """The worker does not renew its lease any more; the lease ends when its time is up."""
        worker = self._group(subscription).workers.get(subscription.consumer)
        if worker is not None and worker.alive:
            worker.alive, worker.lease_until_s = False, self.now() + worker.lease_s

    def _heard_of(self, subscription: Subscription) -> Group:
        """The group of a worker that just called; a paused one thereby has its lease for once more."""
        group, fresh = self._group(subscription), Worker(subscription.lease_s, alive=False)
        worker = group.workers.setdefault(subscription.consumer, fresh)
        worker.lease_until_s = self.now() + worker.lease_s
        return group

    def leave(self, subscription: Subscription) -> None:
        """Hands back what the worker holds, at once and with the same attempt, and gives up its lease."""
        group = self._group(subscription)
        for token, held in list(group.pending.items()):
            if held.worker == subscription.consumer:
                del group.pending[token]
                self._hand_back(group, held.entry)
        group.workers.pop(subscription.consumer, None)
        self.wake()

    def _hand_back(self, group: Group, entry: Entry) -> None:
        self._again(group, copy_of(entry.token, entry.fields, entry.attempt), entry.attempt)

    def _group(self, subscription: Subscription) -> Group:
        return self.topics[subscription.route.topic].groups[subscription.group]

    def again(self, group: Group, entries: Iterable[Entry]) -> None:
        """Copies of these wait for a worker of the group, as if it had never had them."""
        for entry in entries:
            self._again(group, copy_of(entry.token, entry.fields, 1), 1)
        self.wake()

    # Taking

    def take(self, subscription: Subscription, limit: int) -> Sequence[Delivery]:
        """At most `limit` deliveries that can be had now: of dead workers, else retries and new events."""
        topic, group = self.topics[subscription.route.topic], self._heard_of(subscription)
        self.promote(topic)
        taken = self._take_over(group, subscription.consumer, limit)
        if not taken:
            taken = self._take_new(topic, group, subscription.consumer, limit)
        return [Delivery(e.token, list(e.fields), None, e.attempt) for e in taken]

    def _take_new(self, topic: Topic, group: Group, worker: str, limit: int) -> Sequence[Entry]:
        if group.ordered:
            new = topic.unread(group)
            group.place += len(new)
            taken, group.retry = group.in_order(new, limit)
        else:
            again, group.retry = group.retry[:limit], group.retry[limit:]
            new = list(topic.unread(group)[: limit - len(again)])
            group.place += len(new)
            taken = [*again, *new]
        for entry in taken:
            self._hold(group, Pending(entry, worker, self.now()))
        return taken

    def _hold(self, group: Group, pending: Pending) -> None:
        group.pending[pending.entry.token] = pending

    def _take_over(self, group: Group, worker: str, limit: int) -> Sequence[Entry]:
        taken: list[Pending] = []
        for held in self._orphans(group):
            if held.deliveries >= limits.deaths_max:
                self._bury(group, held)
            elif alone(held) and taken:
                break
            else:
                held.worker, held.since_s, held.deliveries = worker, self.now(), held.deliveries + 1
                taken.append(held)
                if len(taken) == limit or self._without_company(held):
                    break
        return [held.entry for held in taken]

    def _without_company(self, held: Pending) -> bool:
        """Called when one more worker has it: the deaths are one less than the deliveries."""
        return held.deliveries - 1 >= limits.deaths_alone

    def _orphans(self, group: Group) -> Sequence[Pending]:
        """What workers hold whose lease has ended, oldest first. Forgets such workers if they hold nothing."""
        dead = {name for name, worker in group.workers.items() if self._dead(worker)}
        found = [held for held in group.pending.values() if held.worker in dead]
        for name in dead - {held.worker for held in found}:
            del group.workers[name]
        return found

    def _dead(self, worker: Worker) -> bool:
        return worker.dead(self.now())

    def _bury(self, group: Group, held: Pending) -> None:
        """The event has killed enough workers."""
        del group.pending[held.entry.token]
        self._rest(
            group,
            copy_of(
                held.entry.token,
                held.entry.fields,
                held.entry.attempt,
                b"%d workers that held it died" % held.deliveries,
            ),
        )
        self.wake()

    def _rest(self, group: Group, fields: Fields) -> None:
        entry = Entry(self._token(), fields, self.now())
        group.dead[entry.token] = entry

    # Settling

    def commit(self, subscription: Subscription, settled: Sequence[Settled]) -> Sequence[Unsettled]:
        """Settles each entirely or not at all; returns those that were not applied. Raises Overloaded: then none was."""
        topic, group = self.topics[subscription.route.topic], self._heard_of(subscription)
        every = [one if isinstance(one, Settlement) else Settlement(one) for one in settled]
        self._require_room_for_outputs(topic, every)
        answers = [self._settle(group, one, settlement) for one, settlement in zip(settled, every, strict=True)]
        self.trim(topic)
        self.wake()
        return [unsettled for unsettled in answers if unsettled is not None]

    def _require_room_for_outputs(self, source: Topic, settlements: Sequence[Settlement]) -> None:
        counts: dict[str, int] = {}
        for route, _ in (output for s in settlements for output in s.outputs):
            counts[route.topic] = counts.get(route.topic, 0) + 1
            if route.topic != source.route.topic:  # who answers to the topic it reads makes as much room as it takes
                self._require_room(self.open(route), counts[route.topic])

    def _settle(self, group: Group, one: Settled, settlement: Settlement) -> Unsettled | None:
        delivery = settlement.delivery
        if not self._wins(group, delivery.token):
            return Unsettled(one)
        if why := self._effects(settlement.effects):
            return Unsettled(one, why)
        group.pending.pop(delivery.token, None)
        for n, (route, record) in enumerate(settlement.outputs):
            self._accept(self.open(route), record, derived_id(delivery, group.name, n))
        self._end(group, settlement)
        return None

    def _wins(self, group: Group, token: bytes) -> bool:
        """The gate: the first to settle an entry wins."""
        return token in group.pending

    def _effects(self, effects: Sequence[Effect]) -> str:
        return self.data.apply(effects)

    def _end(self, group: Group, settlement: Settlement) -> None:
        delivery = settlement.delivery
        match settlement.verdict:
            case Verdict.HANDLED:
                group.handled += 1
            case Verdict.RETRY:
                self._retry(group, delivery, settlement)
            case Verdict.DEAD:
                self._rest(group, copy_of(delivery.token, delivery.fields, delivery.attempt, settlement.reason))
            case Verdict.RETURN:
                self._return(group, delivery)

    def _retry(self, group: Group, delivery: Delivery, settlement: Settlement) -> None:
        attempt, due = delivery.attempt + 1, self.now() + settlement.delay_ms / 1000
        heapq.heappush(
            group.delayed,
            Delayed(due, self._next(), copy_of(delivery.token, delivery.fields, attempt, settlement.reason), attempt),
        )

    def _return(self, group: Group, delivery: Delivery) -> None:
        self._again(group, copy_of(delivery.token, delivery.fields, delivery.attempt), delivery.attempt)

"""Settlements as the words of scripts/commit.lua."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from msgspec import structs

from headrace import limits
from headrace.backends.contract import Delivery, Record, Route, Settled, Settlement, Unsettled, Verdict
from headrace.backends.entry import copy_of, derived_id, fields_of
from headrace.backends.partition import partition_of
from headrace.backends.redis import keys, retention
from headrace.backends.redis.client import Client
from headrace.backends.redis.publish import due
from headrace.backends.redis.replies import Grew
from headrace.backends.redis.slots import Pack
from headrace.errors import BackendError

Apart = Callable[[bytes, bytes], bool]
"""Whether two keys live in different slots of a Cluster."""
Count = Callable[[Route], int]
"""How many partitions a topic has now."""
_FIRST_PLACE = 6
"""Where the keys that writes name begin; the five before them are fixed."""


class Counts:
    """How many partitions topics have, for one attempt of a commit: as it was when first asked, though they may grow meanwhile.

    An attempt by a number that is not true any more ends in `Grew`, and nothing is written; the next one asks anew.
    """

    def __init__(self, count: Count = lambda route: route.partitions) -> None:
        """`count` says how many there are now; without it, as many as the program declares."""
        self._count = count
        self._known: dict[str, int] = {}

    def of(self, route: Route) -> int:
        """How many a topic has."""
        known = self._known.get(route.topic)
        if known is None:
            known = self._known[route.topic] = self._count(route)
        return known


Rich = Settlement | Pack
"""An entry that is not just acknowledged: it has writes, or carries several events."""


def parts(entry: Delivery | Rich) -> Sequence[Settled]:
    """What was given to commit about this entry: one, or one for each event of a packed one."""
    return tuple(entry.settled.values()) if isinstance(entry, Pack) else (entry,)


def token(entry: Delivery | Rich) -> bytes:
    """The id of the entry."""
    return entry.delivery.token if isinstance(entry, Settlement) else entry.token


class Target:
    """A partition that gets outputs."""

    __slots__ = ("events", "head", "route", "share")

    def __init__(self, route: Route, head: tuple[bytes, ...], share: int) -> None:
        """`head`: the first words of an output: the place of its stream (its delayed, ids and packed follow), cap, window, partitions."""
        self.route, self.head, self.share = route, head, share
        self.events = 0
        """How many."""


class Writes:
    """The writes of one call: words for ARGV, and the keys that they name by their place among KEYS; and what has to be published before it.

    Here alone is decided which outputs are which, once for each: one is among the words, or `elsewhere`, never both or neither.
    """

    def __init__(
        self, group: str, stream: str, apart: Apart | None, counts: Counts | None = None, *, aside: bool = False
    ) -> None:
        """None yet. `stream`: the partition that the inputs are from. `aside`: events to be handled again wait in the retry stream."""
        self._counts = counts or Counts()
        self.group = group
        self._stream, self._apart, self._aside = stream.encode(), apart, aside
        self.keys: list[bytes] = []
        self.words: list[bytes] = []
        self.size = 0
        """Bytes of what they carry, about; an output counts for its `share` at least."""
        self.targets: dict[str, Target] = {}
        """The partitions that get an output with the call."""
        self.elsewhere: list[tuple[Route, Record]] = []
        """Outputs whose partitions live on other servers, with identities that drop repeats: to be published before the call is sent."""
        self.retry_ms: int | None = None
        """When the first retry is due."""
        self._effects: dict[bytes, bytes] = {}

    def anew(self) -> Writes:
        """Others of the same attempt, none yet: each output goes where it would go here."""
        return Writes(self.group, self._stream.decode(), self._apart, self._counts, aside=self._aside)

    def add(self, rich: Rich) -> None:
        """An entry: how many of its events are handled, how many there are, number of words, its writes in the order of their making."""
        words, start = self.words, len(self.words)
        words += (b"1", b"1", b"")
        if isinstance(rich, Settlement):
            self._add_writes(rich)
            if rich.verdict is not Verdict.HANDLED:
                words[start] = b"0"
        else:
            settlements = [s for s in rich.settled.values() if isinstance(s, Settlement)]
            for settlement in settlements:
                self._add_writes(settlement)
            unhandled = sum(s.verdict is not Verdict.HANDLED for s in settlements)
            words[start : start + 2] = (b"%d" % (len(rich.settled) - unhandled), b"%d" % len(rich.settled))
        words[start + 2] = b"%d" % (len(words) - start - 3)

    def _add_writes(self, settlement: Settlement) -> None:
        words, delivery = self.words, settlement.delivery
        for effect in settlement.effects:
            place = self._effects.get(effect[1]) or self._place_effect(effect[1])
            words += (b"E", place, b"%d" % (len(effect) - 2), effect[0], *effect[2:])
            self.size += sum(map(len, effect))
        for n, (route, record) in enumerate(settlement.outputs):
            identity = derived_id(delivery, self.group, n)
            partitions = 1 if route.partitions == 1 else self._counts.of(route)  # a topic of one never grows
            given = record.id or b""
            stream = stream_of(route, record, identity, partitions)
            if self._apart is not None:
                if self._apart(self._stream, stream.encode()):
                    self.elsewhere.append((route, structs.replace(record, id=given or identity)))
                    continue
                if partitions > 1:  # when the topic has grown, a repeat may meet it on another server
                    given = given or identity
            target = self.targets.get(stream) or self._place_target(route, stream, partitions)
            target.events += 1
            fields = fields_of(record, identity)
            words += (*target.head, given, due(record), b"%d" % len(fields), *fields)
            size = sum(map(len, fields))
            self.size += max(target.share, size)
        verdict, delay_ms = settlement.verdict, settlement.delay_ms
        if self._aside and verdict in (Verdict.RETRY, Verdict.RETURN):
            again = verdict is Verdict.RETRY
            self._add_copy(settlement, int(again), b"P", b"%d" % (delay_ms if again else 0))
        elif verdict is Verdict.RETRY:
            self._add_copy(settlement, 1, b"Z", b"%d" % delay_ms)
            self.retry_ms = delay_ms if self.retry_ms is None else min(delay_ms, self.retry_ms)
        elif verdict is Verdict.DEAD:
            self._add_copy(settlement, 0, b"D")
        elif verdict is Verdict.RETURN:
            self._add_copy(settlement, 0, b"B")

    def _add_copy(self, settlement: Settlement, attempts: int, *head: bytes) -> None:
        delivery = settlement.delivery
        fields = copy_of(delivery.token, delivery.fields, delivery.attempt + attempts, settlement.reason)
        self.words += (*head, b"%d" % len(fields), *fields)
        self.size += sum(map(len, fields))

    def _place_effect(self, key: bytes) -> bytes:
        place = self._effects[key] = b"%d" % (_FIRST_PLACE + len(self.keys))
        self.keys.append(key)
        return place

    def _place_target(self, route: Route, stream: str, partitions: int) -> Target:
        place, own = b"%d" % (_FIRST_PLACE + len(self.keys)), keys.partition(stream)
        head = (b"O", place, b"%d" % route.cap_events, b"%d" % int(route.id_window_s * 1000), b"%d" % partitions)
        target = self.targets[stream] = Target(route, head, share(route))
        self.keys += (own.stream, own.delayed, own.ids, own.packed)
        return target


async def make_way(client: Client, writes: Writes, error: BackendError) -> bool:
    """After a commit that was refused because of its outputs' topics: whether there is more room for them now."""
    if isinstance(error, Grew):
        for topic in {target.route.topic for target in writes.targets.values()}:
            await client.recount(topic)
    full = re.search(r"\[BACKPRESSURE (\S+) ", str(error))
    target = None if full is None else writes.targets.get(full[1])
    if full is None or target is None:
        return False
    return await retention.make_room(client, target.route, full[1], target.events)


def share(route: Route) -> int:
    """Bytes of a call that an output counts for at least, so that all the outputs of a call fit into their topics."""
    return limits.batch_bytes_max // max(min(limits.batch_records_max, route.cap_events // 2), 1)


def stream_of(route: Route, record: Record, identity: bytes, partitions: int) -> str:
    """The partition of an output: by its key, else by its id, so that it is the same however often its input is handled."""
    if partitions == 1:
        return route.topic
    place = identity if record.place is None else record.place
    return f"{route.topic}.{partition_of(place, partitions)}"


def elsewhere(calls: Iterable[Writes]) -> list[tuple[Route, list[Record]]]:
    """What has to be published before these calls are sent, by route."""
    by_topic: dict[str, tuple[Route, list[Record]]] = {}
    for writes in calls:
        for route, record in writes.elsewhere:
            by_topic.setdefault(route.topic, (route, []))[1].append(record)
    return list(by_topic.values())


def misplaced(settled: Iterable[Settlement], stream: str, apart: Apart) -> list[Unsettled]:
    """Those with an effect on a key that lives on another server than their input."""
    out = []
    for settlement in settled:
        for effect in settlement.effects:
            if apart(stream.encode(), effect[1]):
                key = effect[1].decode(errors="replace")
                out.append(
                    Unsettled(
                        settlement,
                        f"key {key} lives in another slot of the Cluster than {stream}, from where the event came: "
                        f"write to {{{stream}}}:{key}",
                    )
                )
                break
    return out


def at_fault(pack: Pack, writes: Writes, place: int) -> bytes:
    """The token of the event of a packed entry, sent with `writes`, that the word at `place` (from 0) of all the entry's writes is of."""
    end = 0
    for name, one in pack.settled.items():
        if isinstance(one, Settlement):
            own = writes.anew()
            own.add(one)
            end += len(own.words) - 3
            if place < end:
                return name
    raise AssertionError(f"no write at {place} of {end} words")


def calls(
    plain: Sequence[Delivery], rich: Sequence[Rich], empty: Callable[[], Writes]
) -> Iterator[tuple[Sequence[Delivery], Sequence[Rich], Writes]]:
    """Splits a batch into calls of up to `limits.batch_bytes_max` of writes; an entry with more is a call of its own."""
    start = 0
    while start < len(rich):
        writes, end, expected = empty(), start, 0
        while end < len(rich) and writes.size + expected <= limits.batch_bytes_max:
            writes.add(rich[end])
            end += 1
            expected = writes.size // (end - start)
        if writes.size > limits.batch_bytes_max and end > start + 1:  # the last one was larger than the others
            writes, end = empty(), end - 1
            for one in rich[start:end]:
                writes.add(one)
        yield plain, rich[start:end], writes
        plain, start = (), end
    if plain:
        yield plain, (), empty()

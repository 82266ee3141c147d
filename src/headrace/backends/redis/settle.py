"""Settlements as the words of scripts/commit.lua."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from headrace import limits
from headrace.backends.contract import Delivery, Route, Settled, Settlement, Verdict
from headrace.backends.entry import copy_of, derived_id, fields_of
from headrace.backends.redis import keys
from headrace.backends.redis.publish import due
from headrace.backends.redis.slots import Pack

_FIRST_PLACE = 6
"""Where the keys that writes name begin; the five before them are fixed."""


class Places:
    """The keys that the writes of one commit name by their place among KEYS."""

    def __init__(self) -> None:
        """None yet."""
        self.keys: list[bytes] = []
        self._effects: dict[bytes, int] = {}
        self._routes: dict[str, int] = {}

    def of_effect(self, key: bytes) -> int:
        """The place of an effect's key."""
        place = self._effects.get(key)
        if place is None:
            place = self._effects[key] = _FIRST_PLACE + len(self.keys)
            self.keys.append(key)
        return place

    def of_route(self, route: Route) -> int:
        """The place of a topic's stream; its delayed, ids and packed follow."""
        place = self._routes.get(route.topic)
        if place is None:
            place = self._routes[route.topic] = _FIRST_PLACE + len(self.keys)
            own = keys.partition(route.topic)
            self.keys += (own.stream, own.delayed, own.ids, own.packed)
        return place


def writes(settlement: Settlement, group: str, places: Places) -> list[bytes]:
    """The writes of one settlement, in the order in which they are applied."""
    out: list[bytes] = []
    delivery, verdict = settlement.delivery, settlement.verdict
    for effect in settlement.effects:
        out += (b"E", b"%d" % places.of_effect(effect[1]), b"%d" % (len(effect) - 2), effect[0], *effect[2:])
    for n, (route, record) in enumerate(settlement.outputs):
        fields = fields_of(record, derived_id(delivery, group, n))
        head = (b"O", b"%d" % places.of_route(route), b"%d" % route.cap_events, b"%d" % int(route.id_window_s * 1000))
        out += (*head, record.id or b"", due(record), b"%d" % len(fields), *fields)
    if verdict is Verdict.RETRY:
        fields = copy_of(delivery.token, delivery.fields, delivery.attempt + 1, settlement.reason)
        out += (b"Z", b"%d" % settlement.delay_ms, b"%d" % len(fields), *fields)
    elif verdict is Verdict.DEAD:
        fields = copy_of(delivery.token, delivery.fields, delivery.attempt, settlement.reason)
        out += (b"D", b"%d" % len(fields), *fields)
    elif verdict is Verdict.RETURN:
        fields = copy_of(delivery.token, delivery.fields, delivery.attempt)
        out += (b"B", b"%d" % len(fields), *fields)
    return out


Rich = Settlement | Pack
"""An entry that is not just acknowledged: it has writes, or carries several events."""


def parts(entry: Delivery | Rich) -> Sequence[Settled]:
    """What was given to commit about this entry: one, or one for each event of a packed one."""
    return tuple(entry.settled.values()) if isinstance(entry, Pack) else (entry,)


def token(entry: Delivery | Rich) -> bytes:
    """The id of the entry."""
    return entry.delivery.token if isinstance(entry, Settlement) else entry.token


def _words(rich: Rich, group: str, places: Places) -> list[bytes]:
    """How many of its events are handled, how many there are, number of words, writes."""
    if isinstance(rich, Settlement):
        own = writes(rich, group, places)
        return [b"1" if rich.verdict is Verdict.HANDLED else b"0", b"1", b"%d" % len(own), *own]
    handled, own = 0, list[bytes]()
    for one in rich.settled.values():
        if isinstance(one, Settlement):
            handled += one.verdict is Verdict.HANDLED
            own += writes(one, group, places)
        else:
            handled += 1
    return [b"%d" % handled, b"%d" % len(rich.settled), b"%d" % len(own), *own]


def at_fault(pack: Pack, group: str, place: int) -> bytes:
    """The token of the event of a packed entry whose writes hold the word at `place` (from 0) of all its writes."""
    places, end = Places(), 0
    for name, one in pack.settled.items():
        if isinstance(one, Settlement):
            end += len(writes(one, group, places))
            if place < end:
                return name
    raise AssertionError(f"no write at {place} of {end} words")


def calls(
    plain: Sequence[Delivery], rich: Sequence[Rich], group: str
) -> Iterator[tuple[Sequence[Delivery], Sequence[Rich], list[bytes], list[bytes]]]:
    """Splits a batch into calls of about `limits.batch_bytes_max` of writes: (plain, rich, further KEYS, words of the writes)."""
    start = 0
    while start < len(rich):
        places, words, size, end = Places(), list[bytes](), 0, start
        while end < len(rich) and size < limits.batch_bytes_max:
            own = _words(rich[end], group, places)
            words += own
            size += sum([len(w) for w in own])
            end += 1
        yield plain, rich[start:end], places.keys, words
        plain, start = (), end
    if plain:
        yield plain, (), [], []

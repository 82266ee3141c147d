"""Settlements as the words of scripts/commit.lua."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from headrace import limits
from headrace.backends.contract import Delivery, Route, Settlement, Verdict
from headrace.backends.entry import copy_of, derived_id, fields_of
from headrace.backends.redis import keys
from headrace.backends.redis.publish import due

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
        """The place of a topic's stream; its delayed and ids follow."""
        place = self._routes.get(route.topic)
        if place is None:
            place = self._routes[route.topic] = _FIRST_PLACE + len(self.keys)
            own = keys.partition(route.topic)
            self.keys += (own.stream, own.delayed, own.ids)
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


def calls(
    plain: Sequence[Delivery], rich: Sequence[Settlement], group: str
) -> Iterator[tuple[Sequence[Delivery], Sequence[Settlement], list[bytes], list[bytes]]]:
    """Splits a batch into calls of at most `limits.batch_bytes_max` of writes: (plain, rich, further KEYS, words of the writes)."""
    start = 0
    while start < len(rich):
        places, words, size, end = Places(), list[bytes](), 0, start
        while end < len(rich) and size < limits.batch_bytes_max:
            own = writes(rich[end], group, places)
            words += (b"1" if rich[end].verdict is Verdict.HANDLED else b"0", b"%d" % len(own), *own)
            size += sum([len(w) for w in own])
            end += 1
        yield plain, rich[start:end], places.keys, words
        plain, start = (), end
    if plain:
        yield plain, (), [], []

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


_NUMBERS = [b"%d" % n for n in range(256)]

Rich = Settlement | Pack
"""An entry that is not just acknowledged: it has writes, or carries several events."""


def parts(entry: Delivery | Rich) -> Sequence[Settled]:
    """What was given to commit about this entry: one, or one for each event of a packed one."""
    return tuple(entry.settled.values()) if isinstance(entry, Pack) else (entry,)


def token(entry: Delivery | Rich) -> bytes:
    """The id of the entry."""
    return entry.delivery.token if isinstance(entry, Settlement) else entry.token


class Writes:
    """The writes of one call: words for ARGV, and the keys that they name by their place among KEYS."""

    def __init__(self, group: str) -> None:
        """None yet."""
        self.group = group
        self.keys: list[bytes] = []
        self.words: list[bytes] = []
        self.size = 0
        """Bytes of what they carry, about."""
        self._effects: dict[bytes, bytes] = {}
        self._routes: dict[str, tuple[bytes, ...]] = {}

    def add(self, rich: Rich) -> None:
        """An entry: how many of its events are handled, how many there are, number of words, its writes in the order of their making."""
        words, start, handled = self.words, len(self.words), 0
        words += (b"1", b"1", b"")
        settled = (rich,) if isinstance(rich, Settlement) else rich.settled.values()
        for one in settled:
            if isinstance(one, Settlement):
                self._add_writes(one)
                handled += one.verdict is Verdict.HANDLED
            else:
                handled += 1
        words[start] = _number(handled)
        words[start + 1] = _number(len(settled))
        words[start + 2] = _number(len(words) - start - 3)

    def _add_writes(self, settlement: Settlement) -> None:
        words, delivery = self.words, settlement.delivery
        for effect in settlement.effects:
            place = self._effects.get(effect[1]) or self._place_effect(effect[1])
            words += (b"E", place, _number(len(effect) - 2), effect[0], *effect[2:])
            self.size += sum(map(len, effect))
        for n, (route, record) in enumerate(settlement.outputs):
            head = self._routes.get(route.topic) or self._place_route(route)
            fields = fields_of(record, derived_id(delivery, self.group, n))
            words += (*head, record.id or b"", due(record), _number(len(fields)), *fields)
            self.size += sum(map(len, fields))
        if settlement.verdict is Verdict.RETRY:
            self._add_copy(settlement, 1, b"Z", _number(settlement.delay_ms))
        elif settlement.verdict is Verdict.DEAD:
            self._add_copy(settlement, 0, b"D")
        elif settlement.verdict is Verdict.RETURN:
            self._add_copy(settlement, 0, b"B")

    def _add_copy(self, settlement: Settlement, attempts: int, *head: bytes) -> None:
        delivery = settlement.delivery
        fields = copy_of(delivery.token, delivery.fields, delivery.attempt + attempts, settlement.reason)
        self.words += (*head, _number(len(fields)), *fields)
        self.size += sum(map(len, fields))

    def _place_effect(self, key: bytes) -> bytes:
        place = self._effects[key] = _number(_FIRST_PLACE + len(self.keys))
        self.keys.append(key)
        return place

    def _place_route(self, route: Route) -> tuple[bytes, ...]:
        """The first words of an output: the place of the topic's stream (its delayed, ids and packed follow), cap and window."""
        place, own = _number(_FIRST_PLACE + len(self.keys)), keys.partition(route.topic)
        head = (b"O", place, _number(route.cap_events), _number(int(route.id_window_s * 1000)))
        self._routes[route.topic] = head
        self.keys += (own.stream, own.delayed, own.ids, own.packed)
        return head


def _number(n: int) -> bytes:
    return _NUMBERS[n] if n < len(_NUMBERS) else b"%d" % n


def at_fault(pack: Pack, group: str, place: int) -> bytes:
    """The token of the event of a packed entry whose writes hold the word at `place` (from 0) of all its writes."""
    end = 0
    for name, one in pack.settled.items():
        if isinstance(one, Settlement):
            own = Writes(group)
            own.add(one)
            end += len(own.words) - 3
            if place < end:
                return name
    raise AssertionError(f"no write at {place} of {end} words")


def calls(
    plain: Sequence[Delivery], rich: Sequence[Rich], group: str
) -> Iterator[tuple[Sequence[Delivery], Sequence[Rich], list[bytes], list[bytes]]]:
    """Splits a batch into calls of about `limits.batch_bytes_max` of writes: (plain, rich, further KEYS, words of the writes)."""
    start = 0
    while start < len(rich):
        writes, end = Writes(group), start
        while end < len(rich) and writes.size < limits.batch_bytes_max:
            writes.add(rich[end])
            end += 1
        yield plain, rich[start:end], writes.keys, writes.words
        plain, start = (), end
    if plain:
        yield plain, (), [], []

"""Which keys of a partition wait behind a failed event, and for what (ordered mode).

What is set aside lies in the group's retry stream; here is only who waits behind whom. A line begins when an event is set aside, takes
up every later event of its key, and ends when all of them are settled.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Sequence
from typing import Any

from msgspec import Struct, field

Place = tuple[int, int, int]
"""Where an event stood in its partition: milliseconds and number of its entry, and its number in a packed one."""


def place_of(token: bytes) -> Place:
    """The place that a token names; the very first for a token of another writer's making."""
    entry, _, n = token.partition(b"/")
    ms, _, seq = entry.partition(b"-")
    try:
        return int(ms), int(seq or 0), int(n or 0)
    except ValueError:
        return 0, 0, 0


class Aside(Struct, eq=False):
    """An event that was set aside."""

    holding: Any
    """The Holding of its partition."""
    token: bytes
    """Its entry in the retry stream."""
    place: Place
    key: bytes | None
    attempt: int
    due_ms: int
    """By the server's clock."""
    given: bool = False

    @property
    def partition(self) -> Any:
        """Where it comes from."""
        return self.holding.stream


class Line(Struct, eq=False):
    """The events of one key that are set aside, in their order."""

    waiting: list[Aside] = field(default_factory=list)
    expected: set[tuple[Place, int]] = field(default_factory=set)
    """Place and attempt of those that are about to be set aside, or are and were not read back yet."""
    given: int = 0


class Lines:
    """The lines of one partition, by key."""

    def __init__(self) -> None:
        """None yet."""
        self._by_key: dict[bytes | None, Line] = {}
        self._heads: list[tuple[int, int, bytes | None]] = []
        """When a line may go on: a heap; entries of lines that have changed since are skipped."""
        self._pushed = 0
        self.count = 0
        """Events that wait."""

    def __contains__(self, key: bytes | None) -> bool:
        """Whether events of this key have to wait."""
        return key in self._by_key

    def __bool__(self) -> bool:
        """Whether any key waits."""
        return bool(self._by_key)

    def expect(self, key: bytes | None, token: bytes, attempt: int) -> None:
        """An event is about to be set aside; until it is read back, its key waits."""
        self._by_key.setdefault(key, Line()).expected.add((place_of(token), attempt))

    def add(self, aside: Aside) -> None:
        """An event that was set aside was read back, from whomever it came."""
        line = self._by_key.setdefault(aside.key, Line())
        line.expected.discard((aside.place, aside.attempt))
        insort(line.waiting, aside, key=lambda a: (a.place, place_of(a.token)))
        self.count += 1
        self._push(line, aside.key)

    def due(self, now_ms: float, limit: int) -> list[Aside]:
        """Takes up to `limit` events whose time has come, in the order of each line."""
        out: list[Aside] = []
        while self._heads and self._heads[0][0] <= now_ms and len(out) < limit:
            _, _, key = heapq.heappop(self._heads)
            line = self._by_key.get(key)
            if line is None or line.given or not line.waiting or line.waiting[0].due_ms > now_ms or self._blocked(line):
                continue
            for aside in line.waiting[: limit - len(out)]:
                if aside.due_ms > now_ms:
                    break
                aside.given = True
                line.given += 1
                out.append(aside)
        return out

    @staticmethod
    def _blocked(line: Line) -> bool:
        """One that stood before the head is on its way back."""
        return bool(line.expected) and min(line.expected)[0] < line.waiting[0].place

    @property
    def next_ms(self) -> int | None:
        """When the next line may go on, by the server's clock; it may turn out that it cannot."""
        return self._heads[0][0] if self._heads else None

    def settled(self, aside: Aside, again: int | None) -> None:
        """An event that was given out is settled; `again`: its next attempt, if it is set aside anew."""
        line = self._by_key[aside.key]
        line.waiting.remove(aside)
        if again is not None and not any(a.place == aside.place and a.attempt == again for a in line.waiting):
            line.expected.add((aside.place, again))  # else it was read back before the answer came
        self.count -= 1
        self._back(line, aside)

    def returned(self, aside: Aside) -> None:
        """An event that was given out was not handled: it goes on waiting."""
        aside.given = False
        self._back(self._by_key[aside.key], aside)

    def _back(self, line: Line, aside: Aside) -> None:
        line.given -= 1
        if not line.waiting and not line.expected:
            del self._by_key[aside.key]
        elif not line.given:
            self._push(line, aside.key)

    def _push(self, line: Line, key: bytes | None) -> None:
        if line.waiting and not line.given and not self._blocked(line):
            self._pushed += 1
            heapq.heappush(self._heads, (line.waiting[0].due_ms, self._pushed, key))


def aside_of(holding: Any, token: bytes, fields: Sequence[bytes]) -> Aside:
    """An entry of the retry stream as an event that was set aside."""
    attributes = dict(zip(fields[::2], fields[1::2], strict=False))
    due, attempt = attributes.get(b"due", b"0"), attributes.get(b"attempt", b"1")
    return Aside(
        holding,
        token,
        place_of(attributes.get(b"origin", token)),
        attributes.get(b"key"),
        int(attempt) if attempt.isdigit() else 1,
        int(due) if due.isdigit() else 0,
    )

"""A partition that this worker has the lease of: what it has read and not yet settled (ordered mode). Books only, no calls."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from headrace.backends.contract import Delivery, Settled, Settlement, Verdict, comes_again, delivery_of
from headrace.backends.redis import keys, record_batch
from headrace.backends.redis.lines import Aside, Lines


class Holding:
    """The events between the group's cursor and where we have read to, in their order, and how they end."""

    def __init__(self, number: int, stream: str, group: str) -> None:
        """`number`: of the partition. Call `begin` when the lease is ours."""
        self._empty = asyncio.Event()
        self.number, self.stream = number, stream
        self.own, self.keys = keys.partition(stream), keys.group(stream, group)
        self.token = b""
        self.cursor = self.collected = self.position = b"0-0"
        """What is settled, what is about to be, and what is read."""
        self.read_over: object = None
        """The connection over which it was read last."""
        self.commits = 0
        """How many the server said it knows; one that knows fewer has forgotten some."""
        self.aside_position = b"0-0"
        """Until where the events that were set aside are read."""
        self.until = 0.0
        """When the lease ends, by the event loop's clock, if it is not renewed."""
        self.behind_ms = 0.0
        """The server's clock minus the event loop's, in ms."""
        self.hand: list[Delivery] = []
        self.next = 0
        """What of `hand` is given out: all before this."""
        self.runs: deque[int] = deque()
        """How many of `hand` each giving out took up; their sum is `next`."""
        self.marks: dict[Delivery, Settled] = {}
        """How events of `hand` end that cannot leave it yet, because one before them is not settled."""
        self.stopped: set[bytes | None] = set()
        """Keys of events in `marks` that are to be handled again: nothing more of them is given out."""
        self.ready: list[Settled] = []
        """What left `hand` and is to be written with the next call."""
        self.rich = False
        """Whether anything in `ready` may be more than an acknowledgement."""
        self.packed = False
        """Whether there ever was an entry of several events."""
        self.final: set[Delivery] = set()
        """Of those marked: they were collected before, but could not be written then; nothing about them changes any more."""
        self.aside: dict[Aside, Settled] = {}
        """How events end that had been set aside."""
        self.lines = Lines()
        self.out = 0
        """Events given out that had been set aside, not settled yet."""
        self.flushing = asyncio.Lock()
        self.lost = self.leaving = False
        """`leaving`: it is about to be given back, nothing more is given out."""
        self.careful = 0
        """So many events are given out one by one, because workers died here."""
        self.poison = b""
        """The event that too many workers died of."""
        self.paused_until = 0.0
        """on_failure=stop: nothing is given out before this time of the event loop's clock."""
        self.attempts: dict[bytes, int] = {}
        """on_failure=stop: attempts of the event that stops the partition, by its token."""

    @property
    def partition(self) -> str:
        """Where its events come from."""
        return self.stream

    def begin(self, token: bytes, cursor: bytes) -> None:
        """The lease is ours."""
        self.token = token
        self.cursor = self.collected = self.position = cursor

    # Reading

    def receive(self, entries: Sequence[tuple[bytes, Sequence[bytes]]]) -> None:
        """Takes entries of the partition that follow the last ones."""
        self.position = entries[-1][0]
        if max([len(fields) for _, fields in entries]) < record_batch.FIELDS_MIN:
            new = [Delivery(id_, fields, self) for id_, fields in entries]
        else:
            new = []
            for id_, fields in entries:
                events = record_batch.unpacked(id_, fields)
                if events is None:
                    new.append(Delivery(id_, fields, self))
                else:
                    self.packed = True
                    new += [Delivery(token, own, self) for token, own in zip(*events, strict=True)]
        if self.lines:
            for delivery in new:
                if delivery.key in self.lines:
                    self._divert(delivery)
        if self.attempts:
            for delivery in new:
                delivery.attempt = self.attempts.get(delivery.token, 1)
        self.hand += new

    def give(self, limit: int) -> list[Delivery]:
        """Gives out up to `limit` of what was received."""
        start, end = self.next, min(self.next + limit, len(self.hand))
        if start == end:
            return []
        self.next = end
        self.runs.append(end - start)
        given = self.hand[start:end]
        if self.stopped:
            for delivery in given:
                if delivery.key in self.stopped:
                    self.marks.setdefault(delivery, Settlement(delivery, Verdict.RETURN))
        return [d for d in given if d not in self.marks] if self.marks else given

    def give_one(self) -> list[Delivery]:
        """Gives out the next one that may be handled now, if there is one."""
        given: list[Delivery] = []
        while not given and self.next < len(self.hand):
            given = self.give(1)
        return given

    @property
    def at_work(self) -> bool:
        """Whether anything of `hand` is given out and not settled; it may be settled and wait for the rest of its entry."""
        return any(d not in self.marks for d in self.hand[: self.next])

    def leave(self) -> None:
        """What was not given out yet is left to the partition's next holder; but an entry that was begun is ended: its rest is returned."""
        self.leaving = True
        end = self.next
        while self._inside(end):
            end += 1
        for delivery in self.hand[end:]:
            self.marks.pop(delivery, None)
        del self.hand[end:]
        for delivery in self.give(end - self.next):
            self.mark(Settlement(delivery, Verdict.RETURN))

    def stops(self, key: bytes | None) -> bool:
        """Whether later events of this key are not to be handled now."""
        return key in self.stopped or key in self.lines

    # Settling

    def mark(self, settled: Settled) -> None:
        """How an event of `hand` ends; it leaves when all before it are settled."""
        delivery = delivery_of(settled)
        if delivery in self.final:
            return
        self.marks[delivery] = settled
        if comes_again(settled):
            self.stopped.add(delivery.key)

    def settle_run(self, settled: Sequence[Settled], start: int) -> int:
        """The common case: from `start` on, `settled` is just what was given out first, all handled. Returns how many were taken."""
        if not self.runs or self.marks or self.lines:
            return 0
        count = self.runs[0]
        run = self.hand[:count]
        if settled[start : start + count] != run or self._inside(count):
            return 0
        self._leave(count)
        self.ready += run
        return count

    def collect(self) -> None:
        """What is settled without a gap leaves the hand, and can be written: whole entries."""
        hand, marks, ready = self.hand, self.marks, list[Settled]()
        if not marks:
            return
        for place, delivery in enumerate(hand):
            settled = marks.get(delivery)
            if settled is None:
                break
            if delivery not in self.final:
                if (
                    self.lines and delivery.key in self.lines
                ):  # it may not overtake those before it, whatever has become of it
                    settled = Settlement(delivery, Verdict.RETURN)
                elif isinstance(settled, Settlement) and settled.verdict is Verdict.RETRY:
                    self._begin_line(delivery, settled, place + 1)
                elif isinstance(settled, Settlement) and settled.verdict is Verdict.RETURN:
                    if not (self.leaving and self._inside(place)) and not self._has_handled(place):
                        break
                    self._begin_line(delivery, settled, place + 1)
                if comes_again(settled):
                    self.stopped.discard(delivery.key)  # a line knows by now
            ready.append(settled)
        count = len(ready)
        while count and self._inside(count):  # not all of a packed entry is settled
            count -= 1
            marks[hand[count]] = ready.pop()
            self.final.add(hand[count])
        for delivery in hand[:count]:
            del marks[delivery]
        self.rich = self.rich or bool(ready)
        self.ready += ready
        self._leave(count)

    def _inside(self, count: int) -> bool:
        """Whether the event at this place of the hand shares its entry with the one before."""
        if not 0 < count < len(self.hand) or b"/" not in self.hand[count].token:
            return False
        return self.hand[count].token.partition(b"/")[0] == self.hand[count - 1].token.partition(b"/")[0]

    def _has_handled(self, place: int) -> bool:
        """Whether something behind an event that was returned is settled otherwise, so that it has to be set aside.

        Else, once all behind it are returned, too, they are simply there again to be given out.
        """
        given = [self.marks.get(d) for d in self.hand[place : self.next]]
        if None in given:
            return False
        if any(not (isinstance(s, Settlement) and s.verdict is Verdict.RETURN) for s in given):
            return True
        for at, delivery in enumerate(self.hand[place : self.next], place):
            del self.marks[delivery]
            self.hand[at] = given_anew(delivery)
        self.stopped.clear()
        self._take_back(place)
        return False

    def _begin_line(self, delivery: Delivery, settled: Settlement, after: int) -> None:
        """From here on its key waits: what was read behind it will be set aside, too."""
        key = delivery.key
        self.lines.expect(key, origin_of(delivery), delivery.attempt + (settled.verdict is Verdict.RETRY))
        for place, later in enumerate(self.hand[after:], after):
            if later.key == key and not self._is_going_aside(later):
                self.final.discard(later)
                self._divert(later, given=place < self.next)

    def _is_going_aside(self, delivery: Delivery) -> bool:
        """It was to be set aside before, with a call that failed."""
        return delivery in self.final and comes_again(self.marks.get(delivery))

    def _divert(self, delivery: Delivery, *, given: bool = False) -> None:
        self.lines.expect(delivery.key, origin_of(delivery), delivery.attempt)
        if not given:
            self.marks[delivery] = Settlement(delivery, Verdict.RETURN)

    def _leave(self, count: int) -> None:
        if not count:
            return
        self.collected = self.hand[count - 1].token.partition(b"/")[0]
        del self.hand[:count]
        self.next = max(self.next - count, 0)
        while count and self.runs:
            gone = min(count, self.runs[0])
            count -= gone
            if gone == self.runs[0]:
                self.runs.popleft()
            else:
                self.runs[0] -= gone

    def _take_back(self, place: int) -> None:
        """What was given out from this place of the hand on is not any more."""
        while self.next > place:
            gone = min(self.next - place, self.runs[-1])
            self.next -= gone
            if gone == self.runs[-1]:
                self.runs.pop()
            else:
                self.runs[-1] -= gone

    def asides(self) -> list[tuple[Aside, Settlement]]:
        """How events end that had been set aside, those of a key in their order; none may overtake one that goes on waiting."""
        out: list[tuple[Aside, Settlement]] = []
        waiting: set[bytes | None] = set()
        for aside, settled in sorted(self.aside.items(), key=lambda pair: pair[0].place):
            one = settled if isinstance(settled, Settlement) else Settlement(settled)
            if aside.key in waiting:
                one = Settlement(one.delivery, Verdict.RETURN)
            elif comes_again(one):
                waiting.add(aside.key)
            out.append((aside, one))
        return out

    def written(self, settled: Sequence[Settled], asides: Sequence[tuple[Aside, Settlement]]) -> None:
        """These are written now."""
        for one in settled:
            delivery_of(one).batch = None
        if self.final:
            self.final.difference_update([delivery_of(one) for one in settled])
        for aside, one in asides:
            del self.aside[aside]
            one.delivery.batch = None
            self.out -= 1
            if one.verdict is Verdict.RETURN:
                self.lines.returned(aside)
            else:
                self.lines.settled(aside, one.delivery.attempt + 1 if one.verdict is Verdict.RETRY else None)

    def restore(self, settled: Sequence[Settled]) -> None:
        """These were collected, but could not be written; what became ready meanwhile stands behind them."""
        settled = [*settled, *self.ready]
        self.ready = []
        back = [delivery_of(s) for s in settled]
        self.hand[:0] = back
        self.marks.update(zip(back, settled, strict=True))
        self.final.update(back)
        self.next += len(back)
        if back:
            self.runs.appendleft(len(back))

    # Leaving

    def rewind(self, delivery: Delivery) -> None:
        """This event and all behind it are forgotten and will be read again; what workers still do with them does not count."""
        place = self.hand.index(delivery)
        while self._inside(place):
            place -= 1
        for later in self.hand[place:]:
            later.batch = None
            self.marks.pop(later, None)
            self.final.discard(later)
        self._take_back(place)
        del self.hand[place:]
        self.stopped = {delivery.key for delivery, one in self.marks.items() if comes_again(one)}
        self.position = self.hand[-1].token.partition(b"/")[0] if self.hand else self.collected

    def return_rest(self) -> None:
        """What is not settled by now is not going to be."""
        self.leave()
        for delivery in self.hand:
            self.marks.setdefault(delivery, Settlement(delivery, Verdict.RETURN))

    def drop(self) -> list[Settled]:
        """The partition is lost; returns what was given to commit and is not written."""
        unwritten = [*self.ready, *self.marks.values(), *self.aside.values()]
        self.ready, self.aside = [], {}
        self.marks.clear()
        self._empty.set()
        return unwritten

    def look_empty(self) -> None:
        """Everything that could be written is written."""
        if not self.next and not self.out:
            self._empty.set()

    async def emptied(self) -> None:
        """Waits until nothing of it is in anybody's hands, or it is lost."""
        while not self.lost and (self.next or self.out or self.ready or self.aside or self.flushing.locked()):
            self._empty.clear()
            await self._empty.wait()


def given_anew(delivery: Delivery) -> Delivery:
    """The same event, to be given out again; should the result of its last giving out be told again, it is not this one's."""
    own, delivery.batch = delivery.batch, None
    return Delivery(delivery.token, delivery.fields, own, delivery.attempt)


def origin_of(delivery: Delivery) -> bytes:
    """Where an event stood in its partition, as a copy of it says."""
    return delivery.get(b"origin") or delivery.token

"""Order per key inside a worker: which keys are at work, what waits behind them, and which must not go on."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence

from headrace.backends.contract import Delivery, Settled, Settlement, Verdict, delivery_of
from headrace.runtime.work import Work

Key = bytes | None


class Order:
    """The keys of one ordered group in one worker."""

    def __init__(self) -> None:
        """Nothing is at work."""
        self.at_work: dict[Key, deque[tuple[Work, Delivery]] | None] = {}
        """Keys that a lane has in hand, and what waits behind each."""
        self.stopped: dict[Key, float] = {}
        """Keys with an event that is to be handled again, and until which read they were given out before it: those go back unhandled."""

    def wait(self, key: Key, work: Work, delivery: Delivery) -> None:
        """The key is at work: the lane that has it goes on with this one."""
        waiting = self.at_work[key]
        if waiting is None:
            self.at_work[key] = deque(((work, delivery),))
        else:
            waiting.append((work, delivery))

    def waiting(self) -> Iterator[tuple[Work, Delivery]]:
        """Takes out everything that waits."""
        for key, waiting in self.at_work.items():
            if waiting:
                self.at_work[key] = None
                yield from waiting

    def end(self, key: Key) -> Sequence[tuple[Work, Delivery]]:
        """No lane has this key any more; returns what waited behind it."""
        return self.at_work.pop(key, None) or ()

    def goes_back(self, key: Key, work: Work) -> bool:
        """Whether an event of this read stands behind one that is to be handled again."""
        until = self.stopped.get(key)
        if until is None:
            return False
        if work.number <= until:
            return True
        del self.stopped[key]
        return False

    def look(self, settled: Settled) -> None:
        """Stops the key of an event that is to be handled again. The feed does not know yet."""
        if isinstance(settled, Settlement) and settled.verdict in (Verdict.RETRY, Verdict.RETURN):
            self.stopped[settled.delivery.key] = math.inf

    def told(self, settled: Sequence[Settled], number: int) -> None:
        """The feed is being told: what it gives out from now on, in reads after this one, comes in order again."""
        for one in settled:
            if isinstance(one, Settlement) and one.verdict in (Verdict.RETRY, Verdict.RETURN):
                self.stopped[one.delivery.key] = number

    def in_sequence(self, deliveries: Sequence[Delivery], settled: Sequence[Settled]) -> list[Settled]:
        """The settlements of one call of a batch handler; what stands behind a failed event of its key goes back."""
        by_delivery = {id(delivery_of(s)): s for s in settled}
        out: list[Settled] = []
        failed: set[Key] = set()
        for delivery in deliveries:
            one = by_delivery[id(delivery)]
            if delivery.key in failed:
                one = Settlement(delivery, Verdict.RETURN)
            elif isinstance(one, Settlement) and one.verdict in (Verdict.RETRY, Verdict.RETURN):
                failed.add(delivery.key)
            out.append(one)
        return out

"""What one read brought, and who works on it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

from headrace.backends.contract import Delivery, Settled

Key = bytes | None


class Work:
    """What one read brought."""

    __slots__ = ("back", "began", "number", "settled", "timer", "total", "unstarted", "waiting")

    def __init__(self, deliveries: Sequence[Delivery], number: int, *, batched: bool = False) -> None:
        """`number`: of the read, from 1. `batched`: whether anything may be put into `back`."""
        self.number = number
        self.back: Delivery | None = None
        """The delivery that `unstarted` gave out last, if it shall give it out once more."""
        self.unstarted = self._each(deliveries) if batched else iter(deliveries)
        self.total = self.waiting = len(deliveries)
        """`waiting`: how many are not settled yet."""
        self.settled: list[Settled] = []
        self.timer: asyncio.TimerHandle | None = None
        self.began = 0.0

    def _each(self, deliveries: Sequence[Delivery]) -> Iterator[Delivery]:
        for delivery in deliveries:
            yield delivery
            while (back := self.back) is not None:
                self.back = None
                yield back


class Lane:
    """One handler at a time."""

    __slots__ = ("abandoned", "cancelled_at", "deliveries", "keys", "started", "task", "work")

    def __init__(self) -> None:
        """Idle; `task` is set by whoever runs it."""
        self.task: asyncio.Task[None]
        self.deliveries: Sequence[Delivery] = ()
        """What its handler is at work on; only then may it be cancelled."""
        self.work: Work | None = None
        self.keys: dict[Key, None] = {}
        """Ordered batches: all keys that it has in hand, those of `deliveries` included."""
        self.started = 0.0
        self.cancelled_at = 0.0
        self.abandoned = False

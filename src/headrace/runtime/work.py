"""What one read brought, and who works on it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

from headrace.backends.contract import Delivery, Settled


class Work:
    """What one read brought."""

    __slots__ = ("began", "number", "settled", "timer", "total", "unstarted", "waiting")

    def __init__(self, deliveries: Sequence[Delivery], number: int) -> None:
        """`number`: of the read, from 1."""
        self.number = number
        self.unstarted: Iterator[Delivery] = iter(deliveries)
        self.total = self.waiting = len(deliveries)
        """`waiting`: how many are not settled yet."""
        self.settled: list[Settled] = []
        self.timer: asyncio.TimerHandle | None = None
        self.began = 0.0


class Lane:
    """One handler at a time."""

    __slots__ = ("abandoned", "cancelled_at", "deliveries", "started", "task", "work")

    def __init__(self) -> None:
        """Idle; `task` is set by whoever runs it."""
        self.task: asyncio.Task[None]
        self.deliveries: Sequence[Delivery] = ()
        """What its handler is at work on; only then may it be cancelled."""
        self.work: Work | None = None
        self.started = 0.0
        self.cancelled_at = 0.0
        self.abandoned = False

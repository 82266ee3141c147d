"""Deadlines of handlers: those over their time are cancelled, those that ignore it are given up, and those that block the loop are named."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection

from headrace import limits
from headrace.observe import Observer
from headrace.runtime.execute import DEADLINE, Executor
from headrace.runtime.work import Lane

log = logging.getLogger("headrace")


async def watch(
    lanes: Collection[Lane], executor: Executor, observer: Observer, give_up: Callable[[Lane, Exception], None]
) -> None:
    """Watches the lanes of one group, which come and go, until it is cancelled. `give_up` is told why a lane is left alone."""
    loop = asyncio.get_running_loop()
    timeout_s = executor.timeout_s
    tick_s = min(max((timeout_s or 10.0) / 10, 0.01), 0.5)
    while True:
        before, at_work = loop.time(), any(lane.deliveries for lane in lanes)
        await asyncio.sleep(tick_s)
        now = loop.time()
        at_work = at_work or any(lane.deliveries or lane.started >= before for lane in lanes)
        if at_work and now - before > tick_s + 1.0:
            observer.blocked(executor.topic, executor.group, executor.name, now - before - tick_s)
        if timeout_s is None:
            continue
        for lane in list(lanes):
            if lane.cancelled_at and lane.started > lane.cancelled_at and lane.task.cancelling():
                lane.task.uncancel()  # its handler swallowed the cancellation and ended; the next one must not feel it
            if lane.deliveries and now - lane.started > timeout_s:
                _overdue(lane, now, executor, give_up)


def _overdue(lane: Lane, now: float, executor: Executor, give_up: Callable[[Lane, Exception], None]) -> None:
    if lane.cancelled_at < lane.started:
        lane.cancelled_at = now
        lane.task.cancel(DEADLINE)
    elif now - lane.cancelled_at > limits.abandon_s:
        log.error(
            "handler %s ignores its cancellation and is left alone; its event is settled as failed", executor.name
        )
        give_up(lane, TimeoutError(f"the handler ran longer than {executor.timeout_s} s and ignored its cancellation"))

"""A worker's heartbeat in shared mode: renews its lease by the server's clock, appends what is due, notices the dead, trims.

One script call each third of a lease, and one more at each moment that is known to be the due time of a delayed record. Whoever
writes a delayed record knows that moment; everyone else learns it from the answers. An idle worker costs about 1.5 commands a second.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from headrace import limits
from headrace.backends.contract import Subscription
from headrace.backends.redis import keys, retention
from headrace.backends.redis.client import Client
from headrace.backends.redis.replies import ServerSaid
from headrace.backoff import Backoff
from headrace.errors import BackendError

log = logging.getLogger("headrace.redis")
_TRIM_MOST = 100_000
"""Entries trimmed in one call: some milliseconds of the server's time."""
_SWEEP_S = 60.0
"""How often a worker looks for consumers that never had a lease, and at those of its own that it does not use any more."""


class Looker(Protocol):
    """What presence tells the feed."""

    @property
    def committed(self) -> int:
        """Entries settled so far."""

    def look_around(self) -> None:
        """There may be something to take over."""

    def sweep(self) -> None:
        """It is time to look for what nobody has told us of."""

    def abandon(self) -> None:
        """The lease is not renewed any more."""


class Presence:
    """Keeps one worker alive in one group."""

    def __init__(self, client: Client, subscription: Subscription, stream: str, feed: Looker) -> None:
        """Does nothing before `start`."""
        self._client = client
        self._sub = subscription
        self._stream = stream
        self._feed = feed
        own, group = keys.partition(stream), keys.group(stream, subscription.group)
        self._keys = (own.stream, own.delayed, group.retry, group.delayed, group.workers)
        self._record = group.record
        self._loop = asyncio.get_running_loop()
        self._next = self._renewed = 0.0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._trimmed = 0

    def start(self) -> None:
        """Begins; the lease was taken by join."""
        self._renewed = self._loop.time()
        self._next = self._renewed + self._interval
        self._task = asyncio.ensure_future(self._live())
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (bug := task.exception()) is not None:
            log.critical(
                "the heartbeat failed in an unforeseen way; others take over when the lease ends", exc_info=bug
            )
            self._feed.abandon()

    def stop(self) -> None:
        """Ends; the lease is not given up here."""
        if self._task is not None:
            self._task.cancel()

    def due_in(self, delay_s: float) -> None:
        """Something is due in this time: call then."""
        when = self._loop.time() + delay_s + 0.001
        if when < self._next:
            self._next = when
            self._wake.set()

    @property
    def _interval(self) -> float:
        return self._sub.lease_s / limits.renewals_per_lease

    async def _live(self) -> None:
        backoff = Backoff(f"heartbeat of group {self._sub.group} on {self._stream}")
        swept = self._loop.time()
        while True:
            try:
                async with asyncio.timeout(max(self._next - self._loop.time(), 0.001)):
                    await self._wake.wait()
            except TimeoutError:
                pass  # the usual case: it is time
            else:
                self._wake.clear()
                continue
            started = self._loop.time()
            self._next = started + self._interval
            try:
                await self._beat(started)
                if started - swept > _SWEEP_S:
                    swept = started
                    self._feed.sweep()
            except ServerSaid as e:
                log.error("heartbeat of group %s on %s: %s", self._sub.group, self._stream, e)
            except BackendError as e:
                self._next = started
                await backoff.wait(e)
                continue
            backoff.over()

    async def _beat(self, started: float) -> None:
        next_ms, lost, lease_ms = await self._client.call(
            "tend", self._keys, self._sub.consumer, int(self._sub.lease_s * 1000), limits.batch_records_max
        )
        silent_s, self._renewed = started - self._renewed, started
        if silent_s > self._sub.lease_s or lost:
            log.warning(
                "%s, group %s: this worker was silent for %.1f s, longer than its lease of %.0f s (a handler that blocks the event "
                "loop, or a paused process); others may have taken over its events, then its own results for them are dropped",
                self._stream,
                self._sub.group,
                silent_s,
                self._sub.lease_s,
            )
        if lease_ms < 0 or lost:
            self._feed.look_around()  # lost: others took over, or all was deleted, which a blocked read may not notice (Valkey)
        else:
            self.due_in(lease_ms / 1000)  # a live worker renews long before; for a dead one this is the moment
        if next_ms >= 0:
            self.due_in(next_ms / 1000)
        if self._feed.committed != self._trimmed:
            self._trimmed = self._feed.committed
            while await retention.trim(self._client, self._sub.route, self._stream, self._record, _TRIM_MOST):
                pass

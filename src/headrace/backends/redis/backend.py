"""Redis or Valkey, one server, as a Backend."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from headrace import limits
from headrace.backends.contract import Features, Feed, Record, Route, Subscription
from headrace.backends.effects import EFFECTS
from headrace.backends.redis import durability, keys
from headrace.backends.redis.client import Client, Script
from headrace.backends.redis.publish import Publisher
from headrace.backends.redis.shared import SharedFeed
from headrace.errors import BackendError, Closed
from headrace.settings import Settings

log = logging.getLogger("headrace.redis")


class RedisBackend:
    """Implements contract.Backend."""

    features = Features(name="redis", effects=frozenset(EFFECTS))

    def __init__(self, settings: Settings, scripts: dict[str, Script] | None = None) -> None:
        """Call `open` before use."""
        self.client = Client(settings, scripts)
        self._publishers: dict[str, Publisher] = {}
        self._feeds: list[SharedFeed] = []
        self._timers: set[asyncio.TimerHandle] = set()
        self._promotions: set[asyncio.Task[None]] = set()
        self._closed = False

    async def open(self) -> None:
        """Connects and passes the durability gate. Raises NotConnected, Refused, DurabilityError."""
        try:
            report = await durability.examine(self.client, self.client.settings)
            durability.enforce(report)
        except BaseException:
            await self.client.aclose()
            raise
        for finding in report.findings:
            if not finding.ok:
                log.debug("%s: found %s, wanted %s. %s", finding.name, finding.found, finding.wanted, finding.fix)

    async def publish(self, route: Route, records: Sequence[Record]) -> None:
        """See contract.Backend."""
        if self._closed:
            raise Closed("the app was closed")
        publisher = self._publishers.get(route.topic)
        if publisher is None:
            publisher = self._publishers[route.topic] = Publisher(self.client, route)
        await publisher.publish(records)
        await self.client.register(route.topic, route.partitions)
        for record in records:
            if record.delay_ms or record.at_ms:
                self._append_when_due(route.topic, record)

    def _append_when_due(self, topic: str, record: Record) -> None:
        """A record that is due before the workers' next heartbeats is appended by its publisher, if that is still there."""
        delay_s = record.at_ms / 1000 - time.time() if record.at_ms else record.delay_ms / 1000
        if (
            delay_s > 2 * limits.lease_s / limits.renewals_per_lease
            or len(self._timers) >= limits.publish_buffer_records_max
        ):
            return

        def fire() -> None:
            self._timers.discard(timer)
            task = asyncio.ensure_future(self._promote(topic))
            self._promotions.add(task)
            task.add_done_callback(self._promotions.discard)

        timer = asyncio.get_running_loop().call_later(max(delay_s, 0.0) + 0.001, fire)
        self._timers.add(timer)

    async def _promote(self, topic: str) -> None:
        own = keys.partition(topic)
        try:
            await self.client.call("tend", (own.stream, own.delayed), b"", 0, limits.batch_records_max)
        except BackendError as e:
            log.debug("appending delayed records of %s: %s; a worker does it with its next heartbeat", topic, e)

    async def subscribe(self, subscription: Subscription) -> Feed:
        """See contract.Backend."""
        if self._closed:
            raise Closed("the app was closed")
        feed = SharedFeed(self.client, subscription)
        await feed.join()
        self._feeds.append(feed)
        return feed

    async def aclose(self) -> None:
        """See contract.Backend."""
        self._closed = True
        for timer in self._timers:
            timer.cancel()
        await asyncio.gather(*(feed.aclose() for feed in self._feeds))
        for publisher in self._publishers.values():
            publisher.close()
        await self.client.aclose()

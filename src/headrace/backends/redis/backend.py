"""Redis or Valkey as a Backend: one server, a primary behind sentinels, or a Cluster."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from headrace import limits
from headrace.backends.contract import Features, Feed, Record, Route, Subscription
from headrace.backends.effects import EFFECTS
from headrace.backends.partition import partition_of, streams
from headrace.backends.redis import durability, keys
from headrace.backends.redis.client import Client
from headrace.backends.redis.fan_in import FanIn
from headrace.backends.redis.node import Script
from headrace.backends.redis.ordered import OrderedFeed
from headrace.backends.redis.publish import Publisher
from headrace.backends.redis.shared import SharedFeed
from headrace.backoff import Backoff
from headrace.errors import BackendError, Closed, NotConnected, Overloaded
from headrace.settings import Settings

log = logging.getLogger("headrace.redis")


class RedisBackend:
    """Implements contract.Backend."""

    features = Features(name="redis", effects=frozenset(EFFECTS), ordered=True)

    def __init__(self, settings: Settings, scripts: dict[str, Script] | None = None) -> None:
        """Call `open` before use."""
        self.client = Client(settings, scripts)
        self._publishers: dict[str, Publisher] = {}
        """By partition."""
        self._spread = 0
        """Where the next events without a key go."""
        self._feeds: list[OrderedFeed | SharedFeed | FanIn] = []
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
        if not records:
            return
        if not self.client.is_registered(route.topic, route.partitions):
            await self._register(route)
        if route.partitions == 1:
            await self._publisher(route, route.topic).publish(records)
            delayed = [(route.topic, r) for r in records if r.delay_ms or r.at_ms]
        else:
            by_stream = self._split(route, records)
            if len(by_stream) == 1:
                stream, own = by_stream.popitem()
                await self._publisher(route, stream).publish(own)
                by_stream[stream] = own
            else:
                sent = [self._publisher(route, stream).publish(own) for stream, own in by_stream.items()]
                await asyncio.gather(*sent, return_exceptions=True)
                for one in sent:
                    one.result()
            delayed = [(stream, r) for stream, own in by_stream.items() for r in own if r.delay_ms or r.at_ms]
        for stream, record in delayed:
            self._append_when_due(stream, record)

    async def _register(self, route: Route) -> None:
        """As patient as publishing is: the server may be absent for a while."""
        deadline = time.monotonic() + self.client.settings.publish_wait_s
        backoff = Backoff(f"publishing to {route.topic}")
        while True:
            try:
                await self.client.register(route.topic, route.partitions)
            except (NotConnected, Overloaded) as e:
                if self._closed:
                    raise Closed("the app was closed before this event was sent") from None
                if time.monotonic() > deadline:
                    raise
                await backoff.wait(e)
            else:
                return

    def _publisher(self, route: Route, stream: str) -> Publisher:
        publisher = self._publishers.get(stream)
        if publisher is None:
            publisher = self._publishers[stream] = Publisher(self.client, route, stream)
        return publisher

    def _split(self, route: Route, records: Sequence[Record]) -> dict[str, list[Record]]:
        """The records by partition; those without a key all go to the same one, each call to the next."""
        topic, partitions = route.topic, route.partitions
        self._spread = (self._spread + 1) % partitions
        by_number: dict[int, list[Record]] = {}
        for record in records:
            key = record.key or record.id
            number = self._spread if key is None else partition_of(key, partitions)
            own = by_number.get(number)
            if own is None:
                by_number[number] = [record]
            else:
                own.append(record)
        return {f"{topic}.{number}": own for number, own in by_number.items()}

    def _append_when_due(self, stream: str, record: Record) -> None:
        """A record that is due before the workers' next heartbeats is appended by its publisher, if that is still there."""
        delay_s = record.at_ms / 1000 - time.time() if record.at_ms else record.delay_ms / 1000
        if (
            delay_s > 2 * limits.lease_s / limits.renewals_per_lease
            or len(self._timers) >= limits.publish_buffer_records_max
        ):
            return

        def fire() -> None:
            self._timers.discard(timer)
            task = asyncio.ensure_future(self._promote(stream))
            self._promotions.add(task)
            task.add_done_callback(self._promotions.discard)

        timer = asyncio.get_running_loop().call_later(max(delay_s, 0.0) + 0.001, fire)
        self._timers.add(timer)

    async def _promote(self, stream: str) -> None:
        own = keys.partition(stream)
        try:
            await self.client.call("tend", (own.stream, own.delayed), b"", 0, limits.batch_records_max)
        except BackendError as e:
            log.debug("appending delayed records of %s: %s; a worker does it with its next heartbeat", stream, e)

    async def subscribe(self, subscription: Subscription) -> Feed:
        """See contract.Backend."""
        if self._closed:
            raise Closed("the app was closed")
        route = subscription.route
        await self.client.register(route.topic, route.partitions)
        feed: OrderedFeed | SharedFeed | FanIn
        if subscription.ordered:
            feed = OrderedFeed(self.client, subscription, self.publish)
        elif route.partitions == 1:
            feed = SharedFeed(self.client, subscription, route.topic, self.publish)
        else:
            names = streams(route.topic, route.partitions)
            feed = FanIn({s: SharedFeed(self.client, subscription, s, self.publish) for s in names}, subscription.group)
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

"""Redis or Valkey as a Backend: one server, a primary behind sentinels, or a Cluster."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from typing import Final

from headrace import limits
from headrace.backends.contract import Features, Feed, Record, Route, Subscription
from headrace.backends.effects import EFFECTS
from headrace.backends.partition import partition_of, streams
from headrace.backends.redis import durability, keys
from headrace.backends.redis.client import Client
from headrace.backends.redis.connection import pack
from headrace.backends.redis.fan_in import FanIn
from headrace.backends.redis.node import Script
from headrace.backends.redis.ordered import OrderedFeed
from headrace.backends.redis.publish import Publisher, Sent, kind
from headrace.backends.redis.shared import SharedFeed
from headrace.backoff import Backoff
from headrace.errors import BackendError, Closed, NotConnected, Overloaded
from headrace.settings import Settings

log = logging.getLogger("headrace.redis")
_MOMENT_S: Final = 0.01
"""Delayed records that are due within it are appended by one call, at its end."""


class RedisBackend:
    """Implements contract.Backend."""

    features = Features(name="redis", effects=frozenset(EFFECTS), ordered=True)

    def __init__(self, settings: Settings, scripts: dict[str, Script] | None = None) -> None:
        """Call `open` before use."""
        self.client = Client(settings, scripts)
        self._publishers: dict[tuple[str, int], Publisher] = {}
        """By partition, and how many there were when it was first published to."""
        self._counts: dict[str, int] = {}
        """How many partitions a topic had when it was first published to: publishers of the time before lead on to the present ones."""
        self._spread = 0
        """Where the next events without a key go."""
        self._feeds: list[OrderedFeed | SharedFeed | FanIn] = []
        self._timers: dict[tuple[str, int], asyncio.TimerHandle] = {}
        self._promotions: set[asyncio.Task[None]] = set()
        self._entrance = asyncio.Lock()
        self._entering = 0
        """Calls that wait until their topic is registered, in their order."""
        self._absent: BackendError | None = None
        """Why the last of them gave up, if none has come through since."""
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
        if self._entering or not self.client.is_registered(route):
            sent = await self._enter(route, records)
        else:
            sent = self._set_out(route, records)
        await sent
        for record in [r for r in records if r.delay_ms or r.at_ms]:
            self._append_when_due(self._home(route, record), record)

    async def _enter(self, route: Route, records: Sequence[Record]) -> Sent:
        """The first calls of a topic wait until it is registered, and then set out in the order in which they came."""
        self._entering += 1
        deadline = time.monotonic() + self.client.settings.publish_wait_s
        try:
            async with self._entrance:  # first come, first served
                if not self.client.is_registered(route):
                    if self._absent is not None and time.monotonic() > deadline:
                        raise type(self._absent)(str(self._absent))  # it would wait again for the same
                    try:
                        await self._register(route, deadline)
                    except (NotConnected, Overloaded) as e:
                        self._absent = kind(e)(str(e))
                        raise
                    self._absent = None
                return self._set_out(route, records)
        finally:
            self._entering -= 1

    def _set_out(self, route: Route, records: Sequence[Record]) -> Sent:
        count = self._counts.get(route.topic)
        if count is None:
            count = self._counts[route.topic] = self.client.count(route)
        return self._send(route, count, records)

    def _send(self, route: Route, count: int, records: Sequence[Record]) -> Sent:
        """Sets them out to their partitions, of `count`, in this moment; done when all are durable."""
        if count == 1:
            return self._publisher(route, route.topic, 1).publish(records)
        by_number = self._split(count, records)
        sent = [self._publisher(route, f"{route.topic}.{n}", count).publish(own) for n, own in by_number.items()]
        return sent[0] if len(sent) == 1 else asyncio.ensure_future(_all(sent))

    async def _register(self, route: Route, deadline: float) -> None:
        """As patient as publishing is: the server may be absent for a while."""
        backoff = Backoff(f"publishing to {route.topic}")
        while True:
            try:
                await self.client.register(route)
            except (NotConnected, Overloaded) as e:
                if self._closed:
                    raise Closed("the app was closed before this event was sent") from None
                if time.monotonic() > deadline:
                    raise
                await backoff.wait(e)
            else:
                return

    def _publisher(self, route: Route, stream: str, count: int) -> Publisher:
        publisher = self._publishers.get((stream, count))
        if publisher is None:

            def onward(more: int, records: Sequence[Record]) -> Sent:
                return self._send(route, more, records)

            publisher = self._publishers[stream, count] = Publisher(self.client, route, stream, count, onward)
        return publisher

    def _split(self, count: int, records: Sequence[Record]) -> dict[int, list[Record]]:
        """The records by number of their partition; those without a key all go to the same one, each call to the next."""
        self._spread = (self._spread + 1) % count
        by_number: dict[int, list[Record]] = {}
        for record in records:
            key = record.place
            number = self._spread if key is None else partition_of(key, count)
            own = by_number.get(number)
            if own is None:
                by_number[number] = [record]
            else:
                own.append(record)
        return by_number

    def _home(self, route: Route, record: Record) -> str:
        """Where a record went that was published before; for one without a key, a guess: whoever has the partition appends it in time."""
        count = self._counts[route.topic]
        while True:
            if count == 1:
                return route.topic
            stream = f"{route.topic}.{partition_of(record.place or b'', count)}"
            publisher = self._publishers.get((stream, count))
            if publisher is None or not publisher.grown:
                return stream
            count = publisher.grown

    def _append_when_due(self, stream: str, record: Record) -> None:
        """A record that is due before the workers' next heartbeats is appended by its publisher, if that is still there."""
        delay_s = record.at_ms / 1000 - time.time() if record.at_ms else record.delay_ms / 1000
        if (
            delay_s > 2 * limits.lease_s / limits.renewals_per_lease
            or len(self._timers) >= limits.publish_buffer_records_max
        ):
            return

        loop = asyncio.get_running_loop()
        due = (
            stream,
            math.ceil((loop.time() + max(delay_s, 0.0)) / _MOMENT_S),
        )  # one call for all that are due in this moment
        if due in self._timers:
            return

        def fire() -> None:
            del self._timers[due]
            task = asyncio.ensure_future(self._promote(stream))
            self._promotions.add(task)
            task.add_done_callback(self._promotions.discard)

        self._timers[due] = loop.call_at(due[1] * _MOMENT_S, fire)

    async def _promote(self, stream: str) -> None:
        own, next_ms = keys.partition(stream), 0
        try:
            while next_ms == 0:  # more are due than one call appends
                next_ms, _, _ = await self.client.call(
                    "tend", (own.stream, own.delayed), b"", 0, limits.batch_records_max
                )
        except BackendError as e:
            log.debug("appending delayed records of %s: %s; a worker does it with its next heartbeat", stream, e)

    async def reach(self, route: Route) -> None:
        """See once/relay.py: every server that has a partition of the topic answers now."""
        if self._closed:
            raise Closed("the app was closed")
        names = streams(route.topic, self.client.count(route))
        wires = {await self.client.wire(keys.partition(name).stream) for name in names}
        await asyncio.gather(*(wire.send(pack(("PING",))) for wire in wires))

    async def subscribe(self, subscription: Subscription) -> Feed:
        """See contract.Backend."""
        if self._closed:
            raise Closed("the app was closed")
        route = subscription.route
        await self.client.register(route)
        feed: OrderedFeed | SharedFeed | FanIn
        if subscription.ordered:
            feed = OrderedFeed(self.client, subscription, self.publish)
        elif route.partitions == 1:
            feed = SharedFeed(self.client, subscription, route.topic, self.publish)
        else:
            feed = FanIn(self.client, subscription, self.publish)
        await feed.join()
        self._feeds.append(feed)
        return feed

    async def aclose(self) -> None:
        """See contract.Backend."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        await asyncio.gather(*(feed.aclose() for feed in self._feeds))
        for publisher in self._publishers.values():
            publisher.close()
        await self.client.aclose()


async def _all(sent: Sequence[Sent]) -> None:
    await asyncio.gather(*sent, return_exceptions=True)
    for one in sent:
        one.result()

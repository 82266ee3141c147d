"""A shared group on a topic of several partitions: one feed for each, taken from in turn."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from msgspec import structs

from headrace import limits
from headrace.backends.contract import (
    Delivery,
    Record,
    Route,
    Settled,
    Subscription,
    Unsettled,
    delivery_of,
)
from headrace.backends.partition import streams
from headrace.backends.redis.client import Client
from headrace.backends.redis.shared import SharedFeed
from headrace.backends.redis.slots import Hold, Pack
from headrace.errors import Closed


class FanIn:
    """Implements contract.Feed over the feeds of the partitions."""

    def __init__(
        self,
        client: Client,
        subscription: Subscription,
        publish: Callable[[Route, Sequence[Record]], Awaitable[None]],
    ) -> None:
        """Call `join` before use. `publish`: for outputs that live on other servers."""
        self._client, self._sub, self._publish = client, subscription, publish
        self._group = subscription.group
        self._loop = asyncio.get_running_loop()
        self._feeds: dict[str, SharedFeed] = {}
        self._by_stream: dict[bytes, SharedFeed] = {}
        self._takes: dict[SharedFeed, asyncio.Task[Sequence[Delivery]]] = {}
        self._counted = 0.0
        """When the partitions were counted last."""
        self._closed: Closed | None = None

    async def join(self) -> None:
        """Joins every partition. Raises NotConnected, Refused."""
        try:
            await self._join(self._client.count(self._sub.route))
        except BaseException:
            await self.aclose()
            raise

    async def _join(self, count: int) -> None:
        """Joins those that are not joined yet. What the topic has got since this began is read from its first event on."""
        self._counted = self._loop.time()
        subscription = structs.replace(self._sub, start="earliest") if self._feeds else self._sub
        new = {
            stream: SharedFeed(self._client, subscription, stream, self._publish)
            for stream in streams(self._sub.route.topic, count)
            if stream not in self._feeds
        }
        ended = await asyncio.gather(*(feed.join() for feed in new.values()), return_exceptions=True)
        for (stream, feed), error in zip(new.items(), ended, strict=True):
            if error is None:
                self._feeds[stream] = feed
                self._by_stream.update(dict.fromkeys(feed.streams, feed))
        for error in ended:
            if error is not None:
                raise error

    async def _look(self) -> None:
        """The topic may have got more partitions. Raises as joining does; then it is tried again with the next take."""
        if self._loop.time() - self._counted > self._sub.lease_s / limits.renewals_per_lease:
            await self._join(await self._client.recount(self._sub.route.topic))

    async def take(self, limit: int, wait_s: float) -> Sequence[Delivery]:
        """See contract.Feed. What a partition brings beyond `limit` is given out next."""
        if self._closed is not None:
            raise self._closed
        await self._look()
        share = max(limit // len(self._feeds), 1)
        for feed in self._feeds.values():
            if feed not in self._takes:
                self._takes[feed] = asyncio.ensure_future(feed.take(share, wait_s))
        if wait_s > 0:
            await asyncio.wait(self._takes.values(), timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.wait(self._takes.values())
        given: list[Delivery] = []
        for feed, task in list(self._takes.items()):
            if not task.done() or len(given) + share > max(limit, share):
                continue
            if given and task.exception() is not None:
                continue  # raised by the next call: what the others brought is not to be lost with it
            del self._takes[feed]
            given += task.result()
        return given

    async def commit(self, settled: Sequence[Settled]) -> Sequence[Unsettled]:
        """See contract.Feed."""
        if self._closed is not None:
            raise self._closed
        by_feed: dict[SharedFeed, list[Settled]] = {}
        unsettled: list[Unsettled] = []
        for one in settled:
            own = delivery_of(one).batch
            hold: Hold | None = own.hold if isinstance(own, Pack) else own
            if hold is None:
                unsettled.append(Unsettled(one))
            else:
                by_feed.setdefault(self._by_stream[hold.stream], []).append(one)
        ended = await asyncio.gather(*(f.commit(own) for f, own in by_feed.items()), return_exceptions=True)
        for one_ended in ended:
            if isinstance(one_ended, BaseException):
                raise one_ended  # what the others have settled is settled; a repeated call leaves it so
            unsettled += one_ended
        return unsettled

    async def aclose(self) -> None:
        """See contract.Feed."""
        if self._closed is not None:
            return
        self._closed = Closed(f"the feed of group {self._group} was closed")
        await asyncio.gather(*(feed.aclose() for feed in self._feeds.values()))
        await asyncio.gather(*self._takes.values(), return_exceptions=True)

    def abandon(self) -> None:
        """Dies like a killed process. For tests."""
        self._closed = Closed("the feed was abandoned")
        for feed in self._feeds.values():
            feed.abandon()

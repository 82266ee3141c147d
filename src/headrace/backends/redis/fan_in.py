"""A shared group on a topic of several partitions: one feed for each, taken from in turn."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from headrace.backends.contract import Delivery, Settled, Unsettled, delivery_of
from headrace.backends.redis.shared import SharedFeed
from headrace.backends.redis.slots import Hold, Pack
from headrace.errors import Closed


class FanIn:
    """Implements contract.Feed over the feeds of the partitions."""

    def __init__(self, feeds: Mapping[str, SharedFeed], group: str) -> None:
        """`feeds`: by partition. Call `join` before use."""
        self._feeds = feeds
        self._group = group
        self._of = {hold: feed for feed in feeds.values() for hold in feed.streams}
        self._takes: dict[SharedFeed, asyncio.Task[Sequence[Delivery]]] = {}
        self._closed: Closed | None = None

    async def join(self) -> None:
        """Joins every partition. Raises NotConnected, Refused."""
        try:
            await asyncio.gather(*(feed.join() for feed in self._feeds.values()))
        except BaseException:
            await self.aclose()
            raise

    async def take(self, limit: int, wait_s: float) -> Sequence[Delivery]:
        """See contract.Feed. What a partition brings beyond `limit` is given out next."""
        if self._closed is not None:
            raise self._closed
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
            if task.done() and len(given) + share <= max(limit, share):
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
                by_feed.setdefault(self._of[hold.stream], []).append(one)
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

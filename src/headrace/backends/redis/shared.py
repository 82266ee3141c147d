"""Shared mode: a consumer group whose ack is the commit.

Each read buffer ("slot") has its own consumer name, `worker/slot`, and is read again only when all it held is settled. So the pending
count of the name proves to scripts/commit.lua that everything the client holds is still its own, with one question for a whole batch.
A read whose answer was lost leaves its entries under a name that we hold nothing of; they are claimed back from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final

from headrace import limits
from headrace.backends.contract import Delivery, Settled, Settlement, Subscription, Unsettled, Verdict
from headrace.backends.redis import keys, takeover
from headrace.backends.redis.client import Client
from headrace.backends.redis.committer import Committer, Publish
from headrace.backends.redis.connection import Wire, pack
from headrace.backends.redis.joining import join
from headrace.backends.redis.presence import Presence
from headrace.backends.redis.replies import ServerSaid
from headrace.backends.redis.slots import Slot
from headrace.errors import BackendError, Closed, NotConnected

log = logging.getLogger("headrace.redis")
_SAMPLE: Final = 8
"""Every so manieth entry of a read is measured, to judge how many make `read_bytes`."""


class SharedFeed:
    """A worker's place in a consumer group of one partition; implements contract.Feed."""

    def __init__(self, client: Client, subscription: Subscription, stream: str, publish: Publish) -> None:
        """Call `join` before use. `stream`: the partition; `publish`: for outputs that live on other servers."""
        self._client = client
        self._sub = subscription
        self._stream, self._group = stream, subscription.group.encode()
        self._own = keys.partition(stream)
        self._keys = keys.group(stream, subscription.group)
        self._free: deque[Slot] = deque()
        self._slots = 0
        self._filled: set[Slot] = set()
        """Hold something."""
        self._strays = False
        """Whether there may be entries under names of ours that we do not know to hold them."""
        self._ahead: deque[Delivery] = deque()
        self._wire: Wire | None = None
        self._wire_id = 0
        self._reading: asyncio.Future[Any] | None = None
        self._taking = asyncio.Lock()
        self._suspect: Slot | None = None
        """Holds events that workers died with. Nothing else is taken meanwhile: it might die with them, again and again."""
        self._cleared = asyncio.Event()
        self._aside: list[Settlement] = []
        """What is taken over and settled without being handled."""
        self._closed: Closed | None = None
        self.dead_workers = True
        """Whether there may be something to take over; at first unknown, so look."""
        self._fit = limits.first_read_records
        """How many entries like those of the last read make `read_bytes`."""
        self._packed = 1
        """How many events an entry of the last read had."""
        self._presence = Presence(client, subscription, stream, self)
        self._committer = Committer(client, subscription, stream, publish, self._freed, self._presence.due_in)

    async def join(self) -> None:
        """Creates what is absent, takes the lease, begins to renew it. Raises NotConnected, Refused."""
        await join(self._client, self._sub, self._stream)
        self._presence.start()

    async def _rejoin(self) -> None:
        """The group is not there any more: begins anew with the topic that takes the place of the deleted one."""
        self._client.forget(self._sub.route.topic)
        await join(self._client, self._sub, self._stream, again=True)
        await self._client.register(self._sub.route)

    @property
    def streams(self) -> tuple[bytes, bytes]:
        """What it reads: the partition, and what the group handles again of it."""
        return self._own.stream, self._keys.retry

    @property
    def committed(self) -> int:
        """Entries settled so far."""
        return self._committer.committed

    # Taking

    async def take(self, limit: int, wait_s: float) -> Sequence[Delivery]:
        """See contract.Feed."""
        async with self._taking:
            if self._closed is not None:
                raise self._closed
            if not self._ahead:
                if self._suspect is not None and not await self._clear(wait_s):
                    return ()
                await self._fill(limit, wait_s)
            ahead = self._ahead
            if len(ahead) <= limit:
                self._ahead = deque()
                return list(ahead)
            return [ahead.popleft() for _ in range(limit)]

    async def _clear(self, wait_s: float) -> bool:
        """Waits until the suspect is settled; False: it is still at work."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._cleared.wait()
        if self._closed is not None:
            raise self._closed
        return self._suspect is None

    async def _fill(self, limit: int, wait_s: float) -> None:
        wire = await self._connect(wait_s)
        try:
            await self._put_aside()
            if self._strays:
                await self._claim(limit, self._filled)
            if self.dead_workers and not self._ahead:
                await self._claim(limit, None)
        except ServerSaid as e:
            if e.code != "NOGROUP":
                raise
            await self._rejoin()
            return
        if self._ahead:
            return
        slot = self._free.popleft() if self._free else self._new_slot()
        try:
            reply = await self._read(wire, slot, min(max(limit // self._packed, 1), self._fit), wait_s)
        except ServerSaid as e:
            self._free.append(slot)
            if e.code != "NOGROUP":
                raise
            await self._rejoin()
            return
        except BaseException:
            # The server may have given it entries that never arrived, or may do so yet: it is not used again.
            self._strays = True
            raise
        if not reply:
            self._free.append(slot)
            return
        self._mark(slot)
        sizes = [len(fields[-1]) for _, entries in reply for _, fields in entries[::_SAMPLE]]
        self._fit = max(self._sub.read_bytes * len(sizes) // (sum(sizes) + 1), 1)
        for stream, entries in reply:
            if stream == self._own.stream:
                events = slot.main.receive(entries)
                self._packed = -(-len(events) // len(entries))
            else:
                events = slot.retry.receive(entries)  # never packed
            self._ahead.extend(events)

    def _new_slot(self) -> Slot:
        self._slots += 1
        return Slot(b"%b/%d" % (self._sub.consumer.encode(), self._slots), self._own, self._keys)

    def _mark(self, slot: Slot) -> None:
        """It is filled now: over these connections."""
        slot.wire, slot.commits = self._wire, self._client.connected(self._own.stream)
        self._filled.add(slot)

    async def _connect(self, wait_s: float) -> Wire:
        """The connection for reads.

        Who answers on a new one may be another server, which has not heard of our last commits: what it holds under our names is looked at again.
        """
        if self._wire is None or self._wire.closed is not None:
            if self._wire is not None:
                self._strays = True
            self._wire = await self._client.open(self._own.stream, self._client.settings.request_s + wait_s)
            self._wire_id = await self._wire.send(pack(("CLIENT", "ID")))
        return self._wire

    async def _read(self, wire: Wire, slot: Slot, limit: int, wait_s: float) -> Any:
        words: tuple[bytes | str | int, ...] = ("XREADGROUP", "GROUP", self._group, slot.name, "COUNT", limit)
        if wait_s > 0:
            words += ("BLOCK", max(int(wait_s * 1000), 1))
        self._reading = wire.send(pack((*words, "STREAMS", self._own.stream, self._keys.retry, ">", ">")))
        if self._closed is not None or self.dead_workers or self._strays:
            self._unblock()
        try:
            return await self._reading
        except NotConnected:  # also when the partition lives elsewhere by now
            wire.close()
            raise
        finally:
            self._reading = None

    def sweep(self) -> None:
        """Looks at everything that anybody might have left behind; called once in a while."""
        self._strays = True
        self.look_around()

    def look_around(self) -> None:
        """There is something to take over: a read that blocks is ended for it."""
        self.dead_workers = True
        self._unblock()

    def _unblock(self) -> None:
        wire = self._client.connected(self._own.stream)
        if self._reading is not None and wire is not None:
            _forget(wire.send(pack(("CLIENT", "UNBLOCK", self._wire_id))))

    async def _claim(self, limit: int, held: AbstractSet[Slot] | None) -> None:
        """Takes what is of the dead, or what is ours and not under a name that we hold."""
        slot = self._new_slot()
        if held is None:  # before the call: meanwhile there may be reason to look again
            self.dead_workers = False
        else:
            self._strays = False
        try:
            taken = await takeover.claim(
                self._client, self._sub, self._stream, slot, max(limit // self._packed, 1), held
            )
        except BaseException:
            self.dead_workers = self.dead_workers or held is None
            self._strays = True  # the server may have claimed them for it
            raise
        if taken:  # there may be more
            self.dead_workers = self.dead_workers or held is None
            self._strays = self._strays or held is not None
            self._mark(slot)
        for deliveries, deaths in taken:
            if deaths >= limits.deaths_max:
                reason = b"%d workers that held it died" % deaths
                self._aside += [Settlement(d, Verdict.DEAD, reason=reason) for d in deliveries]
            elif deaths >= limits.deaths_apart and len(deliveries) > 1:
                self._aside += [Settlement(d, Verdict.RETURN) for d in deliveries]  # one by one, the innocent get away
            else:
                self._ahead.extend(deliveries)
                if deaths >= limits.deaths_apart:
                    self._suspect = slot
                    self._cleared.clear()
        await self._put_aside()

    async def _put_aside(self) -> None:
        """Events that too many workers died with go to the dead letters; those that share an entry with one go on by themselves."""
        if self._aside:
            await self.commit(self._aside)
            dead = sum(s.verdict is Verdict.DEAD for s in self._aside)
            if dead:
                log.error(
                    "%s, group %s: dead-lettered %d events that %d workers died with",
                    self._stream,
                    self._sub.group,
                    dead,
                    limits.deaths_max,
                )
            self._aside = []

    # Settling

    def _freed(self, slot: Slot) -> None:
        """All that this slot held is settled."""
        self._filled.discard(slot)
        self._free.append(slot)
        if slot.wire is not self._wire:  # see _connect
            self._strays = True
            self._unblock()
        if slot is self._suspect:
            self._suspect = None
            self._cleared.set()

    async def commit(self, settled: Sequence[Settled]) -> Sequence[Unsettled]:
        """See contract.Feed."""
        if self._closed is not None:
            raise self._closed
        return await self._committer.commit(settled)

    # Leaving

    async def aclose(self) -> None:
        """See contract.Feed."""
        if self._closed is not None:
            return
        self._closed = Closed(f"the feed of group {self._sub.group} was closed")
        self._presence.stop()
        self._cleared.set()
        self._unblock()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2.0):
                await self._taking.acquire()  # the read has ended
            self._taking.release()
        if self._wire is not None:
            self._wire.close()
        try:
            async with asyncio.timeout(limits.leave_s):
                await self._hand_back()
        except (BackendError, TimeoutError) as e:
            log.warning(
                "%s, group %s: %s. What this worker held is taken over when its lease ends",
                self._stream,
                self._sub.group,
                str(e) or "the server does not answer",
            )

    async def _hand_back(self) -> None:
        with contextlib.suppress(BackendError):  # what cannot be settled now is handed back
            await self._committer.finish()
        while await self._client.call(
            "leave",
            (self._own.stream, self._keys.retry, self._keys.workers, self._keys.record),
            self._group,
            self._sub.consumer,
            limits.batch_records_max,
        ):
            pass

    def abandon(self) -> None:
        """Dies like a killed process: nothing is handed back, the lease is no longer renewed. For tests."""
        self._closed = Closed("the feed was abandoned")
        self._presence.stop()
        if self._wire is not None:
            self._wire.close()


def _forget(future: asyncio.Future[Any]) -> None:
    """The answer does not matter; a failure is no news either."""
    future.add_done_callback(lambda f: f.cancelled() or f.exception())

"""Shared mode: a consumer group whose ack is the commit.

Each read buffer ("slot") has its own consumer name, `worker/slot`, and is read again only when all it held is settled. So the pending
count of the name proves to scripts/commit.lua that everything the client holds is still its own, with one question for a whole batch.
A read whose answer was lost leaves its entries under a name nobody else uses; they are claimed back from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from headrace import limits
from headrace.backends.contract import Delivery, Settled, Settlement, Subscription, Unsettled, Verdict
from headrace.backends.redis import keys, settle
from headrace.backends.redis.client import Client
from headrace.backends.redis.connection import Wire, pack
from headrace.backends.redis.presence import Presence
from headrace.backends.redis.replies import ServerSaid
from headrace.errors import BackendError, Closed, NotConnected, Refused

log = logging.getLogger("headrace.redis")
_PROOF_MIN: Final = 4
"""Below this many entries a gate each is cheaper than asking for the pending counts."""

_SUSPECT_DEATHS: Final = 2
"""One death is most often a deployment or a machine; from the second on the events of a takeover are kept apart from all others."""


class Hold:
    """What one slot holds of one stream."""

    __slots__ = ("held", "in_flight", "slot", "stream")

    def __init__(self, slot: Slot, stream: bytes) -> None:
        self.slot, self.stream = slot, stream
        self.held = 0
        self.in_flight = 0
        """Entries in commits that are not answered yet; they are executed before a later commit of ours is."""


class Slot:
    """A read buffer: its consumer name and what it holds."""

    __slots__ = ("main", "name", "retry")

    def __init__(self, name: bytes, own: keys.PartitionKeys, group: keys.GroupKeys) -> None:
        self.name = name
        self.main = Hold(self, own.stream)
        self.retry = Hold(self, group.retry)

    @property
    def empty(self) -> bool:
        """Nothing is held: it may be read again."""
        return not self.main.held and not self.retry.held


class SharedFeed:
    """A worker's place in a consumer group; implements contract.Feed."""

    def __init__(self, client: Client, subscription: Subscription) -> None:
        """Call `join` before use."""
        self._client = client
        self._sub = subscription
        self._topic, self._group = subscription.route.topic, subscription.group.encode()
        self._own = keys.partition(self._topic)
        self._keys = keys.group(self._topic, subscription.group)
        self._free: deque[Slot] = deque()
        self._slots = 0
        self._lost: list[Slot] = []
        self._ahead: deque[Delivery] = deque()
        self._wire: Wire | None = None
        self._wire_id = 0
        self._reading: asyncio.Future[Any] | None = None
        self._taking = asyncio.Lock()
        self._suspect: Slot | None = None
        """Holds events that workers died with. Nothing else is taken meanwhile: it might die with them, again and again."""
        self._cleared = asyncio.Event()
        self._closed: Closed | None = None
        self.dead_workers = True
        """Whether there may be something to take over; at first unknown, so look."""
        self._fit = limits.first_read_records
        """How many events like those of the last read make `read_bytes`."""
        self.committed = 0
        self._presence = Presence(client, subscription, self)

    async def join(self) -> None:
        """Creates what is absent, takes the lease, begins to renew it. Raises NotConnected, Refused."""
        if await self._join("0" if self._sub.start == "earliest" else "$") == b"renewed":
            self._say_deleted()
        self._presence.start()

    async def _join(self, start: str) -> bytes:
        own, group = self._own, self._keys
        try:
            answer: bytes = await self._client.call(
                "join",
                (own.stream, group.retry, group.record, group.workers, group.dead, group.delayed),
                self._group,
                self._sub.consumer,
                int(self._sub.lease_s * 1000),
                start,
            )
            await self._client.register(self._topic, self._sub.route.partitions)
        except ServerSaid as e:
            if e.code != "DESTROYED":
                raise
            raise Refused(
                f"group {self._sub.group} of topic {self._topic} was destroyed on the server while it was in use, and with it the place "
                f"where it stood. Say where to begin again: headrace groups {self._topic} --reset {self._sub.group} --to earliest|latest|ID"
            ) from None
        return answer

    async def _rejoin(self) -> None:
        """The group is not there any more: begins anew with the topic that takes the place of the deleted one."""
        if await self._join("0") != b"joined":  # else another worker was here first, and said it
            self._say_deleted()

    def _say_deleted(self) -> None:
        log.error(
            "topic %s was deleted on the server (FLUSHALL, DEL, eviction or a restore): what group %s had not settled is lost; "
            "beginning with the new topic's first event",
            self._topic,
            self._sub.group,
        )

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
            await asyncio.wait_for(self._cleared.wait(), wait_s)
        if self._closed is not None:
            raise self._closed
        return self._suspect is None

    async def _fill(self, limit: int, wait_s: float) -> None:
        try:
            while self._lost:
                await self._claim(limit, self._lost[-1])
                self._lost.pop()
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
            reply = await self._read(slot, min(limit, self._fit), wait_s)
        except ServerSaid as e:
            self._free.append(slot)
            if e.code != "NOGROUP":
                raise
            await self._rejoin()
            return
        except NotConnected:
            self._lost.append(slot)  # the server may have given it entries that never arrived
            raise
        except BaseException:
            self._lost.append(slot)
            raise
        if not reply:
            self._free.append(slot)
            return
        largest = max([len(value) for _, entries in reply for value in (entries[0][1][-1], entries[-1][1][-1])])
        self._fit = max(self._sub.read_bytes // (largest + 1), 1)
        for stream, entries in reply:
            hold = slot.main if stream == self._own.stream else slot.retry
            hold.held += len(entries)
            if hold is slot.main:
                self._ahead.extend([Delivery(id_, fields, hold) for id_, fields in entries])
            else:
                self._ahead.extend([Delivery(id_, fields, hold, _attempt(fields)) for id_, fields in entries])

    def _new_slot(self) -> Slot:
        self._slots += 1
        return Slot(b"%b/%d" % (self._sub.consumer.encode(), self._slots), self._own, self._keys)

    async def _read(self, slot: Slot, limit: int, wait_s: float) -> Any:
        if self._wire is None or self._wire.closed is not None:
            self._wire = await self._client.open(self._client.settings.request_s + wait_s)
            self._wire_id = await self._wire.send(pack(("CLIENT", "ID")))
        words: tuple[bytes | str | int, ...] = ("XREADGROUP", "GROUP", self._group, slot.name, "COUNT", limit)
        if wait_s > 0:
            words += ("BLOCK", max(int(wait_s * 1000), 1))
        self._reading = self._wire.send(pack((*words, "STREAMS", self._own.stream, self._keys.retry, ">", ">")))
        if self._closed is not None or self.dead_workers or self._lost:
            self._unblock()
        try:
            return await self._reading
        finally:
            self._reading = None

    def look_around(self) -> None:
        """There is something to take over: a read that blocks is ended for it."""
        self.dead_workers = True
        self._unblock()

    def _unblock(self) -> None:
        wire = self._client.connected()
        if self._reading is not None and wire is not None:
            _forget(wire.send(pack(("CLIENT", "UNBLOCK", self._wire_id))))

    async def _claim(self, limit: int, lost: Slot | None) -> None:
        slot = self._new_slot()
        gone, taken = await self._client.call(
            "claim",
            (self._own.stream, self._keys.retry, self._keys.workers),
            self._group,
            self._sub.consumer,
            slot.name,
            limits.read_records_max if lost else limit,
            int(self._sub.lease_s * 1000),
            limits.deaths_alone,
            lost.name if lost else b"",
        )
        if lost is None:
            self.dead_workers = bool(taken)
        if gone:
            log.error(
                "topic %s, group %s: %d events were deleted on the server before they were handled",
                self._topic,
                self._sub.group,
                gone,
            )
        if not taken:
            return
        if lost is None:
            log.warning(
                "topic %s, group %s: took over %d events of a worker that died",
                self._topic,
                self._sub.group,
                len(taken),
            )
        killers: list[Settled] = []
        for source, deaths, id_, fields in taken:
            hold = slot.main if source == 1 else slot.retry
            hold.held += 1
            delivery = Delivery(id_, fields, hold, _attempt(fields))
            if lost is None and deaths >= limits.deaths_max:
                reason = b"%d workers that held it died" % deaths
                killers.append(Settlement(delivery, Verdict.DEAD, reason=reason))
            else:
                self._ahead.append(delivery)
                if lost is None and deaths >= _SUSPECT_DEATHS:
                    self._suspect = slot
                    self._cleared.clear()
        if killers:
            log.error(
                "topic %s, group %s: an event that %d workers died with was dead-lettered",
                self._topic,
                self._sub.group,
                limits.deaths_max,
            )
            await self.commit(killers)

    # Settling

    async def commit(self, settled: Sequence[Settled]) -> Sequence[Unsettled]:
        """See contract.Feed."""
        unsettled: list[Unsettled] = []
        by_hold: dict[Hold, tuple[list[Delivery], list[Settlement]]] = {}
        hold, plain, rich = None, list[Delivery](), list[Settlement]()
        for one in settled:
            delivery = one if type(one) is Delivery else one.delivery  # type: ignore[union-attr]
            own = delivery.batch
            if own is None:  # settled before, or on its way
                unsettled.append(Unsettled(one))
                continue
            delivery.batch = None
            if own is not hold:
                hold = own
                plain, rich = by_hold.setdefault(own, ([], []))
            if type(one) is Delivery:
                plain.append(one)
            else:
                rich.append(one)  # type: ignore[arg-type]
        for hold, (plain, rich) in by_hold.items():
            try:
                for call in settle.calls(plain, rich, self._sub.group):
                    unsettled += await self._commit(hold, *call)
            except BackendError:
                _still_ours(hold, (*plain, *rich))
                raise
            _still_ours(hold, [u.settled for u in unsettled if u.refused])
        return unsettled

    async def _commit(
        self, hold: Hold, plain: Sequence[Delivery], rich: Sequence[Settlement], more: list[bytes], words: list[bytes]
    ) -> Sequence[Unsettled]:
        count = len(plain) + len(rich)
        if self._closed is not None:
            raise self._closed
        wire = await self._client.wire()
        believed = hold.held - hold.in_flight if count >= _PROOF_MIN else -1
        group = self._keys
        packed = pack((
            *self._client.head("commit", 5 + len(more)), hold.stream, group.retry, group.record, group.dead, group.delayed, *more,
            self._group, hold.slot.name, b"%d" % believed, b"%d" % len(plain), b"%d" % len(rich),
            *[d.token for d in plain], *[s.delivery.token for s in rich], *words,
        ))  # fmt: skip
        hold.in_flight += count
        try:
            _, lost, refused = await wire.send(packed)
        except ServerSaid as e:
            return self._commit_refused(e, [*plain, *rich])
        finally:
            hold.in_flight -= count
        self.committed += count
        hold.held -= count - len(refused) // 2
        if hold.slot.empty:
            self._free.append(hold.slot)
            if hold.slot is self._suspect:
                self._suspect = None
                self._cleared.set()
        for s in rich:
            if s.verdict is Verdict.RETRY:
                self._presence.due_in(s.delay_ms / 1000)
            for route, _ in s.outputs:
                await self._client.register(route.topic, route.partitions)
        if not lost and not refused:
            return ()
        why = dict(zip(refused[::2], refused[1::2], strict=True))
        gone = set(lost)
        unsettled = [Unsettled(d) for d in plain if d.token in gone]
        unsettled += [
            Unsettled(s, why.get(s.delivery.token, b"").decode(errors="replace"))
            for s in rich
            if s.delivery.token in gone or s.delivery.token in why
        ]
        return unsettled

    def _commit_refused(self, error: ServerSaid, settled: Sequence[Settled]) -> Sequence[Unsettled]:
        if error.code == "NOSCRIPT":
            self._client.drop()
            raise NotConnected("the server has forgotten the scripts; loading them again") from error
        if error.code == "NOGROUP":
            log.error(
                "topic %s, group %s: the group is gone from the server; %d events could not be settled",
                self._topic,
                self._sub.group,
                len(settled),
            )
            return [Unsettled(one) for one in settled]
        raise error

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
            await asyncio.wait_for(self._taking.acquire(), 2.0)  # the read has ended
            self._taking.release()
        if self._wire is not None:
            self._wire.close()
        try:
            while await self._client.call(
                "leave",
                (self._own.stream, self._keys.retry, self._keys.workers),
                self._group,
                self._sub.consumer,
                limits.batch_records_max,
            ):
                pass
        except BackendError as e:
            log.warning(
                "topic %s, group %s: %s. What this worker held is taken over when its lease ends",
                self._topic,
                self._sub.group,
                e,
            )

    def abandon(self) -> None:
        """Dies like a killed process: nothing is handed back, the lease is no longer renewed. For tests."""
        self._closed = Closed("the feed was abandoned")
        self._presence.stop()
        if self._wire is not None:
            self._wire.close()


def _still_ours(hold: Hold, settled: Sequence[Settled]) -> None:
    """These can be settled again: what became of them is unknown, or nothing was written."""
    for one in settled:
        (one if isinstance(one, Delivery) else one.delivery).batch = hold


def _attempt(fields: Sequence[bytes]) -> int:
    """The attempt of an entry of the retry stream; of any other entry 1."""
    if len(fields) > 3 and fields[2] == b"attempt" and fields[3].isdigit():  # noqa: PLR2004 - id and attempt come first
        return int(fields[3])
    return 1


def _forget(future: asyncio.Future[Any]) -> None:
    """The answer does not matter; a failure is no news either."""
    future.add_done_callback(lambda f: f.cancelled() or f.exception())

"""Ordered mode: partitions leased to one worker each, read from a cursor by XREAD; a commit moves the cursor, or writes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from headrace import limits
from headrace.backends.contract import Delivery, Record, Route, Settled, Settlement, Subscription, Unsettled, Verdict
from headrace.backends.redis.advance import Advance
from headrace.backends.redis.client import Client
from headrace.backends.redis.holding import Holding
from headrace.backends.redis.leases import Leases
from headrace.backends.redis.lines import Aside
from headrace.backends.redis.membership import Membership
from headrace.backends.redis.reading import Reading
from headrace.backends.redis.replies import ServerSaid
from headrace.errors import BackendError, Closed

log = logging.getLogger("headrace.redis")
_HAND_MAX: Final = 4 * limits.read_records_max
"""A partition with this many events in hand is not read any further."""


class OrderedFeed:
    """A worker's place in a group in ordered mode; implements contract.Feed."""

    def __init__(
        self, client: Client, subscription: Subscription, publish: Callable[[Route, Sequence[Record]], Awaitable[None]]
    ) -> None:
        """Call `join` before use. `publish`: for outputs that live on other servers."""
        self._client, self._sub = client, subscription
        self._loop = asyncio.get_running_loop()
        self._reading = Reading(client, subscription)
        self._leases = Leases(client, subscription, self._reading.load, self._reading.wake)
        self._membership = Membership(client, subscription, self._leases.share)
        self._leases.freed = self._membership.tell
        self._advance = Advance(client, subscription, self._leases, publish, self._settled)
        self._leases.settle = self._advance.flush
        self._reading.forgotten = self._forgotten
        self._readable: list[Holding] = []
        """What the read that is under way asks for."""
        self._taking = asyncio.Lock()
        self._turn = 0
        self._closed: Closed | None = None

    async def join(self) -> None:
        """Creates what is absent, takes this worker's share of the partitions. Raises NotConnected, Refused."""
        try:
            await self._membership.begin()
        except BaseException:
            self.abandon()
            raise

    # Taking

    async def take(self, limit: int, wait_s: float) -> Sequence[Delivery]:
        """See contract.Feed."""
        async with self._taking:
            end = self._loop.time() + wait_s
            asked = False
            while True:
                if self._closed is not None:
                    raise self._closed
                holdings = self._turned()
                given = _in_order(await self._give(holdings, limit))
                remaining = end - self._loop.time()
                if given or (asked and remaining <= 0):
                    return given
                asked = True
                self._readable = [
                    h for h in holdings if len(h.hand) < _HAND_MAX and self._loop.time() >= h.paused_until
                ]
                await self._reading.read(self._readable, limit, min(max(remaining, 0.0), self._pause_s(holdings)))

    def _turned(self) -> list[Holding]:
        """What may be given out from, another one first each time."""
        now = self._loop.time()
        holdings = [h for h in self._leases.held.values() if not h.leaving and not h.lost and now < h.until]
        self._turn += 1
        start = self._turn % len(holdings) if holdings else 0
        return holdings[start:] + holdings[:start]

    def _pause_s(self, holdings: Sequence[Holding]) -> float:
        """How long nothing can be due."""
        pause_s = limits.block_s
        for holding in holdings:
            if (next_ms := holding.lines.next_ms) is not None:
                pause_s = min(pause_s, max(next_ms - holding.behind_ms, 0) / 1000 - self._loop.time())
            if holding.paused_until:
                pause_s = min(pause_s, holding.paused_until - self._loop.time())
        return max(pause_s, 0.001)

    async def _give(self, holdings: Sequence[Holding], limit: int) -> list[Delivery]:
        given: list[Delivery] = []
        for holding in holdings:
            room = limit - len(given)
            if room <= 0:
                break
            if self._loop.time() < holding.paused_until:
                continue
            try:
                given += await (self._give_alone(holding) if holding.careful else self._give_of(holding, room))
            except BackendError:
                if not given:
                    raise
                break  # the next call says it again; what others gave out is on its way
        return given

    async def _give_of(self, holding: Holding, room: int) -> list[Delivery]:
        given: list[Delivery] = []
        if holding.lines:
            now_ms = self._loop.time() * 1000 + holding.behind_ms
            if asides := holding.lines.due(now_ms, room):
                given = await self._fetch(holding, asides)
        given += holding.give(room - len(given))
        if holding.marks:  # what was set aside unhandled is written even if nobody commits
            await self._settle_now(holding)
        return given

    async def _give_alone(self, holding: Holding) -> list[Delivery]:
        """One event, with its name left on the server: should it kill this worker, too, the next one knows."""
        await self._settle_now(holding, tell=False)
        if holding.lost or holding.at_work or holding.out or holding.flushing.locked():
            return []
        now_ms = self._loop.time() * 1000 + holding.behind_ms
        if asides := holding.lines.due(now_ms, 1):
            given = await self._fetch(holding, asides)
        else:
            given = holding.give_one()
        if not given:
            if holding.marks:  # what is left of the hand waits for what failed
                await self._settle_now(holding)
            return []
        holding.careful -= 1
        token = given[0].get(b"origin") or given[0].token
        if token == holding.poison:
            holding.poison = b""
            reason = b"%d workers that held it died" % limits.deaths_max
            log.error("%s, group %s: dead-lettered an event that workers died with", holding.stream, self._sub.group)
            await self.commit([Settlement(given[0], Verdict.DEAD, reason=reason)])
            return []
        try:
            return given if await self._leases.renew(holding, token) else []
        except BaseException:
            with contextlib.suppress(BackendError):  # it is in the books, and written with the next call
                await self.commit([Settlement(given[0], Verdict.RETURN)])
            raise

    async def _fetch(self, holding: Holding, asides: Sequence[Aside]) -> list[Delivery]:
        try:
            entries = await self._reading.fetch(holding, [a.token for a in asides])
            if None in entries and not await self._leases.renew(holding):
                return []  # the server has forgotten what it told us of
        except BaseException:
            for aside in asides:
                holding.lines.returned(aside)
            raise
        given = []
        for aside, entry in zip(asides, entries, strict=True):
            if entry is None:  # an operator took it away
                holding.lines.settled(aside, None)
                continue
            holding.out += 1
            given.append(entry_of(aside, entry))
        return given

    # Settling

    async def commit(self, settled: Sequence[Settled]) -> Sequence[Unsettled]:
        """See contract.Feed."""
        if self._closed is not None:
            raise self._closed
        return await self._advance.commit(settled)

    def _settled(self, holding: Holding) -> None:
        """There may be something to give out although nothing was read, or more to read."""
        if holding.lines or holding.careful or holding.next < len(holding.hand) or holding not in self._readable:
            self._reading.wake()

    async def _settle_now(self, holding: Holding, *, tell: bool = True) -> None:
        """Writes what can be written; what cannot be now is written with the next commit."""
        with contextlib.suppress(BackendError):
            await self._advance.flush(holding, tell=tell)

    def _forgotten(self, holding: Holding) -> None:
        """The server has lost what this worker has in hand, and may have got other entries since."""
        place = holding.position.decode()
        self._leases.lose(holding, ServerSaid("CURSOR", f"there is no entry {place} any more"))

    # Leaving

    async def aclose(self) -> None:
        """See contract.Feed."""
        if self._closed is not None:
            return
        self._closed = Closed(f"the feed of group {self._sub.group} was closed")
        await self._membership.stop()
        self._leases.stop()
        self._reading.wake()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2.0):
                await self._taking.acquire()  # the read has ended
            self._taking.release()
        self._reading.close()
        with contextlib.suppress(BackendError, TimeoutError):  # else the others notice when the lease ends
            async with asyncio.timeout(limits.leave_s):
                await asyncio.gather(*(self._let_go(h) for h in list(self._leases.held.values())))
                await self._membership.leave()

    async def _let_go(self, holding: Holding) -> None:
        try:
            holding.return_rest()
            await self._advance.flush(holding)
            if not holding.lost:
                await self._leases.give_back(holding)
        except BackendError as e:
            log.warning("%s, group %s: %s. It is taken over when the lease ends", holding.stream, self._sub.group, e)

    def abandon(self) -> None:
        """Dies like a killed process: nothing is handed back, no lease is renewed. For tests."""
        self._closed = Closed("the feed was abandoned")
        self.pause()
        self._reading.close()

    def pause(self) -> None:
        """Falls silent like a paused process: no lease is renewed. For tests."""
        self._membership.abandon()
        self._leases.stop()


def entry_of(aside: Aside, fields: Sequence[bytes]) -> Delivery:
    """The delivery of an event that had been set aside."""
    if fields[0] == b"due":
        fields = fields[2:]
    delivery = Delivery(aside.token, fields, aside)
    attempt = delivery.get(b"attempt") or b"1"
    delivery.attempt = int(attempt) if attempt.isdigit() else 1
    return delivery


def _in_order(given: list[Delivery]) -> list[Delivery]:
    """Without those that may not be handled any more since they were given out: between this and their handling nobody else has a turn.

    Those are the events of a partition that was lost, and of a key that was stopped.
    """
    out = []
    for delivery in given:
        own = delivery.batch
        holding = own.holding if type(own) is Aside else own
        if holding.lost:
            continue
        if holding is own and holding.stops(delivery.key):
            holding.marks.setdefault(delivery, Settlement(delivery, Verdict.RETURN))
        else:
            out.append(delivery)
    return out

"""Settles what a feed holds: one call of scripts/commit.lua for each read buffer, and the books of who holds what."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import chain
from typing import Final

from headrace.backends.contract import (
    Delivery,
    Record,
    Route,
    Settled,
    Settlement,
    Subscription,
    Unsettled,
    Verdict,
    delivery_of,
)
from headrace.backends.redis import keys, settle
from headrace.backends.redis.client import Client
from headrace.backends.redis.connection import pack
from headrace.backends.redis.replies import Grew, ServerSaid
from headrace.backends.redis.slots import Hold, Pack, Slot
from headrace.errors import NotConnected, Overloaded

Publish = Callable[[Route, Sequence[Record]], Awaitable[None]]
log = logging.getLogger("headrace.redis")
_PROOF_MIN: Final = 4
"""Below this many entries a gate each is cheaper than asking for the pending counts."""


class Committer:
    """Sends the commits of one feed."""

    def __init__(
        self,
        client: Client,
        subscription: Subscription,
        stream: str,
        publish: Publish,
        freed: Callable[[Slot], None],
        due_in: Callable[[float], None],
    ) -> None:
        """`stream`: the partition; `publish`: for outputs that live on other servers.

        `freed` is told of each slot that holds nothing any more, `due_in` of the seconds until a retry is due.
        """
        self._client = client
        self._sub = subscription
        self._stream, self._group = stream, subscription.group.encode()
        self._place = stream.encode()
        self._keys = keys.group(stream, subscription.group)
        self._publish = publish
        self._freed, self._due_in = freed, due_in
        self.committed = 0
        """Entries settled so far."""
        self._begun: set[Pack] = set()
        """Packed entries of which some events, not all, were given to commit."""

    async def commit(self, settled: Sequence[Settled]) -> list[Unsettled]:
        """See contract.Feed."""
        apart, misplaced = self._client.apart, list[Unsettled]()
        if apart is not None:
            own = [s for s in settled if isinstance(s, Settlement) and s.delivery.batch is not None]
            if misplaced := settle.misplaced(own, self._stream, apart):
                wrong = {id(m.settled) for m in misplaced}
                settled = [s for s in settled if id(s) not in wrong]
        by_hold, unsettled = self._sort(settled)
        empty = partial(settle.Writes, self._sub.group, self._stream, apart, settle.Counts(self._client.count))
        try:
            calls = [(hold, call) for hold, both in by_hold.items() for call in settle.calls(*both, empty)]
            for route, records in settle.elsewhere(writes for _, (_, _, writes) in calls):
                await self._publish(route, records)
            for hold, call in calls:
                unsettled += await self._send_with_room(hold, *call)
        finally:
            for one in chain.from_iterable(rich for _, rich in by_hold.values()):
                if type(one) is Pack:
                    one.sending = False
        return misplaced + unsettled

    def _sort(
        self, settled: Sequence[Settled]
    ) -> tuple[dict[Hold, tuple[list[Delivery], list[settle.Rich]]], list[Unsettled]]:
        """By read buffer: entries that are just acknowledged, and others; then those that were settled before."""
        before: list[Unsettled] = []
        by_hold: dict[Hold, tuple[list[Delivery], list[settle.Rich]]] = {}
        last, plain, rich = None, list[Delivery](), list[settle.Rich]()
        packs: list[Pack] = []
        for one in settled:
            delivery = one if isinstance(one, Delivery) else one.delivery
            own = delivery.batch
            if own is None:
                before.append(Unsettled(one))
                continue
            if own is not last:
                last = own
                if type(own) is Pack:
                    packs.append(own)
                else:
                    plain, rich = by_hold.setdefault(own, ([], []))
            if type(own) is Pack:
                own.settled[delivery.token] = one
            elif isinstance(one, Delivery):
                plain.append(one)
            else:
                rich.append(one)
        for batch in dict.fromkeys(packs):
            if not batch.complete:
                self._begun.add(batch)
            elif not batch.sending:
                batch.sending = True
                by_hold.setdefault(batch.hold, ([], []))[1].append(batch)
        return by_hold, before

    async def finish(self) -> None:
        """Settles packed entries of which some events were given to commit; the others are handed back. Raises as commit does."""
        await self.commit(
            [
                batch.settled.get(d.token) or Settlement(d, Verdict.RETURN)
                for batch in self._begun
                for d in batch.deliveries
            ]
        )

    async def _send_with_room(
        self, hold: Hold, plain: Sequence[Delivery], rich: Sequence[settle.Rich], writes: settle.Writes
    ) -> Sequence[Unsettled]:
        while True:
            try:
                return await self._send(hold, plain, rich, writes)
            except (Grew, Overloaded) as e:
                if not await settle.make_way(self._client, writes, e):
                    raise

    async def _send(
        self, hold: Hold, plain: Sequence[Delivery], rich: Sequence[settle.Rich], writes: settle.Writes
    ) -> Sequence[Unsettled]:
        count = len(plain) + len(rich)
        for target in writes.targets.values():
            await self._client.register(target.route)
        wire = await self._client.wire(self._place)
        provable = count >= _PROOF_MIN and hold.slot.commits is wire
        believed = hold.held - hold.in_flight if provable else -1
        group = self._keys
        packed = pack((
            *self._client.head("commit", 5 + len(writes.keys)), hold.stream, group.retry, group.record, group.dead, group.delayed, *writes.keys,
            self._group, hold.slot.name, b"%d" % believed, b"%d" % len(plain), b"%d" % len(rich),
            *[d.token for d in plain], *[settle.token(r) for r in rich], *writes.words,
        ))  # fmt: skip
        hold.in_flight += count
        try:
            _, lost, refused = await wire.send(packed)
        except ServerSaid as e:
            return self._refused(e, hold, [*plain, *rich])
        finally:
            hold.in_flight -= count
        why = {token: (place, text) for token, place, text in zip(*[iter(refused)] * 3, strict=True)}
        every = (*plain, *rich)
        self._release(hold, [r for r in every if settle.token(r) not in why] if why else every)
        if writes.retry_ms is not None:
            self._due_in(writes.retry_ms / 1000)
        if not lost and not why:
            return ()
        gone = set(lost)
        unsettled = [Unsettled(s) for r in every if settle.token(r) in gone for s in settle.parts(r)]
        for one in rich:
            if settle.token(one) in why:
                place, text = why[settle.token(one)]
                unsettled.append(Unsettled(self._at_fault(one, writes, place), text.decode(errors="replace")))
        return unsettled

    def _at_fault(self, rich: settle.Rich, writes: settle.Writes, place: int) -> Settled:
        """The settlement whose write cannot be made. The others of a packed entry wait until it is settled otherwise."""
        if isinstance(rich, Pack):
            self._begun.add(rich)
            return rich.settled.pop(settle.at_fault(rich, writes, place))
        return rich

    def _release(self, hold: Hold, settled: Sequence[Delivery | settle.Rich]) -> None:
        """These are settled, by whomever; each counts once, however often its commit was repeated."""
        self.committed += len(settled)
        before = hold.held
        for one in settled:
            if type(one) is Pack:
                if one.deliveries:
                    for delivery in one.deliveries:
                        delivery.batch = None
                    one.deliveries = ()
                    self._begun.discard(one)
                    hold.held -= 1
                continue
            delivery = delivery_of(one)  # type: ignore[arg-type]
            if delivery.batch is not None:
                delivery.batch = None
                hold.held -= 1
        if hold.held < before and hold.slot.empty:
            self._freed(hold.slot)

    def _refused(self, error: ServerSaid, hold: Hold, settled: Sequence[Delivery | settle.Rich]) -> Sequence[Unsettled]:
        if error.code == "NOSCRIPT":
            self._client.drop(self._place)
            raise NotConnected("the server has forgotten the scripts; loading them again") from error
        if error.code == "NOGROUP":
            log.error(
                "%s, group %s: the group is gone from the server; %d events could not be settled",
                self._stream,
                self._sub.group,
                len(settled),
            )
            self._release(hold, settled)
            return [Unsettled(s) for one in settled for s in settle.parts(one)]
        raise error

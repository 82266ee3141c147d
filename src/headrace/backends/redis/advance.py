"""Commits of ordered mode: one call of scripts/advance.lua settles all that can be settled of a partition."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import chain

from headrace import limits
from headrace.backends.contract import (
    Delivery,
    Record,
    Route,
    Settled,
    Settlement,
    Subscription,
    Unsettled,
    Verdict,
    comes_again,
    delivery_of,
)
from headrace.backends.redis import settle
from headrace.backends.redis.client import Client
from headrace.backends.redis.connection import pack
from headrace.backends.redis.holding import Holding
from headrace.backends.redis.leases import Leases
from headrace.backends.redis.lines import Aside
from headrace.backends.redis.replies import ServerSaid
from headrace.errors import BackendError, NotConnected


class Advance:
    """Sends the commits of one feed."""

    def __init__(
        self,
        client: Client,
        subscription: Subscription,
        leases: Leases,
        publish: Callable[[Route, Sequence[Record]], Awaitable[None]],
        settled: Callable[[Holding], None],
    ) -> None:
        """`publish`: for outputs that live on other servers; `settled` is told of each partition whose books have changed."""
        self._settled = settled
        self._client, self._sub, self._leases, self._publish = client, subscription, leases, publish
        self._loop = asyncio.get_running_loop()
        self._group = subscription.group.encode()
        self._lease_ms = b"%d" % int(subscription.lease_s * 1000)

    async def commit(self, settled: Sequence[Settled]) -> list[Unsettled]:
        """See contract.Feed."""
        touched, unsettled = self._sort(settled)
        if len(touched) == 1:
            return unsettled + await self.flush(touched.popitem()[0])
        ended = await asyncio.gather(*(self.flush(h) for h in touched), return_exceptions=True)
        for one in ended:
            if isinstance(one, BaseException):
                raise one
            unsettled += one
        return unsettled

    def _sort(self, settled: Sequence[Settled]) -> tuple[dict[Holding, None], list[Unsettled]]:
        """Enters what is settled into the books; returns the partitions it belongs to, and what cannot be settled any more."""
        touched: dict[Holding, None] = {}
        unsettled: list[Unsettled] = []
        place, end = 0, len(settled)
        while place < end:
            one = settled[place]
            delivery = one if isinstance(one, Delivery) else one.delivery
            own = delivery.batch
            place += 1
            holding = own.holding if type(own) is Aside else own
            if own is None or holding.lost:
                unsettled.append(Unsettled(one))
                present = None if own is None else self._leases.held.get(holding.number)
                if present is not None and comes_again(one):  # its successor's later events of the key are stopped, too
                    present.stopped.add(delivery.key)
                continue
            touched[holding] = None
            if type(own) is Aside:
                holding.aside[own] = one
            elif self._stops(one):
                self._stop(holding, delivery, one)  # type: ignore[arg-type]  # RETRY is a Settlement
            elif taken := holding.settle_run(settled, place - 1):
                place += taken - 1
            else:
                holding.mark(one)
        return touched, unsettled

    def _stops(self, one: Settled) -> bool:
        return self._sub.on_failure == "stop" and isinstance(one, Settlement) and one.verdict is Verdict.RETRY

    def _stop(self, holding: Holding, delivery: Delivery, one: Settlement) -> None:
        """The partition waits and begins again with what is not settled then."""
        holding.attempts = {delivery.token: delivery.attempt + 1}
        holding.paused_until = self._loop.time() + one.delay_ms / 1000
        holding.rewind(delivery)
        self._settled(holding)

    # One partition

    async def flush(self, holding: Holding, *, tell: bool = True) -> list[Unsettled]:
        """Writes what can be written of a partition; `tell`: whether to say that there may be something to give out.

        Raises NotConnected, Overloaded, Refused, Closed; then it can be repeated.
        """
        async with holding.flushing:
            while not holding.lost:
                holding.collect()
                if not holding.ready and not holding.aside:
                    holding.look_empty()
                    if tell and holding.next < len(holding.hand):
                        self._settled(holding)
                    return []
                if unsettled := await self._send(holding):
                    return unsettled
        return [Unsettled(s) for s in holding.drop()]

    async def _send(self, holding: Holding) -> list[Unsettled]:
        settled, asides = self._cut(holding), holding.asides()
        kept = [(own, one) for own, one in asides if one.verdict is not Verdict.RETURN]
        rich = [s for s in settled if isinstance(s, Settlement)] if holding.rich else []
        writing, tokens = [*rich, *(one for _, one in kept)], [own.token for own, _ in kept]
        group, apart = holding.keys, self._client.apart
        if apart and (refused := settle.misplaced(writing, holding.stream, apart)):
            return self._refuse(holding, settled, refused)
        counts = settle.Counts(self._client.count)
        writes = settle.Writes(self._sub.group, holding.stream, apart, counts, aside=True)
        try:
            for one in writing:
                writes.add(one)
            await self._send_elsewhere(holding, writes)
            if holding.lost:
                holding.restore(settled)
                return []
            for target in writes.targets.values():
                await self._client.register(target.route)
            last = settled[-1] if settled else None
            cursor = delivery_of(last).token.partition(b"/")[0] if last is not None else holding.cursor
            entries = len({_entry(s) for s in settled}) if holding.packed else len(settled)
            wire = await self._client.wire(holding.own.stream)
            answer = await wire.send(pack((
                *self._client.head("advance", 5 + len(writes.keys)), holding.own.stream, group.retry, group.record, group.dead, group.delayed,
                *writes.keys, self._group, holding.token, holding.cursor, cursor, b"%d" % entries, b"%d" % (len(settled) - len(rich)),
                b"%d" % (len(settled) - entries), self._lease_ms, b"%d" % len(rich), b"%d" % len(tokens),
                b"%d" % holding.commits, *tokens, *writes.words,
            )))  # fmt: skip
        except ServerSaid as e:
            holding.restore(settled)
            if e.code == "NOSCRIPT":
                self._client.drop(holding.own.stream)
                raise NotConnected("the server has forgotten the scripts; loading them again") from e
            if e.code in ("FENCED", "CURSOR", "NOGROUP"):
                self._leases.lose(holding, e)
                return []
            raise
        except BaseException as e:
            holding.restore(settled)
            if isinstance(e, BackendError) and await settle.make_way(self._client, writes, e):
                return []
            raise
        if answer[0] == 2:  # noqa: PLR2004 - see scripts/advance.lua
            index, why = answer[1], answer[3].decode(errors="replace")
            return self._refuse(holding, settled, [Unsettled(writing[index], why)])
        holding.cursor, holding.commits = cursor, answer[1]
        holding.rich = bool(holding.ready)
        holding.written(settled, asides)
        self._settled(holding)
        return []

    def _cut(self, holding: Holding) -> list[Settled]:
        """Takes from what is ready as much as one call may carry, whole entries."""
        ready, size, end = holding.ready, 0, 0
        if not holding.rich:
            holding.ready = []
            return ready
        for place, one in enumerate(ready):
            if isinstance(one, Settlement):
                size += (
                    sum(max(len(r.body), settle.share(to)) for to, r in one.outputs)
                    + sum(map(len, chain(*one.effects)))
                    + _copied(one)
                )
            if size > limits.batch_bytes_max and end:
                holding.ready = []
                holding.restore(ready[end:])
                return ready[:end]
            following = ready[place + 1] if place + 1 < len(ready) else None
            if following is None or _entry(following) != _entry(one):
                end = place + 1
        holding.ready = []
        return ready

    def _refuse(self, holding: Holding, settled: Sequence[Settled], refused: list[Unsettled]) -> list[Unsettled]:
        """Nothing was written; these have to be settled otherwise."""
        holding.restore(settled)
        for one in refused:
            delivery = delivery_of(one.settled)
            if isinstance(delivery.batch, Aside):
                holding.aside.pop(delivery.batch, None)
            else:
                holding.marks.pop(delivery, None)
                holding.final.discard(delivery)
        return refused

    async def _send_elsewhere(self, holding: Holding, writes: settle.Writes) -> None:
        """Publishes the outputs that live on other servers, before their inputs are settled."""
        outputs = settle.elsewhere([writes])
        if outputs and self._loop.time() > holding.until and not await self._leases.renew(holding):
            return  # it was silent for too long: it asked before anything is written, and another has the partition
        for route, records in outputs:
            await self._publish(route, records)


def _entry(settled: Settled) -> bytes:
    return delivery_of(settled).token.partition(b"/")[0]


def _copied(one: Settlement) -> int:
    return 0 if one.verdict is Verdict.HANDLED else sum(map(len, one.delivery.fields))

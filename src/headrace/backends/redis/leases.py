"""The partitions that this worker may settle: takes their leases, renews them, gives them back (ordered mode)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from msgspec import structs

from headrace import limits
from headrace.backends.contract import Subscription
from headrace.backends.redis import retention
from headrace.backends.redis.client import Client
from headrace.backends.redis.growth import drained
from headrace.backends.redis.holding import Holding
from headrace.backends.redis.joining import join
from headrace.backends.redis.replies import ServerSaid
from headrace.backoff import Backoff
from headrace.errors import BackendError

log = logging.getLogger("headrace.redis")
_TRIM_MOST: Final = 100_000
_DRAINED_S: Final = 0.2
"""A new partition whose parent is not done with is looked at again after this long."""
_AGAIN_S: Final = 1.0
"""A partition of ours whose holder lives is asked for again after this long, should its word that it is free be lost."""


class Leases:
    """The holdings of one feed."""

    def __init__(
        self,
        client: Client,
        subscription: Subscription,
        load: Callable[[Holding], Awaitable[None]],
        changed: Callable[[], None],
    ) -> None:
        """Holds nothing yet. `load` reads what was set aside in a partition; `changed` is told when the holdings are others."""
        self._client, self._sub, self._load, self._changed = client, subscription, load, changed
        self._lease_ms = int(subscription.lease_s * 1000)
        self._loop = asyncio.get_running_loop()
        self._first_count = 0
        """Partitions that there were when this began; 0: it has not."""
        self.held: dict[int, Holding] = {}
        self._tasks: dict[Holding, asyncio.Task[None]] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self.settle: Callable[[Holding], Awaitable[object]]
        """Writes what can be written of a partition."""
        self.freed: Callable[[], Awaitable[None]]
        """Told after a partition was given back."""

    # Taking

    async def share(self, mine: list[int]) -> float:
        """Takes what is free of these partitions, gives back the others; returns the seconds until it is worth asking again."""
        self._first_count = self._first_count or self._client.count(self._sub.route)
        for number, holding in list(self.held.items()):
            if number not in mine and not holding.leaving:
                holding.leave()
                task = asyncio.ensure_future(self._hand_over(holding))
                self._leaving.add(task)
                task.add_done_callback(self._leaving.discard)
        wanted = [number for number in mine if number not in self.held]
        if not wanted:
            return self._sub.lease_s
        waits = await asyncio.gather(*(self._take(number) for number in wanted))
        self._changed()
        return min(waits)

    async def _take(self, number: int) -> float:
        topic = self._sub.route.topic
        stream = topic if self._client.count(self._sub.route) == 1 else f"{topic}.{number}"
        holding = Holding(number, stream, self._sub.group)
        late = number >= self._first_count  # the topic has got it since this began: it is read from its first event on
        await join(self._client, structs.replace(self._sub, start="earliest") if late else self._sub, stream)
        if not await drained(self._client, stream, self._sub.group):
            return _DRAINED_S
        sent = self._loop.time()
        answer = await self._client.call("lease", (holding.keys.record,), "take", self._sub.consumer, self._lease_ms)
        if answer[0] == 0:
            return min(int(answer[1]) / 1000 + 0.001, _AGAIN_S)
        _, token, cursor, now_ms, crashes, suspect, deaths = answer
        holding.begin(token, cursor)
        await self._load(holding)
        self._renewed(holding, sent, now_ms)
        if crashes:
            log.warning(
                "%s, group %s: took over from a worker that died or was silent for longer than its lease",
                stream,
                self._sub.group,
            )
        if crashes >= limits.deaths_apart or suspect:
            holding.careful = limits.read_records_max
        if deaths >= limits.deaths_max - limits.deaths_apart:
            holding.poison = suspect
        self.held[number] = holding
        self._tasks[holding] = asyncio.ensure_future(self._live(holding))
        return self._sub.lease_s

    def _renewed(self, holding: Holding, sent: float, now_ms: int) -> None:
        holding.until = sent + self._sub.lease_s
        holding.behind_ms = now_ms - self._loop.time() * 1000

    # Keeping

    async def _live(self, holding: Holding) -> None:
        backoff = Backoff(f"lease of {holding.stream} for group {self._sub.group}")
        interval_s = self._sub.lease_s / limits.renewals_per_lease
        trimmed, pause_s = holding.cursor, 0.0
        while not holding.lost:
            await asyncio.sleep(pause_s)
            try:
                if not await self.renew(holding):
                    return
                next_ms, _, _ = await self._client.call(
                    "tend", (holding.own.stream, holding.own.delayed), b"", 0, limits.batch_records_max
                )
                while trimmed != holding.cursor:
                    more = await retention.trim(
                        self._client, self._sub.route, holding.stream, holding.keys.record, _TRIM_MOST
                    )
                    trimmed = trimmed if more else holding.cursor
            except ServerSaid as e:
                log.error("lease of %s for group %s: %s", holding.stream, self._sub.group, e)
                pause_s = interval_s
            except BackendError as e:
                await backoff.wait(e)
                pause_s = 0.0
            else:
                backoff.over()
                pause_s = min(interval_s, next_ms / 1000 + 0.001) if next_ms >= 0 else interval_s

    async def renew(self, holding: Holding, trying: bytes = b"") -> bool:
        """Renews the lease; `trying`: the event that is given out alone now. False: it is not ours any more. Raises as the client does."""
        sent, commits = self._loop.time(), holding.commits
        try:
            _, now_ms, known = await self._client.call(
                "lease", (holding.keys.record,), "renew", self._sub.consumer, self._lease_ms, holding.token, trying
            )
        except ServerSaid as e:
            if e.code in ("FENCED", "NOGROUP"):
                self.lose(holding, e)
                return False
            raise
        if known < commits:
            self.lose(holding, ServerSaid("CURSOR", f"the server knows {known} commits of {commits}"))
            return False
        self._renewed(holding, sent, now_ms)
        return True

    def lose(self, holding: Holding, why: ServerSaid) -> None:
        """Another worker has the partition, or it was deleted: nothing that is in hand can be settled."""
        if holding.lost:
            return
        self._forget(holding)
        log.warning(
            "%s, group %s: this worker lost the partition [%s]. Was it silent for longer than its lease of %.0f s (a handler that blocks "
            "the event loop, a paused process), or did the server lose writes (a failover)? "
            "The %d events it has in hand are handled by the partition's new holder; its own results for them are dropped",
            holding.stream,
            self._sub.group,
            why,
            self._sub.lease_s,
            holding.next + holding.out,
        )

    def _forget(self, holding: Holding) -> None:
        holding.lost = True
        if self.held.get(holding.number) is holding:
            del self.held[holding.number]
        task = self._tasks.pop(holding, None)
        if task is not None and task is not asyncio.current_task():
            task.cancel()
        self._changed()

    # Giving back

    async def _hand_over(self, holding: Holding) -> None:
        """Gives a partition to another worker once nothing of it is in anybody's hands."""
        backoff = Backoff(f"giving back {holding.stream}")
        while not holding.lost:
            try:
                await self.settle(holding)
                await holding.emptied()
                if holding.lost:
                    return
                await self.give_back(holding)
                await self.freed()
            except ServerSaid:
                return  # it was lost meanwhile
            except BackendError as e:
                await backoff.wait(e)

    async def give_back(self, holding: Holding) -> None:
        """The partition is free; whoever's share it is may take it. Raises as the client does."""
        try:
            await self._client.call(
                "lease", (holding.keys.record,), "give", self._sub.consumer, self._lease_ms, holding.token
            )
        finally:
            self._forget(holding)

    def stop(self) -> None:
        """Renews nothing any more."""
        for task in (*self._tasks.values(), *self._leaving):
            task.cancel()

"""Order per key inside a worker: which keys are at work, what waits behind them, and which must not go on."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from headrace.backends.contract import Delivery, Settled, Settlement, Verdict, comes_again, delivery_of
from headrace.runtime.execute import Executor
from headrace.runtime.turn import Turn
from headrace.runtime.work import Key, Lane, Work


class Order:
    """The keys of one ordered group in one worker, and how its lanes go through what a read brought."""

    def __init__(
        self,
        executor: Executor,
        turn: Turn,
        settle: Callable[[Work, Sequence[Settled]], None],
        ripen: Callable[[Work], None],
    ) -> None:
        """Nothing is at work. `settle` takes results of a work, `ripen` sees to it that they are committed soon."""
        self._executor, self._turn, self._settle, self._ripen = executor, turn, settle, ripen
        self._loop = asyncio.get_running_loop()
        self.run = self._run_batches if executor.batched else self._run_singles
        """Handles what nobody has begun of a work, one event of a key at a time: the lane that has a key handles all that comes of it."""
        self.at_work: dict[Key, deque[tuple[Work, Delivery]] | None] = {}
        """Keys that a lane has in hand, and what waits behind each."""
        self.stopped: dict[Key, float] = {}
        """Keys with an event that is to be handled again, and until which read they were given out before it: those go back unhandled."""

    def wait(self, key: Key, work: Work, delivery: Delivery) -> None:
        """The key is at work: the lane that has it goes on with this one."""
        waiting = self.at_work[key]
        if waiting is None:
            self.at_work[key] = deque(((work, delivery),))
        else:
            waiting.append((work, delivery))

    def waiting(self) -> Iterator[tuple[Work, Delivery]]:
        """Takes out everything that waits."""
        for key, waiting in self.at_work.items():
            if waiting:
                self.at_work[key] = None
                yield from waiting

    def abandon(self, lane: Lane, failed: Sequence[Settled]) -> Iterator[tuple[Work, Delivery]]:
        """This lane is left alone, its events failed; frees its keys, and takes out what waited behind them: that is to be handed back."""
        for one in failed:
            self.look(one)
        for key in {delivery.key for delivery in lane.deliveries} | lane.keys.keys():
            if waiting := self.at_work.pop(key, None):
                self.stopped[key] = math.inf
                yield from waiting

    def goes_back(self, key: Key, work: Work) -> bool:
        """Whether an event of this read stands behind one that is to be handled again."""
        until = self.stopped.get(key)
        if until is None:
            return False
        if work.number <= until:
            return True
        del self.stopped[key]
        return False

    def look(self, settled: Settled) -> None:
        """Stops the key of an event that is to be handled again. The feed does not know yet."""
        if comes_again(settled):
            self.stopped[delivery_of(settled).key] = math.inf

    def told(self, settled: Sequence[Settled], number: int) -> None:
        """The feed is being told: what it gives out from now on, in reads after this one, comes in order again."""
        for one in settled:
            if comes_again(one):
                self.stopped[delivery_of(one).key] = number

    # Handling

    async def _run_singles(self, lane: Lane, work: Work) -> None:
        execute, clock, at_work, turn, stopped = (
            self._executor.execute,
            self._loop.time,
            self.at_work,
            self._turn,
            self.stopped,
        )
        for delivery in work.unstarted:
            fields = delivery.fields  # as in Delivery.key, for speed
            key = fields[-3] if len(fields) > 3 and fields[-4] == b"key" else delivery.key  # noqa: PLR2004
            if key in at_work:
                self.wait(key, work, delivery)
                continue
            at_work[key] = None
            if stopped and self.goes_back(key, work):
                settled: Settled = Settlement(delivery, Verdict.RETURN)
            else:
                if (started := clock()) > turn.ends:
                    lane.deliveries = ()  # the time of others is not its handler's
                    started = await turn.wait()
                lane.started = started
                lane.deliveries = (delivery,)
                settled = await execute(delivery, started)
                if lane.abandoned:
                    return
                if settled is not delivery:
                    self.look(settled)
            work.settled.append(settled)
            work.waiting -= 1
            if work.timer is None:
                self._ripen(work)
            if (waiting := at_work.pop(key)) is not None:
                at_work[key] = waiting
                await self._run_waiting(lane, key)
                if lane.abandoned:
                    return
                lane.work = work

    async def _run_waiting(self, lane: Lane, key: Key) -> None:
        """Handles what came of a key while it was at work."""
        size = self._executor.batch
        while waiting := self.at_work[key]:
            work, delivery = waiting.popleft()
            lane.work = work
            chunk = [delivery]
            while delivery.attempt == 1 and waiting and len(chunk) < size:
                other, delivery = waiting[0]
                if other is not work or delivery.attempt > 1:
                    break
                chunk.append(delivery)
                waiting.popleft()
            await self._run_chunk(lane, work, chunk)
            if lane.abandoned:
                return
        del self.at_work[key]

    async def _run_chunk(self, lane: Lane, work: Work, chunk: list[Delivery]) -> None:
        if self.stopped:
            back = [d for d in chunk if self.goes_back(d.key, work)]
            if back:
                self._settle(work, [Settlement(d, Verdict.RETURN) for d in back])
                chunk = [d for d in chunk if d not in back]
                if not chunk:
                    return
        lane.deliveries = ()
        lane.started = await self._turn.wait()
        lane.deliveries = chunk
        if self._executor.batched:
            results = self.in_sequence(chunk, await self._executor.execute_batch(chunk, lane.started))
        else:
            results = [await self._executor.execute(chunk[0], lane.started)]
        if lane.abandoned:
            return
        for one in results:
            self.look(one)
        self._settle(work, results)

    async def _run_batches(self, lane: Lane, work: Work) -> None:
        at_work, size = self.at_work, self._executor.batch
        for first in work.unstarted:
            chunk: list[Delivery] = []
            keys = lane.keys
            delivery: Delivery | None = first
            while delivery is not None:
                key, alone = delivery.key, delivery.attempt > 1  # what failed before is handled without company
                if key in at_work and key not in keys:
                    self.wait(key, work, delivery)
                elif alone and chunk:
                    work.back = delivery
                    break
                else:
                    at_work.setdefault(key)
                    keys[key] = None
                    chunk.append(delivery)
                    if alone:
                        break
                delivery = next(work.unstarted, None) if len(chunk) < size else None
            if chunk:
                await self._run_chunk(lane, work, chunk)
            while keys and not lane.abandoned:
                key = next(iter(keys))
                await self._run_waiting(lane, key)
                del keys[key]  # another lane may have it now
            if lane.abandoned:
                return
            lane.work = work

    def in_sequence(self, deliveries: Sequence[Delivery], settled: Sequence[Settled]) -> list[Settled]:
        """The settlements of one call of a batch handler; what stands behind a failed event of its key goes back."""
        by_delivery = {id(delivery_of(s)): s for s in settled}
        out: list[Settled] = []
        failed: set[Key] = set()
        for delivery in deliveries:
            one = by_delivery[id(delivery)]
            if delivery.key in failed:
                one = Settlement(delivery, Verdict.RETURN)
            elif comes_again(one):
                failed.add(delivery.key)
            out.append(one)
        return out

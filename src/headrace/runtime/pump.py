"""The path of every event: take, hand to a lane, settle, commit.

N long-lived lanes share the iterator of the batch that is being handled, so an event costs a coroutine call and not a task. The next
batch is read while this one is handled. What is settled is committed in one call when the batch is through, or after
`limits.commit_wait_s` if it has slower members. An idle lane is woken by the one before it, which then works until nothing is left or
its handler waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial

from headrace import limits
from headrace.backends.contract import Delivery, Feed, Settled, Settlement, Unsettled, Verdict, delivery_of
from headrace.backoff import Backoff
from headrace.errors import BackendError, Closed, HandlerError, NotConnected, Overloaded, Refused
from headrace.observe import Observer
from headrace.runtime.deadlines import watch
from headrace.runtime.execute import Executor
from headrace.runtime.order import Order
from headrace.runtime.turn import Turn
from headrace.runtime.work import Lane, Work

log = logging.getLogger("headrace")
_STOCK_S = 0.1
"""A read brings about what is handled in this time: enough to hide the read behind the handling, not more than others might take."""


class Pump:
    """Serves one group from one feed."""

    def __init__(self, feed: Feed, executor: Executor, lanes: int, observer: Observer) -> None:
        """Call `run`."""
        self._feed, self._executor, self._observer = feed, executor, observer
        self._reads = 0
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Work] = deque()
        self._idle: list[asyncio.Future[None]] = []
        self._wanted = lanes
        self._lanes: set[Lane] = set()
        self._room = asyncio.Event()
        self._uncommitted = 0
        self._uncommitted_max = max(4 * limits.read_records_max, 2 * lanes * executor.batch)
        self._turn = Turn(self._loop)
        self._order = Order(executor, self._turn, self._take_result, self._ripen) if executor.ordered else None
        self._handle = self._run_batches if executor.batched else self._run_singles
        if self._order is not None:
            self._handle = self._order.run
        self._rate = 0.0
        self._commits: set[asyncio.Task[None]] = set()
        self._watcher: asyncio.Task[None] | None = None
        self._stopping = False
        self._settled_all = asyncio.Event()
        self._backoff = Backoff(f"group {executor.group} of topic {executor.topic}")
        self._patience = Backoff(f"settling for group {executor.group} of topic {executor.topic}")
        self._unanswered = 0
        """Commits that are being repeated."""
        self.handled = 0
        self.error: BackendError | None = None
        """Why the pump gave up by itself; None while it works or after a stop that was asked for."""
        self._bug: BaseException | None = None

    async def run(self) -> None:
        """Serves until `drain` is called or the server refuses for good (then `error` says why)."""
        for _ in range(self._wanted):
            self._add_lane()
        self._watcher = asyncio.ensure_future(watch(self._lanes, self._executor, self._observer, self._give_up))
        await self._read()
        if self._bug is not None:
            raise self._bug

    async def drain(self, wait_s: float) -> None:
        """Stops: hands back what was not started, waits up to `wait_s` for handlers at work, commits, hands back the rest. Idempotent."""
        self._end()
        for work in self._queue:
            self._hand_back(work, work.unstarted)
        self._queue.clear()
        if self._order is not None:
            for work, delivery in list(self._order.waiting()):
                self._hand_back(work, iter((delivery,)))
        if self._uncommitted and self._bug is None:
            self._settled_all.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._settled_all.wait()
        if self._watcher is not None:
            self._watcher.cancel()
        await self._cut_off()
        for commit in self._commits:
            commit.cancel()
        await asyncio.gather(*self._commits, return_exceptions=True)
        await self._feed.aclose()

    async def _cut_off(self) -> None:
        """Ends every lane; however the handlers that are at work end now, their events are handed back."""
        lanes = list(self._lanes)
        for lane in lanes:
            lane.abandoned = True
            lane.task.cancel()
        if lanes and (await asyncio.wait([lane.task for lane in lanes], timeout=limits.abandon_s))[1]:
            log.error(
                "handler %s ignores its cancellation and is left alone; its event is handed back", self._executor.name
            )

    def _end(self) -> None:
        """Takes no more; what it holds goes to others when the worker has drained it."""
        self._stopping = True
        self._room.set()

    def _broke(self, what: str, bug: BaseException) -> None:
        """There is a bug; whatever it has left undone is for others."""
        log.critical(
            "%s failed in an unforeseen way; this worker ends, so that others handle its events", what, exc_info=bug
        )
        self._bug = bug
        self._end()

    # Reading

    async def _read(self) -> None:
        while not self._stopping:
            await self._wait_for_room()
            if self._stopping:
                return
            try:
                deliveries = await self._feed.take(self._limit(), limits.block_s)
            except (NotConnected, Overloaded) as e:
                await self._backoff.wait(e)
                continue
            except Closed as e:
                if not self._stopping:
                    self._broke("the feed", RuntimeError(f"it was not closed by its worker: {e}"))
                return
            except Refused as e:
                log.error("group %s of topic %s stops: %s", self._executor.group, self._executor.topic, e)
                self.error = e
                return
            self._backoff.over()
            if deliveries:
                self._uncommitted += len(deliveries)
                self._reads += 1
                work = Work(deliveries, self._reads, batched=self._executor.batched)
                if self._stopping:
                    self._hand_back(work, work.unstarted)
                    return
                self._queue.append(work)
                self._wake()

    async def _wait_for_room(self) -> None:
        """One batch is being handled, one may wait behind it; and what is under way has a bound."""
        while not self._stopping and (len(self._queue) > 1 or self._uncommitted >= self._uncommitted_max):
            self._room.clear()
            await self._room.wait()

    def _limit(self) -> int:
        """As many as idle lanes could start now, or as are handled in a moment."""
        if not self._rate:
            return limits.first_read_records
        stock = int(self._rate * _STOCK_S)
        return max(1, min(max(len(self._idle) * self._executor.batch, stock), limits.read_records_max))

    # Handling

    def _add_lane(self) -> None:
        lane = Lane()
        lane.task = asyncio.ensure_future(self._run_lane(lane))
        lane.task.add_done_callback(partial(self._lane_ended, lane))
        self._lanes.add(lane)

    def _lane_ended(self, lane: Lane, task: asyncio.Task[None]) -> None:
        self._lanes.discard(lane)
        bug = RuntimeError("somebody cancelled it") if task.cancelled() else task.exception()
        if lane.abandoned and (bug is None or task.cancelled()):
            return
        if task.cancelled() and lane.deliveries:
            self._give_up(lane, HandlerError("the handler cancelled its own task"))
        elif bug is not None:
            self._broke("a lane", bug)

    def _give_up(self, lane: Lane, why: Exception) -> None:
        """Another lane takes the place of this one; what its handler is at work on has failed, whatever becomes of it."""
        lane.abandoned = True
        self._lanes.discard(lane)
        self._add_lane()
        failed: list[Settled] = [self._executor.judge(d, why) for d in lane.deliveries]
        if self._order is not None:
            failed = self._order.in_sequence(lane.deliveries, failed)
        if lane.work is not None:
            self._take_result(lane.work, failed)
        if self._order is not None:
            for work, later in self._order.abandon(lane, failed):
                self._hand_back(work, iter((later,)))

    def _wake(self) -> None:
        if self._idle:
            future = self._idle.pop()
            if not future.done():
                future.set_result(None)

    async def _run_lane(self, lane: Lane) -> None:
        queue, clock, handle = self._queue, self._loop.time, self._handle
        while True:
            while not queue:
                future = self._loop.create_future()
                self._idle.append(future)
                await future
                self._turn.begin()
            work = queue[0]
            if not work.began:
                work.began = clock()
            self._wake()  # should this lane have to wait, another goes on with the batch
            lane.work = work
            await handle(lane, work)
            if lane.abandoned:
                return
            lane.deliveries = ()
            lane.work = None
            if queue and queue[0] is work:
                queue.popleft()
                self._room.set()
            if not work.waiting and work.settled:
                self._commit(work)

    async def _run_singles(self, lane: Lane, work: Work) -> None:
        execute, clock, turn = self._executor.execute, self._loop.time, self._turn
        for delivery in work.unstarted:
            if (started := clock()) > turn.ends:
                lane.deliveries = ()  # the time of others is not its handler's
                started = await turn.wait()
            lane.started = started
            lane.deliveries = (delivery,)
            settled = await execute(delivery, started)
            if lane.abandoned:
                return
            work.settled.append(settled)
            work.waiting -= 1
            if work.timer is None:
                self._ripen(work)

    async def _run_batches(self, lane: Lane, work: Work) -> None:
        size = self._executor.batch
        for delivery in work.unstarted:
            lane.deliveries = ()
            lane.started = await self._turn.wait()
            lane.deliveries = chunk = [delivery]
            if delivery.attempt == 1:  # what failed before is handled alone, so that it cannot fail others again
                while len(chunk) < size and (more := next(work.unstarted, None)) is not None:
                    if more.attempt > 1:
                        work.back = more
                        break
                    chunk.append(more)
            settled = await self._executor.execute_batch(chunk, lane.started)
            if lane.abandoned:
                return
            self._take_result(work, settled)

    def _take_result(self, work: Work, settled: Sequence[Settled]) -> None:
        work.settled += settled
        work.waiting -= len(settled)
        if not work.waiting:
            self._commit(work)
        elif work.timer is None:
            self._ripen(work)

    def _hand_back(self, work: Work, deliveries: Iterator[Delivery]) -> None:
        returned = [Settlement(d, Verdict.RETURN) for d in deliveries]
        if returned:
            self._take_result(work, returned)
            self._commit(work)

    # Settling

    def _ripen(self, work: Work) -> None:
        """What is settled is committed a moment from now, together with what is settled until then."""
        work.timer = self._loop.call_later(limits.commit_wait_s, self._commit, work)

    def _commit(self, work: Work) -> None:
        if work.timer is not None:
            work.timer.cancel()
            work.timer = None
        settled, work.settled = work.settled, []
        if not work.waiting and work.began:
            rate = work.total / max(self._loop.time() - work.began, 1e-6)
            self._rate = rate if not self._rate else self._rate * 0.7 + rate * 0.3
        if settled:
            task = asyncio.ensure_future(self._send(settled))
            self._commits.add(task)
            task.add_done_callback(self._committed)

    def _committed(self, task: asyncio.Task[None]) -> None:
        self._commits.discard(task)
        if not task.cancelled() and (bug := task.exception()) is not None:
            self._broke("a commit", bug)

    async def _send(self, settled: Sequence[Settled]) -> None:
        """One commit; what is refused is judged as a failure and settled so."""
        while settled:
            if self._order is not None and self._order.stopped:
                self._order.told(settled, self._reads)
            try:
                settled = self._answered(len(settled), await self._ask(settled))
            except Closed:
                self._done(len(settled))  # the feed hands back what it holds when it is closed
                return
            except BackendError as e:
                alone = [] if self._order is not None else [s for s in settled if _has_writes(s)]
                if not alone:
                    self._refused(e, len(settled))
                    return
                rest = [s for s in settled if not _has_writes(s)]
                for one in alone:
                    rest += await self._send_alone(one)
                settled = rest

    async def _send_alone(self, one: Settled) -> Sequence[Settled]:
        """One of a refused commit, with writes of its handler. If they are the reason, returns how it is settled without them."""
        try:
            return self._answered(1, await self._ask((one,)))
        except Closed:
            self._done(1)
            return ()
        except BackendError as e:
            return (self._otherwise(Unsettled(one, str(e))),)

    async def _ask(self, settled: Sequence[Settled]) -> Sequence[Unsettled]:
        """A commit, repeated until it is answered. Raises Refused, Closed."""
        again = False
        try:
            while True:
                try:
                    unsettled = await self._feed.commit(settled)
                    break
                except (NotConnected, Overloaded) as e:
                    self._unanswered += not again
                    again = True
                    await self._patience.wait(e)
        finally:
            self._unanswered -= again
        if again and not self._unanswered:
            self._patience.over()
        return unsettled

    def _answered(self, count: int, unsettled: Sequence[Unsettled]) -> Sequence[Settled]:
        """Counts what is settled now; returns how the others are to be settled instead."""
        refused = [u for u in unsettled if u.refused]
        lost, done = len(unsettled) - len(refused), count - len(refused)
        self.handled += done - lost
        self._observer.settled(self._executor.topic, self._executor.group, done - lost, lost)
        self._done(done)
        otherwise = [self._otherwise(u) for u in refused]
        if self._order is not None:
            for one in otherwise:
                self._order.look(one)
        return otherwise

    def _otherwise(self, unsettled: Unsettled) -> Settlement:
        delivery = delivery_of(unsettled.settled)
        return self._executor.judge(
            delivery, Refused(f"a write recorded by the handler cannot be made: {unsettled.refused}")
        )

    def _refused(self, why: BackendError, count: int) -> None:
        """Not for what a handler wrote: it would be refused whatever is tried."""
        log.error(
            "group %s of topic %s stops, so that others handle its events: cannot settle %d of them: %s",
            self._executor.group,
            self._executor.topic,
            count,
            why,
        )
        self.error = why
        self._end()
        self._done(count)

    def _done(self, count: int) -> None:
        self._uncommitted -= count
        self._room.set()
        if not self._uncommitted:
            self._settled_all.set()
            if self._order is not None:
                self._order.stopped.clear()


def _has_writes(settled: Settled) -> bool:
    """Whether its handler has recorded any."""
    return isinstance(settled, Settlement) and bool(settled.effects or settled.outputs)

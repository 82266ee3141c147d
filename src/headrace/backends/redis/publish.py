"""Idempotent publish with group commit: one producer per topic and process, batches in sequence, a few in flight.

Nothing waits when the line is free; while `limits.publish_window` calls are in flight the next batch fills. Each batch carries
(producer, epoch, sequence of its first record), so a batch whose answer was lost is simply sent again and the server drops what it
has. When a batch fails, sending stops, everything in flight is answered or cut off, and what is not acknowledged is sent again,
oldest first, one by one. The epoch grows only after the server said that a batch is *not* there (GAP): only then may its records be
numbered anew.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from msgspec import Struct

from headrace import limits
from headrace.backends.contract import Record, Route
from headrace.backends.redis import keys, record_batch, retention
from headrace.backends.redis.client import Client
from headrace.backends.redis.connection import Wire, pack
from headrace.backends.redis.replies import Grew, ServerSaid
from headrace.backoff import Backoff
from headrace.errors import BackendError, Closed, NotConnected, Overloaded, Refused
from headrace.settings import Durability

log = logging.getLogger("headrace.redis")
Sent = asyncio.Future[None]
"""Done when what it stands for is durable."""


class Batch(Struct, eq=False):
    """Records that travel in one call, and the callers that wait for them."""

    records: list[Record]
    waiters: list[asyncio.Future[None]]
    """Those whose last record is in this batch."""
    hopeful: list[asyncio.Future[None]]
    """Those with further records behind it: they learn only of its failure."""
    size: int = 0
    deadline: float = 0.0
    reloaded: bool = False
    """Whether the server was given its scripts again for it."""
    first: int = 0
    """Sequence of the first record; 0 while it has none."""
    epoch: int = 0


def shape(record: Record) -> tuple[bytes, tuple[tuple[bytes, bytes], ...], bool, bool]:
    """What records must share to travel as one run: type, headers, having a key, having an id or a due time."""
    general = record.id is not None or record.delay_ms > 0 or record.at_ms > 0
    return record.type, record.headers, record.key is not None, general


def due(record: Record) -> bytes:
    """When a record is appended, as the scripts read it: '' at once, '+ms' from now, 'ms' Unix time."""
    if record.at_ms:
        return b"%d" % record.at_ms
    return b"+%d" % record.delay_ms if record.delay_ms else b""


def words(records: Sequence[Record], packing: int = 1) -> list[bytes]:
    """The records as runs of one shape: what is constant is said once (see scripts/publish.lua). `packing`: events per entry at most."""
    out: list[bytes] = []
    for (type_, headers, keyed, general), alike in groupby(records, shape):
        run = list(alike)
        constant = [(b"type", type_), *headers] if type_ else list(headers)
        if packing > 1 and not general and len(run) > 1:
            for chunk in record_batch.chunks(run, packing):
                out += record_batch.words(chunk, constant)
            continue
        out += (b"%d" % len(run), b"1" if general else b"0", b"%d" % len(constant), b"2" if keyed else b"1")
        for pair in constant:
            out += pair
        out += (b"key", b"data") if keyed else (b"data",)
        if general:
            for r in run:
                out += (r.id or b"", due(r), r.key, r.body) if r.key is not None else (r.id or b"", due(r), r.body)
        elif keyed:
            for r in run:
                out += (r.key, r.body)  # type: ignore[arg-type]  # the shape says that there is a key
        else:
            out += [r.body for r in run]
    return out


def kind(error: BaseException) -> type[BackendError]:
    """Which of the four errors of the contract it is."""
    return next((k for k in (NotConnected, Overloaded, Closed) if isinstance(error, k)), Refused)


class Publisher:
    """The one producer of a partition in this process."""

    def __init__(
        self, client: Client, route: Route, stream: str, count: int, onward: Callable[[int, Sequence[Record]], Sent]
    ) -> None:
        """Sends nothing yet. `stream`: the partition, when the topic has `count`; `onward` publishes when it has more."""
        self._onward = onward
        self.grown = 0
        """How many partitions the topic has by now; 0: as many as this publisher is for. Then everything goes onward, in its order."""
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._stream = stream
        self._wait_s = client.settings.publish_wait_s
        self._quorum = client.settings.replicas if client.settings.durability is Durability.QUORUM else 0
        self._producer = secrets.token_hex(8).encode()
        self._epoch, self._seq, self._acknowledged = 1, 0, 0
        self._heard = self._loop.time()
        own = keys.partition(self._stream)
        self._place = own.stream
        head = client.head("publish", 5)
        self._keys = (*head, own.stream, own.producer(self._producer), own.delayed, own.ids, own.packed, self._producer)
        self._tail = (route.cap_events, limits.producer_idle_s, int(route.id_window_s * 1000), count)
        self._route = route
        self._most = min(limits.publish_records, route.cap_events)
        """Records in one call: never more than fit into an empty topic."""
        self._filling = Batch([], [], [])
        self._full: deque[Batch] = deque()
        self._sent: deque[Batch] = deque()
        self._flying = 0
        self._buffered, self._buffered_bytes = 0, 0
        self._room = asyncio.Event()
        self._entrance = asyncio.Lock()
        self._queued = 0
        self._room.set()
        self._scheduled = False
        self._recovery: asyncio.Task[None] | None = None
        self._grounded: asyncio.Future[None] | None = None
        self._backoff = Backoff(f"publishing to {stream}")

    def publish(self, records: Sequence[Record]) -> asyncio.Future[None]:
        """All of them durable when it is done. They set out at once, or when less is under way; see Backend.publish for what it raises."""
        if self._queued or not self._room.is_set():
            self._queued += 1
            return asyncio.ensure_future(self._wait_for_room(records))
        return self._enqueue(records)

    async def _wait_for_room(self, records: Sequence[Record]) -> None:
        try:
            async with self._entrance:  # first come, first served
                while not self._room.is_set():
                    await self._room.wait()
        finally:
            self._queued -= 1
        await self._enqueue(records)

    def _enqueue(self, records: Sequence[Record]) -> asyncio.Future[None]:
        if self.grown:
            return self._onward(self.grown, records)
        done = self._loop.create_future()
        if len(records) <= self._most:
            self._add(records, done)
        else:
            for start in range(0, len(records), self._most):
                self._add(records[start : start + self._most], done)
        self._filling.hopeful.pop()
        self._filling.waiters.append(done)
        self._schedule()
        return done

    def _add(self, records: Sequence[Record], caller: asyncio.Future[None]) -> None:
        size = sum([len(r.body) for r in records])
        batch = self._filling
        if batch.records and (
            len(batch.records) + len(records) > self._most
            or batch.size + size > limits.batch_bytes_max
            or (self._recovery is not None and self._is_old(batch))
        ):
            self._cut()
            batch = self._filling
        if size > limits.batch_bytes_max and len(records) > 1:
            half = len(records) // 2
            self._add(records[:half], caller)
            self._add(records[half:], caller)
            return
        if not batch.records:
            batch.deadline = self._loop.time() + self._wait_s
        batch.records += records
        batch.hopeful.append(caller)
        batch.size += size
        self._buffered += len(records)
        self._buffered_bytes += size
        if (
            self._buffered >= limits.publish_buffer_records_max
            or self._buffered_bytes >= limits.publish_buffer_bytes_max
        ):
            self._room.clear()

    def _is_old(self, batch: Batch) -> bool:
        """Whether one that joins it now would be given up much too early."""
        return batch.deadline - self._loop.time() < self._wait_s * 0.9

    def _cut(self) -> None:
        self._full.append(self._filling)
        self._filling = Batch([], [], [])

    def _schedule(self) -> None:
        if not self._scheduled and self._recovery is None and self._flying < limits.publish_window:
            self._scheduled = True
            self._loop.call_soon(self._flush)  # callers that are ready in this turn of the loop join the batch

    def _flush(self) -> None:
        self._scheduled = False
        while self._flying < limits.publish_window and self._recovery is None:
            if not self._full:
                if not self._filling.records:
                    return
                self._cut()
            wire = self._client.connected(self._place)
            if wire is None:
                self._recover()
                return
            batch = self._full.popleft()
            self._sent.append(batch)
            try:
                reply = self._send(wire, batch)
            except Exception:  # noqa: BLE001 - whatever it is happens again in recovery, which tells the callers
                self._recover()
                return
            self._flying += 1
            reply.add_done_callback(lambda r, b=batch: self._landed(b, r))  # type: ignore[misc]

    def _send(self, wire: Wire, batch: Batch) -> asyncio.Future[Any]:
        if not batch.first:
            if not self._seq or self._loop.time() - self._heard > limits.producer_idle_s / 2:
                self._renumber()  # the first batch, or the server is about to forget us
            batch.first, batch.epoch = self._seq + 1, self._epoch
            self._seq += len(batch.records)
        numbers = (batch.epoch, batch.first, len(batch.records), *self._tail)
        packed = pack((*self._keys, *numbers, *words(batch.records, self._route.packing)))
        reply = wire.send(packed)
        if not self._quorum:
            return reply
        confirmed = wire.send(pack((b"WAIT", self._quorum, int(limits.connect_s * 1000))))
        return asyncio.ensure_future(self._confirm(reply, confirmed))

    async def _confirm(self, reply: asyncio.Future[Any], confirmed: asyncio.Future[Any]) -> Any:
        await asyncio.wait([reply, confirmed])
        confirmed.exception()  # if both failed, the first says why
        answer, replicas = await reply, await confirmed
        if replicas < self._quorum:
            raise NotConnected(
                f"{replicas} of {self._quorum} replicas confirmed in time; sending again (durability quorum)"
            )
        return answer

    def _landed(self, batch: Batch, reply: asyncio.Future[Any]) -> None:
        self._flying -= 1
        if self._grounded is not None and not self._grounded.done():
            self._grounded.set_result(None)
        failed = reply.cancelled() or reply.exception() is not None
        if batch not in self._sent:
            return  # its callers were told of a failure before its answer came
        if failed or self._sent[0] is not batch:
            self._recover()
            return
        self._sent.popleft()
        self._settle(batch)
        if self._filling.records or self._full:
            self._schedule()

    def _settle(self, batch: Batch) -> None:
        """It is durable: its callers learn that, and so do we."""
        self._heard = self._loop.time()
        self._acknowledged = batch.first + len(batch.records) - 1
        self._answer(batch, None)

    def _answer(self, batch: Batch, error: BaseException | None) -> None:
        """The callers of this batch learn how it went."""
        self._buffered -= len(batch.records)
        self._buffered_bytes -= batch.size
        if (
            self._buffered < limits.publish_buffer_records_max
            and self._buffered_bytes < limits.publish_buffer_bytes_max
        ):
            self._room.set()
        for waiter in batch.waiters if error is None else (*batch.waiters, *batch.hopeful):
            if not waiter.done():
                if error is None:
                    waiter.set_result(None)
                else:  # each caller its own exception: a shared one would collect the tracebacks of all
                    waiter.set_exception(kind(error)(str(error)))
        batch.waiters.clear()

    # Recovery: one batch at a time, oldest first.

    def _recover(self) -> None:
        if self._recovery is None:
            self._recovery = asyncio.ensure_future(self._repeat())
            self._recovery.add_done_callback(self._recovered)

    def _recovered(self, task: asyncio.Task[None]) -> None:
        self._recovery = None
        if not task.cancelled() and (bug := task.exception()) is not None:
            log.critical("publishing to %s failed in an unforeseen way", self._stream, exc_info=bug)
            self._fail(Refused(f"publishing failed in an unforeseen way, please report it: {bug!r}"))
        self._schedule()

    async def _repeat(self) -> None:
        while self._flying:
            self._grounded = self._loop.create_future()
            await self._grounded  # each is answered, or fails with its connection
        while self._sent or self._full or self._filling.records:
            if not self._sent:
                if not self._full:
                    self._cut()
                self._sent.append(self._full.popleft())
            batch = self._sent[0]
            try:
                wire = await self._client.wire(self._place)
                await self._send(wire, batch)
            except BackendError as e:
                await self._survive(batch, e)
            else:
                self._backoff.over()
                self._sent.popleft()
                self._settle(batch)

    async def _survive(self, batch: Batch, error: BackendError) -> None:
        """The oldest batch failed: it stays the oldest, to be sent again, or its callers learn of the error and it is gone."""
        forgotten = isinstance(error, ServerSaid) and error.code == "NOSCRIPT"
        if forgotten:
            self._client.drop(self._place)  # a new connection loads the scripts
        if forgotten and not batch.reloaded:
            batch.reloaded = True
        elif isinstance(error, ServerSaid) and error.code == "GAP":
            last = int(re.findall(r"last is (\d+)", str(error))[0])
            if last < self._acknowledged:
                log.error(
                    "%s: the server has forgotten %d acknowledged events of this producer (restored, flushed or failed over "
                    "without them); going on with new ones. Compare the durability level with `headrace doctor`.",
                    self._stream,
                    self._acknowledged - last,
                )
                self._client.forget(self._route.topic)  # it has to be put on the server's list again
            self._renumber()
            for sent in self._sent:
                sent.first = 0
        elif isinstance(error, Grew) and error.partitions:
            self._turn(error.partitions)
        elif (forgotten or isinstance(error, NotConnected | Overloaded)) and self._loop.time() < batch.deadline:
            full, count = isinstance(error, Overloaded), len(batch.records)
            if not (full and await retention.make_room(self._client, self._route, self._stream, count)):
                await self._backoff.wait(error)
        else:
            self._sent.popleft()
            self._answer(batch, error)
            if isinstance(error, NotConnected):
                self._fail(error, self._loop.time())  # those behind it would each wait for the same

    def _turn(self, partitions: int) -> None:
        """The topic has grown: nothing of what is here was written, and all of it goes onward in this moment, before anything later does."""
        held = [b for b in (*self._sent, *self._full, self._filling) if b.records]
        self._sent.clear()
        self._full.clear()
        self._filling = Batch([], [], [])
        self.grown = partitions
        for batch in held:
            sent = self._onward(partitions, batch.records)
            sent.add_done_callback(lambda s, b=batch: self._arrived(b, s))  # type: ignore[misc]

    def _arrived(self, batch: Batch, sent: Sent) -> None:
        error = Closed("the app was closed") if sent.cancelled() else sent.exception()
        self._answer(batch, error)

    def _renumber(self) -> None:
        """New numbers; legal only when nothing without an answer is on its way."""
        self._epoch += 1 if self._seq else 0
        self._seq, self._acknowledged = 0, 0

    def _fail(self, error: BackendError, until: float = math.inf) -> None:
        """All that waits, or what has waited `until` its deadline."""
        if self._filling.records:
            self._cut()
        for waiting in (self._sent, self._full):
            while waiting and waiting[0].deadline <= until:
                self._answer(waiting.popleft(), error)

    def close(self) -> None:
        """Fails what is still waiting with Closed."""
        if self._recovery is not None:
            self._recovery.cancel()
        self._fail(Closed("the app was closed before this event was acknowledged; it may or may not have been written"))

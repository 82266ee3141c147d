"""One delivery through one handler: decode, find the handler, call it, judge how it ended. Nothing here talks to the server."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Executor as Threads
from typing import Any

from headrace import limits
from headrace.backends.contract import Delivery, Settled, Settlement, Verdict
from headrace.context import Context, Surroundings
from headrace.errors import DeadlineExceeded, HandlerError
from headrace.handler import Handler
from headrace.observe import Observer, described, text_of
from headrace.retry import Retry
from headrace.topic import Group
from headrace.transaction import Transactions, Unavailable

log = logging.getLogger("headrace")


class Executor:
    """The handlers of one group, ready to be called."""

    def __init__(self, group: Group, effects: frozenset[str], threads: Threads, observer: Observer) -> None:
        """`effects`: what the backend can write with an ack. `threads`: where plain `def` handlers run."""
        self.topic, self.group = group.topic.name, group.name
        self.timeout_s: float | None = (
            max((h.timeout_s for h in group.handlers if h.timeout_s is not None), default=None)
            if all(h.timeout_s is not None for h in group.handlers)
            else None
        )
        self.ordered, self._on_failure = group.ordered, group.on_failure
        self.batched = group.handlers[0].batched
        self.batch = group.batch if self.batched else 1
        self._observer = observer
        self._threads = threads
        self._loop = asyncio.get_running_loop()
        self._decode = group.topic.codec.decode
        self._inbox = group.inbox
        self._only = (
            group.handlers[0]
            if len(group.handlers) == 1 and set(group.handlers[0].types) == set(group.topic.codec.types)
            else None
        )
        self._by_type = {t: h for h in group.handlers for t in h.types}
        self._calls = {h: self._call_of(h) for h in group.handlers}  # names may repeat
        self._surroundings = {
            h: Surroundings(self.topic, self.group, h.timeout_s, effects, group.topic.route.partitions)
            for h in group.handlers
        }
        self._first = self._surroundings[group.handlers[0]]
        self._only_call = self._calls[self._only] if self._only else None
        alone = self._only is not None and self._only.asynchronous and not self._only.with_context
        self._bare = self._only.function if alone and self._only and group.inbox is None else None
        """The only handler, if it wants nothing but the event: then no context is made."""
        self._retry = group.handlers[0].retry
        self._retries = {getattr(t, "__name__", "").encode(): h.retry for t, h in self._by_type.items()}
        """By the name of the type as it travels: what failed may not have been decoded."""
        self.name = group.handlers[0].name
        self._waits: dict[int, Callable[[], object]] = {}
        """By the `id()` of deliveries with an inbox: whether they wait for its database now, and not for their handler."""

    async def execute(self, delivery: Delivery, started: float) -> Settled:
        """How this delivery is to be settled. Raises only CancelledError, when the worker gives it up."""
        try:
            event = self._decode(delivery)
            if self._bare is not None:
                await self._bare(event)
                return delivery
            call, surroundings = self._only_call, self._first
            if call is None:
                handler = self._by_type.get(type(event))
                if handler is None:
                    return delivery  # this group does not care for this type
                call, surroundings = self._calls[handler], self._surroundings[handler]
            ctx = Context(delivery, surroundings, started)
            try:
                await call(event, ctx)
            finally:
                ctx.writes_left = -1
        except GeneratorExit:
            raise
        except Unavailable as e:
            return (await self._later((delivery,), e))[0]
        except BaseException as e:  # noqa: BLE001 - whatever a handler raises is its event's failure, never the worker's
            return self.judge(delivery, self._seen(e))
        if ctx.outputs is None and ctx.effects is None and ctx.failure is None:
            return delivery
        return self._conclude(ctx)

    async def execute_batch(self, deliveries: Sequence[Delivery], started: float) -> list[Settled]:
        """As `execute`, for handlers of lists: a call for each handler; it may fail events one by one by `ctx[i].fail`."""
        settled: list[Settled] = []
        calls: dict[Handler, tuple[list[Any], list[Context]]] = {}
        for delivery in deliveries:
            try:
                event = self._decode(delivery)
            except GeneratorExit:
                raise
            except BaseException as e:  # noqa: BLE001 - an event's class is a user's code too (`__post_init__`): its event's failure
                settled.append(self.judge(delivery, self._seen(e)))
                continue
            handler = self._only or self._by_type.get(type(event))
            if handler is None:
                settled.append(delivery)  # this group does not care for this type
                continue
            events, contexts = calls.setdefault(handler, ([], []))
            events.append(event)
            contexts.append(Context(delivery, self._surroundings[handler], started))
        for handler, (events, contexts) in calls.items():
            settled += await self._call_batch(handler, events, contexts)
        return settled

    async def _call_batch(self, handler: Handler, events: list[Any], contexts: list[Context]) -> list[Settled]:
        try:
            await self._calls[handler](events, contexts.copy())  # its own lists: it may take them apart
        except GeneratorExit:
            raise
        except Unavailable as e:
            return await self._later([c.delivery for c in contexts], e)
        except BaseException as e:  # noqa: BLE001 - as in `execute`
            seen = self._seen(e)
            return [self.judge(c.delivery, seen if c.failure is None else c.failure) for c in contexts]
        finally:
            _end(contexts)
        return [self._conclude(c) for c in contexts]

    async def _later(self, deliveries: Sequence[Delivery], error: Unavailable) -> list[Settled]:
        """The database is not there: the events are handed back after a pause, as often as it takes; no attempt is counted."""
        log.warning(
            "topic %s, group %s: the database of the inbox: %s. Trying again, %d events wait",
            self.topic,
            self.group,
            error,
            len(deliveries),
        )
        try:
            with self._waiting(deliveries, lambda: True):
                await asyncio.sleep(limits.database_pause_s)
        except asyncio.CancelledError as e:
            self._seen(e)  # its time is over, then others may try
        return [Settlement(d, Verdict.RETURN) for d in deliveries]

    @contextlib.contextmanager
    def _waiting(self, deliveries: Sequence[Delivery], waits: Callable[[], object]) -> Iterator[None]:
        """Meanwhile `waits` says whether these wait for the database."""
        self._waits.update((id(d), waits) for d in deliveries)
        try:
            yield
        finally:
            for delivery in deliveries:
                self._waits.pop(id(delivery), None)

    def judge(self, delivery: Delivery, error: BaseException) -> Settlement:
        """A failed delivery: a retry that becomes due later, or a dead letter. Both are rows of the same commit. Never raises.

        One that was given up while its database let it wait is handed back instead.
        """
        if (waits := self._waits.get(id(delivery))) is not None and waits():
            return Settlement(delivery, Verdict.RETURN)
        retry = self._retries.get(delivery.get(b"type") or b"", self._retry)
        again_in_s = self._again_in_s(retry, delivery.attempt, error)
        event_id = delivery.id.decode(errors="replace")
        try:
            self._observer.failed(self.topic, self.group, event_id, delivery.attempt, error, again_in_s)
        except Exception:  # a settlement must not be lost over who watches
            log.exception("the observer could not be told that event %s failed", event_id)
        reason = described(error)[:1000].encode(errors="replace")
        if again_in_s is None:
            return Settlement(delivery, Verdict.DEAD, reason=reason)
        return Settlement(delivery, Verdict.RETRY, delay_ms=round(again_in_s * 1000), reason=reason)

    def _again_in_s(self, retry: Retry, attempt: int, error: BaseException) -> float | None:
        if self.ordered and self._on_failure == "skip":
            return None
        again_in_s = retry.again_in_s(attempt, error)
        if again_in_s is None and self.ordered and self._on_failure == "stop" and not retry.is_final(error):
            return retry.pause_s(attempt)
        return again_in_s

    def _conclude(self, ctx: Context) -> Settled:
        if ctx.failure is not None:
            return self.judge(ctx.delivery, ctx.failure)
        if ctx.outputs is None and ctx.effects is None:
            return ctx.delivery
        return Settlement(ctx.delivery, outputs=ctx.outputs or (), effects=ctx.effects or ())

    def _seen(self, error: BaseException) -> BaseException:
        """The error as the event's failure; a cancellation that was not for the deadline is passed on."""
        if isinstance(error, asyncio.CancelledError):
            task = asyncio.current_task()
            asked = text_of(error.args[0]) if error.args else ""
            if task is not None and task.cancelling():
                if asked != DEADLINE:
                    raise error
                task.uncancel()
                return DeadlineExceeded(f"the handler ran longer than {self.timeout_s} s")
            return HandlerError("the handler raised CancelledError")
        if isinstance(error, SystemExit):
            return HandlerError(f"the handler called sys.exit({text_of(error.code, repr)})")
        return error

    def _limited(
        self, call: Callable[[Any, Any], Awaitable[Any]], timeout_s: float | None
    ) -> Callable[[Any, Any], Awaitable[Any]]:
        """The call with a deadline of its own, if it is sooner than that of the group, which the pump keeps."""
        if timeout_s is None or timeout_s == self.timeout_s:
            return call
        return lambda event, ctx: _within(timeout_s, call(event, ctx))

    def _call_of(self, handler: Handler) -> Callable[[Any, Any], Awaitable[Any]]:
        """A uniform way to call a handler, with its deadline, chosen once."""
        if self._inbox is not None:
            return self._in_transaction(handler, self._inbox)
        return self._limited(self._direct(handler), handler.timeout_s)

    def _direct(self, handler: Handler) -> Callable[[Any, Any], Awaitable[Any]]:
        function = handler.function
        if handler.asynchronous:
            if handler.with_context:
                return function
            return lambda event, _: function(event)
        loop, threads = self._loop, self._threads
        if handler.with_context:
            return lambda event, ctx: loop.run_in_executor(threads, _contained, function, event, ctx)
        return lambda event, _: loop.run_in_executor(threads, _contained, function, event)

    def _in_transaction(self, handler: Handler, inbox: Transactions) -> Callable[[Any, Any], Awaitable[Any]]:
        """The call inside a transaction that also notes its events as handled.

        A deadline that passes before the handler or after it is the database's: nothing has happened yet, or the repeat finds out.
        """
        function, batched = handler.function, handler.batched

        async def call(events: Any, contexts: Any) -> None:
            of = dict(zip(map(id, contexts), events, strict=True)) if batched else {}
            mine = [ctx.delivery for ctx in (contexts if batched else (contexts,))]
            waits: str | None = _BEFORE

            def words(fresh: Sequence[Context]) -> tuple[Any, ...]:
                event = [of[id(ctx)] for ctx in fresh] if batched else events
                return (event, list(fresh) if batched else contexts) if handler.with_context else (event,)

            async def handle(fresh: Sequence[Context]) -> None:
                nonlocal waits
                waits = None
                await function(*words(fresh))
                waits = _AFTER
                _end(fresh)

            def handle_here(fresh: Sequence[Context]) -> None:
                nonlocal waits
                waits = None
                _contained(function, *words(fresh))
                waits = _AFTER
                _end(fresh)

            async def run(*_: Any) -> None:
                own = handle if handler.asynchronous else handle_here
                await inbox.run(self.topic, self.group, contexts if batched else (contexts,), own, self._threads)

            try:
                with self._waiting(mine, lambda: waits):
                    await self._limited(run, handler.timeout_s)(events, contexts)
            except (asyncio.CancelledError, DeadlineExceeded) as e:
                if waits and isinstance(self._seen(e), DeadlineExceeded):
                    raise Unavailable(f"no answer within {handler.timeout_s} s, {waits}") from e
                raise

        return call


DEADLINE = "headrace: deadline"
"""The message of the cancellation that means: this handler's time is over."""
_BEFORE, _AFTER = "before its handler was called", "after its handler had returned"


def _end(contexts: Sequence[Context]) -> None:
    for ctx in contexts:
        ctx.writes_left = -1


async def _within(timeout_s: float, work: Awaitable[Any]) -> None:
    """Waits for it. Raises DeadlineExceeded if that takes longer."""
    limit = asyncio.timeout(timeout_s)
    try:
        async with limit:
            await work
    except TimeoutError as e:
        if not limit.expired():
            raise  # the handler's own
        raise DeadlineExceeded(f"the handler ran longer than {timeout_s} s") from e


def _contained(function: Callable[..., Any], *arguments: Any) -> None:
    """Calls a function in a thread. Raises HandlerError for what asyncio would not carry over, and for a result that nobody would run."""
    try:
        result = function(*arguments)
    except StopIteration as e:
        raise HandlerError("the handler raised StopIteration") from e
    if result is None:
        return
    if inspect.isawaitable(result) or inspect.isgenerator(result) or inspect.isasyncgen(result):
        if inspect.iscoroutine(result) or inspect.isgenerator(result):
            result.close()
        raise HandlerError(
            f"the handler is a plain function and returned a {type(result).__name__}, which nobody runs; "
            "declare an `async def` that awaits it"
        )

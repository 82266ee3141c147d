"""A typed topic: publish to it, subscribe to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar, Unpack

from msgspec import Struct

from headrace import limits
from headrace.backends.contract import Backend, OnFailure, Record, Route
from headrace.codec import Codec
from headrace.errors import BackendError, ConfigurationError, InvalidEvent
from headrace.event import check_name, due_ms, header_pairs, id_bytes, key_bytes, too_large
from headrace.handler import Handler, examine
from headrace.retry import Retry
from headrace.serving import GroupOptions
from headrace.transaction import Outgoing, Transactions

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Group(Struct, eq=False):
    """One group on one topic: what a worker serves as a whole."""

    topic: Topic[Any]
    name: str
    handlers: list[Handler]
    start: str = "earliest"
    lanes: int = limits.lanes
    batch: int = 100
    ordered: bool = False
    on_failure: OnFailure = "park"
    inbox: Transactions | None = None


class Owner(Protocol):
    """What a topic needs of its app."""

    def backend(self) -> Backend:
        """The connected backend. Raises Closed outside `async with app`."""

    groups: dict[tuple[str, str], Group]

    @property
    def outbox(self) -> Outgoing | None:
        """Where `publish(sql=...)` writes."""


class Topic(Generic[T]):
    """Made by `Headrace.topic`."""

    def __init__(self, app: Owner, route: Route, event_type: type[T], key: str | Callable[[T], object] | None) -> None:
        """Raises ConfigurationError if the name or type will not do."""
        check_name("topic", route.topic)
        self._app = app
        self.route = route
        self.event_type = event_type
        self.codec = Codec(event_type)
        self._key = key

    @property
    def name(self) -> str:
        """The topic's name, which on Redis is the stream's key."""
        return self.route.topic

    def record(
        self,
        event: object,
        *,
        id: str | None = None,  # noqa: A002 - the field's word for it
        key: str | int | None = None,
        headers: Mapping[str, str] | None = None,
        delay_s: float | None = None,
        at: datetime | None = None,
    ) -> Record:
        """The event as it will travel. Raises InvalidEvent; nothing is written."""
        if id is None and key is None and headers is None and delay_s is None and at is None:
            return self.plain_record(event)
        plain = self.plain_record(event, key)
        delay_ms, at_ms = due_ms(delay_s, at) if delay_s is not None or at is not None else (0, 0)
        own = None if id is None else id_bytes(id)
        return Record(plain.body, plain.type, plain.key, own, header_pairs(headers), delay_ms, at_ms)

    def plain_record(self, event: object, key: str | int | None = None) -> Record:
        """The event without headers, id or due time. Raises InvalidEvent."""
        type_name, body = self.codec.encode(event)
        if len(body) > limits.body_bytes_max:
            raise too_large(body)
        if key is None:
            if self._key is None:
                return Record(body, type_name)
            key = self._key_of(event)
        return Record(body, type_name, key_bytes(key))

    def _key_of(self, event: Any) -> Any:
        key = self._key
        if callable(key):
            value = key(event)
        elif isinstance(event, dict):
            value = event.get(key)
        else:
            value = getattr(event, key, None)  # type: ignore[arg-type]  # not callable, not None: a name
        if value is None:
            raise InvalidEvent(
                f"topic {self.name}: the key {key!r} of this event is None; every event of the topic needs one"
            )
        return value

    async def publish(
        self,
        event: T,
        *,
        id: str | None = None,  # noqa: A002 - the field's word for it
        key: str | int | None = None,
        headers: Mapping[str, str] | None = None,
        delay_s: float | None = None,
        at: datetime | None = None,
        sql: Any = None,
    ) -> None:
        """Publishes one event and returns when it is durable at the app's level.

        `sql`, a SQLAlchemy session: it is written to the app's outbox in that transaction, and sent by a relay once that has committed.

        `id` drops repeats with the same id inside the topic's window (a day by default). `delay_s` or `at` (with a time zone) hold
        it back. Concurrent calls share one call to the server. Raises InvalidEvent (nothing written), NotConnected (it may have been
        written; publishing again may duplicate it unless it has an `id`), Overloaded, Refused, Closed.
        """
        record = self.record(event, id=id, key=key, headers=headers, delay_s=delay_s, at=at)
        if sql is not None:
            if self._app.outbox is None:
                raise ConfigurationError("publish(sql=...) needs an outbox: Headrace(outbox=Outbox(engine))")
            await self._app.outbox.add(sql, self.name, record)
            return
        await self._app.backend().publish(self.route, (record,))

    async def publish_many(self, events: Iterable[T] | AsyncIterable[T]) -> int:
        """Publishes them all, in order, with bounded memory, and returns how many, all durable. Raises as `publish` does.

        An event that cannot be sent raises InvalidEvent after those before it were published.
        """
        sender = _Sender(self._app.backend(), self.route)
        add, record = sender.add, self.plain_record
        try:
            if isinstance(events, AsyncIterable):
                async for event in events:
                    if add(record(event)):
                        await sender.send()
            else:
                for event in events:
                    if add(record(event)):
                        await sender.send()
        except asyncio.CancelledError:
            sender.cancel()
            raise
        except BaseException:
            with contextlib.suppress(BackendError):  # what was raised first says more
                await sender.finish()
            raise
        await sender.finish()
        return sender.sent

    def subscribe(
        self,
        group: str,
        *,
        retry: Retry | None = None,
        timeout_s: float | None = limits.timeout_s,
        **options: Unpack[GroupOptions],
    ) -> Callable[[F], F]:
        """Declares the decorated function as handler of this topic in `group`.

        `timeout_s`: the handler is cancelled and its event retried after this long; None: never. `options`: see GroupOptions.
        Several handlers of one group share its events by type. Raises ConfigurationError.
        """
        declared = Group(self, group, [], **options)
        self._check_group(declared)
        _check("timeout_s", timeout_s is None or timeout_s > 0, "a positive number or None", timeout_s)

        def declare(function: F) -> F:
            handler = examine(function, self.event_type, retry or Retry(), timeout_s)
            known = self._app.groups.setdefault((self.name, group), declared)
            if (known.ordered, known.on_failure, known.inbox) != (
                declared.ordered,
                declared.on_failure,
                declared.inbox,
            ):
                raise ConfigurationError(
                    f"{handler.name}: the handlers of group {group} of topic {self.name} all have the same ordered=, on_failure= and inbox="
                )
            inbox = declared.inbox
            if inbox is not None and inbox.asynchronous != handler.asynchronous:
                kind, engine = (
                    ("async def", "create_async_engine") if handler.asynchronous else ("plain def", "create_engine")
                )
                raise ConfigurationError(
                    f"{handler.name}: an inbox for {kind} handlers needs an engine made by {engine}"
                )
            taken = [t for h in known.handlers for t in h.types if t in handler.types]
            if taken:
                other = next(h.name for h in known.handlers if set(h.types) & set(handler.types))
                raise ConfigurationError(
                    f"{handler.name}: group {group} of topic {self.name} already has {other} for these events; use another group name, "
                    "then both get every event"
                )
            if known.handlers and known.handlers[0].batched != handler.batched:
                raise ConfigurationError(
                    f"{handler.name}: the handlers of one group all take single events, or all take lists"
                )
            known.handlers.append(handler)
            return function

        return declare

    def _check_group(self, group: Group) -> None:
        """Raises ConfigurationError for what cannot be meant."""
        check_name("group", group.name)
        _check("start", group.start in ("earliest", "latest"), "earliest or latest", group.start)
        _check("lanes", 1 <= group.lanes <= 10_000, "1 to 10,000", group.lanes)  # noqa: PLR2004 - said in the message
        _check("batch", 1 <= group.batch <= limits.read_records_max, f"1 to {limits.read_records_max}", group.batch)
        _check("ordered", isinstance(group.ordered, bool), "True or False", group.ordered)
        _check("on_failure", group.on_failure in ("park", "skip", "stop"), "park, skip or stop", group.on_failure)
        if group.ordered and self._key is None:
            raise ConfigurationError(
                f"group {group.name}: ordered=True needs to know whose events are in order: "
                f'app.topic({self.name!r}, ..., key="customer")'
            )
        if group.on_failure != "park" and not group.ordered:
            raise ConfigurationError(
                f"group {group.name}: on_failure={group.on_failure!r} is for ordered=True; in shared mode nothing waits"
            )


class _Sender:
    """Keeps a bounded number of records under way: while some travel, the next ones are gathered."""

    def __init__(self, backend: Backend, route: Route) -> None:
        self._backend, self._route = backend, route
        self._records: list[Record] = []
        self._bytes = 0
        spread = min(route.partitions, 8)  # so that each partition's call is not too small
        self._full, self._full_bytes = limits.publish_records * spread, limits.batch_bytes_max * spread
        self._flying: deque[asyncio.Task[None]] = deque()
        self.sent = 0
        """How many set out so far."""

    def add(self, record: Record) -> bool:
        """Takes a record; True: enough have gathered, call `send`."""
        records = self._records
        records.append(record)
        self._bytes = size = self._bytes + len(record.body)
        return len(records) >= self._full or size >= self._full_bytes

    async def send(self) -> None:
        """Sends what has gathered, once few enough are under way."""
        records, self._records, self._bytes = self._records, [], 0
        while len(self._flying) > limits.publish_window:
            await self._flying.popleft()
        self.sent += len(records)
        self._flying.append(asyncio.ensure_future(self._backend.publish(self._route, records)))
        await asyncio.sleep(0)  # it sets out now, and what has arrived is noticed

    async def finish(self) -> None:
        """Returns when everything is durable; raises what went wrong first."""
        if self._records:
            await self.send()
        ended = await asyncio.gather(*self._flying, return_exceptions=True)
        for error in ended:
            if error is not None:
                raise error

    def cancel(self) -> None:
        """Waits for nothing any more."""
        for task in self._flying:
            task.cancel()


def _check(option: str, fine: bool, expected: str, got: object) -> None:  # noqa: FBT001 - the condition itself
    if not fine:
        raise ConfigurationError(f"{option}: expected {expected}, got {got!r}")

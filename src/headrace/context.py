"""What a handler sees beside its event. Nothing of it is computed before it is asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn, Protocol

from msgspec import Struct

from headrace import limits
from headrace.backends.contract import Delivery, Effect, Record, Route
from headrace.backends.partition import partition_of
from headrace.effects import RedisEffects
from headrace.errors import HandlerError, InvalidEvent, Reject


class Destination(Protocol):
    """What an event can be published to: a Topic."""

    @property
    def route(self) -> Route:
        """Where it lives."""

    @property
    def record(self) -> Callable[..., Record]:
        """Makes an event as it will travel. Raises InvalidEvent."""


class Surroundings(Struct, frozen=True):
    """What all calls of one handler share."""

    topic: str
    group: str
    timeout_s: float | None
    effects: frozenset[str]
    partitions: int = 1


class Context(Struct, eq=False):
    """One delivery, as its handler sees it. What it records leaves with the ack, or not at all. Made by the runtime."""

    delivery: Delivery
    _surroundings: Surroundings
    _started: float
    outputs: list[tuple[Route, Record]] | None = None
    effects: list[Effect] | None = None
    failure: BaseException | None = None
    session: Any = None
    """The transaction of `subscribe(..., inbox=...)`."""
    writes_left: int = limits.scripts_writes_max
    """How many more may be recorded; less than 0: the handler has ended, or was given up, and nothing more would be written."""

    @property
    def id(self) -> str:
        """The event's identity, stable over every retry and takeover: use it as idempotency key towards others."""
        return self.delivery.id.decode(errors="replace")

    @property
    def key(self) -> str | None:
        """The ordering key, or None."""
        raw = self.delivery.get(b"key")
        return None if raw is None else raw.decode(errors="replace")

    @property
    def type(self) -> str:
        """The event type's name as it stands on the wire; '' if the writer gave none."""
        return (self.delivery.get(b"type") or b"").decode(errors="replace")

    @property
    def attempt(self) -> int:
        """1 for the first call of a handler with this event."""
        return self.delivery.attempt

    @property
    def topic(self) -> str:
        """The topic's name."""
        return self._surroundings.topic

    @property
    def partition(self) -> str:
        """The partition that the event comes from: `orders.3`, or just the topic if it has one. '' for one of several that cannot be told.

        In a Cluster, effects can be written to keys that live with it: `ctx.redis.hincrby(f"{{{ctx.partition}}}:revenue", ...)`.
        """
        if (known := self.delivery.partition) is not None:
            return known
        partitions, key = self._surroundings.partitions, self.delivery.key
        if partitions == 1:
            return self.topic
        return "" if key is None else f"{self.topic}.{partition_of(key, partitions)}"

    @property
    def group(self) -> str:
        """The group's name."""
        return self._surroundings.group

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers as they were published: CloudEvents attributes by their name, others without their `x-`."""
        fields = self.delivery.fields
        out: dict[str, str] = {}
        for i in range(0, len(fields) - 1, 2):
            name = fields[i].decode(errors="replace")
            if name not in _OWN:
                out[name.removeprefix("x-")] = fields[i + 1].decode(errors="replace")
        return out

    @property
    def time(self) -> datetime:
        """When it happened: the `time` attribute, else when the server stored it (this copy of it, for a retry)."""
        raw = self.delivery.get(b"time")
        if raw is not None:
            try:
                return datetime.fromisoformat(raw.decode())
            except ValueError:
                pass  # another writer's idea of a time; the server's is right enough
        origin = self.delivery.get(b"origin") or self.delivery.token
        return datetime.fromtimestamp(int(origin.partition(b"-")[0]) / 1000, UTC)

    @property
    def timeout_s(self) -> float | None:
        """How long the handler may take in all; None: as long as it likes."""
        return self._surroundings.timeout_s

    @property
    def deadline(self) -> float | None:
        """When the handler is cancelled, in `time.monotonic()` seconds, which is the event loop's clock; None: never."""
        timeout_s = self._surroundings.timeout_s
        return None if timeout_s is None else self._started + timeout_s

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger that says which event it is about."""
        name = f"headrace.{self.topic}.{self.group}"
        return logging.LoggerAdapter(logging.getLogger(name), {"event_id": self.id, "attempt": self.attempt})

    @property
    def redis(self) -> RedisEffects:
        """Writes to Redis that happen in the moment of the ack, once, or not at all. Each raises what `publish` does."""
        if self.effects is None:
            self.effects = []
        return RedisEffects(self.effects, self._surroundings.effects, self._count)

    @property
    def sql(self) -> Any:
        """The session whose transaction also notes this event as handled: an AsyncSession, or a Session for plain `def` handlers.

        Do not commit it. Raises HandlerError without `inbox=`.
        """
        if self.session is None:
            if self.writes_left < 0:
                self._refuse()
            raise HandlerError(
                f"ctx.sql: group {self.group} of topic {self.topic} has no transaction; declare it with subscribe(..., inbox=Inbox(engine))"
            )
        return self.session

    def publish(self, topic: Destination, event: object, **options: Any) -> None:
        """An event that leaves with the ack, once, or not at all. Options as in `Topic.publish`.

        Raises InvalidEvent, also for one write too many of this event; HandlerError after the handler has ended.
        """
        record = topic.record(event, **options)
        if self.writes_left <= 0:  # as in _count, for speed
            self._refuse()
        self.writes_left -= 1
        if self.outputs is None:
            self.outputs = []
        self.outputs.append((topic.route, record))

    def fail(self, error: BaseException | str) -> None:
        """For batch handlers: this one failed, the others did not. Retried or dead-lettered as if the handler had raised `error`."""
        if self.writes_left < 0:
            self._refuse()
        self.failure = error if isinstance(error, BaseException) else HandlerError(error)

    def reject(self, reason: str) -> None:
        """For batch handlers: this one can never be handled; straight to the dead letters."""
        if self.writes_left < 0:
            self._refuse()
        self.failure = Reject(reason)

    def _count(self) -> None:
        """One write more. Raises as `publish` does."""
        if self.writes_left <= 0:
            self._refuse()
        self.writes_left -= 1

    def _refuse(self) -> NoReturn:
        if self.writes_left < 0:
            raise HandlerError(
                f"ctx of event {self.id}: its handler has ended, or its time is over, and nothing can leave with its ack any more; "
                "let the handler wait for what it starts"
            )
        raise InvalidEvent(
            f"one event may record at most {limits.scripts_writes_max:,} writes, by ctx.redis and ctx.publish together"
        )


_OWN = frozenset({"id", "type", "data", "key", "attempt", "origin", "reason", "due", "replay"})

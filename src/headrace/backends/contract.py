"""What the runtime asks of a server, and nothing else. A backend carries bytes and tokens; it never sees a user's types.

Batches at every boundary. A backend raises `NotConnected` (repeat later), `Overloaded` (repeat later), `Refused` (never),
`Closed`, and no others. All names of attributes on the wire are those of CloudEvents (see docs/reference/wire.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Literal, Protocol

from msgspec import Struct

from headrace import limits

Effect = tuple[bytes, ...]
"""A backend-native write: command, key, arguments. For Redis, `(b"HINCRBY", b"revenue", b"ann", b"3")`."""


class Route(Struct, frozen=True):
    """Where a topic lives and how much of it is kept."""

    topic: str
    partitions: int = 1
    cap_events: int = limits.cap_events
    """publish() raises `Overloaded` when the topic holds this many."""
    retain_events: int = limits.retain_events
    """Settled events are kept for replay, as far as the cap has room for them, until the topic holds more than this many ..."""
    retain_s: float = limits.retain_s
    """... or they are older than this. An event that a group still needs is never trimmed."""
    keep_for_first_group: bool = True
    """While no group exists, all events are kept for the first one. False: then only the two bounds above decide what is kept."""
    id_window_s: float = limits.id_window_s
    """How long a caller-given id drops repeats."""
    packing: int = 1
    """How many events of one publish call may share an entry on the server; a backend without entries ignores it."""


class Record(Struct, frozen=True, gc=False):
    """One event on its way out."""

    body: bytes
    type: bytes = b""
    key: bytes | None = None
    id: bytes | None = None
    """Given by the caller: repeats inside the route's `id_window_s` are dropped. None: producer.epoch.seq."""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """Further attributes (`time`, `source`, `traceparent`, `x-...`), name and value."""
    delay_ms: int = 0
    at_ms: int = 0
    """Due `delay_ms` from now or at `at_ms` (Unix time), by the server's clock. 0: at once."""

    @property
    def place(self) -> bytes | None:
        """What its partition follows from, if anything does: the key, an empty one too, else the id."""
        return self.id if self.key is None else self.key


class Delivery(Struct, gc=False, eq=False):
    """One event taken by a worker. By itself, given to `commit`, it means: handled, nothing to write."""

    token: bytes
    """The backend's name for this event (Redis: the stream id, and `/n` if it shares its entry). Unique within its stream, stable over
    redelivery."""
    fields: Sequence[bytes]
    """Attribute names and values in turn; `data` is the body. Writers put `data` last, readers do not depend on it."""
    batch: Any
    """What the feed needs to settle it; opaque to everyone else."""
    attempt: int = 1
    """1 for the first; grows with each retry. Time spent in dead workers does not count."""

    def get(self, name: bytes) -> bytes | None:
        """The value of an attribute, or None."""
        fields = self.fields
        for i in range(0, len(fields) - 1, 2):
            if fields[i] == name:
                return fields[i + 1]
        return None

    @property
    def key(self) -> bytes | None:
        """Its ordering key, if it has one."""
        fields = self.fields
        if len(fields) > 3 and fields[-4] == b"key":  # noqa: PLR2004 - where our writers put it: right before `data`
            return fields[-3]
        return self.get(b"key")

    @property
    def partition(self) -> str | None:
        """The partition it comes from, if its feed says so: that is what `batch.partition` is for."""
        return getattr(self.batch, "partition", None)

    @property
    def id(self) -> bytes:
        """The event's identity: its `id` attribute, else its place in the stream."""
        fields = self.fields
        return (fields[1] if fields and fields[0] == b"id" else self.get(b"id")) or self.token


class Verdict(IntEnum):
    """How a delivery ends."""

    HANDLED = 0
    RETRY = 1
    """A copy with `attempt` + 1 becomes due after `delay_ms`."""
    DEAD = 2
    """A copy rests in the group's dead letters."""
    RETURN = 3
    """Handed back unhandled: any worker may take it at once; `attempt` stays."""


class Settlement(Struct, gc=False, eq=False):
    """A delivery, how it ends, and what is written in the same moment or not at all."""

    delivery: Delivery
    verdict: Verdict = Verdict.HANDLED
    outputs: Sequence[tuple[Route, Record]] = ()
    effects: Sequence[Effect] = ()
    delay_ms: int = 0
    reason: bytes = b""
    """For RETRY and DEAD: one line for people, kept with the copy."""


Settled = Delivery | Settlement


def delivery_of(settled: Settled) -> Delivery:
    """The delivery that is settled."""
    return settled if isinstance(settled, Delivery) else settled.delivery


def comes_again(settled: Settled | None) -> bool:
    """Whether this event is to be handled again: it failed, or was handed back."""
    return isinstance(settled, Settlement) and settled.verdict in (Verdict.RETRY, Verdict.RETURN)


class Unsettled(Struct, frozen=True):
    """One that `commit` did not apply."""

    settled: Settled
    refused: str = ""
    """Empty: another worker had settled it. Else: why its writes cannot be made; it is still ours, settle it otherwise."""


OnFailure = Literal["park", "skip", "stop"]
"""`park`: later events of its key wait behind it; `skip`: it is dead-lettered at once, nothing waits; `stop`: its partition waits."""


class Subscription(Struct, frozen=True):
    """One group on one topic, as a feed needs to know it."""

    route: Route
    group: str
    consumer: str
    """This worker's name; never used again by another life."""
    start: str = "earliest"
    """`earliest` or `latest`; used only when the group is created."""
    lease_s: float = limits.lease_s
    read_bytes: int = limits.read_bytes
    ordered: bool = False
    """Events of one key are given out in publish order; see Feed.take for what is asked of the worker."""
    on_failure: OnFailure = "park"
    """Ordered: what becomes of later events while one is to be retried."""


class Features(Struct, frozen=True):
    """What a backend can do. A feature it lacks is refused with an error that names the alternative."""

    name: str
    effects: frozenset[str] = frozenset()
    """Commands that `ctx.redis` may record, in capitals."""
    outputs: bool = True
    delay: bool = True
    ordered: bool = False
    replay: bool = True
    ids: bool = True


class Feed(Protocol):
    """One worker's place in one group. Holding one keeps its lease alive."""

    async def take(self, limit: int, wait_s: float) -> Sequence[Delivery]:
        """At most `limit` deliveries; waits up to `wait_s` for the first. Empty: none came.

        Ordered: deliveries of one key (those without a key count as one) come in their order and are to be handled one after the other.
        Once one of them is settled by RETRY or RETURN, what was given out behind it is to be settled by RETURN, unhandled; from the moment
        when `commit` is called with it, later ones come only after it.

        Not to be cancelled: close the feed instead, what was taken and not settled is handed back.
        Raises NotConnected, Overloaded, Refused, Closed.
        """
        ...

    async def commit(self, settled: Sequence[Settled]) -> Sequence[Unsettled]:
        """Settles deliveries of one `take`; each one entirely or not at all, the first to settle an entry wins.

        Events that share an entry (see Route.packing) are settled in the moment when the last of them is given to commit, and those of an
        ordered subscription when all before them in their partition are; what is returned may then name those that were given before.
        Returns those that were not applied. Repeating a call whose answer was lost is safe.
        Raises NotConnected (outcome unknown: repeat), Overloaded (repeat later), Refused, Closed.
        """
        ...

    async def aclose(self) -> None:
        """Settles what was given to commit, hands back what was taken and not settled, gives up the lease. Idempotent; raises nothing."""
        ...


class Backend(Protocol):
    """A server."""

    features: Features

    async def publish(self, route: Route, records: Sequence[Record]) -> None:
        """All durable at the configured level when it returns, or it raises NotConnected, Overloaded, Refused, Closed.

        Each record is appended exactly once, however often the call was repeated underneath.
        """
        ...

    async def subscribe(self, subscription: Subscription) -> Feed:
        """Joins the group, creating topic and group if absent. Raises NotConnected, Refused, Closed."""
        ...

    async def aclose(self) -> None:
        """Ends every feed and connection. Idempotent; raises nothing."""
        ...


class TopicInfo(Struct, frozen=True):
    """A topic as the server has it."""

    topic: str
    events: int
    """Entries held now, settled ones that are kept for replay included."""
    published: int
    """Entries ever appended."""
    delayed: int
    groups: tuple[str, ...]
    bytes: int
    """Server memory of the stream; 0 if the server does not say."""
    partitions: int = 1


class GroupInfo(Struct, frozen=True):
    """A group's ledger, taken in one moment: published + replayed = handled + dead + dropped + pending + unread + delayed + retrying."""

    topic: str
    group: str
    published: int
    """Events of the topic that concern this group, delayed ones included."""
    replayed: int
    handled: int
    dead: int
    dropped: int
    """Dead letters that an operator dropped."""
    pending: int
    """Taken by a worker and not yet settled."""
    unread: int
    delayed: int
    retrying: int
    workers: int
    oldest_s: float
    """Age of the oldest unsettled event; 0 if there is none."""
    ordered: bool = False

    @property
    def missing(self) -> int:
        """0 when the ledger balances; more: events are gone; less: events were settled twice or by strangers."""
        settled = self.handled + self.dead + self.dropped
        return self.published + self.replayed - settled - self.pending - self.unread - self.delayed - self.retrying


class Held(Struct, frozen=True):
    """One pending entry: who has it, for how long, and how often it was given out."""

    token: str
    worker: str
    idle_s: float
    deliveries: int


class Lease(Struct, frozen=True):
    """Who may settle the events of a partition, for a group in ordered mode."""

    partition: int
    worker: str
    """'' if nobody has it."""
    ends_s: float
    """Seconds until it ends if it is not renewed; negative: it has ended."""
    unread: int
    """Events behind the group's cursor, those in the worker's hands included."""
    waiting: int
    """Events that were set aside: a failed one of each such key, and those behind it."""


class Letter(Struct, frozen=True):
    """One stored event as people look at it: from a topic, its dead letters, or its delayed ones."""

    token: str
    attributes: dict[str, str]
    """All but `data`, in wire order."""
    data: bytes
    reason: str = ""


class Inspector(Protocol):
    """What operators see and do. Apart from `Backend`, and optional: CLI and console share it.

    A topic of several partitions is counted as a whole by `topics`, `groups` and `leases`, and begun anew as a whole by `seek`; `groups`
    and `leases` take one of its partitions too, and everything else is about one, which is named in place of the topic: `orders.3`.
    Raises NotConnected, Refused (unknown topic or group: says which exist), Closed.
    """

    async def topics(self) -> Sequence[TopicInfo]:
        """Every topic on the server, by name."""
        ...

    async def groups(self, topic: str | None = None) -> Sequence[GroupInfo]:
        """Every group of one topic or partition, or of all topics."""
        ...

    async def leases(self, topic: str, group: str) -> Sequence[Lease]:
        """Who has which partition, by number, or who has the one that is named; none in shared mode."""
        ...

    async def pending(self, topic: str, group: str, count: int = 100) -> Sequence[Held]:
        """What workers hold, oldest first."""
        ...

    async def read(self, topic: str, after: str = "-", count: int = 100) -> Sequence[Letter]:
        """Entries of the topic after a token (`-`: from the first; `$`: only the place of the last, no entries)."""
        ...

    async def dead(self, topic: str, group: str, after: str = "-", count: int = 100) -> Sequence[Letter]:
        """Dead letters after a token, oldest first."""
        ...

    async def dead_replay(self, topic: str, group: str, tokens: Sequence[str]) -> int:
        """Moves dead letters back to the group, `attempt` 1 again. Returns how many were there."""
        ...

    async def dead_drop(self, topic: str, group: str, tokens: Sequence[str]) -> int:
        """Deletes dead letters for good; the ledger counts them. Returns how many were there."""
        ...

    async def replay(self, topic: str, group: str, first: str, last: str, count: int = 1_000) -> tuple[int, str]:
        """Copies up to `count` retained entries of [first, last] to one group only. Returns how many, and the next `first` ('' at the end)."""
        ...

    async def seek(self, topic: str, group: str, start: str) -> None:
        """Creates the group anew at `earliest`, `latest` or a token, after it was destroyed under its workers. Its counts start again."""
        ...

    async def grow(self, topic: str, partitions: int) -> None:
        """Gives a topic more partitions, while it is used; goes on with what was interrupted. Raises Refused for a number that cannot be."""
        ...

    async def aclose(self) -> None:
        """Closes its connections. Idempotent."""
        ...

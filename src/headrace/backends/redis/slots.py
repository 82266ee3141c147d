"""Read buffers: which consumer name holds how many entries of which stream, and which events share an entry."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

from headrace.backends.contract import Delivery, Settled
from headrace.backends.entry import attempt_of
from headrace.backends.redis import keys, record_batch


class Hold:
    """What one slot holds of one stream."""

    __slots__ = ("held", "in_flight", "slot", "stream")

    @property
    def partition(self) -> str:
        """Where its events come from."""
        return self.slot.main.stream.decode()

    def __init__(self, slot: Slot, stream: bytes) -> None:
        self.slot, self.stream = slot, stream
        self.held = 0
        self.in_flight = 0
        """Entries in commits that are not answered yet; they are executed before a later commit of ours is."""

    def receive(self, entries: Sequence[tuple[bytes, Sequence[bytes]]]) -> list[Delivery]:
        """Takes entries that the server has given to this slot; returns their events."""
        self.held += len(entries)
        if self is self.slot.retry:
            return [Delivery(id_, fields, self, attempt_of(fields)) for id_, fields in entries]
        if max([len(fields) for _, fields in entries]) < record_batch.FIELDS_MIN:
            return [Delivery(id_, fields, self) for id_, fields in entries]
        out: list[Delivery] = []
        for id_, fields in entries:
            events = record_batch.unpacked(id_, fields)
            if events is None:
                out.append(Delivery(id_, fields, self))
                continue
            pack = Pack(self, id_)
            pack.deliveries = list(map(Delivery, *events, repeat(pack)))
            out += pack.deliveries
        return out


class Pack:
    """A packed entry that is held. It is settled as a whole: when the last of its events is."""

    __slots__ = ("deliveries", "hold", "sending", "settled", "token")

    @property
    def partition(self) -> str:
        """Where its events come from."""
        return self.hold.partition

    def __init__(self, hold: Hold, token: bytes) -> None:
        self.hold, self.token = hold, token
        self.deliveries: Sequence[Delivery] = ()
        """Its events; empty once it is settled."""
        self.settled: dict[bytes, Settled] = {}
        """How its events end, by their tokens, as far as that was given to commit."""
        self.sending = False
        """A commit of it is on its way."""

    @property
    def complete(self) -> bool:
        """Every event of it was given to commit."""
        return len(self.settled) == len(self.deliveries)


class Slot:
    """A read buffer: its consumer name and what it holds."""

    __slots__ = ("commits", "main", "name", "retry", "wire")

    def __init__(self, name: bytes, own: keys.PartitionKeys, group: keys.GroupKeys) -> None:
        self.name = name
        self.wire: object = None
        """The connection over which it was filled last."""
        self.commits: object = None
        """The one for commits at that moment. Over another, the server may be another, too, and know of other entries under our name."""
        self.main = Hold(self, own.stream)
        self.retry = Hold(self, group.retry)

    @property
    def empty(self) -> bool:
        """Nothing is held: it may be read again."""
        return not self.main.held and not self.retry.held

"""Read buffers: which consumer name holds how many entries of which stream."""

from __future__ import annotations

from headrace.backends.redis import keys


class Hold:
    """What one slot holds of one stream."""

    __slots__ = ("held", "in_flight", "slot", "stream")

    def __init__(self, slot: Slot, stream: bytes) -> None:
        self.slot, self.stream = slot, stream
        self.held = 0
        self.in_flight = 0
        """Entries in commits that are not answered yet; they are executed before a later commit of ours is."""


class Slot:
    """A read buffer: its consumer name and what it holds."""

    __slots__ = ("main", "name", "retry")

    def __init__(self, name: bytes, own: keys.PartitionKeys, group: keys.GroupKeys) -> None:
        self.name = name
        self.main = Hold(self, own.stream)
        self.retry = Hold(self, group.retry)

    @property
    def empty(self) -> bool:
        """Nothing is held: it may be read again."""
        return not self.main.held and not self.retry.held

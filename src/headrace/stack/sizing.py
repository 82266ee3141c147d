"""How many events the topics of a service keep, and how much memory their server has: both from the same figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from headrace import limits
from headrace.stack.capacity import Load
from headrace.stack.facts import Facts
from headrace.stack.manifest import Retention, Stream
from headrace.stack.quantity import Duration, Size

SPARE: Final = 1.25
"""Times what the average rate comes to: for peaks, and for partitions whose keys come more often than others."""
FILLED: Final = 0.8
"""Of `maxmemory`, that topics may fill; the rest is for retries, dead letters, records of groups and what handlers write. What a rewrite of the
append-only file copies comes on top of `maxmemory`."""
SPARE_UNREAD: Final = 0.1
"""Of what a topic keeps, that its cap is above that while nobody reads it; two calls of a publisher at least."""
_LEAST: Final = 2**30
_STEP: Final = 2**28
KEPT: Final = Retention(limits.retain_events, Duration(limits.retain_s))
"""What a topic keeps if nothing is said."""


def events_published(load: Load) -> int:
    """That a topic which the service publishes to has at the average rate: others may be away from it as long as from any."""
    return round(load.rate * load.outage)


def maxlen(events: float, of_all: float, partitions: int, room: Size, load: Load, facts: Facts) -> int:
    """Handled events that a partition keeps at most, of a topic that has `events` at the average rate where all topics have `of_all`.

    It is the bound that keeps them inside `room`, the server's memory.
    """
    fitting = room * FILLED / facts.memory_bytes(load.payload) * events / of_all / partitions
    required = events * SPARE / partitions
    return max(_rounded(min(fitting, limits.retain_events)), math.floor(required), 1)


def maxmemory(events: float, load: Load, facts: Facts) -> Size:
    """Of a server whose topics hold so many events at most, in steps that people can read."""
    needed = events * facts.memory_bytes(load.payload) / FILLED
    return Size(max(math.ceil(needed / _STEP) * _STEP, _LEAST))


def events_most(streams: Sequence[Stream], load: Load, spare: float = SPARE) -> float:
    """That topics come to hold, by what they keep, or because a group is away. `spare`: times the average rate."""
    rate = load.rate * spare
    return sum(max(_settled(stream, rate), rate * load.outage) for stream in streams)


def cap(stream: Stream, load: Load) -> int:
    """At how many events of a partition publishers wait: always more than what is kept of settled ones, which would stop them for nothing."""
    kept = stream.retention or KEPT
    backlog = load.rate * load.outage / stream.partitions
    return math.ceil(min(max(limits.cap_events, SPARE * max(backlog, kept.maxlen or 0)), limits.number_max))


def cap_unread(kept: int) -> int:
    """The same of a topic that keeps at most `kept` while nobody reads it: a little above, so that not every publisher has to make room."""
    return kept + max(math.ceil(kept * SPARE_UNREAD), 2 * limits.batch_records_max)


def _settled(stream: Stream, rate: float) -> float:
    kept = stream.retention or KEPT
    by_age = rate * (kept.maxage if kept.maxage is not None else limits.retain_s)
    return min(by_age, kept.maxlen * stream.partitions) if kept.maxlen is not None else by_age


def _rounded(number: float) -> int:
    """Down to two digits."""
    step = int(10.0 ** max(len(str(int(number))) - 2, 0))
    return int(number) // step * step

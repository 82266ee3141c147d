"""What may be decided about a topic beside its name, type and key."""

from __future__ import annotations

from typing import Literal, TypedDict

from headrace import limits
from headrace.backends.contract import Route
from headrace.errors import ConfigurationError

Packing = Literal["none", "batch"]


class TopicOptions(TypedDict, total=False):
    """Keyword arguments of `Headrace.topic`."""

    partitions: int
    """How many streams the topic has (1); the key decides which one an event goes to. For ordered subscriptions, which give each partition
    to one worker, and for a Cluster, whose servers share them. It can grow later, by `headrace partitions`, if it is not 1."""
    packing: Packing
    """`batch`: up to `limits.packing_records` events that are published together share an entry of the stream: several times as many
    events a second, and all of an entry are settled in one moment, with the slowest. Else `none`."""
    cap_events: int
    """publish() waits, then raises Overloaded, while a partition holds that many."""
    retain_events: int
    """Settled events are kept for replay, as far as the cap has room for them, until a partition holds more than this many ..."""
    retain_s: float
    """... or they are older than this."""
    keep_for_first_group: bool
    """While no group exists, all events are kept for the first to come, and publish() waits at the cap (True). False: `retain_events` and
    `retain_s` hold for them too, and nobody waits for a reader that nobody has written yet. What a group has not settled is kept in any case."""
    id_window_s: float
    """How long a caller-given `id=` drops repeats."""


def route(name: str, options: TopicOptions) -> Route:
    """The route of a topic. Raises ConfigurationError, saying what was expected and what was got."""
    if unknown := sorted(set(options) - set(TopicOptions.__annotations__)):
        raise ConfigurationError(
            f"topic {name}: unknown option {unknown[0]}; there are {', '.join(sorted(TopicOptions.__annotations__))}"
        )
    numbers = {
        "cap_events": (options.get("cap_events", limits.cap_events), 1, "a positive number"),
        "id_window_s": (options.get("id_window_s", limits.id_window_s), 1e-9, "a positive number"),
        "retain_events": (options.get("retain_events", limits.retain_events), 0, "0 or more"),
        "retain_s": (options.get("retain_s", limits.retain_s), 0, "0 or more"),
    }
    for option, (value, least, expected) in numbers.items():
        if not least <= value <= limits.number_max:
            raise ConfigurationError(f"{option}: expected {expected}, got {value!r}")
    packing, partitions = options.get("packing", "none"), options.get("partitions", 1)
    keep = options.get("keep_for_first_group", True)
    if not isinstance(keep, bool):
        raise ConfigurationError(f"keep_for_first_group: expected True or False, got {keep!r}")
    if packing not in ("none", "batch"):
        raise ConfigurationError(f"packing: expected none or batch, got {packing!r}")
    if isinstance(partitions, bool) or not isinstance(partitions, int) or not 1 <= partitions <= limits.partitions_max:
        raise ConfigurationError(f"partitions: expected 1 to {limits.partitions_max:,}, got {partitions!r}")
    return Route(
        topic=name,
        partitions=partitions,
        cap_events=int(numbers["cap_events"][0]),
        retain_events=int(numbers["retain_events"][0]),
        retain_s=numbers["retain_s"][0],
        keep_for_first_group=keep,
        id_window_s=numbers["id_window_s"][0],
        packing=limits.packing_records if packing == "batch" else 1,
    )

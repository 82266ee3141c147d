"""The criteria by which event systems are judged: each says its number, how much it weighs, and where it is known from.

A gate rules a system out. Points are judgement, made so that a team's own experience and one server less to run decide between systems that all
would do. What is said of Redis Streams is measured (`capacity.py`); of the others it is what their documentation promises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

from msgspec import Struct

from headrace import limits
from headrace.stack.capacity import CPU_SHARE, MEMORY_SHARE, Capacity, Load
from headrace.stack.manifest import Requirements
from headrace.stack.quantity import Duration, Rate, Size

REDIS, KAFKA, NATS, RABBIT = "redis-streams", "kafka", "nats-jetstream", "rabbitmq"
SYSTEMS: Final = (REDIS, KAFKA, NATS, RABBIT)
"""In the order in which equals are preferred."""

_SERVERS_MAX: Final = 6
"""A Cluster with more primaries than this is no longer the simple choice."""
_DAYS_7: Final = Duration(7 * 86_400)
_GROUPS_MANY: Final = 50
_BODY_LARGE: Final = Size(64 * 2**10)
_RABBIT_QUEUE_PER_S: Final = Rate(50_000)
_NATS_STREAM_PER_S: Final = Rate(200_000)


class Asked(Struct, frozen=True):
    """All that a criterion may look at."""

    requirements: Requirements
    load: Load
    capacity: Capacity


class Judgement(Struct, frozen=True):
    """What one criterion says of one system."""

    criterion: str
    system: str
    points: float
    says: str
    source: Literal["measured", "documented", "judgement", "asked for"]
    gate: bool = False
    """It rules the system out."""


Criterion = Callable[[Asked], list[Judgement]]


def _open(criterion: str, says: str) -> list[Judgement]:
    """It does not decide between them."""
    return [Judgement(criterion, system, 0, says, "asked for") for system in SYSTEMS]


def _each(
    criterion: str, asked_for: str, known: dict[str, tuple[float, str]], *, measured: bool = False, gate: str = ""
) -> list[Judgement]:
    """Points and a sentence for each system. `measured`: what is said of Redis Streams; `gate`: the system that is ruled out."""
    return [
        Judgement(
            criterion,
            system,
            points,
            f"{asked_for}: {says}",
            "measured" if measured and system == REDIS else "documented",
            gate=system == gate,
        )
        for system, (points, says) in known.items()
    ]


def licence(asked: Asked) -> list[Judgement]:
    """Is it free software, and is it free of copyleft?"""
    known = {
        REDIS: ("BSD-3 (Valkey, and Redis up to 7.2)", True),
        KAFKA: ("Apache-2.0", True),
        NATS: ("Apache-2.0", True),
        RABBIT: ("MPL-2.0, a copyleft of files", False),
    }
    permissive = asked.requirements.licence == "permissive"
    return [
        Judgement("licence", system, 0, name, "documented", gate=permissive and not free)
        for system, (name, free) in known.items()
    ]


def memory(asked: Asked) -> list[Judgement]:
    """Redis Streams live in memory; the others on disks."""
    load, needs = asked.load, asked.capacity
    kept = max(load.retention, load.outage)
    says = (
        f"{load.rate} of {load.payload} kept for {kept}: {needs.events_kept:,} events, {needs.memory}, which is {needs.servers_for_memory} "
        f"server{'s' if needs.servers_for_memory > 1 else ''} of {load.memory} filled to {MEMORY_SHARE:.0%}"
    )
    points = 1.0 if needs.servers_for_memory == 1 else -1.0
    out = [Judgement("memory", REDIS, points, says, "measured", gate=needs.servers_for_memory > _SERVERS_MAX)]
    return out + [
        Judgement("memory", s, 0, f"{Size(needs.events_kept * load.payload)} on disks", "documented")
        for s in SYSTEMS[1:]
    ]


def rate(asked: Asked) -> list[Judgement]:
    """How much the peak asks of servers that execute on one thread, and of one ordered stream."""
    load, needs = asked.load, asked.capacity
    one = asked.requirements.ordering == "global"
    says = f"{load.peak} at the peak for {load.groups} group{'s' if load.groups > 1 else ''}: {needs.cores:.2f} cores of servers' main threads"
    if needs.servers_for_rate > 1:
        says += f", {needs.servers_for_rate} primaries at {CPU_SHARE:.0%}"
    fits = needs.servers_for_rate <= (1 if one else _SERVERS_MAX)
    out = [
        Judgement("peak rate", REDIS, 1.0 if needs.servers_for_rate == 1 else -1.0, says, "measured", gate=not fits),
        Judgement("peak rate", KAFKA, 1.0, "more partitions take more, into the millions", "documented"),
    ]
    for system, most in ((NATS, _NATS_STREAM_PER_S), (RABBIT, _RABBIT_QUEUE_PER_S)):
        over = load.peak > most
        says = f"about {most} in one replicated stream or queue, {load.peak} asked for"
        out.append(Judgement("peak rate", system, -1.0 if over else 0.0, says, "judgement", gate=over and one))
    return out


def replay(asked: Asked) -> list[Judgement]:
    """How far back somebody wants to read."""
    wanted = asked.requirements.replay
    far = wanted == "weeks" or asked.load.retention >= _DAYS_7
    if wanted == "none" and not far:
        return _open("replay", "not asked for")
    points = (-2.0, 2.0, 1.0, -1.0) if far else (0.5, 1.0, 0.5, -1.0)
    says = (
        "all of it in memory",
        "what a log on disks is made for, with tiers and compaction",
        "from files of the stream",
        "streams can, quorum queues cannot",
    )
    known = dict(zip(SYSTEMS, zip(points, says, strict=True), strict=True))
    return _each("replay", f"{wanted}, kept for {asked.load.retention}", known)


def loss(asked: Asked) -> list[Judgement]:
    """What a lost server may take with it."""
    wanted = asked.requirements.loss
    if wanted != "none":
        return _open("loss", f"{wanted} may be lost")
    redis = (
        "level quorum waits for a replica, which survives the loss of one server; the failover itself is decided by sentinels or a Cluster "
        "and not by the data"
    )
    known = {
        REDIS: (-0.5, redis),
        KAFKA: (0.5, "acks=all with min.insync.replicas: the new leader has what was acknowledged"),
        NATS: (0.5, "three replicas that agree (Raft)"),
        RABBIT: (0.5, "quorum queues agree (Raft)"),
    }
    return _each("loss", wanted, known, measured=True)


def datacenters(asked: Asked) -> list[Judgement]:
    """Where events are published."""
    count = asked.requirements.datacenters
    if count == 1:
        return _open("data centres", "one")
    known = {
        REDIS: (0.0, "no free server replicates in both directions"),
        KAFKA: (1.0, "MirrorMaker, or one cluster stretched over them"),
        NATS: (1.5, "clusters of clusters, with mirrors"),
        RABBIT: (0.0, "federation and shovels"),
    }
    return _each("data centres", str(count), known, gate=REDIS)


def order(asked: Asked) -> list[Judgement]:
    """Whether the events of a key are handled in their order."""
    wanted = asked.requirements.ordering
    if wanted == "none":
        return _open("order", "not asked for")
    known = {
        REDIS: (1.0, "partitions leased to one worker each, a failed event holds up its own key alone"),
        KAFKA: (1.0, "per partition; a failed event holds up its partition unless the application parks it"),
        NATS: (-0.5, "per subject, with one message in flight"),
        RABBIT: (-0.5, "per queue, with a single active consumer"),
    }
    return _each("order", wanted, known, measured=True)


def groups(asked: Asked) -> list[Judgement]:
    """How many services handle each event."""
    many = asked.load.groups > _GROUPS_MANY
    says = f"{asked.load.groups} groups"
    points = {REDIS: -1.0, KAFKA: 1.0, NATS: 1.0, RABBIT: -0.5} if many else dict.fromkeys(SYSTEMS, 0.0)
    notes = {REDIS: ": each is work of the server for every event", KAFKA: ": each is an offset"} if many else {}
    return [Judgement("groups", s, points[s], says + notes.get(s, ""), "judgement") for s in SYSTEMS]


def body(asked: Asked) -> list[Judgement]:
    """Large bodies belong elsewhere, with a reference in the event."""
    size = asked.load.payload
    most = {REDIS: Size(limits.body_bytes_max), KAFKA: Size(2**20), NATS: Size(2**20), RABBIT: Size(16 * 2**20)}
    return [
        Judgement(
            "body",
            s,
            -0.5 if s == REDIS and size > _BODY_LARGE else 0.0,
            f"bodies of {size}, {'above' if size > most[s] else 'within'} the limit of {most[s]}",
            "documented",
            gate=size > most[s],
        )
        for s in SYSTEMS
    ]


def team(asked: Asked) -> list[Judgement]:
    """What is known already is run well."""
    known = set(asked.requirements.team)
    words = {REDIS: {"redis", "valkey"}, KAFKA: {"kafka"}, NATS: {"nats"}, RABBIT: {"rabbitmq"}}
    return [
        Judgement("team", s, 2.0, f"runs {', '.join(sorted(known & words[s]))} already", "asked for")
        if known & words[s]
        else Judgement("team", s, 0.0, "would be new", "asked for")
        for s in SYSTEMS
    ]


def operations(_: Asked) -> list[Judgement]:
    """What it takes to keep it up."""
    says = {
        REDIS: (1.0, "one process with a file; with high availability a replica and three sentinels"),
        KAFKA: (-1.0, "three to six processes (KRaft), partitions to be placed, a JVM to be sized"),
        NATS: (0.0, "three processes"),
        RABBIT: (-0.5, "three processes, Erlang"),
    }
    return [Judgement("operations", s, *says[s], "judgement") for s in SYSTEMS]


CRITERIA: Final[tuple[Criterion, ...]] = (
    *(licence, memory, rate, replay, loss, datacenters),
    *(order, groups, body, team, operations),
)

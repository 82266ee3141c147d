"""What a manifest claims, held against what is so. Each rule has a code and a page (`headrace explain HR301`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final, Literal

from headrace.errors import ConfigurationError
from headrace.stack.advise import advise
from headrace.stack.capacity import MEMORY_SHARE, capacity, load_of
from headrace.stack.check import conditions
from headrace.stack.criteria import REDIS
from headrace.stack.facts import Facts
from headrace.stack.finding import Finding
from headrace.stack.manifest import Manifest, Server, Stream
from headrace.stack.quantity import Size
from headrace.stack.sizing import FILLED, events_most

_EVENTS: Final = ("quality", "events")
_STREAMS: Final = (*_EVENTS, "streams")
_ONCE: Final = re.compile(r"exactly[- ]once", re.IGNORECASE)
_OF_EFFECTS: Final = re.compile(r"effects?\b", re.IGNORECASE)
_FREE: Final = re.compile(r"\bBSD\b|\bFOSS\b|open[- ]source|free software", re.IGNORECASE)
_LAST_FREE: Final = (7, 2)

Rule = Callable[[Manifest, Facts], Iterator[Finding]]


def lint(manifest: Manifest, facts: Facts) -> list[Finding]:
    """Everything that the rules find, by line."""
    found = [finding for rule in RULES for finding in rule(manifest, facts)]
    return sorted(found, key=lambda f: (f.line, f.code))


def _at(
    manifest: Manifest,
    code: str,
    at: tuple[str | int, ...],
    message: str,
    severity: Literal["error", "warning"] = "error",
) -> Finding:
    document = manifest.document
    return Finding(code, severity, str(document.path), document.line(at), message)


def exactly_once(manifest: Manifest, _: Facts) -> Iterator[Finding]:
    """HR301."""
    events = manifest.events
    if _ONCE.search(events.delivery):
        yield _at(
            manifest, "HR301", (*_EVENTS, "delivery"),
            "no event system delivers exactly once: say delivery: at-least-once, and by `effects` what makes the effect happen once",
        )  # fmt: skip
    for name in ("why", "pattern"):
        for sentence in re.split(r"[.;]\s", getattr(events, name)):
            if _ONCE.search(sentence) and not _OF_EFFECTS.search(sentence):
                yield _at(
                    manifest, "HR301", (*_EVENTS, name),
                    "XREADGROUP and XACK are at-least-once: a crash between the effect and the ack repeats it. Say what makes the effect "
                    "happen once: one commit of effects and ack, or an inbox in the handler's transaction",
                )  # fmt: skip
        if events.effects == "none" and _ONCE.search(getattr(events, name)):
            yield _at(
                manifest,
                "HR301",
                (*_EVENTS, "effects"),
                "effects: none says that nothing makes effects happen once, and the text that they do",
            )


def licence(manifest: Manifest, _: Facts) -> Iterator[Finding]:
    """HR302."""
    events, server = manifest.events, manifest.events.server
    if events.type != REDIS:
        return
    claims = [name for name in ("why", "pattern") if _FREE.search(getattr(events, name))]
    if not claims:
        return
    named = re.search("valkey", events.why + events.pattern, re.IGNORECASE)
    if server is None and not named:
        yield _at(
            manifest, "HR302", (*_EVENTS, claims[0]),
            "BSD-3 holds for Valkey, and for Redis up to 7.2 only: say which server, as in server: {engine: valkey}", "warning",
        )  # fmt: skip
    elif server is not None and server.engine == "redis" and not _is_free(server):
        yield _at(
            manifest, "HR302", (*_EVENTS, claims[0]),
            "Redis from 7.4 on is RSALv2 or SSPLv1 (from 8.0 on also AGPLv3): use engine: valkey, or change the text",
        )  # fmt: skip


def _is_free(server: Server) -> bool:
    version = tuple(int(part) for part in re.findall(r"\d+", server.min_version)[:2])
    return bool(version) and version <= _LAST_FREE


def memory(manifest: Manifest, facts: Facts) -> Iterator[Finding]:
    """HR303."""
    wanted, server = manifest.requirements, manifest.events.server
    if manifest.events.type != REDIS or wanted.rate is None:
        return  # what is assumed of the rate proves nothing
    load = load_of(wanted)
    room, share = load.memory, MEMORY_SHARE
    if server is not None and server.maxmemory is not None:
        room, share = server.maxmemory, FILLED
    needs = capacity(load, facts)
    if needs.memory > room * share:
        yield _at(
            manifest, "HR303", ("requirements", "rate"),
            f"{load.rate} of {load.payload}, kept for {max(load.retention, load.outage)}, are {needs.memory}; a server of {room} takes "
            f"{Size(room * share)} of events: keep them for a shorter time, use a Cluster, or ask `headrace stack advise`",
        )  # fmt: skip
        return
    kept = Size(events_most(manifest.events.streams, load, spare=1.0) * facts.memory_bytes(load.payload))
    if kept > room * share:
        yield _at(
            manifest, "HR303", _STREAMS,
            f"the topics keep {kept} of events at {load.rate}; a server of {room} takes {Size(room * share)}: "
            "lower their retention, or raise maxmemory",
            "warning",
        )  # fmt: skip


def order(manifest: Manifest, _: Facts) -> Iterator[Finding]:
    """HR304."""
    if manifest.requirements.ordering == "none":
        return
    for place, stream in enumerate(manifest.events.streams):
        at = (*_STREAMS, place)
        if manifest.requirements.ordering == "per-key" and not stream.key and stream.partitions > 1:
            yield _at(
                manifest,
                "HR304",
                at,
                f"{stream.name} has {stream.partitions} partitions and no key: name the field in `key`",
            )
        if stream.consumer is not None and not stream.consumer.ordered and _concurrent(stream):
            yield _at(
                manifest, "HR304", (*at, "consumer"),
                f"group {stream.group or '?'} of {stream.name} handles events side by side, so a later one of a key can end first: say ordered: true",
            )  # fmt: skip


def global_order(manifest: Manifest, _: Facts) -> Iterator[Finding]:
    """HR304."""
    if manifest.requirements.ordering != "global":
        return
    for place, stream in enumerate(manifest.events.streams):
        if stream.partitions > 1:
            yield _at(
                manifest, "HR304", (*_STREAMS, place, "partitions"),
                f"{stream.name} has {stream.partitions} partitions, which are in order each by itself: ordering: global needs one",
            )  # fmt: skip
        if stream.consumer is not None and stream.consumer.ordered and stream.consumer.concurrency > 1:
            yield _at(
                manifest, "HR304", (*_STREAMS, place, "consumer"),
                f"group {stream.group or '?'} of {stream.name} handles keys side by side, each in order: ordering: global needs concurrency: 1",
            )  # fmt: skip


def ruled_out(manifest: Manifest, facts: Facts) -> Iterator[Finding]:
    """HR315."""
    events, told = manifest.events, {"memory"} if manifest.requirements.rate is not None else set()  # HR303 says it
    advice = advise(manifest.requirements, facts)
    for one in advice.systems:
        against = [j for j in one.judgements if j.gate and j.criterion not in told]
        if one.system == events.type and against:
            yield _at(
                manifest, "HR315", (*_EVENTS, "type"),
                f"the requirements rule {events.type} out ({'; '.join(f'{j.criterion}: {j.says}' for j in against)}): the advice is {advice.choice}",
                "warning",
            )  # fmt: skip


def _concurrent(stream: Stream) -> bool:
    return stream.consumer is not None and (stream.consumer.concurrency > 1 or stream.partitions > 1)


def bound(manifest: Manifest, _: Facts) -> Iterator[Finding]:
    """HR305."""
    for place, stream in _own(manifest):
        kept = stream.retention
        if "produce" in stream.role and (kept is None or (kept.maxlen is None and kept.maxage is None)):
            yield _at(
                manifest, "HR305", (*_STREAMS, place),
                f"{stream.name} has no retention: a stream that nobody trims ends the server's memory; say retention: {{maxlen: ..., maxage: ...}}",
            )  # fmt: skip


def dead_letters(manifest: Manifest, _: Facts) -> Iterator[Finding]:
    """HR306."""
    for place, stream in _own(manifest):
        if stream.consumer is not None and not stream.consumer.dead_letter:
            yield _at(
                manifest, "HR306", (*_STREAMS, place, "consumer"),
                f"an event of {stream.name} that always fails is tried for ever, or is lost: name the stream in deadLetter",
            )  # fmt: skip


def reclaim(manifest: Manifest, _: Facts) -> Iterator[Finding]:
    """HR307."""
    for place, stream in _own(manifest):
        consumer = stream.consumer
        if consumer is not None and consumer.min_idle is not None and consumer.min_idle <= consumer.timeout:
            yield _at(
                manifest, "HR307", (*_STREAMS, place, "consumer", "minIdle"),
                f"an event of {stream.name} is reclaimed after {consumer.min_idle}, and its handler may take {consumer.timeout}: it would run twice "
                "at once. Make minIdle longer than timeout, or take over by leases of workers",
            )  # fmt: skip


def eviction(manifest: Manifest, _: Facts) -> Iterator[Finding]:
    """HR308."""
    server = manifest.events.server
    if manifest.events.type != REDIS or server is None:
        return
    if server.maxmemory_policy != "noeviction" and not server.maxmemory_policy.startswith("volatile-"):
        yield _at(
            manifest, "HR308", (*_EVENTS, "server", "maxmemoryPolicy"),
            f"{server.maxmemory_policy} deletes whole streams when memory is short: say noeviction",
        )  # fmt: skip
    elif server.shared_with_cache:
        yield _at(
            manifest, "HR308", (*_EVENTS, "server", "sharedWithCache"),
            "a cache is made to forget: it fills the memory that events need, and asks for a policy that evicts. Give events a server of their own",
            "warning",
        )  # fmt: skip


def to_zero(manifest: Manifest, _: Facts) -> Iterator[Finding]:
    """HR310."""
    scaling = manifest.events.scaling
    if scaling is not None and scaling.min_replicas == 0 and not {"pending", "backlog"} & set(scaling.triggers):
        yield _at(
            manifest, "HR310", (*_EVENTS, "scaling"),
            "lag does not count what a dead worker had in hand: with no worker left, nobody takes it over. Add the trigger pending or backlog, or "
            "keep one replica",
        )  # fmt: skip


def kept(manifest: Manifest, facts: Facts) -> Iterator[Finding]:
    """HR312."""
    wanted = manifest.requirements
    if wanted.retention is None:
        return
    events = capacity(load_of(wanted), facts).events_kept if wanted.rate is not None else 0
    for place, stream in _own(manifest):
        keeps, at = stream.retention, (*_STREAMS, place, "retention")
        if keeps is None or "consume" not in stream.role:
            continue
        if keeps.maxage is not None and keeps.maxage < wanted.retention:
            yield _at(
                manifest, "HR312", at,
                f"{stream.name} is trimmed after {keeps.maxage}, and {wanted.retention} are required: make maxage as long",
            )  # fmt: skip
        if keeps.maxlen is not None and keeps.maxlen * stream.partitions < events:
            yield _at(
                manifest, "HR312", at,
                f"{stream.name} is trimmed to {keeps.maxlen} events for each of {stream.partitions} partitions, and {events} are required: make "
                f"maxlen {-(-events // stream.partitions)}",
            )  # fmt: skip


def outgrown(manifest: Manifest, facts: Facts) -> Iterator[Finding]:
    """HR313."""
    if manifest.events.outgrow is None:
        return
    try:
        conditions(manifest, facts)
    except ConfigurationError as e:
        yield _at(manifest, "HR313", (*_EVENTS, "outgrow", "when"), str(e).rpartition("when: ")[2])


def _own(manifest: Manifest) -> list[tuple[int, Stream]]:
    return list(enumerate(manifest.events.streams)) if manifest.events.type == REDIS else []


RULES: Final[tuple[Rule, ...]] = (
    *(exactly_once, licence, memory, order, global_order, ruled_out),
    *(bound, dead_letters, reclaim, eviction, to_zero, kept, outgrown),
)

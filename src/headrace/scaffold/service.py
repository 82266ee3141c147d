"""What a service is made of: its decision, its topics, and the words that its templates are rendered with."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any, Final

import msgspec
import yaml
from msgspec import Struct

from headrace import limits
from headrace.errors import ConfigurationError
from headrace.event import check_name as check_wire_name
from headrace.route import route
from headrace.scaffold.name import check_name
from headrace.stack import advise, decision, facts, sizing
from headrace.stack.capacity import REWRITE_FACTOR, Capacity, Load, capacity, load_of
from headrace.stack.manifest import (
    API_VERSION,
    Concern,
    Consumer,
    Events,
    Manifest,
    Metadata,
    Requirements,
    Retention,
    Server,
    Spec,
    StackType,
    Stream,
    System,
)
from headrace.stack.quantity import Duration, Rate, Size
from headrace.version import VERSION

ADR: Final = "docs/adr/0001-events.md"
ACCEPTED: Final = "orders.accepted"
"""The topic that every generated service publishes to."""
_FIELDS: Final = ("customer", "order_id")
"""Of the sample's event: what may be its key."""
_PARTITIONS: Final = 16
"""Of a topic that is kept in order per key, unless the manifest says otherwise: so many workers can share it."""
_GIB: Final = 2**30


class Service(Struct, frozen=True):
    """A service that is to be generated."""

    name: str
    kind: StackType
    events: System
    metadata: Metadata
    requirements: Requirements
    decided: Events
    """`quality.events`, with reasons and streams."""
    concerns: dict[str, Concern]
    """The other blocks of `quality`."""
    adr: str
    """The decision as a document."""
    differs: str = ""
    """If the advice is another system than the one that was asked for: which, and why."""


def describe(name: str, kind: StackType, events: System, read: Manifest | None, today: dt.date) -> Service:
    """The service, its decision taken from a manifest or from advice on its requirements."""
    check_name(name)
    requirements = read.requirements if read is not None else Requirements()
    advice = advise.advise(requirements, facts.load())
    differs = "" if advice.choice == events else f"{advice.choice}: {advice.why}"
    if read is not None and read.events.type == events:
        decided = read.events
    else:
        block = yaml.safe_load(decision.block(advice, today.isoformat(), ADR))["quality"]["events"]
        if differs:
            block |= {"type": events, "why": f"asked for; the advice is {differs}", "outgrow": None, "pattern": ""}
        decided = msgspec.convert({k: v for k, v in block.items() if v is not None}, Events)
    metadata = read.metadata if read is not None and read.metadata is not None else Metadata(name)
    decided = _sized(decided, name, requirements)
    return Service(
        name,
        kind,
        events,
        msgspec.structs.replace(metadata, name=name),
        requirements,
        decided,
        read.concerns if read is not None else {},
        decision.adr(advice, name, today.isoformat(), decided),
        differs,
    )


def of_project(read: Manifest, kind: StackType) -> Service:
    """The service that a project's manifest describes; its decision document is its own by now."""
    if read.metadata is None:
        raise read.document.error((), "expected metadata.name: a service is generated under it")
    name = check_name(read.metadata.name)
    decided = _sized(read.events, name, read.requirements)
    return Service(name, kind, decided.type, read.metadata, read.requirements, decided, read.concerns, "")


def _sized(decided: Events, group: str, requirements: Requirements) -> Events:
    """With topics that keep what is required, if the manifest names none, and a server that has room for all of them."""
    load, server = load_of(requirements), decided.server or Server()
    streams = decided.streams or _streams(group, requirements, load, server.maxmemory)
    if server.maxmemory is None:
        own = [s.name for s in streams]
        all_ = streams if ACCEPTED in own else (*streams, Stream(ACCEPTED))
        server = msgspec.structs.replace(
            server, maxmemory=sizing.maxmemory(sizing.events_most(all_, load), load, facts.load())
        )
    return msgspec.structs.replace(decided, streams=streams, server=server)


def _streams(group: str, requirements: Requirements, load: Load, room: Size | None) -> tuple[Stream, ...]:
    """The topics of a new service."""
    known, needs = facts.load(), _needs(requirements)
    partitions = {"global": 1, "per-key": max(_PARTITIONS, needs.partitions), "none": needs.partitions}
    count = partitions[requirements.ordering]
    if count > limits.partitions_max:
        advice = advise.advise(requirements, known)
        raise ConfigurationError(
            f"requirements: {load.peak} at the peak and {needs.memory} of events ask for {count:,} partitions, and a topic has at most "
            f"{limits.partitions_max:,}. The advice is {advice.choice}: {advice.why}"
        )
    published = max(sizing.events_published(load), 1)
    consumed = max(needs.events_kept, 1)
    both = consumed + published
    room = room or sizing.maxmemory(both * sizing.SPARE, load, known)
    most = sizing.maxlen(consumed, both, count, room, load, known)
    orders = Stream(
        "orders",
        partitions=count,
        key="customer",
        retention=Retention(most, requirements.retention or sizing.KEPT.maxage),
        group=group,
        consumer=Consumer(
            dead_letter=f"{{orders}}:dead:{group}",
            ordered=requirements.ordering != "none",
            concurrency=1 if requirements.ordering == "global" else Consumer().concurrency,
        ),
    )
    kept = Retention(sizing.maxlen(published, both, 1, room, load, known), sizing.KEPT.maxage)
    return orders, Stream(ACCEPTED, role=("produce",), retention=kept)


def _needs(requirements: Requirements) -> Capacity:
    return capacity(load_of(requirements), facts.load())


def words(service: Service, template_version: str) -> dict[str, Any]:
    """What the templates may use. Raises ConfigurationError for what they cannot."""
    consumed = next((s for s in service.decided.streams if "consume" in s.role), None)
    if consumed is None or consumed.name == ACCEPTED:
        raise ConfigurationError(
            f"streams: expected one with the role consume, and not {ACCEPTED}, which is published to"
        )
    consumer = consumed.consumer or Consumer()
    group, key = consumed.group or service.name, consumed.key or "customer"
    check_wire_name("topic", consumed.name)  # it is written into source code
    check_wire_name("group", group)
    if key not in _FIELDS:
        raise ConfigurationError(
            f"streams: key: the sample's event has {' and '.join(_FIELDS)}, got {key!r}; change both later"
        )
    if not service.metadata.description.isprintable():
        raise ConfigurationError(
            f"metadata.description: expected one line of text, got {service.metadata.description!r}"
        )
    needs, load = _needs(service.requirements), load_of(service.requirements)
    server = service.decided.server or Server()
    memory = server.maxmemory or Size(_GIB)
    scaling = service.decided.scaling
    return {
        "name": service.name,
        "module": service.name.replace("-", "_"),
        "type": service.kind,
        "description": service.metadata.description or f"Handles {consumed.name}",
        "topic": consumed.name,
        "group": group,
        "key": key,
        "ordered": consumer.ordered,
        "partitions": consumed.partitions,
        "options": _options(consumed, load),
        "accepted_options": _options(
            next((s for s in service.decided.streams if s.name == ACCEPTED), Stream(ACCEPTED)), load, read=False
        ),
        "lease_s": _number(consumer.lease),
        "timeout_s": _number(consumer.timeout),
        "attempts": consumer.max_deliveries,
        "concurrency": consumer.concurrency,
        "replicas_min": max(scaling.min_replicas, 1) if scaling is not None else 1,
        "engine": server.engine,
        "maxmemory": int(memory),
        "memory_gib": -(-int(memory * 1.5) // _GIB),
        "disk_gib": max(-(-int(memory * REWRITE_FACTOR) // _GIB), 10),
        "servers": needs.servers,
        "headrace": VERSION,
        "template": template_version,
        "manifest": written(service),
        "adr": service.adr,
    }


def _options(stream: Stream, load: Load, *, read: bool = True) -> dict[str, str]:
    """Of a topic, where they differ from the defaults, as literals. Raises ConfigurationError if they cannot be."""
    kept, cap = stream.retention or sizing.KEPT, sizing.cap(stream, load)
    retained = kept.maxlen or int(cap / sizing.SPARE)
    if not read:  # perhaps nobody reads it yet: it is to stay within its part of the memory all the same
        cap = sizing.cap_unread(retained)
    chosen: dict[str, Any] = {
        "partitions": stream.partitions if stream.partitions > 1 else None,
        "cap_events": cap if cap != limits.cap_events else None,
        "retain_events": retained if retained != limits.retain_events else None,
        "retain_s": float(kept.maxage) if kept.maxage is not None and kept.maxage != sizing.KEPT.maxage else None,
    }
    options = {name: value for name, value in chosen.items() if value is not None}
    literals = {name: _number(value) for name, value in options.items()}
    if not read:
        options["keep_for_first_group"], literals["keep_for_first_group"] = False, "False"
    route(stream.name, options)  # type: ignore[arg-type]  # the library's own checks
    return literals


def written(service: Service) -> str:
    """The service as `stack.yaml`."""
    whole = {
        "apiVersion": API_VERSION,
        "kind": "Stack",
        "metadata": _plain(service.metadata),
        "spec": _plain(Spec(service.kind)),
        "requirements": _plain(service.requirements),
        "quality": {"events": _plain(service.decided), **{k: _plain(v) for k, v in service.concerns.items()}},
    }
    kept = {key: value for key, value in whole.items() if value}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=120)


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value, enc_hook=_as_text)


def _as_text(value: Any) -> str:
    """A quantity so that it reads back as the same."""
    if isinstance(value, Size):
        sizes = (("GiB", 2**30), ("MiB", 2**20), ("B", 1))
        return next(f"{value // size}{unit}" for unit, size in sizes if value % size == 0)
    if isinstance(value, Rate):
        return f"{_number(value)}/s"
    if isinstance(value, Duration):
        units = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
        unit, length = next((u, s) for u, s in units if value % s == 0 or s == 1)
        return f"{_number(value / length)}{unit}"
    raise NotImplementedError


def _number(value: float) -> str:
    """Without an exponent, and without digits that say nothing."""
    text = format(Decimal(repr(float(value))), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text

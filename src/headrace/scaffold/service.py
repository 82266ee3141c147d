"""What a service is called and made of, and the words that its templates are rendered with."""

from __future__ import annotations

import datetime as dt
import keyword
import re
import sys
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import yaml
from msgspec import Struct

from headrace import limits
from headrace.errors import ConfigurationError
from headrace.event import check_name as check_wire_name
from headrace.stack import advise, decision, facts
from headrace.stack.manifest import (
    API_VERSION,
    Consumer,
    Events,
    Manifest,
    Metadata,
    Requirements,
    Retention,
    Spec,
    StackType,
    Stream,
    System,
    TemplateVersion,
)
from headrace.stack.quantity import Duration, Rate, Size
from headrace.version import VERSION

ADR: Final = "docs/adr/0001-events.md"
_NAME: Final = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_RUST: Final = frozenset(
    re.split(
        " ",
        "abstract alloc as async await become box break const continue core crate do dyn else enum extern false final fn for gen "
        "if impl in let loop macro match mod move mut override priv proc-macro pub ref return self service static std struct super "
        "test trait true try type typeof unsafe unsized use virtual where while yield",
    )
)
"""What the compiler or cargo refuse as the name of a crate, and the name that the library of a generated service has."""
_PARTITIONS: Final = 16
"""Of a topic that is kept in order, unless the manifest says otherwise: so many workers can share it."""

_KEPT: Final = Retention(limits.retain_events, Duration(limits.retain_s))
"""What topics keep by default."""


class Service(Struct, frozen=True):
    """A service that is to be generated."""

    name: str
    kind: StackType
    events: System
    metadata: Metadata
    requirements: Requirements
    decided: Events
    """`quality.events`, with reasons and streams."""
    adr: str
    """The decision as a document."""
    differs: str = ""
    """If the advice is another system than the one that was asked for: which, and why."""


def check_name(name: str) -> str:
    """The name. Raises ConfigurationError if it cannot be one of a folder, a package and a container at once."""
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"name: expected 1 to 63 of a-z, 0-9 and hyphens that begin with a letter and end with none of the hyphens, got {name!r}"
        )
    module = name.replace("-", "_")
    taken = keyword.iskeyword(module) or keyword.issoftkeyword(module) or module in sys.stdlib_module_names
    if taken or name in _RUST or module in ("headrace", "tests", "src"):
        raise ConfigurationError(f"name: {name!r} means something to Python or Rust; choose another")
    return name


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
    if not decided.streams:
        decided = msgspec.structs.replace(decided, streams=_streams(name, ordered=requirements.ordering != "none"))
    metadata = read.metadata if read is not None and read.metadata is not None else Metadata(name)
    metadata = msgspec.structs.replace(metadata, name=name)
    _check_text("metadata.description", metadata.description)
    return Service(
        name, kind, events, metadata, requirements, decided, decision.adr(advice, name, today.isoformat()), differs
    )


def of_project(read: Manifest, kind: StackType) -> Service:
    """The service that a project's manifest describes; its decision document is its own by now."""
    if read.metadata is None:
        raise read.document.error((), "expected metadata.name: a service is generated under it")
    check_name(read.metadata.name)
    _check_text("metadata.description", read.metadata.description)
    decided = read.events
    if not decided.streams:
        ordered = read.requirements.ordering != "none"
        decided = msgspec.structs.replace(decided, streams=_streams(read.metadata.name, ordered=ordered))
    return Service(read.metadata.name, kind, decided.type, read.metadata, read.requirements, decided, "")


def words(service: Service, template_version: str) -> dict[str, Any]:
    """What the templates may use."""
    consumed = next((s for s in service.decided.streams if "consume" in s.role), service.decided.streams[0])
    consumer = consumed.consumer or Consumer()
    check_wire_name("topic", consumed.name)  # it is written into source code
    check_wire_name("group", consumed.group or service.name)
    return {
        "name": service.name,
        "module": service.name.replace("-", "_"),
        "type": service.kind,
        "events": service.events,
        "description": service.metadata.description or f"Handles {consumed.name}",
        "topic": consumed.name,
        "group": consumed.group or service.name,
        "ordered": consumer.ordered,
        "partitions": consumed.partitions,
        "options": _options(consumed),
        "lease_s": int(consumer.lease),
        "timeout_s": int(consumer.timeout),
        "attempts": consumer.max_deliveries,
        "concurrency": consumer.concurrency,
        "engine": service.decided.server.engine if service.decided.server is not None else "valkey",
        "maxmemory": str(service.decided.server.maxmemory or "") if service.decided.server is not None else "",
        "headrace": VERSION,
        "template": template_version,
        "manifest": written(service, template_version),
        "adr": service.adr,
    }


def written(service: Service, template_version: str) -> str:
    """The service as `stack.yaml`."""
    whole = {
        "apiVersion": API_VERSION,
        "kind": "Stack",
        "metadata": _plain(service.metadata),
        "spec": _plain(Spec(service.kind, TemplateVersion(template_version))),
        "requirements": _plain(service.requirements),
        "quality": {"events": _plain(service.decided)},
    }
    kept = {key: value for key, value in whole.items() if value}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=120)


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value, enc_hook=_as_text)


def _as_text(value: Any) -> str:
    """A quantity so that it reads back as the same."""
    if isinstance(value, Size):
        return f"{int(value)}B"
    if isinstance(value, Rate):
        return f"{float(value):.15g}/s"
    if isinstance(value, Duration):
        unit, length = next(
            (u, s) for u, s in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)) if value % s == 0 or s == 1
        )
        return f"{value / length:.15g}{unit}"
    raise NotImplementedError


def _streams(group: str, *, ordered: bool) -> Sequence[Stream]:
    return (
        Stream(
            "orders",
            partitions=_PARTITIONS if ordered else 1,
            key="customer" if ordered else "",
            retention=_KEPT,
            group=group,
            consumer=Consumer(dead_letter=f"{{orders}}:dead:{group}", ordered=ordered),
        ),
        Stream("orders.accepted", role=("produce",), retention=_KEPT),
    )


def _options(stream: Stream) -> str:
    """Of `app.topic(...)`, where they differ from the defaults."""
    kept = stream.retention or _KEPT
    chosen = {
        "partitions": stream.partitions if stream.partitions > 1 else None,
        "retain_events": kept.maxlen if kept.maxlen != limits.retain_events else None,
        "retain_s": int(kept.maxage) if kept.maxage is not None and kept.maxage != _KEPT.maxage else None,
    }
    return "".join(f", {name}={value}" for name, value in chosen.items() if value is not None)


def _check_text(what: str, text: str) -> None:
    if not text.isprintable():
        raise ConfigurationError(f"{what}: expected one line of text, got {text!r}")

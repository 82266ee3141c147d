"""`stack.yaml`: what a service is, what it needs, and which event system it has, with the reason.

The block `quality.events` with `type`, `why` and `pattern` alone is a whole manifest; everything else has defaults or is left open.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct, field

from headrace.errors import ConfigurationError
from headrace.stack.document import Document
from headrace.stack.quantity import Duration, Rate, Size

SCHEMA_ID: Final = "urn:headrace:schema:stack-v1"
API_VERSION: Final = "headrace.dev/v1"

System = Literal["redis-streams", "kafka", "nats-jetstream", "rabbitmq", "none"]
StackType = Literal["rust-axum", "rust-grpc", "python-fastapi", "python-worker"]

_END: Final = r"$(?!\n)"
"""`$` of Python alone would let a last line break pass; that of JSON Schema does not."""
_LABEL: Final = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?" + _END
Name = Annotated[str, Meta(pattern=_LABEL, description="As in RFC 1123: small letters, digits, hyphens")]

TopicName = Annotated[
    str,
    Meta(pattern="^[A-Za-z0-9._-]{1,128}" + _END, description="1 to 128 of letters, digits, dot, underscore, hyphen"),
]
FieldName = Annotated[str, Meta(pattern="^([A-Za-z_][A-Za-z0-9_]*)?" + _END, description="A field of the event")]


class _Part(Struct, frozen=True, forbid_unknown_fields=True, rename="camel", omit_defaults=True):
    """Of the manifest: a key that is not known is a mistake."""


class Metadata(_Part, frozen=True):
    """Whose it is."""

    name: Name
    description: str = ""
    owner: str = ""
    labels: dict[str, str] = field(default_factory=dict)


class TemplateVersion(_Part, frozen=True):
    """Which template the service was generated from; written by the tool."""

    version: str


class Spec(_Part, frozen=True):
    """What is generated."""

    type: StackType
    template: TemplateVersion | None = None


class Rates(_Part, frozen=True):
    """How many events are published."""

    avg: Rate
    peak: Rate | None = None
    """None: four times the average."""

    def __post_init__(self) -> None:
        """Raises ValueError, which the library reports with its place."""
        if self.avg <= 0:
            raise ValueError("expected an average rate above 0; without events there is nothing to decide")
        if self.peak is not None and self.peak < self.avg:
            raise ValueError(f"expected a peak of at least the average rate, {self.avg}, got {self.peak}")


class Requirements(_Part, frozen=True):
    """What the event system has to do; the advice is computed from this. Everything may be left out."""

    rate: Rates | None = None
    payload: Size | None = None
    """Of a typical event's body."""
    retention: Duration | None = None
    """How long events stay readable after all groups have handled them."""
    outage: Duration | None = None
    """How long a group may be away before publishers are refused. None: an hour."""
    groups: Annotated[int, Meta(ge=1, le=1_000)] = 1
    """How many services handle each event."""
    ordering: Literal["none", "per-key", "global"] = "none"
    replay: Literal["none", "hours", "days", "weeks"] = "none"
    loss: Literal["none", "seconds", "best-effort"] = "none"
    """What may be lost of acknowledged events when a server is lost for good."""
    datacenters: Annotated[int, Meta(ge=1, le=100)] = 1
    """In how many of them events are published."""
    team: tuple[str, ...] = ()
    """Systems that the team runs already: redis, valkey, kafka, nats, rabbitmq."""
    licence: Literal["any", "osi", "permissive"] = "osi"
    memory: Size | None = None
    """Of one server, for events. None: 32 GiB."""


class Server(_Part, frozen=True):
    """Which server speaks the protocol."""

    engine: Literal["valkey", "redis"] = "valkey"
    min_version: str = ""
    maxmemory: Size | None = None
    maxmemory_policy: str = "noeviction"
    shared_with_cache: bool = False


class Retention(_Part, frozen=True):
    """What stays in a stream after it was handled."""

    maxlen: Annotated[int, Meta(ge=1)] | None = None
    maxage: Duration | None = None


class Consumer(_Part, frozen=True):
    """How a group handles a stream."""

    batch: Annotated[int, Meta(ge=1)] = 64
    block: Duration = field(default_factory=lambda: Duration(2))
    concurrency: Annotated[int, Meta(ge=1)] = 16
    timeout: Duration = field(default_factory=lambda: Duration(30))
    """After which a handler's event has failed."""
    lease: Duration = field(default_factory=lambda: Duration(15))
    """After which a silent worker's events are taken over."""
    min_idle: Duration | None = None
    """For consumers that reclaim by idle time instead of by leases."""
    max_deliveries: Annotated[int, Meta(ge=1)] = 5
    dead_letter: str | None = None
    ordered: bool = False


class Stream(_Part, frozen=True):
    """A topic that the service uses."""

    name: TopicName
    role: tuple[Literal["produce", "consume"], ...] = ("produce", "consume")
    schema: str = ""
    partitions: Annotated[int, Meta(ge=1, le=1_024)] = 1
    key: FieldName = ""
    """The field by which events are kept in order."""
    retention: Retention | None = None
    group: TopicName | Literal[""] = ""
    consumer: Consumer | None = None


class Scaling(_Part, frozen=True):
    """How many workers there are."""

    min_replicas: Annotated[int, Meta(ge=0)] = 1
    triggers: tuple[Literal["lag", "pending", "backlog"], ...] = ("lag", "pending")


class Outgrow(_Part, frozen=True):
    """When to leave, and where to."""

    to: System
    when: tuple[str, ...] = ()


class Decision(_Part, frozen=True):
    """Who decided, and where it is written down."""

    at: str
    by: str
    adr: str = ""


class Concern(_Part, frozen=True):
    """What answers a concern of quality, and why."""

    type: str
    why: Annotated[str, Meta(min_length=10)]
    pattern: str = ""


class Events(_Part, frozen=True):
    """Which event system the service has, and why. `type`, `why` and `pattern` alone are enough."""

    type: System
    why: Annotated[str, Meta(min_length=10)]
    pattern: str = ""
    server: Server | None = None
    delivery: str = "at-least-once"
    effects: Literal["none", "commit", "inbox", "idempotency-key"] = "commit"
    streams: tuple[Stream, ...] = ()
    scaling: Scaling | None = None
    outgrow: Outgrow | None = None
    decision: Decision | None = None


class _File(_Part, frozen=True):
    """A whole `stack.yaml`."""

    quality: dict[str, dict[str, Any]]
    """A concern, and what answers it."""
    api_version: str = API_VERSION
    kind: str = "Stack"
    metadata: Metadata | None = None
    spec: Spec | None = None
    requirements: Requirements = Requirements()


class Manifest(Struct, frozen=True):
    """What a `stack.yaml` says."""

    events: Events
    concerns: dict[str, Concern]
    """The other blocks of `quality`."""
    requirements: Requirements
    metadata: Metadata | None
    spec: Spec | None
    document: Document


def load(path: Path) -> Manifest:
    """Reads a manifest. Raises ConfigurationError with file, line and path of what is wrong."""
    document = Document(path)
    file = _converted(document, document.value, _File, ())
    if file.api_version != API_VERSION or file.kind != "Stack":
        raise document.error(("apiVersion",), f"expected apiVersion: {API_VERSION} and kind: Stack")
    if "events" not in file.quality:
        raise document.error(("quality",), "expected a block `events` with type, why and pattern")
    blocks = {
        name: _converted(document, block, Events if name == "events" else Concern, ("quality", name))
        for name, block in file.quality.items()
    }
    return Manifest(blocks.pop("events"), blocks, file.requirements, file.metadata, file.spec, document)


def _converted(document: Document, value: Any, kind: Any, at: tuple[str | int, ...]) -> Any:
    try:
        return msgspec.convert(value, kind, dec_hook=_parsed)
    except msgspec.ValidationError as e:
        text, _, where = str(e).partition(" - at `$")
        inside = [int(word) if word.isdigit() else word for word in re.findall(r"[^.\[\]`]+", where)]
        raise document.error((*at, *inside), text) from None


def _parsed(kind: type[Any], value: Any) -> Any:
    """A quantity of what was written. Raises ValueError, which the library reports with its place."""
    try:
        return kind.parse(str(value))
    except ConfigurationError as e:
        raise ValueError(str(e)) from None


def _written(kind: type[Any]) -> dict[str, Any]:
    """How a quantity is written, as JSON Schema."""
    return {"type": "string", "pattern": kind.pattern}


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) for editors; made from the structs above."""
    (whole, *_), parts = msgspec.json.schema_components(
        [_File, Events, Concern], schema_hook=_written, ref_template="#/$defs/{name}"
    )
    file = parts.pop(whole["$ref"].rpartition("/")[2])
    file["properties"]["quality"] |= {
        "required": ["events"],
        "properties": {"events": {"$ref": "#/$defs/Events"}},
        "additionalProperties": {"$ref": "#/$defs/Concern"},
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID, **file, "$defs": parts}

"""Has a service outgrown its event system? What is measured, beside what was required and what was said to be the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from headrace.errors import ConfigurationError
from headrace.stack import advise
from headrace.stack.facts import Facts
from headrace.stack.live import Live, Room
from headrace.stack.manifest import Manifest
from headrace.stack.quantity import Duration, Rate, Size
from headrace.stack.sizing import FILLED


class Row(Struct, frozen=True):
    """One comparison."""

    what: str
    now: str
    bound: str
    says: str
    """Empty: it is within."""
    outgrown: bool = False
    """It is time to leave, or to give the server more memory, not only to look."""


class Condition(Struct, frozen=True):
    """When to leave, and where to."""

    what: str
    bound: Any
    to: str


def conditions(manifest: Manifest, facts: Facts) -> list[Condition]:
    """Those of `outgrow`, or of the advice if the manifest names none. Raises ConfigurationError for what is none."""
    outgrow = manifest.events.outgrow
    if outgrow is not None:
        return [_condition(manifest, condition, outgrow.to) for condition in outgrow.when]
    flips = advise.advise(manifest.requirements, facts).flips
    return [_condition(manifest, flip.condition, flip.choice) for flip in flips if flip.condition]


def check(manifest: Manifest, leave: list[Condition], live: Live) -> list[Row]:
    """Every condition, then the server's memory, the requirements and the ledger."""
    needs = manifest.requirements
    now = {
        "rate.peak": live.rate,
        "rate": live.rate,
        "memory": live.memory,
        "retention": needs.retention if needs.retention is not None else live.retention,
        "datacenters": needs.datacenters,
    }
    rows = []
    for one in leave:
        row = _row(one.what, now[one.what], one.bound, str, f"outgrown: {one.to}")
        rows.append(Row(row.what, row.now, row.bound, row.says, outgrown=bool(row.says)))
    rows += [_full(live.room)] if live.room.most else []
    rows += _required(manifest, live)
    if live.unnamed:
        rows.append(
            Row(
                "topics",
                ", ".join(live.unnamed),
                "",
                "the manifest names no streams: all that the server has were looked at",
            )
        )
    rows += [
        Row(f"topic {name}", "absent", "", "the server does not have it; is the name right?") for name in live.absent
    ]
    rows.append(_row("events unaccounted for", live.missing, 0, str, "`headrace ledger` shows the group"))
    return rows


def _full(room: Room) -> Row:
    row = _row(
        "memory of the server",
        room.used,
        Size(room.most * FILLED),
        str,
        f"more than {FILLED:.0%} of its maxmemory, {room.most}: publishers wait when it is full. Raise maxmemory, or keep events for a shorter time",
    )
    return Row(row.what, row.now, row.bound, row.says, outgrown=bool(row.says))


def _condition(manifest: Manifest, text: str, to: str) -> Condition:
    kinds: dict[str, Callable[[str], Any]] = {
        "rate.peak": Rate.parse,
        "rate": Rate.parse,
        "memory": Size.parse,
        "retention": Duration.parse,
        "datacenters": int,
    }
    what, _, bound = text.partition(">")
    try:
        return Condition(what.strip(), kinds[what.strip()](bound.strip()), to)
    except (KeyError, ValueError, ConfigurationError) as e:
        raise manifest.document.error(
            ("quality", "events", "outgrow", "when"),
            f"expected conditions such as 'rate.peak > 100000/s', 'memory > 12GiB', 'retention > 7d', 'datacenters > 1', got {text!r}",
        ) from e


def _required(manifest: Manifest, live: Live) -> list[Row]:
    """More than what the decision was computed from: then it is to be computed again."""
    rows, needs = [], manifest.requirements
    again = "more than was required: `headrace stack advise` with the new number"
    if needs.rate is not None:
        rows.append(_row("required rate", live.rate, needs.rate.peak or Rate(needs.rate.avg * 4), str, again))
    outage = needs.outage or Duration(3_600)
    late = "a group is behind for longer than it may be away: publishers are refused at the topic's cap"
    rows.append(_row("oldest unsettled event", live.behind, outage, str, late))
    return rows


def _row(what: str, now: Any, bound: Any, text: Callable[[Any], str], says: str) -> Row:
    return Row(what, text(now), text(bound), says if now > bound else "")

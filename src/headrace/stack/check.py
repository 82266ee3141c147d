"""Has a service outgrown its event system? What is measured, beside what was required and what was said to be the end."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from msgspec import Struct

from headrace.stack import advise
from headrace.stack.facts import Facts
from headrace.stack.live import Live
from headrace.stack.manifest import Manifest
from headrace.stack.quantity import Duration, Rate, Size

_CONDITION: Final = re.compile(r"(rate\.peak|rate|memory|retention|datacenters) ?> ?(\S.*)")


class Row(Struct, frozen=True):
    """One comparison."""

    what: str
    now: str
    bound: str
    says: str
    """Empty: it is within."""
    outgrown: bool = False
    """It is time to leave, not only to look."""


def check(manifest: Manifest, live: Live, facts: Facts) -> list[Row]:
    """Every condition of `outgrow`, or of the advice if the manifest names none, then the requirements and the ledger."""
    outgrow = manifest.events.outgrow
    advice = advise.advise(manifest.requirements, facts)
    leave: list[tuple[str, str]]
    if outgrow is not None:
        leave = [(condition, outgrow.to) for condition in outgrow.when]
    else:
        leave = [(flip.condition, flip.choice) for flip in advice.flips if flip.condition]
    rows = [_condition(manifest, live, condition, to) for condition, to in leave]
    rows += _required(manifest, live)
    rows.append(_row("events unaccounted for", live.missing, 0, str, "`headrace ledger` shows the group"))
    return rows


def _condition(manifest: Manifest, live: Live, condition: str, to: str) -> Row:
    found = _CONDITION.fullmatch(condition)
    if found is None:
        raise manifest.document.error(
            ("quality", "events", "outgrow", "when"),
            f"expected conditions such as 'rate.peak > 100000/s', 'memory > 12GiB', 'retention > 7d', 'datacenters > 1', got {condition!r}",
        )
    what, bound = found.groups()
    kind: dict[str, tuple[Any, Callable[[str], Any]]] = {
        "rate.peak": (live.rate, Rate.parse),
        "rate": (live.rate, Rate.parse),
        "memory": (live.memory, Size.parse),
        "retention": (live.retention, Duration.parse),
        "datacenters": (manifest.requirements.datacenters, int),
    }
    now, parse = kind[what]
    row = _row(what, now, parse(bound), str, f"outgrown: {to}")
    return Row(row.what, row.now, row.bound, row.says, outgrown=bool(row.says))


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

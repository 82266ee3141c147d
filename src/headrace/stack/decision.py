"""A decision as people keep it: the block of the manifest, and the document that gives the reasons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from headrace.stack.advise import Advice, Ranked
from headrace.stack.capacity import CPU_SHARE, MEMORY_SHARE
from headrace.stack.manifest import Events

BY: Final = "advisor/1"


def block(advice: Advice, date: str, document: str = "") -> str:
    """`quality.events` as YAML, for a `stack.yaml`; `document`: where the reasons are."""
    lines = [
        "quality:",
        "  events:",
        f"    type: {advice.choice}",
        f"    why: {quoted(advice.why)}",
        f"    pattern: {quoted(advice.pattern)}",
    ]
    leaving = [flip for flip in advice.flips if flip.condition]
    if leaving:
        to = leaving[0].choice
        when = ", ".join(quoted(flip.condition) for flip in leaving if flip.choice == to)
        lines += ["    outgrow:", f"      to: {to}", f"      when: [{when}]"]
    where = f", adr: {quoted(document)}" if document else ""
    lines.append(f"    decision: {{at: {quoted(date)}, by: {quoted(BY)}{where}}}")
    return "\n".join(lines) + "\n"


def quoted(text: str) -> str:
    """A YAML string in double quotes."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def adr(advice: Advice, name: str, date: str, decided: Events | None = None) -> str:
    """The decision as a document in Markdown: context, decision, reasons, numbers, and when it does not hold any more.

    `decided`: what a manifest says instead of the advice.
    """
    load, generated = advice.load, made(decided) if decided is not None else []
    choice, why, pattern = advice.choice, advice.why, advice.pattern
    if decided is not None:
        choice, why, pattern = decided.type, decided.why, decided.pattern
    other = [] if choice == advice.choice else [f"The advice is {advice.choice}: {advice.why}.", ""]
    lines = [
        f"# Events of {name}: {choice}",
        "",
        (
            f"Date: {date}. Decided by `headrace stack advise` ({BY}); {advice.facts.server} was measured on {advice.facts.measured_on} "
            f"({advice.facts.machine})."
        ),
        "",
        "## Context",
        "",
        f"- {load.rate} on average, {load.peak} at the peak, bodies of {load.payload}, handled by {load.groups} group{_s(load.groups)}.",
        f"- Events stay for {load.retention} after they were handled; a group may be away for {load.outage}.",
        *(["- Assumed, because nothing was said: " + "; ".join(load.assumed) + "."] if load.assumed else []),
        "",
        "## Decision",
        "",
        f"**{choice}**: {why}.",
        "",
        *other,
        *([f"Pattern: {pattern}.", ""] if pattern else []),
        "## What it takes on Redis Streams",
        "",
        "| | |",
        "|---|---|",
        *(f"| {what} | {takes} |" for what, takes in [*takes(advice)[: -1 if generated else None], *generated]),
        "",
        "## Reasons",
        "",
        *_reasons(advice.systems),
        "",
        "## When this does not hold any more",
        "",
        *(f"- {flip.change}: {flip.choice}." for flip in advice.flips),
        *([] if advice.flips else ["Nothing that was looked at changes the answer."]),
    ]
    return "\n".join(lines) + "\n"


def takes(advice: Advice) -> list[tuple[str, str]]:
    """What it takes on Redis Streams: of what, and how much."""
    load, needs = advice.load, advice.capacity
    servers, primaries = needs.servers_for_memory, needs.servers_for_rate
    return [
        ("events kept", f"{needs.events_kept:,}"),
        ("memory", f"{needs.memory}: {servers} server{_s(servers)} of {load.memory}, filled to {MEMORY_SHARE:.0%}"),
        ("server time at the peak", f"{needs.cores:.2f} cores: {primaries} server{_s(primaries)} at {CPU_SHARE:.0%}"),
        ("append-only files", f"up to {needs.file}, {needs.append_per_s}/s at the peak"),
        ("worker processes of a group", f"{needs.workers} at the peak"),
        ("partitions", f"{needs.partitions}"),
    ]


def made(decided: Events) -> list[tuple[str, str]]:
    """The topics and the server that a manifest names, in place of the partitions that would do."""
    rows = []
    for stream in decided.streams:
        kept, each = stream.retention, " in each" if stream.partitions > 1 else ""
        parts = [f"{stream.partitions} partition{_s(stream.partitions)}"]
        if kept is not None and kept.maxlen is not None:
            parts.append(f"up to {kept.maxlen:,} handled events{each}")
        if kept is not None and kept.maxage is not None:
            parts.append(f"for {kept.maxage}")
        rows.append((f"topic {stream.name}", ", ".join(parts)))
    if decided.server is not None and decided.server.maxmemory is not None:
        rows.append(("the server's maxmemory", f"{decided.server.maxmemory}, for all topics together"))
    return rows if decided.streams else []


def _reasons(systems: Sequence[Ranked]) -> list[str]:
    lines = ["| criterion | " + " | ".join(r.system for r in systems) + " |", "|---|" + "---|" * len(systems)]
    for place, judgement in enumerate(systems[0].judgements):
        cells = [r.judgements[place] for r in systems]
        said = [f"{'**ruled out**: ' if j.gate else ''}{j.says} ({j.points:+g}, {j.source})" for j in cells]
        lines.append(f"| {judgement.criterion} | " + " | ".join(said) + " |")
    total = ["ruled out" if r.ruled_out else f"{r.score:g}" for r in systems]
    return [*lines, "| sum | " + " | ".join(total) + " |"]


def _s(count: int) -> str:
    return "" if count == 1 else "s"

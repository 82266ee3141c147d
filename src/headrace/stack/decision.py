"""A decision as people keep it: the block of the manifest, and the document that gives the reasons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from headrace.stack.advise import Advice, Ranked
from headrace.stack.capacity import CPU_SHARE, MEMORY_SHARE

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
    conditions = [flip.condition for flip in advice.flips if flip.condition]
    if conditions:
        to = next(flip.choice for flip in advice.flips if flip.condition)
        lines += [
            "    outgrow:",
            f"      to: {to}",
            f"      when: [{', '.join(map(quoted, conditions))}]",
        ]
    where = f", adr: {quoted(document)}" if document else ""
    lines.append(f"    decision: {{at: {quoted(date)}, by: {quoted(BY)}{where}}}")
    return "\n".join(lines) + "\n"


def quoted(text: str) -> str:
    """A YAML string in double quotes."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def adr(advice: Advice, name: str, date: str) -> str:
    """The decision as a document in Markdown: context, decision, reasons, numbers, and when it does not hold any more."""
    load, needs = advice.load, advice.capacity
    lines = [
        f"# Events of {name}: {advice.choice}",
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
        f"**{advice.choice}**: {advice.why}.",
        "",
        *([f"Pattern: {advice.pattern}.", ""] if advice.pattern else []),
        "## What it takes on Redis Streams",
        "",
        "| | |",
        "|---|---|",
        f"| events kept | {needs.events_kept:,} |",
        (
            f"| memory | {needs.memory}: {needs.servers_for_memory} server{_s(needs.servers_for_memory)} of {load.memory}, "
            f"filled to {MEMORY_SHARE:.0%} |"
        ),
        (
            f"| server time at the peak | {needs.cores:.2f} cores: {needs.servers_for_rate} primar{'y' if needs.servers_for_rate == 1 else 'ies'} "
            f"at {CPU_SHARE:.0%} |"
        ),
        f"| append-only files | up to {needs.file}, {needs.append_per_s}/s at the peak |",
        f"| worker processes of a group at the peak | {needs.workers} |",
        f"| partitions | {needs.partitions} |",
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

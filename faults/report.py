"""What a campaign says in the end, as Markdown."""

from __future__ import annotations

import platform
import sys
from collections import Counter
from collections.abc import Sequence

from faults.campaign import KINDS, Round
from faults.checker import COLUMNS


def render(rounds: Sequence[Round], seed: int, not_run: Sequence[str]) -> str:
    """Verdict, rounds by site, faults by kind, and what could not be done on this machine."""
    faults = sum((r.faults for r in rounds), Counter[str]())
    bad = [r for r in rounds if not r.clean]
    headline = (
        f"{'CLEAN' if not bad else 'NOT CLEAN'}: {faults.total():,} faults, {sum(r.verdict.events for r in rounds):,} events, "
        f"{sum(r.verdict.handled for r in rounds):,} effects, {len(rounds)} rounds, "
        f"{sum(r.seconds for r in rounds) / 60:.0f} minutes, seed {seed}; Python {platform.python_version()}, {sys.platform}"
    )
    lines = [
        headline,
        "",
        *_sites(rounds),
        "",
        "| fault | times |",
        "|---|---:|",
        *(f"| {name} | {faults[name]:,} |" for name in dict.fromkeys(k.name for k in KINDS) if faults[name]),
    ]
    if not_run:
        lines += ["", *(f"NOT RUN: {line}" for line in not_run)]
    for r in bad:
        lines += ["", f"Round {r.number} on {r.version}:", *(f"- {e}" for e in (*r.verdict.examples, *_some(r.ended)))]
    return "\n".join(lines)


def _some(lines: Sequence[str]) -> list[str]:
    more = [f"... and {len(lines) - 8} more"] if len(lines) > 8 else []
    return [*lines[:8], *more]


def _sites(rounds: Sequence[Round]) -> list[str]:
    columns = (*COLUMNS, "ended")
    lines = [
        f"| server | rounds | faults | events | effects | unacknowledged, kept | and vanished | {' | '.join(columns)} | longest until settled |",
        "|---|" + "---:|" * (7 + len(columns)),
    ]
    for version in dict.fromkeys(r.version for r in rounds):
        own = [r for r in rounds if r.version == version]
        counts = [sum(r.verdict.counts[c] for r in own) for c in COLUMNS] + [sum(len(r.ended) for r in own)]
        lines.append(
            f"| {version} | {len(own)} | {sum(r.faults.total() for r in own):,} | {sum(r.verdict.events for r in own):,} "
            f"| {sum(r.verdict.handled for r in own):,} | {sum(r.verdict.unacknowledged for r in own):,} | {sum(r.verdict.vanished for r in own):,} "
            f"| {' | '.join(map(str, counts))} | {max(r.settled_s for r in own):.1f} s |"
        )
    return lines

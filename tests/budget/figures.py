"""The recorded figures, and how a cost is judged by them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from tests.budget.count import Cost

FILE: Final = Path(__file__).with_name("figures.json")
VERSION: Final = f"{sys.version_info.major}.{sys.version_info.minor}"
"""Interpreters count differently: figures are kept for each minor version."""
TOLERANCE: Final = 1.15
RECORD: Final = '.venv/bin/python -m tests.budget --reason "why an event costs more now"'
_SLACK: Final = {"instructions": 0.0, "commands": 0.0, "bytes_in": 0.05, "bytes_out": 0.05}
"""Beyond the tolerance, per event. Bytes: an answer to a batch may be a few words longer. Commands: none, a batch has only five."""
_NAMED: Final = 5
"""Functions that a failure names."""


class Figures(Struct):
    """What `python -m tests.budget` wrote last, on one version of Python."""

    reason: str
    costs: dict[str, Cost]
    """By path."""


def load() -> dict[str, Figures]:
    """By version of Python; none if nothing is recorded."""
    return msgspec.json.decode(FILE.read_bytes(), type=dict[str, Figures]) if FILE.exists() else {}


def save(figures: dict[str, Figures]) -> None:
    """Takes the place of what was recorded."""
    FILE.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=1) + b"\n")


def judge(path: str, now: Cost, recorded: Cost) -> str:
    """'' if it costs no more than was recorded, with 15 % of patience; else what grew, and how to record it."""
    grown = [
        f"{what} {getattr(recorded, what):g} -> {getattr(now, what):g}"
        for what, slack in _SLACK.items()
        if getattr(now, what) > getattr(recorded, what) * TOLERANCE + slack
    ]
    if not grown:
        return ""
    lines = [f"{path}: an event costs more than 15 % above the recorded figure: {', '.join(grown)} (per event)."]
    growth = {name: n - recorded.functions.get(name, 0.0) for name, n in now.functions.items()}
    dearest = [name for name in sorted(growth, key=growth.__getitem__, reverse=True)[:_NAMED] if growth[name] > 0]
    if dearest:
        lines.append("Instructions by function, those that grew most:")
        lines += [f"  {name}: {recorded.functions.get(name, 0.0):g} -> {now.functions[name]:g}" for name in dearest]
    lines.append(f"Make it cheaper; or, if it is worth its price, record it: {RECORD}")
    return "\n".join(lines)

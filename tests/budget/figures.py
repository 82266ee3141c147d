"""The recorded figures, and how a cost is judged by them."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
from msgspec import Struct

from tests.budget.count import Cost

FILE = Path(__file__).with_name("figures.json")
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
"""Interpreters count differently: figures are kept for each minor version."""
TOLERANCE = 1.15
RECORD = '.venv/bin/python -m tests.budget --reason "why an event costs more now"'


class Figures(Struct):
    """What `python -m tests.budget` wrote last."""

    reason: str
    costs: dict[str, dict[str, Cost]]
    """Python version -> path -> cost."""


def load() -> Figures:
    return msgspec.json.decode(FILE.read_bytes(), type=Figures)


def save(figures: Figures) -> None:
    FILE.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=1) + b"\n")


def judge(path: str, now: Cost, recorded: Cost) -> str:
    """'' if it costs no more than was recorded, with 15 % of patience; else what grew, and how to record it."""
    grown = [
        f"{what} {getattr(recorded, what):g} -> {getattr(now, what):g}"
        for what in ("instructions", "commands", "bytes_in", "bytes_out")
        if getattr(now, what) > getattr(recorded, what) * TOLERANCE + 0.05
    ]
    if not grown:
        return ""
    growth = {name: n - recorded.functions.get(name, 0.0) for name, n in now.functions.items()}
    dearest = sorted(growth, key=lambda name: growth[name], reverse=True)[:5]
    functions = "\n".join(
        f"  {name}: {recorded.functions.get(name, 0.0):g} -> {now.functions[name]:g}" for name in dearest
    )
    return (
        f"{path}: an event costs more than 15 % above the recorded figure: {', '.join(grown)} (per event).\n"
        f"Instructions by function, those that grew most:\n{functions}\n"
        f"Make it cheaper; or, if it is worth its price, record it: {RECORD}"
    )

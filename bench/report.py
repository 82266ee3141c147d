"""The figures as Markdown: medians, spread, ratios, goals."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

from msgspec import Struct

from bench.event import Figures
from bench.stages import CONSUME, PUBLISH, TOGETHER, Stage

Rounds = dict[str, list[Figures]]
"""Stage -> its figures, one for each round."""

READING: Final = """Read ratios rather than absolute rates: machines differ, and shared ones drift; runs of one round alternate for that reason.
Client and server share the cores, as they do in development; "client" and "server" are microseconds of CPU per event of each.
The rows without semantics show what server and connection can do: they deduplicate nothing, recover nothing, and call no handler (packed commands) or one without any protection (redis-py).
Every run ends with a check that each event was handled once and nothing is pending; a run that fails it stops the benchmark."""


class Goal(Struct, frozen=True):
    """What was set out to be reached."""

    what: str
    goal: str
    found: str
    reached: bool


def median(rounds: Sequence[Figures], key: str) -> float:
    """Middle of a figure over the rounds."""
    return statistics.median(f[key] for f in rounds)


def _spread(rounds: Sequence[Figures]) -> float:
    """Half of (largest - smallest), in percent of the median."""
    rates = [f["rate"] for f in rounds]
    return (max(rates) - min(rates)) / statistics.median(rates) / 2 * 100


def head(count: int, repeat: int) -> str:
    """Machine, versions, date."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    names = ("headrace", "redis", "hiredis", "msgspec")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return (
        f"{datetime.now(UTC):%Y-%m-%d}; {cpu}, {os.cpu_count()} cores, Linux {platform.release()}; Python {platform.python_version()}, "
        f"{versions}.\n{count:,} events of 150 bytes of JSON a round (more or fewer for some rows), {repeat} round{'s' if repeat > 1 else ''}; "
        "medians, spread is half of (max - min)."
    )


def rates(title: str, stages: Sequence[Stage], rounds: Rounds, yardstick: str) -> str:
    """One table of rates; the last column is the ratio to the yardstick."""
    base = median(rounds[yardstick], "rate") if yardstick in rounds else None
    lines = [
        f"| {title} | events/s | spread | client µs | server µs | ratio |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for stage in stages:
        found = rounds.get(stage.name)
        if not found:
            continue
        rate = median(found, "rate")
        cells = (
            f"{rate:,.0f}",
            f"±{_spread(found):.0f} %",
            f"{median(found, 'cpu_us'):.1f}",
            f"{median(found, 'server_us'):.1f}",
            f"{rate / base:.2f}" if base else "",
        )
        lines.append(f"| {stage.label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def server_section(name: str, rounds: Rounds) -> str:
    """All rates and the latency on one server."""
    parts = [f"## {name}"]
    for title, stages, yardstick in (
        ("publish", PUBLISH, "wire_publish"),
        ("consume", CONSUME, "wire_consume"),
        ("all on the same cores", TOGETHER, "together"),
    ):
        if any(stage.name in rounds for stage in stages):
            parts.append(rates(title, stages, rounds, yardstick))
    if "latency" in rounds:
        p50, p99 = (median(rounds["latency"], key) for key in ("p50_ms", "p99_ms"))
        parts.append(
            f"Latency at 200 events/s, `publish()` called to handler entered: p50 {p50:.2f} ms, p99 {p99:.2f} ms."
        )
    return "\n\n".join(parts)


def payloads(rounds: Rounds) -> str:
    """Rates by size."""
    lines = ["| payload | publish_many, events/s | MB/s | consume, events/s | MB/s |", "|---|---:|---:|---:|---:|"]
    for size in (100, 1_000, 10_000):
        if f"consume_{size}" in rounds:
            publish, consume = (median(rounds[f"{what}_{size}"], "rate") for what in ("publish_many", "consume"))
            megabytes = [f"{rate * size / 1e6:,.0f}" for rate in (publish, consume)]
            lines.append(f"| {size:,} bytes | {publish:,.0f} | {megabytes[0]} | {consume:,.0f} | {megabytes[1]} |")
    return "\n".join(lines)


def backlog(stages: Sequence[Stage], rounds: Rounds) -> str:
    """The cost of what waits."""
    base = median(rounds[stages[0].name], "rate")
    lines = ["| consume, with | events/s | ratio |", "|---|---:|---:|"]
    lines += [
        f"| {s.label} | {median(rounds[s.name], 'rate'):,.0f} | {median(rounds[s.name], 'rate') / base:.2f} |"
        for s in stages
    ]
    return "\n".join(lines)


def memory(stages: Sequence[Stage], rounds: Rounds) -> str:
    """What a process needs beyond what it had before."""
    lines = ["| memory of a | before, MiB | at most beyond that, MiB |", "|---|---:|---:|"]
    lines += [
        f"| {s.label} | {median(rounds[s.name], 'rss_kib') / 1024:.0f} | {median(rounds[s.name], 'peak_kib') / 1024:.1f} |"
        for s in stages
    ]
    return "\n".join(lines)


def peers(found: Mapping[str, tuple[str, Figures, Figures]], absent: Mapping[str, str]) -> str:
    """Other libraries: publish and consume."""
    lines = [
        "| library | publish, events/s | client µs | consume, events/s | client µs | server µs |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for title, publish, consume in found.values():
        cells = (
            f"{publish['rate']:,.0f}",
            f"{publish['cpu_us']:.0f}",
            f"{consume['rate']:,.0f}",
            f"{consume['cpu_us']:.0f}",
            f"{consume['server_us']:.0f}",
        )
        lines.append(f"| {title} | {' | '.join(cells)} |")
    lines += [f"\nNOT RUN: {name}: {why}" for name, why in absent.items()]
    return "\n".join(lines)


def fleets(of: Mapping[int, Figures], moved: Figures) -> str:
    """The cost of several primaries, and of workers that come and go."""
    lines = [
        "| 16 partitions on | publish, events/s | servers, µs | consume in order, events/s | servers, µs |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {n} {'primary' if n == 1 else 'primaries'} | {f['publish_rate']:,.0f} | {f['publish_server_us']:.1f} | "
        f"{f['consume_rate']:,.0f} | {f['consume_server_us']:.2f} |"
        for n, f in of.items()
    ]
    lines += [
        "",
        _PRIMARIES,
        "",
        _MOVED.format(**moved),
    ]
    return "\n".join(lines)


_PRIMARIES: Final = (
    "The servers' cost of an event is that of all of them together: as long as it does not grow with their number, N primaries on N cores of "
    "their own serve N times the events, if there are partitions for all of them."
)
_MOVED: Final = (
    "Half of 16 partitions have changed hands {killed_s:.2f} s after SIGKILL of their worker (lease {lease_s:g} s), {stopped_s:.3f} s after "
    "SIGTERM."
)


def start_ms() -> float:
    """Median wall time of `headrace --version`."""
    command = [str(Path(sys.executable).with_name("headrace")), "--version"]
    times = []
    for _ in range(11):
        out = subprocess.run([sys.executable, "-c", _TIMER, *command], check=True, stdout=subprocess.PIPE, text=True)
        times.append(float(out.stdout.splitlines()[-1]))
    return statistics.median(times)


_TIMER: Final = """import subprocess, sys, time
began = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print((time.perf_counter() - began) * 1e3)"""


def goals(always: Rounds, everysec: Rounds, one: Mapping[str, float]) -> list[Goal]:
    """The goals that can be judged by what was measured. `one`: figures that there is one of."""
    out: list[Goal] = []

    def ratio(what: str, rounds: Rounds, names: tuple[str, str], least: float, floor: float) -> None:
        if not all(name in rounds for name in names):
            return
        rate, base = (median(rounds[name], "rate") for name in names)
        found = f"{rate / base:.2f} ({rate:,.0f}/s)"
        goal = f"≥ {least} of the packed commands, ≥ {floor:,.0f}/s"
        out.append(Goal(what, goal, found, rate >= least * base and rate >= floor))

    def least(what: str, rounds: Rounds, name: str, floor: float) -> None:
        if name in rounds:
            rate = median(rounds[name], "rate")
            out.append(Goal(what, f"≥ {floor:,.0f}/s", f"{rate:,.0f}/s", rate >= floor))

    def most(what: str, value: float | None, limit: float, unit: str) -> None:
        if value is not None:
            out.append(Goal(what, f"≤ {limit:g} {unit}", f"{value:.2f} {unit}", value <= limit))

    for name, rounds in (("always", always), ("everysec", everysec)):
        ratio(f"publish_many, {name}", rounds, ("publish_many", "wire_publish"), 0.6, 200_000)
        ratio(f"consume, {name}", rounds, ("consume", "wire_consume"), 0.75, 200_000)
    least("publish(), 1,000 callers, always", always, "publish_each_1000", 120_000)
    least("publisher + server + worker on the same cores, always", always, "together", 110_000)
    least("... with one output event per input", always, "together_output", 60_000)
    least("record batches, publish", everysec, "publish_packed", 1_100_000)
    least("record batches, consume", everysec, "consume_packed", 567_000)
    if "consume_ordered_1" in always and "consume" in always:
        rate, base = (median(always[name], "rate") for name in ("consume_ordered_1", "consume"))
        found = f"{rate / base:.2f} ({rate:,.0f}/s)"
        out.append(Goal("consume in order per key, always", "≥ 2 times shared", found, rate >= 2 * base))
    least("... publisher + server + worker on the same cores", always, "together_ordered", 180_000)
    most("servers' CPU per event, 3 primaries against 1", one.get("primaries"), 1.2, "times")
    most("partitions of a killed worker, after its lease", one.get("killed_s"), 1.0, "s")
    most("partitions of a stopped worker", one.get("stopped_s"), 0.5, "s")
    if "peer" in one and "consume" in everysec:
        times = median(everysec["consume"], "rate") / one["peer"]
        out.append(Goal("consume, everysec, against the best peer", "≥ 50 times", f"{times:.0f} times", times >= 50))  # noqa: PLR2004
    if "latency" in everysec:
        most("publish -> handler at 200/s, everysec, p50", median(everysec["latency"], "p50_ms"), 0.6, "ms")
        most("... p99", median(everysec["latency"], "p99_ms"), 1.5, "ms")
    most("idle worker, commands it sends", one.get("sent_per_s"), 0.5, "/s")
    most("idle worker, commands inside scripts included", one.get("commands_per_s"), 0.5, "/s")
    most("idle worker, CPU", one.get("cpu_percent"), 0.5, "% of a core")
    out += [
        Goal(f"rate with a large {name}, of the empty one", "≥ 0.85", f"{one[name]:.2f}", one[name] >= 0.85)  # noqa: PLR2004
        for name in ("backlog", "pending")
        if name in one
    ]
    most("`headrace --version`", one.get("start_ms"), 90, "ms")
    return out


def goal_table(found: Sequence[Goal]) -> str:
    """Goal, measured, reached."""
    lines = ["| | goal | measured | reached |", "|---|---|---|---|"]
    return "\n".join(
        [*lines, *(f"| {g.what} | {g.goal} | {g.found} | {'yes' if g.reached else '**no**'} |" for g in found)]
    )

"""Runs every stage in a process of its own on fresh servers, alternating, and prints a Markdown table of medians.

python -m bench [--quick] [--write]        about 6 minutes; --quick about 1; --write puts it into docs/reference/performance.md
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from bench.server import Server
from headrace.version import VERSION

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "performance.md"
FSYNC = {"always": "durability `fsync`", "everysec": "durability `relaxed`"}


def stage(name: str, count: int, server: Server) -> dict[str, float]:
    """One measured process; its figures, and the server's CPU per event. Raises CalledProcessError if it fails."""
    before = server.cpu_s()
    environment = {**os.environ, "HEADRACE_URL": server.url}
    out = subprocess.run(
        [sys.executable, "-m", "bench.work", name, str(count)],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    figures: dict[str, float] = json.loads(out.stdout.splitlines()[-1])
    if figures.get("twice") or figures.get("left"):
        raise SystemExit(f"{name}: not exact: {figures}")
    figures["server_us"] = (server.cpu_s() - before) / count * 1e6
    return figures


def pending(server: Server) -> None:
    """Raises SystemExit unless everything is settled."""
    for info in server.client.xinfo_groups("orders"):
        if info["pending"] or info.get("lag"):
            raise SystemExit(f"not everything was settled: {info}")


def measure(kind: str, fsync: str, count: int) -> dict[str, dict[str, float]]:
    """One round of all stages that have a rate."""
    results = {}
    for name in ("wire", "redis_py"):
        with Server(kind, fsync) as server:
            results[name] = stage(name, count if name == "wire" else count // 4, server)
    for name in ("consume", "consume_effect", "consume_output"):
        with Server(kind, fsync) as server:
            results["publish_many"] = stage("publish_many", count, server)
            results[name] = stage(name, count, server)
            pending(server)
    with Server(kind, fsync) as server:
        results["publish_each"] = stage("publish_each", count // 2, server)
    with Server(kind, fsync) as server:
        results["latency"] = stage("latency", 1_000, server)
        pending(server)
    return results


def start_ms() -> float:
    """Median wall time of `headrace --version`."""
    times = []
    for _ in range(7):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "headrace", "--version"], check=True, capture_output=True)
        times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times)


def say(text: str) -> None:
    """Progress, on a terminal only."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)


def row(label: str, figures: list[dict[str, float]], rate: str = "rate") -> str:
    """Median and spread of one stage over the rounds."""
    rates = [f[rate] for f in figures]
    middle = statistics.median(rates)
    spread = (max(rates) - min(rates)) / middle / 2 * 100
    cpu = statistics.median(f["cpu_us"] for f in figures) if "cpu_us" in figures[0] and rate == "rate" else None
    server = statistics.median(f["server_us"] for f in figures) if rate == "rate" and label[0] != "p" else None
    tail = " | ".join("" if c is None else f"{c:.1f}" for c in (cpu, server))
    return f"| {label} | {middle:,.0f} | ±{spread:.0f} % | {tail} |"


def table(kind: str, version: str, fsync: str, rounds: list[dict[str, dict[str, float]]]) -> str:
    """One server at one level."""
    by = {name: [r[name] for r in rounds] for name in rounds[0]}
    lines = [
        f"## {version}, `appendfsync {fsync}` ({FSYNC[fsync]})",
        "",
        "| | events/s | spread | client µs | server µs |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        row("publish: packed commands, no semantics", by["wire"], "publish_rate"),
        row("publish: redis-py pipeline, no semantics", by["redis_py"], "publish_rate"),
        row("**headrace `publish_many`**", by["publish_many"]),
        row("**headrace `publish`, 1,000 callers**", by["publish_each"]),
        row("consume: packed commands, no decode, no handler", by["wire"]),
        row("consume: redis-py loop", by["redis_py"]),
        row("**headrace, a handler call per event**", by["consume"]),
        row("**… with a HINCRBY in the same commit**", by["consume_effect"]),
        row("**… with an event published in the same commit**", by["consume_output"]),
    ]
    p50, p99 = (statistics.median(f[k] for f in by["latency"]) for k in ("p50_ms", "p99_ms"))
    return "\n".join(
        [
            *lines,
            "",
            f"Latency at 200 events/s, `publish()` called to handler entered: p50 {p50:.2f} ms, p99 {p99:.2f} ms.",
        ]
    )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    args = parser.parse_args()
    count, repeat = (50_000, 1) if args.quick else (200_000, 3)
    modes = (
        [("valkey", "always")] if args.quick else [("valkey", "always"), ("valkey", "everysec"), ("redis", "always")]
    )
    pieces: list[str] = []
    missing: list[str] = []
    for kind, fsync in modes:
        try:
            with Server(kind, fsync) as server:
                version = f"{server.version()} ({server.allocator} allocator)"
                quiet = stage("idle", 10, server)["commands_per_s"] if not pieces else None
        except FileNotFoundError:
            missing.append(f"NOT RUN: {kind}-server is not installed")
            continue
        if quiet is not None:
            pieces.append(
                f"Idle worker: {quiet:.1f} commands/s, those inside scripts included. `headrace --version`: {start_ms():.0f} ms."
            )
        rounds = []
        for i in range(repeat):
            say(f"{version}, {fsync}: round {i + 1} of {repeat}")
            rounds.append(measure(kind, fsync, count))
        pieces.append(table(kind, version, fsync, rounds))
    head = (
        f"headrace {VERSION}, {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, "
        f"{count:,} events of 150 bytes, {repeat} rounds; medians, spread is half of (max - min).\n"
        "Client and server share the cores. Every run was checked: each event handled once, nothing pending."
    )
    report = "\n\n".join([head, *pieces, *missing])
    print(report)
    if args.write:
        PAGE.write_text(
            f"# Performance\n\nMeasured by `make bench`; this page is what it wrote last.\n{READING}\n\n{report}\n",
            encoding="utf-8",
        )


READING = """Read ratios rather than absolute rates: machines differ, and shared ones drift.
The rows without semantics show what the server and the wire can do; they deduplicate nothing, recover nothing and call no handler (packed commands) or no typed one (redis-py)."""

if __name__ == "__main__":
    main()

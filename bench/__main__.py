"""Runs every stage in processes of its own on fresh servers, alternating, and prints Markdown.

python -m bench [--quick] [--peers "faststream taskiq dramatiq"] [--write] [--json FILE] [--only REGEX]
About 10 minutes; --quick about 1. --write puts the report into docs/reference/performance.md.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import fleets, peers, report, stages
from bench.event import Figures
from bench.server import Server
from bench.stages import Stage

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "performance.md"
SETTINGS = {"always": "durability `fsync`", "everysec": "durability `relaxed`"}


class Bench:
    """One run of the benchmark."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._only = re.compile(args.only)
        self.count, self.repeat = (50_000, 1) if args.quick else (200_000, 3)
        self.found: dict[str, report.Rounds] = {}
        """By server and setting."""
        self.one: Figures = {}
        """Figures that there is one of."""
        self.missing: list[str] = []

    def rounds(self, name: str, kind: str, fsync: str, of: Sequence[Stage], repeat: int | None = None) -> report.Rounds:
        """Every stage once a round, one after the other. Empty if there is no such server."""
        rounds = self.found.setdefault(name, {})
        of = [s for s in of if self._only.search(s.name)]
        for turn in range(repeat or self.repeat):
            for stage in of:
                _say(f"{name}, round {turn + 1}: {stage.name}")
                together = stage.name.startswith("together")
                run = stages.run_together if together else stages.run
                try:
                    figures = run(stage, kind, fsync, self.count)
                except FileNotFoundError:
                    self.missing.append(f"NOT RUN: {kind}-server is not installed")
                    return rounds
                rounds.setdefault(stage.name, []).append(figures)
        return rounds

    def sections(self) -> list[str]:
        """Everything, as Markdown."""
        every = (*stages.PUBLISH, *stages.CONSUME, *stages.TOGETHER, stages.LATENCY)
        quick = self._args.quick
        modes = [("valkey", "always"), ("valkey", "everysec"), ("redis", "always")]
        out = []
        for kind, fsync in modes[:1] if quick else modes:
            rounds = self.rounds(f"{kind} {fsync}", kind, fsync, every)
            if rounds:
                out.append(report.server_section(_title(kind, fsync), rounds))
        out += self._by_size() + self._by_backlog() + self._memory() + self._fleets() + self._peers()
        return out

    def _by_size(self) -> list[str]:
        if self._args.quick:
            return []
        rounds = self.rounds("payloads", "valkey", "everysec", stages.PAYLOADS, 1)
        return ["## Size of events (everysec)", report.payloads(rounds)] if rounds else []

    def _by_backlog(self) -> list[str]:
        quick = self._args.quick
        of = (
            stages.backlogs(20_000, (200_000,), 100_000)
            if quick
            else stages.backlogs(200_000, (1_000_000, 5_000_000), 1_000_000)
        )
        rounds = self.rounds("backlog", "valkey", "everysec", of, 1 if quick else 2)
        if len(rounds) < len(of):
            return []
        base = report.median(rounds[of[0].name], "rate")
        self.one["backlog"] = report.median(rounds[of[-2].name], "rate") / base
        self.one["pending"] = report.median(rounds["pending"], "rate") / base
        return ["## What waits (everysec)", report.backlog(of, rounds)]

    def _memory(self) -> list[str]:
        of = stages.memory((1, 1_000) if self._args.quick else (1, 1_000, 100_000))
        rounds = self.rounds("memory", "valkey", "everysec", of, 1)
        if len(rounds) < len(of):
            return []
        sizes = self.found.get("valkey always", {})
        entries = [
            f"{name}: {sizes[name][0]['bytes_per_event']:.0f} bytes of server memory per event of 150 bytes."
            for name in ("publish_many", "publish_packed")
            if name in sizes
        ]
        return ["## Memory", report.memory(of, rounds), " ".join(entries)]

    def _fleets(self) -> list[str]:
        if self._args.quick or not self._only.search("fleets"):
            return []
        _say("several primaries")
        of = fleets.primaries(self.count)
        _say("partitions change hands")
        moved = fleets.rebalance()
        self.one |= {"killed_s": moved["killed_s"] - moved["lease_s"], "stopped_s": moved["stopped_s"]}
        total = {n: sum(f[f"{what}_server_us"] for what in ("publish", "consume")) for n, f in of.items()}
        self.one["primaries"] = total[3] / total[1]
        return ["## Several primaries, several workers (always)", report.fleets(of, moved)]

    def _peers(self) -> list[str]:
        found: dict[str, tuple[str, Figures, Figures]] = {}
        absent: dict[str, str] = {}
        for name in self._args.peers.split():
            _say(f"peer {name}")
            try:
                peer = peers.prepare(name)
                found[name] = (peer.title, *peers.measure(peer, "valkey", "everysec", quick=self._args.quick))
            except KeyError:
                absent[name] = f"unknown; there are {', '.join(peers.PROGRAMS)}"
            except subprocess.SubprocessError as e:
                absent[name] = str(getattr(e, "stderr", "") or e).strip().splitlines()[-1]
        if not found and not absent:
            return []
        if found:
            self.one["peer"] = max(consume["rate"] for _, _, consume in found.values())
        return ["## Other libraries (everysec)", report.peers(found, absent)]

    def idle(self) -> str:
        """What a worker costs that has nothing to do, and how long the command line takes to start."""
        self.one["start_ms"] = report.start_ms()
        seconds = 5 if self._args.quick else 30
        self.one |= stages.run(Stage("idle", "idle", f"programs idle {seconds}"), "valkey", "always", seconds)
        return (
            f"Idle worker: {self.one['sent_per_s']:.1f} commands/s sent, {self.one['commands_per_s']:.1f} with those inside scripts, "
            f"{self.one['cpu_percent']:.1f} % of a core. `headrace --version`: {self.one['start_ms']:.0f} ms."
        )


def _title(kind: str, fsync: str) -> str:
    with Server(kind, fsync) as server:
        return f"{server.version()} ({server.allocator} allocator), `appendfsync {fsync}` ({SETTINGS[fsync]})"


def _say(text: str) -> None:
    """Progress, on a terminal only."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of fewer events, one server")
    parser.add_argument("--peers", default="", metavar="NAMES", help=f"of {', '.join(peers.PROGRAMS)}")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure of every round")
    parser.add_argument("--only", default="", metavar="REGEX", help="only stages whose name matches")
    args = parser.parse_args()
    bench = Bench(args)
    try:
        quiet = bench.idle() if not args.only else ""
        sections = bench.sections()
    except stages.NotExact as e:
        print(f"NOT EXACT: {e}", file=sys.stderr)
        return 1
    always, everysec = (bench.found.get(f"valkey {fsync}", {}) for fsync in ("always", "everysec"))
    table = report.goal_table(report.goals(always, everysec, bench.one))
    text = "\n\n".join(
        part
        for part in (report.head(bench.count, bench.repeat), "## Goals", table, quiet, *sections, *bench.missing)
        if part
    )
    print(text)
    if args.json:
        args.json.write_text(json.dumps({"rounds": bench.found, "one": bench.one}, indent=1), encoding="utf-8")
    if args.write:
        intro = "# Performance\n\nMeasured by `make bench`; this page is what it wrote last."
        PAGE.write_text(f"{intro}\n{report.READING}\n\n{text}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

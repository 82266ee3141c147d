"""Attacks the whole product and says what became of every event.

python -m faults [--minutes M] [--seed N] [--site valkey|redis|sentinel|cluster] [--round K] [--keep FOLDER] [--report FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults import campaign, disk, report
from faults.campaign import Round
from faults.process import ROOT
from faults.release import previous_release
from faults.site import SITES
from faults.world import BOUND_S, Setup
from tests.postgres import Postgres
from tests.servers import ServerAbsent


def main() -> int:
    """0: clean; 1: not; 2: nothing could be run."""
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0, help="how long, about (5); rounds are finished")
    parser.add_argument("--seed", type=int, help="repeats the schedule of an earlier run")
    parser.add_argument("--site", choices=SITES, help="only rounds on this kind of server")
    parser.add_argument("--round", type=int, help="only this round of the schedule")
    parser.add_argument("--faults", type=int, default=campaign.FAULTS_PER_ROUND, help="of a round")
    parser.add_argument(
        "--fsync", choices=("always", "everysec"), default="always", help="everysec is expected to fail"
    )
    parser.add_argument("--kinds", default="", help="only faults whose names match this")
    parser.add_argument("--bound", type=float, default=BOUND_S, help="seconds after which an event is stuck")
    parser.add_argument("--this-release", action="store_true", help="no rolling upgrade")
    parser.add_argument("--keep", type=Path, help="where the histories of rounds that were not clean go")
    parser.add_argument("--report", type=Path, help="writes the report there, too")
    args = parser.parse_args()
    seed = random.randrange(1 << 32) if args.seed is None else args.seed
    folder = Path(tempfile.mkdtemp(prefix="hf-"))
    folder.chmod(0o755)
    rounds: list[Round] = []
    with _setup(folder, args) as (setup, not_run):
        _show(f"seed {seed}")
        try:
            for result in _rounds(setup, seed, args, not_run):
                rounds.append(result)
                _line(result)
                if args.report is not None:  # whatever becomes of the rest
                    args.report.write_text(report.render(rounds, seed, not_run) + "\n")
        except KeyboardInterrupt:
            not_run.append("the rest: interrupted")
    if not rounds:
        sys.stdout.write("\n".join(f"NOT RUN: {line}" for line in not_run) + "\n")
        return 2
    text = report.render(rounds, seed, not_run)
    sys.stdout.write(text + "\n")
    if args.report is not None:
        args.report.write_text(text + "\n")
    if all(r.clean for r in rounds):
        shutil.rmtree(folder, ignore_errors=True)
        return 0
    kept = args.keep or Path(tempfile.gettempdir()) / f"headrace-faults-{seed}"
    shutil.copytree(folder, kept, dirs_exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    sys.stdout.write(f"\nHistories, logs and data: {kept}\nAgain: make faults ARGS='--seed {seed} --round N'\n")
    return 1


@contextlib.contextmanager
def _setup(folder: Path, args: argparse.Namespace) -> Iterator[tuple[Setup, list[str]]]:
    """What this machine has, and what it lacks."""
    not_run = []
    shim = disk.build(folder)
    previous = None if args.this_release else previous_release(ROOT, folder)
    if shim is None:
        not_run.append("slow, full and forgetful disks, wrong clocks: there is no C compiler")
    if previous is None and not args.this_release:
        not_run.append("rolling upgrade: this is no git checkout with an earlier release")
    with contextlib.ExitStack() as stack:
        try:
            postgres = stack.enter_context(Postgres())
        except pytest.skip.Exception as e:
            postgres = None
            not_run.append(f"everything in SQL: {e.msg}")
        yield Setup(folder, shim, previous, postgres, args.fsync, args.bound), not_run


def _rounds(setup: Setup, seed: int, args: argparse.Namespace, not_run: list[str]) -> Iterator[Round]:
    end = time.monotonic() + args.minutes * 60
    number = 0 if args.round is None else args.round
    absent: set[str] = set()
    while True:
        site = campaign.SITES[number % len(campaign.SITES)]
        if (args.site in (None, site) or args.round is not None) and site not in absent:
            plan = campaign.schedule(seed, number, site, campaign.available(setup, site, args.kinds), args.faults)
            try:
                yield asyncio.run(campaign.play(setup, number, site, plan, _show))
            except ServerAbsent as e:
                absent.add(site)
                not_run.append(f"{site}: {e}")
            if args.round is not None or time.monotonic() > end:
                return
        elif len(absent) == len(set(campaign.SITES)):
            return
        number += 1


def _show(line: str) -> None:
    """On a terminal, what goes on."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{line}")
        sys.stderr.flush()


def _line(result: Round) -> None:
    if sys.stderr.isatty():
        wrong = ", ".join(f"{count} {column}" for column, count in result.verdict.counts.items() if count)
        ended = f", {len(result.ended)} ended" if result.ended else ""
        sys.stderr.write(
            f"\r\x1b[Kround {result.number}, {result.version}: {result.faults.total()} faults, {result.verdict.events:,} events, "
            f"settled after {result.settled_s:.1f} s, {'clean' if result.clean else wrong + ended}\n"
        )


if __name__ == "__main__":
    sys.exit(main())

"""Broken builds of the product: the campaign has to notice each of them, or its verdicts are worth nothing.

python -m faults.mutants [--only REGEX]

Each is a copy of the sources with one thing changed; a round of the campaign is played with it, and again with other faults until it
is noticed or 90 s are over. Exit code 1 if one survives.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from msgspec import Struct

from faults.process import ROOT

LIMIT_S: Final = 90.0
_FAULTS: Final = 48
"""All kinds once."""
_STUCK_S: Final = 20.0


class Mutant(Struct, frozen=True):
    """`old` stands exactly once in `file`, below src/headrace; it becomes `new`."""

    name: str
    file: str = ""
    """Empty: the server is what is broken."""
    old: str = ""
    new: str = ""
    site: str = "valkey"
    also: tuple[tuple[str, str], ...] = ()
    """Further changes in the same file."""
    fsync: str = "always"


_SCRIPTS: Final = "backends/redis/scripts"

MUTANTS: Final = (
    Mutant(
        "acked when it is read, not when it is handled",
        "backends/redis/shared.py",
        'slot.name, "COUNT", limit)',
        'slot.name, "COUNT", limit, "NOACK")',
    ),
    Mutant(
        "a failed event counts as handled",
        "runtime/execute.py",
        "return Settlement(delivery, Verdict.RETRY, delay_ms=round(again_in_s * 1000), reason=reason)",
        "return delivery",
    ),
    Mutant(
        "no look at who holds an entry",
        f"{_SCRIPTS}/commit.lua",
        "mine = call('XACK', source, group, ARGV[i]) == 1",
        "call('XACK', source, group, ARGV[i]); mine = true",
    ),
    Mutant(
        "nobody takes over from the dead",
        "backends/redis/shared.py",
        "if self.dead_workers and not self._ahead:",
        "if self.dead_workers and self._closed:",
    ),
    Mutant(
        "what other partitions brought is lost with one that fails",
        "backends/redis/fan_in.py",
        "if given and task.exception() is not None:",
        "if given and task.cancelled():",
    ),
    Mutant(
        "repeated calls of a publisher append again",
        f"{_SCRIPTS}/publish.lua",
        "local mark = call('GET', KEYS[2])",
        "local mark = false",
    ),
    Mutant(
        "ids that callers give are not remembered",
        f"{_SCRIPTS}/publish.lua",
        "fresh = call('ZADD', KEYS[4], 'NX', fmt('%d', now + window), id) == 1",
        "call('ZADD', KEYS[4], 'NX', fmt('%d', now + window), id)",
    ),
    Mutant(
        "answered before it is on the disk",
        fsync="everysec",
    ),
    Mutant(
        "a torn tail is not cut off",
        "embedded/keeper.py",
        '    if not newest.exists() or newest.stat().st_size == 0:\n        return ""\n',
        '    return ""\n',
        "redis",
    ),
    Mutant(
        "neither token nor cursor is looked at",
        f"{_SCRIPTS}/advance.lua",
        "if moves and not done and record[2] ~= ARGV[3] then return",
        "if false then return",
        also=(("if record[1] ~= ARGV[2] then return", "if false then return"),),
    ),
    Mutant(
        "the cursor moves over what is read, not over what is handled",
        "backends/redis/advance.py",
        'cursor = delivery_of(last).token.partition(b"/")[0] if last is not None else holding.cursor',
        "cursor = holding.position if last is not None else holding.cursor",
    ),
    Mutant(
        "a key goes on behind an event that is to be handled again",
        "backends/redis/holding.py",
        "            self.stopped.add(delivery.key)\n",
        "            pass\n",
    ),
    Mutant(
        "a read under way is not looked through again",
        "backends/redis/ordered.py",
        "given = _in_order(await self._give(holdings, limit))",
        "given = await self._give(holdings, limit)",
    ),
    Mutant(
        "the inbox takes every event as new",
        "once/unit.py",
        "new = set(session.scalars(insert))",
        "new = set(session.scalars(insert)) | set(self._ids)",
    ),
    Mutant(
        "the inbox forgets what was to leave with the ack",
        "once/unit.py",
        "if len(new) < len(rows):",
        "if len(new) < 0:",
    ),
    Mutant(
        "the relay gives its events new ids each time",
        "once/relay.py",
        "[record for _, _, record in own]",
        "[type(record)(record.body, record.type, record.key) for _, _, record in own]",
    ),
    Mutant(
        "the relay sends what is committed first",
        "once/relay.py",
        'if self._dialect == "postgresql":',
        'if self._dialect == "none":',
    ),
    Mutant(
        "the first calls of a publisher do not wait for each other",
        "backends/redis/backend.py",
        "async with self._entrance:  # first come, first served",
        "if route is not None:",
    ),
)


def build(mutant: Mutant, folder: Path) -> Path:
    """The sources with the change. Raises ValueError if they have changed so that it does not apply any more."""
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    if mutant.file:
        path = folder / "src" / "headrace" / mutant.file
        text = path.read_text()
        for old, new in ((mutant.old, mutant.new), *mutant.also):
            if text.count(old) != 1:
                raise ValueError(f"{mutant.name}: {mutant.file} has changed; the mutant must follow")
            text = text.replace(old, new)
        path.write_text(text)
    return folder / "src"


def play(mutant: Mutant, seed: int) -> tuple[int, str]:
    """The exit code of a round (1: noticed), and what it said."""
    with tempfile.TemporaryDirectory(prefix="hfm-") as folder:
        sources = build(mutant, Path(folder))
        options = {
            "minutes": 0.01, "seed": seed, "site": mutant.site, "fsync": mutant.fsync, "faults": _FAULTS, "bound": _STUCK_S,
            "keep": Path(folder) / "kept",
        }  # fmt: skip
        words = [sys.executable, "-m", "faults", "--this-release"]
        words += [word for name, value in options.items() for word in (f"--{name}", str(value))]
        run = subprocess.run(
            words, cwd=ROOT, check=False, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join((str(sources), str(ROOT)))},
        )  # fmt: skip
        return run.returncode, run.stdout + run.stderr


def main() -> int:
    """0: every one was noticed in time."""
    parser = argparse.ArgumentParser(prog="python -m faults.mutants")
    parser.add_argument("--only", default="", help="those whose names match this")
    args = parser.parse_args()
    survivors = 0
    sys.stdout.write("| broken on purpose | noticed as | after |\n|---|---|---:|\n")
    for mutant in MUTANTS:
        if not re.search(args.only, mutant.name):
            continue
        began, seed, code, said = time.monotonic(), 0, 0, ""
        while code == 0 and time.monotonic() - began < LIMIT_S:
            seed += 1
            code, said = play(mutant, seed)
        seconds = time.monotonic() - began
        survivors += code != 1
        columns = sorted(set(re.findall(r"^- (\w+)(?:,| ended)", said, re.MULTILINE)))
        found = ", ".join(columns) if code == 1 else f"SURVIVED (code {code}) {said[-500:] if code else ''}"
        sys.stdout.write(f"| {mutant.name} | {found} | {seconds:.0f} s |\n")
        sys.stdout.flush()
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())

"""The same faults for other libraries, with their default settings: what becomes of acknowledged events. `make faults PEERS=1`.

One publisher, two workers, a durable Valkey. Handlers take 10 ms and then count their number in Redis; with Headrace the count is recorded
with the ack. Every few seconds a worker is killed, paused or restarted, the server killed or restarted, or all connections are cut.
Afterwards everything runs undisturbed for a while.

python -m faults.peers [--seconds S] [--only REGEX]
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import redis
from msgspec import Struct

from bench.peers import environment
from faults.process import ROOT, SOURCES, bound
from headrace.testing.faults import Program
from tests.servers import Server

WORKERS: Final = 2
CALM_S: Final = 60.0
"""How long everything runs undisturbed in the end; a worker's lease is 15 s, other libraries take up to a minute by default."""
_RESTART_S: Final = 1.0


class Rival(Struct, frozen=True):
    """A library, and how many events it still has on the server."""

    name: str
    left: Callable[[redis.Redis], int]


def _of_stream(client: redis.Redis) -> int:
    groups: Any = client.xinfo_groups("orders")
    return sum(int(g["pending"]) + int(g["lag"] or 0) for g in groups)


def _of_celery(client: redis.Redis) -> int:
    return int(client.llen("celery")) + int(client.hlen("unacked"))


def _of_dramatiq(client: redis.Redis) -> int:
    return int(client.hlen("dramatiq:default.msgs"))


RIVALS: Final = (
    Rival("faststream", _of_stream),
    Rival("celery", _of_celery),
    Rival("dramatiq", _of_dramatiq),
    Rival("headrace", _of_stream),
)


class Outcome(Struct):
    """Numbers of acknowledged events."""

    title: str
    acknowledged: int
    faults: int
    lost: int
    """Neither handled nor on the server any more."""
    stranded: int
    """Still on the server, not handled after a minute without faults."""
    duplicated: int


class Trial:
    """One library under attack."""

    def __init__(self, rival: Rival, server: Server, folder: Path, seed: int) -> None:
        self._rival, self._server, self._folder = rival, server, folder
        self._chance = random.Random(seed)
        text = (ROOT / "faults" / "rivals" / f"{rival.name}_app.py").read_text()
        self.title = " ".join(re.findall(r"^requires: (\S*)", text, re.MULTILINE)) or "headrace, this release"
        required = re.findall(r"^requires:(.*)$", text, re.MULTILINE)[0].split()
        self._python = str(environment(f"faults-{rival.name}", required)) if required else sys.executable
        self._publisher: Program | None = None
        self._workers: list[Program] = []

    def _start(self, what: str, number: int) -> Program:
        words = bound(self._python, "-m", f"faults.rivals.{self._rival.name}_app", what)
        if what == "publish":
            words.append(str(self._next()))
        environment_ = {
            "RIVAL_URL": f"redis://127.0.0.1:{self._server.port}/0",
            "RIVAL_JOURNAL": str(self._folder / "journal"),
            "PYTHONPATH": os.pathsep.join((str(SOURCES), str(ROOT))),
        }
        return Program(words, self._folder / f"{what}{number}.log", cwd=self._folder, env=environment_)

    def _acknowledged(self) -> list[int]:
        journal = self._folder / "journal"
        return [int(n) for n in journal.read_text().split()] if journal.exists() else []

    def _next(self) -> int:
        return max(self._acknowledged(), default=0) + 1_000  # what was sent and not acknowledged is nobody's promise

    def _keep_alive(self, seconds: float) -> None:
        """Starts again whoever has ended, as a service manager does."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.1)
            self._workers = [p if p.code is None else self._start("work", i) for i, p in enumerate(self._workers)]
            if self._publisher is not None and self._publisher.code is not None:
                self._publisher = self._start("publish", 0)

    def _faults(self) -> Iterator[Callable[[], None]]:
        kinds = (self._kill, self._pause, self._restart, self._kill_server, self._restart_server, self._cut)
        while True:
            yield from self._chance.sample(kinds, len(kinds))

    def _kill(self) -> None:
        self._chance.choice(self._workers).kill()

    def _pause(self) -> None:
        victim = self._chance.choice(self._workers)
        victim.pause()
        time.sleep(3.0)
        victim.resume()

    def _restart(self) -> None:
        self._chance.choice(self._workers).send(signal.SIGTERM)

    def _kill_server(self) -> None:
        self._server.kill()
        time.sleep(_RESTART_S)
        self._server.start()

    def _restart_server(self) -> None:
        self._server.restart()

    def _cut(self) -> None:
        self._server.command("CLIENT", "KILL", "TYPE", "normal")

    def run(self, seconds: float) -> Outcome:
        """Raises CalledProcessError if its environment cannot be made."""
        count = 0
        self._workers = [self._start("work", n) for n in range(WORKERS)]
        time.sleep(5.0)  # groups and bindings exist before the first event
        self._publisher = self._start("publish", 0)
        self._keep_alive(5.0)
        end = time.monotonic() + seconds
        for fault in self._faults():
            if time.monotonic() > end:
                break
            fault()
            count += 1
            self._keep_alive(self._chance.uniform(1.0, 4.0))
        self._publisher.kill()
        self._publisher = None
        self._keep_alive(CALM_S)
        client = redis.Redis(port=self._server.port)
        acknowledged = set(self._acknowledged())
        seen: Any = client.hgetall("seen")
        handled = {int(n): int(times) for n, times in seen.items()}
        missing = len(acknowledged - handled.keys())
        stranded = min(missing, self._rival.left(client))
        for worker in self._workers:
            worker.kill()
        duplicated = sum(times > 1 for times in handled.values())
        return Outcome(self.title, len(acknowledged), count, missing - stranded, stranded, duplicated)


def main() -> int:
    """0: whatever others did, Headrace lost, stranded and doubled nothing."""
    parser = argparse.ArgumentParser(prog="python -m faults.peers")
    parser.add_argument("--seconds", type=float, default=90.0, help="of faults, for each (90)")
    parser.add_argument("--only", default="", help="those whose names match this")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    sys.stdout.write(
        "| library | faults | acknowledged | lost | stranded | handled twice |\n|---|---:|---:|---:|---:|---:|\n"
    )
    wrong = 0
    for rival in RIVALS:
        if not re.search(args.only, rival.name):
            continue
        with tempfile.TemporaryDirectory(prefix="hfp-") as folder, Server("valkey", tcp=True) as server:
            try:
                found = Trial(rival, server, Path(folder), args.seed).run(args.seconds)
            except subprocess.CalledProcessError as e:
                sys.stdout.write(f"NOT RUN: {rival.name}: {e.stderr[-300:]}\n")
                continue
        sys.stdout.write(
            f"| {found.title} | {found.faults} | {found.acknowledged:,} | {found.lost} | {found.stranded} | {found.duplicated} |\n"
        )
        sys.stdout.flush()
        if rival.name == "headrace":
            wrong = found.lost + found.stranded + found.duplicated
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

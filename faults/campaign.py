"""Rounds of faults: a schedule from a seed, the same in every run; a world that suffers it; and the verdict over what it left."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from msgspec import Struct, field

from faults import checker, history, kinds, kinds_fleet, kinds_server
from faults.checker import Verdict
from faults.history import History, Ledger
from faults.kinds import Kind
from faults.process import PUBLISHERS
from faults.world import Setup, World, build, described

KINDS: Final = (*kinds.KINDS, *kinds_server.KINDS, *kinds_fleet.KINDS)
FAULTS_PER_ROUND: Final = 45
GAP_S: Final = 2.2
"""At most, between two faults; half of it on average."""
STOP_S: Final = 40.0
WARM_S: Final = 2.0
"""How long the crew works before the first fault."""

SITES: Final = ("valkey", "redis", "sentinel", "valkey", "redis", "cluster")
"""Of the rounds, in turn."""


class Round(Struct):
    """What came of one round."""

    number: int
    site: str
    version: str
    seconds: float
    faults: Counter[str]
    verdict: Verdict
    ended: list[str] = field(default_factory=list)
    """Processes that ended by themselves, or not when they were asked to."""
    settled_s: float = 0.0
    """From the last fault until everything was settled."""

    @property
    def clean(self) -> bool:
        """Whether every promise was kept."""
        return self.verdict.clean and not self.ended


def available(setup: Setup, site: str, names: str = "") -> list[Kind]:
    """The kinds that this machine and this place can have."""
    return [
        kind
        for kind in KINDS
        if site in kind.sites
        and re.search(names, kind.name)
        and (setup.shim is not None or not kind.shim)
        and (setup.postgres is not None or not kind.sql)
        and (setup.previous is not None or not kind.git)
    ]


def packing(number: int) -> str:
    """Of the first topic in a round: every site has both in turn."""
    return ("none", "batch")[(number + number // len(SITES)) % 2]


def _bag(seed: int, site: str, of: Sequence[Kind]) -> Iterator[Kind]:
    """Every kind once, in an order by chance, then every kind once again, ..."""
    chance = random.Random(f"{seed} {site}")
    while True:
        yield from chance.sample(of, len(of))


def schedule(seed: int, number: int, site: str, of: Sequence[Kind], count: int) -> list[tuple[float, Kind, int]]:
    """The faults of a round: when after the one before, which, and a seed of its own. The bag goes on from round to round."""
    before = sum(SITES[n % len(SITES)] == site for n in range(number)) * count
    bag = _bag(seed, site, of)
    for _ in range(before):
        next(bag)
    chance = random.Random(f"{seed} {number}")
    return [(chance.random() * GAP_S, next(bag), chance.randrange(1 << 32)) for _ in range(count)]


async def play(
    setup: Setup, number: int, site: str, plan: Sequence[tuple[float, Kind, int]], show: Callable[[str], None]
) -> Round:
    """One round. Its folder stays if something is wrong. Raises ServerAbsent."""
    began = time.monotonic()
    async with build(setup, site, f"round{number}", packing(number)) as world:
        version = world.site.version + (", packed" if world.packing == "batch" else "")
        await asyncio.sleep(WARM_S)
        counts = await _suffer(world, plan, lambda done: show(f"round {number}, {version}: fault {done}"))
        healed = time.monotonic()
        world.tell("everything is well again")
        show(f"round {number}, {version}: settling")
        ledgers = await _settle(world)
        settled_s = time.monotonic() - healed
        world.tell(f"settled after {settled_s:.1f} s")
        await world.crew.dismiss([m for m in world.crew.members if m.role not in PUBLISHERS], STOP_S)
        found = await asyncio.to_thread(world.collect, ledgers)
        verdict = checker.check(found)
        ended = list(world.crew.ended)
        round_ = Round(number, site, version, time.monotonic() - began, counts, verdict, ended, settled_s=settled_s)
        if round_.clean:
            shutil.rmtree(world.folder, ignore_errors=True)
        else:
            _keep(world, found)
    return round_


def _keep(world: World, found: History) -> None:
    """What is needed to find out why. The folder also has the logs of all processes."""
    history.keep(found, world.folder / "history.json")
    (world.folder / "round.json").write_text(described(world))
    if hasattr(world.site, "server"):
        with contextlib.suppress(OSError):
            shutil.copytree(world.site.server.directory, world.folder / "server", ignore=shutil.ignore_patterns("s"))


async def _suffer(world: World, plan: Sequence[tuple[float, Kind, int]], show: Callable[[int], None]) -> Counter[str]:
    """Every fault at its time; they may overlap."""
    counts: Counter[str] = Counter()
    tasks = []

    async def one(kind: Kind, seed: int) -> None:
        try:
            said = await kind.act(world, random.Random(seed))
        except Exception as e:
            world.tell(f"{kind.name} FAILED: {type(e).__name__}: {e}")
            world.crew.ended.append(f"the campaign itself, {kind.name}: {type(e).__name__}: {e}")
            return
        counts[kind.name] += 1
        world.tell(f"{kind.name}: {said}")
        show(counts.total())

    for gap_s, kind, seed in plan:
        await asyncio.sleep(gap_s)
        tasks.append(asyncio.ensure_future(one(kind, seed)))
    await asyncio.gather(*tasks)
    return counts


async def _settle(world: World) -> list[Ledger]:
    """Publishers end, and everything that is under way is handled; returns the ledgers of that moment, or of the end of patience."""
    await world.crew.dismiss(world.crew.of(*PUBLISHERS), STOP_S)
    end = time.monotonic() + world.setup.bound_s
    before: list[Ledger] = []
    ledgers: list[Ledger] = []
    while time.monotonic() < end:
        await asyncio.sleep(0.5)
        before, ledgers = ledgers, await world.ledgers()
        if (
            ledgers
            and ledgers == before
            and not any(one.open for one in ledgers)
            and not await asyncio.to_thread(world.outbox)
        ):
            await asyncio.sleep(1.0)  # whoever would still write something it must not does it now
            return await world.ledgers()
    for member in world.crew.members:
        member.send(signal.SIGUSR2)  # what it waits for, into its log
    await asyncio.sleep(0.5)
    return ledgers or before

"""One run of the demo: events are published while workers handle them, and both workers and server are killed at random moments."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

import msgspec
from msgspec import Struct

from headrace.backends.contract import GroupInfo, Held
from headrace.backends.redis import keys
from headrace.backends.redis.client import Client
from headrace.backends.redis.inspect import RedisInspector
from headrace.demo import dataset, flights
from headrace.demo.dataset import LateKey, Sums
from headrace.demo.fleet import Fleet
from headrace.embedded.server import EmbeddedServer
from headrace.errors import NotConnected, Refused
from headrace.settings import Settings

_TICK_S: Final = 0.05
_BUSY_WAIT_S: Final = 2.0
"""How long a kill waits for a worker that holds something."""
_SERVER_BACK_S: Final = 30.0
_PAGE: Final = 1_000
_HELD_SHOWN: Final = 10
_RUN: Final = re.compile(r"flights-([0-9a-f]{8})")
"""The topic of a run, and the run's name in it."""


class Screen(Protocol):
    """Whoever watches."""

    def progress(self, handled: int, detail: str) -> None:
        """A few times a second."""

    def happened(self, text: str) -> None:
        """Something worth a line."""


class Part(Struct, frozen=True):
    """What happens once this many events are handled."""

    handled: int
    victim: str
    """`worker` or `server`."""


class Outcome(Struct):
    """How the run ended."""

    seconds: float
    ledger: GroupInfo | None
    kills: int
    restarts: int
    """Of the server."""
    carriers: dict[str, Sums] = msgspec.field(default_factory=dict)
    late: Counter[LateKey] = msgspec.field(default_factory=Counter)
    """What stands in the late topic: more than 1 is a duplicate."""
    late_ids: int = 0
    """Distinct ids there."""
    stuck: Sequence[Held] = ()
    """What workers still held when the time was over."""
    lost: Sequence[str] = ()
    """Workers that ended by themselves."""


def script(total: int, kills: int, chance: random.Random) -> list[Part]:
    """The kills in their order: one worker in each of `kills` equal stretches, and the server somewhere in the middle."""
    stretch = 0.85 / kills
    parts = [Part(int(total * (0.03 + stretch * (n + chance.random()))), "worker") for n in range(kills)]
    parts.append(Part(int(total * chance.uniform(0.2, 0.7)), "server"))
    return sorted(parts, key=lambda part: part.handled)


class Stage:
    """Made for one run; `play` is the run."""

    def __init__(self, embedded: EmbeddedServer, settings: Settings, path: Path, step: int, screen: Screen) -> None:
        """`settings` name the embedded server; `path` and `step` say which flights (see dataset.rows)."""
        self._embedded, self._path, self._step, self._screen = embedded, path, step, screen
        self._client = Client(settings)
        self._inspector = RedisInspector(self._client)
        self._topic = flights.flights.name
        self._ledger: GroupInfo | None = None
        self._kills = self._restarts = 0

    async def play(self, fleet: Fleet, parts: list[Part], total: int, deadline_s: float) -> Outcome:
        """The run and what came of it. Workers are gone when it returns or raises. Raises NotConnected, Refused."""
        started = time.monotonic()
        stuck: Sequence[Held] = ()
        try:
            try:
                async with asyncio.timeout(deadline_s):
                    await self._run(fleet, parts, total)
            except TimeoutError:
                self._screen.happened(f"not through after {deadline_s:.0f} s")
                with contextlib.suppress(NotConnected, Refused):  # then nothing is known, which is what the report says
                    await self._look()
                    stuck = await self._inspector.pending(self._topic, flights.GROUP, _HELD_SHOWN)
            seconds = time.monotonic() - started
        finally:
            fleet.stop()
        outcome = Outcome(seconds, self._ledger, self._kills, self._restarts, stuck=stuck, lost=tuple(fleet.lost))
        try:
            outcome.carriers = await self._read_carriers()
            outcome.late, outcome.late_ids = await self._read_late()
        except NotConnected as e:
            self._screen.happened(str(e))  # a server that is gone for good is no reason to end without a report
        return outcome

    async def _run(self, fleet: Fleet, parts: list[Part], total: int) -> None:
        fleet.fill()
        publishing = asyncio.ensure_future(self._publish())
        left = list(parts)
        try:
            while True:
                await asyncio.sleep(_TICK_S)
                fleet.fill()
                if publishing.done():
                    publishing.result()  # raises what stopped it
                try:
                    ledger = await self._look()
                    if ledger is None:
                        continue
                    if left and ledger.handled >= left[0].handled:
                        await self._perform(left[0], fleet)
                        del left[0]
                except NotConnected:
                    continue  # the next tick asks again; the deadline ends it
                if publishing.done() and _through(ledger, total):
                    return
        finally:
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)

    async def _publish(self) -> None:
        async with flights.app:
            await flights.flights.publish_many(dataset.events(self._path, self._step))

    async def _look(self) -> GroupInfo | None:
        """The ledger now; None before the first worker has joined."""
        try:
            groups = await self._inspector.groups(self._topic)
        except Refused:
            if self._ledger is None:
                return None  # nobody has used the topic yet
            raise
        if not groups:
            return None
        self._ledger = ledger = groups[0]
        detail = f"published {ledger.published:,}, workers killed {self._kills}, server restarts {self._restarts}"
        self._screen.progress(ledger.handled, detail)
        return ledger

    # Killing

    async def _perform(self, part: Part, fleet: Fleet) -> None:
        if part.victim == "server":
            await self._kill_server()
        else:
            await self._kill_worker(fleet)

    async def _kill_worker(self, fleet: Fleet) -> None:
        """The one that holds most right now."""
        until = time.monotonic() + _BUSY_WAIT_S
        while True:
            held = await self._held()
            pid = max(fleet.pids, key=lambda pid: held[pid])
            if held[pid] or time.monotonic() > until:
                break
            await asyncio.sleep(0.005)
        fleet.kill(pid)
        self._kills += 1
        fleet.fill()
        with contextlib.suppress(NotConnected):  # then the count from before has to do
            held = await self._held()  # as it died: nobody takes over before its lease ends
        self._screen.happened(f"killed worker {pid} while it held {held[pid]:,} events")

    async def _held(self) -> Counter[int]:
        """Process id -> events of the topic that it has taken and not settled."""
        _, _, _, consumers = await self._client.command("XPENDING", self._topic, flights.GROUP)
        held: Counter[int] = Counter()
        for name, count in consumers or ():
            held[int(name.decode().rsplit("-", 2)[1])] += int(count)  # host-pid-chance/slot, see runtime.worker
        return held

    async def _kill_server(self) -> None:
        """SIGKILL, and wait until its keeper has checked the data, started it again, and it has loaded them."""
        pid = await asyncio.to_thread(self._embedded.pid)
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        self._screen.happened(f"killed the server, process {pid}")
        while time.monotonic() - killed < _SERVER_BACK_S:
            await asyncio.sleep(_TICK_S)
            try:
                now = await asyncio.to_thread(self._embedded.pid)
                await self._client.command("PING")
            except NotConnected:
                continue
            self._restarts += now != pid
            self._screen.happened(f"the server is back after {time.monotonic() - killed:.1f} s, process {now}")
            return
        self._screen.happened(f"the server is not back after {_SERVER_BACK_S:.0f} s")

    # What came of it

    async def _read_carriers(self) -> dict[str, Sums]:
        flat = await self._client.command("HGETALL", flights.TOTALS)
        carriers: dict[str, Sums] = {}
        for name, value in zip(flat[::2], flat[1::2], strict=True):
            carrier, _, what = name.decode().partition(":")
            setattr(carriers.setdefault(carrier, Sums()), what, int(value))
        return carriers

    async def _read_late(self) -> tuple[Counter[LateKey], int]:
        decoder = msgspec.json.Decoder(flights.Late)
        found: Counter[LateKey] = Counter()
        ids: set[bytes] = set()
        after = "-"
        while page := await self._client.command("XRANGE", flights.late.name, after, "+", "COUNT", _PAGE):
            for token, flat in page:
                fields = dict(zip(flat[::2], flat[1::2], strict=True))
                late = decoder.decode(fields[b"data"])
                found[late.carrier, late.flight, late.time, late.dep_delay] += 1
                ids.add(fields.get(b"id", token))
            after = f"({page[-1][0].decode()}"
        return found, len(ids)

    # Tidying

    async def sweep(self) -> list[str]:
        """Deletes what earlier runs left behind that were not exact or were cut off; returns their names."""
        found = [(_RUN.fullmatch(group.topic), group.workers) for group in await self._inspector.groups()]
        names = [match[1] for match, workers in found if match and not workers]
        for name in names:
            await self.clear(name)
        return names

    async def clear(self, run: str = flights.RUN) -> None:
        """Deletes every key of a run. Raises NotConnected, Refused."""
        cursor = "0"
        while True:
            answer = await self._client.command("SCAN", cursor, "MATCH", f"*-{run}*", "COUNT", 1_000)
            cursor = answer[0].decode()
            if answer[1]:
                await self._client.command("UNLINK", *answer[1])
            if cursor == "0":
                break
        await self._client.command("HDEL", keys.TOPICS, f"flights-{run}", f"late-{run}")

    async def aclose(self) -> None:
        """Closes its connection."""
        await self._inspector.aclose()


def _through(ledger: GroupInfo, total: int) -> bool:
    """Whether every event has come to its end."""
    waiting = ledger.unread + ledger.pending + ledger.delayed + ledger.retrying
    return not waiting and ledger.published >= total

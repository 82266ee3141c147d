"""`headrace demo`: a year of flights, workers and a server that are killed on the way, and sums that are exact all the same."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from headrace.cli import output, streams
from headrace.cli.exits import NO, OK
from headrace.embedded import server
from headrace.embedded.server import EmbeddedServer
from headrace.settings import at, load

if TYPE_CHECKING:
    from headrace.demo.dataset import Totals
    from headrace.demo.stage import Outcome

_TARGET: Final = "headrace.demo.flights:app"
_DEADLINE_S: Final = 120.0
_QUICK_STEP: Final = 10
"""`--quick` takes each tenth flight."""
_KILLS: Final = (4, 6)
_QUICK_KILLS: Final = (2, 2)
"""Workers killed: at least, at most."""
_LOG_SHOWN: Final = 15
"""Lines of the workers' log that are shown when something is wrong."""


def run(*, workers: int, quick: bool, json: bool, seed: int | None = None) -> int:
    """The whole demo, on the embedded server of this project; returns the exit code: 0 exact, 1 not.

    `seed` decides how many kills there are and when. Raises ConfigurationError, NotConnected, Refused.
    """
    name = secrets.token_hex(4)
    embedded = server.start()
    log = embedded.directory / f"demo-{name}.log"
    # What the publisher in this process logs belongs to what the workers log.
    logging.basicConfig(filename=log, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # The environment is how the app finds its server and its topics, here and in its workers.
    os.environ.update(HEADRACE_DEMO_RUN=name, HEADRACE_URL=embedded.url, HEADRACE_DURABILITY="fsync")
    try:
        code = asyncio.run(_Demo(embedded, log, workers, quick=quick, json=json, seed=seed).run())
    except KeyboardInterrupt:
        log.unlink(missing_ok=True)
        raise
    finally:
        embedded.close()
    if code == OK:
        log.unlink(missing_ok=True)
    return code


class _Live:
    """A line that moves, and lines that stay; silent where nobody watches."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """The clock starts now."""
        self._line = output.Progress("handled")

    def progress(self, handled: int, detail: str) -> None:
        """Rewrites the line."""
        self._line.show(handled, detail)

    def happened(self, text: str) -> None:
        """Puts a line above it."""
        if sys.stderr.isatty():
            self._line.end()
            output.note(text)

    def end(self) -> None:
        """Clears the line."""
        self._line.end()


class _Demo:
    """One run of the command."""

    def __init__(
        self, embedded: EmbeddedServer, log: Path, workers: int, *, quick: bool, json: bool, seed: int | None
    ) -> None:
        self._embedded, self._log, self._workers, self._json = embedded, log, workers, json
        self._step, self._kills = (_QUICK_STEP, _QUICK_KILLS) if quick else (1, _KILLS)
        self._seed = secrets.randbelow(1_000_000) if seed is None else seed
        self._live = _Live()

    async def run(self) -> int:
        """Plays and reports; returns the exit code."""
        from headrace.demo import dataset, fleet, flights, stage

        path = dataset.find()
        self._live.happened(f"reading {path.name} (seed {self._seed})")
        expected = dataset.totals(path, self._step)
        chance = random.Random(self._seed)  # noqa: S311 - chaos, not secrets
        parts = stage.script(expected.flights, chance.randint(*self._kills), chance)
        theatre = stage.Stage(self._embedded, at(load(), self._embedded.url), path, self._step, self._live)
        self._live.happened(
            f"publishing {expected.flights:,} flights to {flights.flights.name}; {self._workers} workers handle them meanwhile"
        )
        self._live.start()
        try:
            for name in await theatre.sweep():
                self._log.with_name(f"demo-{name}.log").unlink(missing_ok=True)
            cast = fleet.Fleet(_TARGET, self._workers, self._log)
            try:
                outcome = await theatre.play(cast, parts, expected.flights, _DEADLINE_S)
            except asyncio.CancelledError:  # Ctrl-C
                await theatre.clear()
                raise
            finally:
                self._live.end()
            exact = _exact(outcome, expected)
            with streams.answer():
                self._report(outcome, expected, exact=exact)
            if exact:
                await theatre.clear()
            else:
                self._explain(outcome)
            return OK if exact else NO
        finally:
            await theatre.aclose()

    def _report(self, outcome: Outcome, expected: Totals, *, exact: bool) -> None:
        ledger = outcome.ledger
        handled = ledger.handled if ledger else 0
        if self._json:
            output.json(_machine(outcome, exact=exact, seed=self._seed))
            return
        output.table(
            ("carrier", "flights", "in the file", "dep_delay", "in the file", "air_time", "in the file", ""),
            _rows(outcome, expected),
        )
        output.line("")
        if ledger:
            where = ("handled", "dead", "pending", "unread", "retrying")
            parts = " + ".join(f"{getattr(ledger, name):,} {name}" for name in where)
            balance = "balances" if not ledger.missing else f"{ledger.missing:,} missing"
            output.line(f"ledger: {ledger.published:,} published = {parts}: {balance}")
        late, wanted = outcome.late.total(), expected.late.total()
        twice = output.plural(late - outcome.late_ids, "duplicate") if late > outcome.late_ids else "no duplicates"
        output.line(f"late: {late:,} events published by the handlers, {twice}; {wanted:,} late flights in the file")
        output.line(
            f"{outcome.seconds:.1f} s, {handled / outcome.seconds:,.0f} events/s; {output.plural(outcome.kills, 'worker')} killed, "
            f"the server killed and restarted {output.plural(outcome.restarts, 'time')}; seed {self._seed}"
        )
        output.line("exact" if exact else "NOT EXACT")

    def _explain(self, outcome: Outcome) -> None:
        """Where events stand, and where to look on."""
        from headrace.demo import flights

        for sentence in outcome.lost:
            output.note(f"headrace: {sentence}")
        for held in outcome.stuck:
            output.note(
                f"headrace: {held.token} held by {held.worker} for {held.idle_s:.1f} s, given out {held.deliveries} times"
            )
        if self._log.exists():
            for line in self._log.read_text(errors="replace").splitlines()[-_LOG_SHOWN:]:
                output.note(f"    {line}")
        output.note(
            f"headrace: until the next demo, look at what is left of this run by `headrace ledger {flights.flights.name}`, "
            f"`headrace pending {flights.flights.name} {flights.GROUP}` and {self._log}"
        )


def _exact(outcome: Outcome, expected: Totals) -> bool:
    """Every event handled, every sum and every late flight as in the file, none twice."""
    ledger = outcome.ledger
    return (
        ledger is not None
        and ledger.published == ledger.handled == expected.flights
        and not (ledger.missing or ledger.dead or outcome.lost)
        and outcome.carriers == expected.carriers
        and outcome.late == expected.late
        and outcome.late_ids == expected.late.total()
    )


def _rows(outcome: Outcome, expected: Totals) -> list[tuple[output.Cell, ...]]:
    """Each sum beside the one from the file, and all carriers together."""
    measures = ("flights", "dep_delay", "air_time")
    rows: list[tuple[output.Cell, ...]] = []
    sums = [0] * (2 * len(measures))
    for carrier in sorted({*expected.carriers, *outcome.carriers}):
        cells = [
            getattr(side.get(carrier), name, 0) for name in measures for side in (outcome.carriers, expected.carriers)
        ]
        sums = [one + other for one, other in zip(sums, cells, strict=True)]
        rows.append((carrier, *cells, "" if cells[::2] == cells[1::2] else "differs"))
    return [*rows, ("all", *sums, "" if sums[::2] == sums[1::2] else "differs")]


def _machine(outcome: Outcome, *, exact: bool, seed: int) -> dict[str, Any]:
    """The report for scripts."""
    ledger = outcome.ledger
    return {
        "published": ledger.published if ledger else 0,
        "handled": ledger.handled if ledger else 0,
        "dead": ledger.dead if ledger else 0,
        "pending": ledger.pending if ledger else 0,
        "kills": outcome.kills,
        "restarts": outcome.restarts,
        "seconds": round(outcome.seconds, 3),
        "exact": exact,
        "carriers": dict(sorted(outcome.carriers.items())),
        "late": outcome.late.total(),
        "seed": seed,
    }

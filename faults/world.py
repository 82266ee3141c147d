"""Everything of one round: the place of the events, a database, the crew, and the log of what was done to them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import msgspec
import psycopg
from msgspec import Struct

from faults import history, site
from faults.disk import Knobs
from faults.history import History, Ledger
from faults.process import ROOT, SOURCES, Crew, Member
from faults.site import Many, Single
from tests.postgres import Postgres

CREW: Final = {"direct": 1, "named": 1, "outbox": 1, "relay": 2, "shared": 2, "ordered": 2, "sql": 2}
"""How many of each role."""
BOUND_S: Final = 45.0
_SQL_ROLES: Final = ("outbox", "relay", "sql")
_TABLES: Final = """
    CREATE TABLE placed (id bigserial, key text, n integer);
    CREATE TABLE books (id bigserial, key text, n integer, worker integer, at timestamptz DEFAULT clock_timestamp());
    CREATE TABLE transfers (key text, n integer, giver integer, taker integer);
    CREATE TABLE accounts (id integer PRIMARY KEY, cents integer);
    INSERT INTO accounts SELECT n, 0 FROM generate_series(0, 9) n
"""


class Setup(Struct, frozen=True):
    """What all rounds of a campaign share."""

    folder: Path
    shim: Path | None
    """None: there is no C compiler, and no faults of disks and clocks."""
    previous: Path | None
    """Sources of the release before; None: there is no git, and no rolling upgrade."""
    postgres: Postgres | None
    """None: no PostgreSQL is installed, and no SQL."""
    fsync: str = "always"
    bound_s: float = BOUND_S
    """An event that is not settled so long after the last fault is stuck."""


class World:
    """One round's. Made by `build`."""

    def __init__(self, setup: Setup, place: Single | Many, folder: Path, database: str, packing: str) -> None:
        self.setup, self.site, self.folder, self.database, self.packing = setup, place, folder, database, packing
        self.crew = Crew(self.tell)
        self.server_lock = asyncio.Lock()
        """Held by whatever takes a server away."""
        self.database_lock = asyncio.Lock()
        self.began = time.monotonic()
        self.lines: list[str] = []
        """What happened, with seconds since the beginning."""
        self.knobs: dict[str, Knobs] = {}
        """Clocks of workers, by their names."""

    def tell(self, line: str) -> None:
        """Writes a line into the log."""
        self.lines.append(f"{time.monotonic() - self.began:7.2f} {line}")
        with (self.folder / "faults.log").open("a") as log:
            log.write(self.lines[-1] + "\n")

    def hire(self) -> None:
        """Everybody begins."""
        for role, count in CREW.items():
            if role in _SQL_ROLES and not self.database:
                continue
            for number in range(count):
                name = f"{role}{number}"
                environment = {
                    "HEADRACE_URL": self.site.url_for(role),
                    "HEADRACE_DURABILITY": self.site.durability,
                    "FAULTS_DATABASE": self.database.replace("postgresql://", "postgresql+asyncpg://"),
                    "FAULTS_DIR": str(self.folder),
                    "FAULTS_PACKING": self.packing,
                }
                if self.setup.shim is not None:
                    self.knobs[name] = Knobs(self.folder / f"{name}.knobs")
                    environment |= {
                        "LD_PRELOAD": str(self.setup.shim),
                        "FAULTS_CONTROL": str(self.knobs[name].path),
                    }
                self.crew.members.append(Member(role, name, self.folder, environment))

    async def run(self, *words: str, limit_s: float = 60.0) -> str:
        """What a `headrace` command prints, or nothing if it fails or takes too long."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "headrace", *words,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
            env={**os.environ, "HEADRACE_URL": self.site.url, "HEADRACE_DURABILITY": self.site.durability,
                 "PYTHONPATH": str(SOURCES)},
        )  # fmt: skip
        try:
            async with asyncio.timeout(limit_s):
                said, complaint = await process.communicate()
        except BaseException as e:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            if isinstance(e, TimeoutError):
                return ""
            raise
        if process.returncode != 0 and complaint:
            self.tell(f"headrace {' '.join(words)}: {complaint.decode(errors='replace').strip()[-300:]}")
        return said.decode()

    async def ledgers(self) -> list[Ledger]:
        """What the product says of its groups; empty if it cannot say it now."""
        said = await self.run("ledger", "--json")
        return msgspec.json.decode(said, type=list[Ledger]) if said else []

    def outbox(self) -> int:
        """Rows that are not sent yet."""
        if not self.database:
            return 0
        with psycopg.connect(self.database) as connection:
            row = connection.execute("SELECT count(*) FROM headrace_outbox").fetchone()
        return int(row[0]) if row else 0

    def collect(self, ledgers: list[Ledger]) -> History:
        """What is to be judged."""
        return history.collect(
            self.site.servers(), self.database, self.folder, ledgers, forgetful=isinstance(self.site, Many)
        )


@contextlib.contextmanager
def _database(setup: Setup, name: str) -> Iterator[str]:
    """A fresh database with all tables; empty if there is no PostgreSQL."""
    if setup.postgres is None:
        yield ""
        return
    server = f"postgresql://{setup.postgres.address}"
    url = server.rpartition("/")[0] + f"/{name}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    with psycopg.connect(url) as connection:
        connection.execute(_TABLES)
    words = [sys.executable, "-m", "headrace", "sql", "init", url.replace("postgresql:", "postgresql+psycopg:")]
    subprocess.run(words, check=True, capture_output=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(SOURCES)})
    try:
        yield url
    finally:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@contextlib.asynccontextmanager
async def build(setup: Setup, place: str, name: str, packing: str) -> AsyncIterator[World]:
    """A world with its crew at work. Everything of it but its folder is gone in the end. Raises ServerAbsent."""
    folder = setup.folder / name
    folder.mkdir()
    with (
        site.open_site(place, folder, setup.shim, setup.fsync) as where,
        _database(setup, name) as database,
    ):
        world = World(setup, where, folder, database, packing)
        world.hire()
        watching = asyncio.ensure_future(world.crew.watch())
        try:
            yield world
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            world.crew.kill()


def described(world: World) -> str:
    """For the log of a round that failed."""
    return json.dumps({"site": world.site.version, "ended": world.crew.ended, "log": world.lines}, indent=1)

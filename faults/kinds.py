"""What is done to processes and to the database. Each fault undoes itself before it returns, and says what it did."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable
from typing import Final

import psycopg
from msgspec import Struct

from faults.process import PUBLISHERS, SOURCES, WORKERS, Member
from faults.world import World

Act = Callable[[World, random.Random], Awaitable[str]]


class Kind(Struct, frozen=True):
    """One kind of fault."""

    name: str
    act: Act
    sites: tuple[str, ...] = ("valkey", "redis", "sentinel", "cluster")
    shim: bool = False
    """Whether it needs a preloaded shim."""
    sql: bool = False
    """Whether it needs a database."""
    git: bool = False
    """Whether it needs the release before."""


ROLES: Final = {"publisher": PUBLISHERS, "relay": ("relay",), **{role: (role,) for role in WORKERS}}
"""Kinds of processes, for the names of faults."""


def pick(world: World, chance: random.Random, kind: str) -> Member | None:
    """One of a kind; None if this world has none."""
    members = world.crew.of(*ROLES[kind])
    return chance.choice(members) if members else None


def _sent(kind: str, number: signal.Signals) -> Act:
    async def act(world: World, chance: random.Random) -> str:
        member = pick(world, chance, kind)
        if member is None:
            return "nobody"
        member.send(number)
        return f"{member.name} {number.name}"

    return act


def _paused(kind: str) -> Act:
    async def act(world: World, chance: random.Random) -> str:
        member = pick(world, chance, kind)
        if member is None:
            return "nobody"
        seconds = chance.choice((0.5, 2.5, 4.0))  # a lease is 2 s
        member.send(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        member.send(signal.SIGCONT)
        return f"{member.name} SIGSTOP for {seconds} s"

    return act


def _misbehaving(word: str) -> Act:
    async def act(world: World, chance: random.Random) -> str:
        members = world.crew.of(*WORKERS)
        member = chance.choice(members)
        member.misbehave(word)
        return f"handlers of {member.name}: {word}"

    return act


async def _clock(world: World, chance: random.Random) -> str:
    members = world.crew.of(*WORKERS, *PUBLISHERS, "relay")
    member = chance.choice(members)
    seconds = chance.choice((-3_600, -5, 5, 3_600))
    world.knobs[member.name].clock(seconds)
    await asyncio.sleep(chance.uniform(0.5, 5.0))
    world.knobs[member.name].clock(0)
    return f"clock of {member.name} {seconds:+} s"


async def _upgrade(world: World, chance: random.Random) -> str:
    """To the release before and, the next time, back."""
    member = chance.choice(world.crew.of(*WORKERS, "relay", *PUBLISHERS))
    before, member.sources = member.sources, world.setup.previous or member.sources
    if before == member.sources:
        member.sources = SOURCES
    member.send(signal.SIGTERM)
    return f"{member.name} becomes {'this release' if before == world.setup.previous else 'the release before'}"


async def _postgres_killed(world: World, chance: random.Random) -> str:
    assert world.setup.postgres is not None
    async with world.database_lock:
        await asyncio.to_thread(world.setup.postgres.kill)
        await asyncio.sleep(chance.random() * 1.5)
        await asyncio.to_thread(world.setup.postgres.start)
    return "PostgreSQL killed and started"


async def _postgres_restarted(world: World, chance: random.Random) -> str:
    assert world.setup.postgres is not None
    async with world.database_lock:
        await asyncio.to_thread(world.setup.postgres.stop)
        await asyncio.sleep(chance.random() * 0.5)
        await asyncio.to_thread(world.setup.postgres.start)
    return "PostgreSQL restarted"


async def _postgres_cut(world: World, _chance: random.Random) -> str:
    def cut() -> None:
        with psycopg.connect(world.database, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

    async with world.database_lock:
        await asyncio.to_thread(cut)
    return "every connection to PostgreSQL cut"


KINDS: Final = (
    *(Kind(f"{kind} killed", _sent(kind, signal.SIGKILL), sql=kind in ("relay", "sql")) for kind in ROLES),
    *(Kind(f"{kind} paused", _paused(kind), sql=kind in ("relay", "sql")) for kind in ROLES),
    *(Kind(f"{kind} restarted", _sent(kind, signal.SIGTERM), sql=kind in ("relay", "sql")) for kind in ROLES),
    Kind("handlers raise", _misbehaving("raise")),
    Kind("a handler hangs", _misbehaving("hang")),
    Kind("a handler blocks", _misbehaving("block")),
    Kind("clock jumps", _clock, shim=True),
    Kind("rolling upgrade", _upgrade, git=True),
    Kind("PostgreSQL killed", _postgres_killed, sql=True),
    Kind("PostgreSQL restarted", _postgres_restarted, sql=True),
    Kind("PostgreSQL connections cut", _postgres_cut, sql=True),
)

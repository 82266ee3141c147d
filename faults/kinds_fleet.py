"""What is done to a Cluster, or to a primary with a replica and sentinels."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Final

import redis

from faults.kinds import Act, Kind
from faults.site import Many
from faults.world import World
from headrace.embedded import sentinel
from headrace.embedded.node import Node
from headrace.errors import Refused
from tests.slots import move_slot, primaries

_BOTH: Final = ("sentinel", "cluster")
_TRIES: Final = 20


def _many(world: World) -> Many:
    assert isinstance(world.site, Many)
    return world.site


def _node(world: World, chance: random.Random, *, primary: bool) -> Node | None:
    fleet = _many(world).fleet
    first = primaries(fleet)
    found = first if primary else [n for n in fleet.servers if n not in first]
    return chance.choice(found) if found else None


def _away(*, primary: bool, paused: bool) -> Act:
    """A server is away for long enough that another takes over, or comes back just in time."""

    async def act(world: World, chance: random.Random) -> str:
        site = _many(world)
        async with world.server_lock:
            node = await asyncio.to_thread(_node, world, chance, primary=primary)
            if node is None:
                return "nobody"
            seconds = chance.choice((0.5, 3.0, 6.0))
            await asyncio.to_thread(node.pause if paused else node.kill)
            await asyncio.sleep(seconds)
            await asyncio.to_thread(node.resume if paused else node.start)
            await asyncio.to_thread(site.await_whole)
        was = "primary" if primary else "replica"
        return f"{was} {node.name} {'paused' if paused else 'killed'} for {seconds} s"

    return act


async def _sentinel_away(world: World, chance: random.Random) -> str:
    node = chance.choice(_many(world).fleet.sentinels)
    async with world.server_lock:
        await asyncio.to_thread(node.kill)
        await asyncio.sleep(chance.random() * 3)
        await asyncio.to_thread(node.start)
    return f"{node.name} killed"


async def _handed_over(world: World, chance: random.Random) -> str:
    """A failover that an operator asks for."""
    site = _many(world)
    async with world.server_lock:
        try:
            if site.name == "sentinel":
                await asyncio.to_thread(site.fleet.sentinels[0].ask, "SENTINEL", "FAILOVER", sentinel.service)
            else:
                node = await asyncio.to_thread(_node, world, chance, primary=False)
                if node is not None:
                    await asyncio.to_thread(node.ask, "CLUSTER", "FAILOVER")
        except (OSError, Refused) as e:
            return f"failover asked for, refused: {e}"
        await asyncio.sleep(1.0)
        await asyncio.to_thread(site.await_whole)
    return "failover asked for"


async def _slot_moved(world: World, chance: random.Random) -> str:
    site, key = _many(world), chance.choice(("orders.0", "orders.1", "orders.2", "orders.3", "done"))
    failures: list[str] = []
    async with world.server_lock:
        while len(failures) < _TRIES:  # nobody else would end a move that was cut off
            await asyncio.to_thread(site.await_whole)
            try:
                await asyncio.to_thread(move_slot, site.fleet, key, site.fleet.record.password)
            except (OSError, Refused) as e:
                failures.append(str(e))
                await asyncio.sleep(0.5)
            else:
                return f"slot of {key} moved" + "".join(f", after {why}" for why in failures)
    return f"slot of {key} not moved: {failures}"


async def _cut(world: World, _chance: random.Random) -> str:
    def cut() -> None:
        for server in _many(world).servers():
            with contextlib.suppress(redis.RedisError):
                server.client_kill_filter(_type="normal", skipme=True)

    await asyncio.to_thread(cut)
    return "CLIENT KILL on every primary"


KINDS: Final = (
    Kind("primary killed", _away(primary=True, paused=False), _BOTH),
    Kind("primary paused", _away(primary=True, paused=True), _BOTH),
    Kind("replica killed", _away(primary=False, paused=False), _BOTH),
    Kind("replica paused", _away(primary=False, paused=True), _BOTH),
    Kind("failover asked for", _handed_over, _BOTH),
    Kind("sentinel killed", _sentinel_away, ("sentinel",)),
    Kind("slot moved", _slot_moved, ("cluster",)),
    Kind("connections cut", _cut, _BOTH),
)

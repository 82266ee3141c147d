"""What is done to a single server, its disk, its memory and the network before it."""

from __future__ import annotations

import asyncio
import random
import signal
from typing import Any, Final

import hiredis

from faults.kinds import Act, Kind
from faults.process import PUBLISHERS
from faults.site import Single
from faults.world import World
from headrace.testing.faults import Fault, anything, command
from tests.servers import Server

_SITES: Final = ("valkey", "redis")
_GONE_S: Final = 1.5
"""For how long a server is away, at most, beyond its start."""


def _single(world: World) -> Single:
    assert isinstance(world.site, Single)
    return world.site


def _ask(server: Server, *words: str | int) -> Any:
    """Its answer, or None: what is killed at the same time does not answer."""
    try:
        return server.command(*words, timeout_s=5.0)
    except (OSError, hiredis.ReplyError):
        return None


async def _killed(world: World, chance: random.Random) -> str:
    site = _single(world)
    async with world.server_lock:
        await asyncio.to_thread(site.server.kill)
        await asyncio.sleep(chance.random() * _GONE_S)
        await asyncio.to_thread(site.start)
    return f"{site.name} killed and started"


async def _restarted(world: World, _chance: random.Random) -> str:
    site = _single(world)
    async with world.server_lock:
        await asyncio.to_thread(site.server.stop)
        await asyncio.to_thread(site.start)
    return f"{site.name} restarted"


async def _paused(world: World, chance: random.Random) -> str:
    site = _single(world)
    seconds = chance.choice((0.3, 1.0, 3.0))  # a lease is 2 s
    async with world.server_lock:
        site.server.pause()
        await asyncio.sleep(seconds)
        site.server.resume()
    return f"{site.name} SIGSTOP for {seconds} s"


async def _die_in_fsync(world: World, torn: random.Random | None = None) -> str:
    """Killed while an fsync takes long, so that something is written and not on the disk."""
    site = _single(world)
    async with world.server_lock:
        site.knobs.slow(0.4)
        await asyncio.sleep(0.25)
        await asyncio.to_thread(site.server.kill)
        site.knobs.slow(0)
        gone = site.cut_off(torn)
        await asyncio.to_thread(site.start)
    return f"{site.name} killed, {gone} bytes of its file gone"


async def _power_lost(world: World, _chance: random.Random) -> str:
    return await _die_in_fsync(world)


async def _torn(world: World, chance: random.Random) -> str:
    """Some times, and a last crash soon after: what a careless server appends behind half a transaction is lost then."""
    said = []
    for _ in range(3):
        said.append(await _die_in_fsync(world, chance))
        await asyncio.sleep(0.7)
    return f"{'; '.join(said)}; {await _killed(world, chance)}"


async def _slow_disk(world: World, chance: random.Random) -> str:
    site = _single(world)
    seconds = chance.choice((0.02, 0.1, 0.4))
    site.knobs.slow(seconds)
    await asyncio.sleep(2.0)
    site.knobs.slow(0)
    return f"fsync takes {seconds} s longer for 2 s"


async def _full_disk(world: World, _chance: random.Random) -> str:
    """With `appendfsync always` both servers end when they cannot write."""
    site = _single(world)
    async with world.server_lock:
        site.knobs.full(full=True)
        for _ in range(100):
            await asyncio.sleep(0.02)
            if not site.server.running:
                break
        died = not site.server.running
        site.knobs.full(full=False)
        if died:
            await asyncio.to_thread(site.start)
    return f"disk full; {site.name} {'ended and was started' if died else 'went on'}"


async def _out_of_memory(world: World, chance: random.Random) -> str:
    site = _single(world)
    async with world.server_lock:
        _ask(site.server, "CONFIG", "SET", "maxmemory", "1mb")
        await asyncio.sleep(chance.uniform(0.5, 3.0))
        _ask(site.server, "CONFIG", "SET", "maxmemory", "0")
    return "maxmemory reached"


async def _scripts_flushed(world: World, _chance: random.Random) -> str:
    _ask(_single(world).server, "SCRIPT", "FLUSH")
    return "SCRIPT FLUSH"


async def _rewritten(world: World, _chance: random.Random) -> str:
    _ask(_single(world).server, "BGREWRITEAOF")
    return "BGREWRITEAOF"


async def _cut(world: World, chance: random.Random) -> str:
    name = chance.choice(sorted(_single(world).proxies))
    await asyncio.to_thread(_single(world).proxies[name].cut)
    return f"connections of {name}s cut"


async def _half_open(world: World, chance: random.Random) -> str:
    name, seconds = chance.choice(sorted(_single(world).proxies)), chance.choice((1.0, 3.0, 8.0))
    proxy = _single(world).proxies[name]
    proxy.freeze()
    await asyncio.sleep(seconds)  # an answer is waited for for 6 s
    proxy.thaw()
    return f"connections of {name}s silent for {seconds} s"


def _calls(name: str, *faults: Fault) -> Act:
    """A few of them, most often of a script, which is where something is written."""

    async def act(world: World, chance: random.Random) -> str:
        proxy, done = _single(world).proxies[name], []
        for _ in range(3):
            fault, nth = chance.choice(faults), chance.randrange(1, 8)
            when = chance.choice((anything, command("EVALSHA"), command("EVALSHA")))
            await asyncio.to_thread(proxy.fail, fault, nth, when)
            fired = await asyncio.to_thread(proxy.fired.wait, 3.0)
            await asyncio.to_thread(proxy.fail, None)
            done.append(fault.name if fired else "nothing came")
        return f"{name}s: {', '.join(done)}"

    return act


async def _dies_between(world: World, _chance: random.Random) -> str:
    """A publisher is killed when the server has its events and it does not know."""
    proxy = _single(world).proxies["publisher"]
    await asyncio.to_thread(proxy.fail, Fault.HOLD_REPLY, 1, command("EVALSHA"))
    fired = await asyncio.to_thread(proxy.fired.wait, 4.0)
    await asyncio.to_thread(proxy.fail, None)
    for member in world.crew.of(*PUBLISHERS):
        if member.role != "outbox":
            member.send(signal.SIGKILL)
    return "publishers killed between sending and reply" + ("" if fired else ", which did not come")


async def _first_call_lost(world: World, chance: random.Random) -> str:
    """A new publisher has many events to publish at once, and the call that they all wait for is lost."""
    proxy = _single(world).proxies["publisher"]
    fault = chance.choice((Fault.LOSE_REQUEST, Fault.LOSE_REPLY))
    await asyncio.to_thread(proxy.fail, fault, 1, command("HSETNX", "headrace:topics", "orders"))
    for member in world.crew.of(*PUBLISHERS):
        member.send(signal.SIGKILL)
    fired = await asyncio.to_thread(proxy.fired.wait, 4.0)
    await asyncio.to_thread(proxy.fail, None)
    return f"publishers killed, {fault.name if fired else 'nothing came'}"


async def _cold_start(world: World, chance: random.Random) -> str:
    """Publishers begin, and have events to publish, before their server is there; it goes away again when they have just connected."""
    site = _single(world)
    async with world.server_lock:
        for member in world.crew.of(*PUBLISHERS):
            member.send(signal.SIGKILL)
        await asyncio.sleep(chance.uniform(0.9, 1.3))  # the first of them connect
        await asyncio.to_thread(site.server.kill)
        await asyncio.sleep(chance.random() * _GONE_S)
        await asyncio.to_thread(site.start)
    return "publishers killed, and the server when they began"


async def _group_destroyed(world: World, chance: random.Random) -> str:
    """An operator's mistake: workers end and say so, and the operator starts the group anew; its inbox knows what was handled."""
    site, group = _single(world), chance.choice(("bank", "books"))
    async with world.server_lock:
        world.crew.lenient = True
        try:
            names = [key.decode() for key in site.servers()[0].scan_iter("orders.*")]
            for name in names:
                _ask(site.server, "XGROUP", "DESTROY", name, group)
            await asyncio.sleep(1.0)
            workers = world.crew.of("sql")
            for member in workers:
                member.wanted = False
                member.send(signal.SIGKILL)
            said = await world.run("groups", "orders", "--reset", group, "--to", "earliest", "--yes")
            for member in workers:
                member.wanted = True
            await asyncio.sleep(0.1)
        finally:
            world.crew.lenient = False
    return f"group {group} destroyed{'' if said else ', and not started anew'}"


async def _grown(world: World, chance: random.Random) -> str:
    """The topic gets more partitions; the command is killed on the way, and run again."""
    site = _single(world)
    for number in (8, 16):
        while (there := _ask(site.server, "EXISTS", f"orders.{number - 1}")) is None:
            await asyncio.sleep(0.2)
        if there:
            continue
        await world.run("partitions", "orders", str(number), limit_s=chance.uniform(0.3, 1.0))
        for _ in range(30):
            if await world.run("partitions", "orders", str(number), limit_s=30.0):
                return f"topic grown to {number} partitions"
            await asyncio.sleep(0.5)
    return "topic not grown"


KINDS: Final = (
    Kind("server killed", _killed, _SITES),
    Kind("server restarted", _restarted, _SITES),
    Kind("server paused", _paused, _SITES),
    Kind("power loss", _power_lost, _SITES, shim=True),
    Kind("torn tail", _torn, _SITES, shim=True),
    Kind("slow disk", _slow_disk, _SITES, shim=True),
    Kind("disk full", _full_disk, _SITES, shim=True),
    Kind("out of memory", _out_of_memory, _SITES),
    Kind("scripts flushed", _scripts_flushed, _SITES),
    Kind("file rewritten", _rewritten, _SITES),
    Kind("connections cut", _cut, _SITES),
    Kind("half-open connections", _half_open, _SITES),
    *(
        Kind(f"reply to a {name} lost", _calls(name, Fault.LOSE_REPLY, Fault.TEAR_REPLY), _SITES, sql=name == "relay")
        for name in ("publisher", "relay", "worker")
    ),
    *(
        Kind(
            f"request of a {name} lost",
            _calls(name, Fault.LOSE_REQUEST, Fault.TEAR_REQUEST),
            _SITES,
            sql=name == "relay",
        )
        for name in ("publisher", "relay", "worker")
    ),
    Kind("publisher dies between sending and reply", _dies_between, _SITES),
    Kind("first call of a publisher lost", _first_call_lost, _SITES),
    Kind("publishers begin while the server dies", _cold_start, _SITES),
    Kind("group destroyed", _group_destroyed, _SITES, sql=True),
    Kind("topic grown", _grown, _SITES),
)

"""Who is primary in a fleet, who has which slots, and moving one while it is in use."""

from __future__ import annotations

import random
import time
from typing import Any

from headrace.embedded.fleet import Fleet
from headrace.embedded.node import Node
from headrace.errors import Refused


def primaries(fleet: Fleet) -> list[Node]:
    return [n for n in fleet.servers if n.running and n.role == "primary"]


def slots_of(fleet: Fleet) -> dict[int, tuple[str, list[str]]]:
    """By port: the node's id, and the slots that it has."""
    nodes: Any = fleet.servers[0].ask("CLUSTER", "NODES")
    text = nodes.decode() if isinstance(nodes, bytes) else str(nodes)
    return {
        int(words[1].partition("@")[0].rpartition(":")[2]): (words[0], [w for w in words[8:] if not w.startswith("[")])
        for words in map(str.split, text.splitlines())
    }


def move_slot(fleet: Fleet, key: str, password: str) -> None:
    """Moves the slot of a key to another primary, key by key, while it is in use. A move that failed on its way is finished by another call."""
    slot = int(fleet.servers[0].ask("CLUSTER", "KEYSLOT", key))  # type: ignore[arg-type]
    found = slots_of(fleet)
    by_port = {n.port: n for n in primaries(fleet)}
    covers = {
        port: any(int(a) <= slot <= int(b or a) for a, _, b in (w.partition("-") for w in found[port][1]))
        for port in by_port
    }
    source = next((port for port in by_port if covers[port]), None)
    if source is None:
        raise Refused(f"no primary that runs has slot {slot}")
    others = sorted((port for port in by_port if port != source), key=lambda _: random.random())
    begun = [port for port in others if by_port[port].ask("CLUSTER", "COUNTKEYSINSLOT", slot)]
    target = (begun or others)[0]
    by_port[target].ask("CLUSTER", "SETSLOT", slot, "IMPORTING", found[source][0])
    by_port[source].ask("CLUSTER", "SETSLOT", slot, "MIGRATING", found[target][0])
    while keys := by_port[source].ask("CLUSTER", "GETKEYSINSLOT", slot, 3):
        words = [k.decode() if isinstance(k, bytes) else str(k) for k in keys]  # type: ignore[union-attr]
        by_port[source].ask("MIGRATE", "127.0.0.1", target, "", 0, 5_000, "AUTH", password, "KEYS", *words)
        time.sleep(0.03)
    for port in (target, source, *(p for p in by_port if p not in (source, target))):
        by_port[port].ask("CLUSTER", "SETSLOT", slot, "NODE", found[target][0])


def password_of(fleet: Fleet) -> str:
    return fleet.url.partition("://:")[2].partition("@")[0]

"""A whole Cluster of embedded servers: primaries that share the slots, and replicas that step in for them.

with cluster.start(primaries=3, replicas=1) as fleet:
    app = Headrace(fleet.url)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from headrace.embedded import fleet as fleets
from headrace.embedded.fleet import Fleet, Tell
from headrace.embedded.home import Record, Shape
from headrace.embedded.node import REPLICA, Node, wait_s_default
from headrace.embedded.wire import fields
from headrace.errors import ConfigurationError, Refused

primaries_min: Final = 3
"""Fewer cannot agree on who takes over: a majority must be left when one is gone."""
primaries_max: Final = 16
replicas_max: Final = 4
"""Of each primary."""
slots: Final = 16_384

SETTINGS: Final[Mapping[str, str]] = {
    "cluster-enabled": "yes",
    "cluster-config-file": "nodes.conf",
    "cluster-node-timeout": "2000",
    "cluster-require-full-coverage": "no",
    "cluster-announce-ip": "127.0.0.1",
    "repl-diskless-sync-delay": "0",
}
"""Beyond those of every embedded server."""


def start(
    directory: Path | None = None,
    *,
    primaries: int = primaries_min,
    replicas: int = 0,
    options: Mapping[str, str] | None = None,
    wait_s: float = wait_s_default,
    tell: Tell | None = None,
) -> Fleet:
    """The Cluster of `directory` (default: `default_directory()/cluster`), ready for clients. Blocks for seconds.

    `primaries` (3 to 16) share the slots, each with `replicas` (0 to 4) of its own; both are the same in every run.
    `options` are settings of all servers for this run, e.g. `{"appendfsync": "everysec"}`. `wait_s` bounds each step.
    `tell` hears what goes on. Raises ConfigurationError (a wrong number or option, no usable directory or binary, a port that
    is taken, another program that runs it), NotConnected (it does not get ready; the message ends with a log).
    """
    if not primaries_min <= primaries <= primaries_max:
        raise ConfigurationError(
            f"primaries: a Cluster needs {primaries_min} (two of three are a majority) and here has at most "
            f"{primaries_max}, got {primaries}"
        )
    if not 0 <= replicas <= replicas_max:
        raise ConfigurationError(f"replicas: expected 0 to {replicas_max} of each primary, got {replicas}")
    return fleets.launch(_Cluster(), Shape("cluster", primaries, replicas), directory, options, wait_s, tell)


class _Cluster:
    """How servers become a Cluster."""

    def url(self, record: Record) -> str:
        """The first primaries; a client finds the others through any of them."""
        places = ",".join(f"127.0.0.1:{port}" for port in record.ports[: record.primaries])
        return f"redis+cluster://:{record.password}@{places}"

    def configure(self, fleet: Fleet) -> None:
        """Who is primary and who has which slots is in the servers' own `nodes.conf`."""
        for member, bus in zip(fleet.nodes, fleet.record.buses, strict=True):
            own = {"cluster-port": str(bus), "masterauth": fleet.record.password}
            member.configure({**fleet.settings, **SETTINGS, **own})

    def bring_up(self, fleet: Fleet, wait_s: float, tell: Tell) -> None:
        """Primaries before replicas, so that none of these believes that its primary is gone."""
        replicas = [member for member in fleet.nodes if _was_replica(member)]
        primaries = [member for member in fleet.nodes if member not in replicas]
        for group in (primaries, replicas):
            if group:
                tell(f"starting {len(group)} servers")
            for member in group:
                member.launch()
            for member in group:
                member.wait_ready(wait_s)
        if not fleet.record.formed:
            tell("introducing them to each other")
            self._form(fleet, wait_s)
        tell("waiting until all agree on who has which slots")
        fleets.wait_for(lambda: _missing(fleet.nodes), fleet, wait_s)

    def _form(self, fleet: Fleet, wait_s: float) -> None:
        """Give out the slots, make everybody known to everybody, give each primary its replicas."""
        record = fleet.record
        primaries = fleet.nodes[: record.primaries]
        first, *others = fleet.nodes
        for number, member in enumerate(
            fleet.nodes, start=1
        ):  # equal epochs would have to be settled by the servers first
            member.ask("CLUSTER", "SET-CONFIG-EPOCH", number)
        for member, (low, high) in zip(primaries, shares(len(primaries)), strict=True):
            member.ask("CLUSTER", "ADDSLOTSRANGE", low, high)
        for member, bus in zip(others, record.buses[1:], strict=True):
            first.ask("CLUSTER", "MEET", "127.0.0.1", member.port, bus)
        fleets.wait_for(lambda: _strangers(fleet.nodes), fleet, wait_s)
        ids = [str(member.ask("CLUSTER", "MYID")) for member in primaries]
        for number, member in enumerate(fleet.nodes[record.primaries :]):
            member.ask("CLUSTER", "REPLICATE", ids[number // record.replicas])


def shares(primaries: int) -> Iterator[tuple[int, int]]:
    """The first and last slot of each primary."""
    for n in range(primaries):
        yield n * slots // primaries, (n + 1) * slots // primaries - 1


def _was_replica(member: Node) -> bool:
    """Whether it was a replica when it ran last. Raises OSError."""
    path = member.directory / "nodes.conf"
    return path.exists() and re.search(r"myself,slave", path.read_text(errors="replace")) is not None


def _strangers(nodes: Sequence[Node]) -> str:
    """Who does not know everybody yet; empty if all do."""
    for member in nodes:
        view = _view(member)
        if len(view) != len(nodes) or any("handshake" in who for who in view):
            return f"{member.name} knows {len(view)} of {len(nodes)}"
    return ""


def _missing(nodes: Sequence[Node]) -> str:
    """What a Cluster that works would have; empty if nothing is missing."""
    views = []
    for member in nodes:
        try:
            state = fields(member.ask("CLUSTER", "INFO"))
            view = _view(member)
            replication = fields(member.ask("INFO", "replication"))
        except (OSError, Refused) as failure:
            return f"{member.name} does not answer ({failure})"
        if (state.get("cluster_state"), state.get("cluster_slots_ok")) != ("ok", str(slots)):
            return (
                f"{member.name} sees {state.get('cluster_slots_ok')} slots served, state {state.get('cluster_state')}"
            )
        if len(view) != len(nodes) or not all(re.match(r"\d+ (master|slave) connected", who) for who in view):
            return f"{member.name} does not reach everybody"
        if replication.get("role") == "slave" and replication.get("master_link_status") != "up":
            return f"{member.name}, a {REPLICA}, has not copied its primary yet"
        views.append(view)
    return "" if all(view == views[0] for view in views) else "the servers disagree about the slots"


def _view(member: Node) -> frozenset[str]:
    """What a server knows, one `PORT ROLE LINK SLOTS` for each, slots on the move left out. Raises OSError, Refused."""
    lines = (line.split() for line in str(member.ask("CLUSTER", "NODES")).splitlines())
    found = set()
    for words in lines:
        port = words[1].partition("@")[0].rpartition(":")[2]
        role = words[2].removeprefix("myself,")
        ranges = (word for word in words[8:] if not word.startswith("["))
        found.add(" ".join((port, role, words[7], *ranges)))
    return frozenset(found)

"""An embedded primary with replicas, and three sentinels that make one of them primary when it dies.

with sentinel.start(replicas=1) as fleet:
    app = Headrace(fleet.url)
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from headrace.embedded import fleet as fleets
from headrace.embedded.fleet import Fleet, Tell
from headrace.embedded.home import Record, Shape
from headrace.embedded.node import Node, wait_s_default
from headrace.embedded.wire import fields, pairs
from headrace.errors import ConfigurationError, Refused

service: Final = "headrace"
"""The name under which the sentinels know the primary."""
sentinels: Final = 3
quorum: Final = 2
"""So many sentinels must miss the primary before they act."""
replicas_max: Final = 4

SETTINGS: Final[Mapping[str, str]] = {"repl-diskless-sync-delay": "0"}
"""Of the servers with data, beyond those of every embedded server."""

WATCH: Final[Mapping[str, str]] = {"down-after-milliseconds": "1000", "failover-timeout": "3000", "parallel-syncs": "1"}
"""How the sentinels watch."""


def start(
    directory: Path | None = None,
    *,
    replicas: int = 1,
    options: Mapping[str, str] | None = None,
    wait_s: float = wait_s_default,
    tell: Tell | None = None,
) -> Fleet:
    """The Sentinel set-up of `directory` (default: `default_directory()/sentinel`), ready for clients. Blocks for seconds.

    One primary with `replicas` (1 to 4, the same in every run), watched by three sentinels as service `headrace`.
    `options` are settings of primary and replicas for this run. `wait_s` bounds each step. `tell` hears what goes on.
    Raises ConfigurationError (a wrong number or option, no usable directory or binary, a port that is taken, another program
    that runs it), NotConnected (it does not get ready; the message ends with a log).
    """
    if not 1 <= replicas <= replicas_max:
        raise ConfigurationError(
            f"replicas: expected 1 to {replicas_max} (without one nobody can take over), got {replicas}"
        )
    return fleets.launch(_Watched(), Shape("sentinel", 1, replicas, sentinels), directory, options, wait_s, tell)


class _Watched:
    """How servers become one primary, its replicas and their sentinels."""

    def url(self, record: Record) -> str:
        """The sentinels, and the service they are asked for."""
        places = ",".join(f"127.0.0.1:{port}" for port in record.ports[-sentinels:])
        return f"redis+sentinel://:{record.password}@{places}/{service}"

    def configure(self, fleet: Fleet) -> None:
        """Who is primary is what the sentinels agreed on last; they keep it in their own files, which are theirs from then on."""
        password = fleet.record.password
        first = _elected(fleet)
        for member in fleet.servers:
            own = {"masterauth": password}
            if member is not first:
                own["replicaof"] = f"127.0.0.1 {first.port}"
            member.configure({**fleet.settings, **SETTINGS, **own})
        if not fleet.record.formed:
            self._configure_sentinels(fleet, first)

    def _configure_sentinels(self, fleet: Fleet, first: Node) -> None:
        """They are told of each other at once: to find each other through the primary takes them seconds."""
        ids = {member: secrets.token_hex(20) for member in fleet.sentinels}
        for member in fleet.sentinels:
            watch = {f"sentinel {name} {service}": value for name, value in WATCH.items()}
            others = {
                f"sentinel known-sentinel {service} 127.0.0.1 {other.port}": ids[other]
                for other in ids
                if other is not member
            }
            member.configure(
                {
                    "sentinel myid": ids[member],
                    "sentinel monitor": f"{service} 127.0.0.1 {first.port} {quorum}",
                    f"sentinel auth-pass {service}": fleet.record.password,
                    **watch,
                    **others,
                }
            )

    def bring_up(self, fleet: Fleet, wait_s: float, tell: Tell) -> None:
        """The primary before its replicas, and the sentinels when there is nothing to fail over."""
        first = _elected(fleet)
        replicas = [member for member in fleet.servers if member is not first]
        tell(f"starting {len(fleet.servers)} servers")
        first.start(wait_s)
        for member in replicas:
            member.launch()
        for member in replicas:
            member.wait_ready(wait_s)
        tell("waiting until the replicas have copied the primary")
        fleets.wait_for(lambda: _lagging(replicas), fleet, wait_s)
        tell(f"starting {len(fleet.sentinels)} sentinels")
        for member in fleet.sentinels:
            member.launch()
        for member in fleet.sentinels:
            member.wait_ready(wait_s)
        tell("waiting until the sentinels reach all servers and each other")
        fleets.wait_for(lambda: _blind(fleet, first), fleet, wait_s)


def _elected(fleet: Fleet) -> Node:
    """Whom the sentinels made primary last, by the newest of their files; in a new fleet the first. Raises OSError."""
    newest, port = -1, 0
    for member in fleet.sentinels:
        path = member.directory / "server.conf"
        text = path.read_text(errors="replace") if fleet.record.formed and path.exists() else ""
        named = re.search(rf"^sentinel monitor {service} \S+ (\d+)", text, re.MULTILINE)
        epoch = re.search(rf"^sentinel config-epoch {service} (\d+)", text, re.MULTILINE)
        if named is not None and (age := int(epoch[1]) if epoch is not None else 0) > newest:
            newest, port = age, int(named[1])
    return next((member for member in fleet.servers if member.port == port), fleet.servers[0])


def _lagging(replicas: list[Node]) -> str:
    """Which replica is not connected to its primary yet; empty if all are."""
    for member in replicas:
        try:
            link = fields(member.ask("INFO", "replication")).get("master_link_status")
        except (OSError, Refused) as failure:
            return f"{member.name} does not answer ({failure})"
        if link != "up":
            return f"{member.name} has not copied the primary"
    return ""


def _blind(fleet: Fleet, first: Node) -> str:
    """What a sentinel does not see yet; empty if every one sees the primary well, all replicas and all sentinels."""
    for member in fleet.sentinels:
        try:
            view = pairs(member.ask("SENTINEL", "MASTER", service))
            others = member.ask("SENTINEL", "SENTINELS", service)
        except (OSError, Refused) as failure:
            return f"{member.name} does not answer ({failure})"
        seen = (view.get("port"), view.get("flags"), view.get("num-slaves"), view.get("num-other-sentinels"))
        if seen != (str(first.port), "master", str(len(fleet.servers) - 1), str(sentinels - 1)):
            return f"{member.name} sees the primary's port, state, replicas and other sentinels as {seen}"
        if not isinstance(others, list) or any(pairs(other).get("flags") != "sentinel" for other in others):
            return f"{member.name} does not reach the other sentinels"
    return ""

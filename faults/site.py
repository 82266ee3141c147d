"""Where the events live in a round: one Valkey or Redis with a wretched disk behind proxies, a Cluster, or a primary behind sentinels."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Protocol

import redis

from faults import disk
from faults.process import PUBLISHERS
from headrace.embedded import cluster, keeper, sentinel
from headrace.embedded.fleet import Fleet
from headrace.embedded.wire import fields
from headrace.errors import Refused
from headrace.testing.faults import Proxy
from tests.servers import Server, program
from tests.slots import primaries

SITES: Final = ("valkey", "redis", "sentinel", "cluster")


class Site(Protocol):
    """What every kind of place has."""

    name: str
    version: str
    durability: str
    url: str
    """For whoever is not attacked."""

    def url_for(self, role: str) -> str:
        """For processes of this role: through their proxy, if there are proxies."""

    def servers(self) -> list[redis.Redis]:
        """A client for each primary."""


class Single:
    """One server with an append-only file; processes reach it through proxies, one for each kind of process."""

    def __init__(self, flavour: str, folder: Path, shim: Path | None, stack: contextlib.ExitStack, fsync: str) -> None:
        """Started; `stack` ends it."""
        self.name = flavour
        self.durability = "fsync" if fsync == "always" else "relaxed"
        self.durable = folder / "durable"
        self.durable.mkdir()
        self.knobs = disk.Knobs(folder / "server.knobs")
        self.server = Server(flavour, tcp=True, appendfsync=fsync)
        if shim is not None:
            self.server.environment = {
                "LD_PRELOAD": str(shim),
                "FAULTS_CONTROL": str(self.knobs.path),
                "FAULTS_DURABLE": str(self.durable),
            }
        stack.enter_context(self.server)
        self.version = self._version()
        self.proxies: dict[str, Proxy] = {
            name: stack.enter_context(Proxy(self.server.url)) for name in ("publisher", "relay", "worker")
        }
        self.url = self.server.url

    def _version(self) -> str:
        info: Any = self.servers()[0].info("server")
        version: str = info.get("valkey_version") or info["redis_version"]
        return f"{self.name} {version}"

    def url_for(self, role: str) -> str:
        """Publishers share a proxy, relays do, and workers."""
        kind = "publisher" if role in PUBLISHERS else "relay" if role == "relay" else "worker"
        return self.proxies[kind].url

    def servers(self) -> list[redis.Redis]:
        """See Site."""
        return [redis.Redis(unix_socket_path=self.server.socket)]

    def start(self) -> None:
        """On its data, repaired as the embedded server does it, and as the docs tell operators to."""
        plan = keeper.Plan(program(self.name), f"{self.name}-check-aof", "", "", {}, {})
        keeper.repair(self.server.directory, plan)
        self.server.start()

    def cut_off(self, torn: random.Random | None) -> int:
        """A power loss: what no fsync had brought to the disk is gone; if `torn`, up to the middle of a transaction. It must be dead."""
        return disk.lose(self.server.directory, self.durable, torn)


class Many:
    """A Cluster of three primaries with a replica each, or a primary with a replica and three sentinels; level `quorum`."""

    def __init__(self, kind: str, folder: Path, stack: contextlib.ExitStack) -> None:
        """Started; `stack` ends it."""
        self.name, self.durability = kind, "quorum"
        make = cluster if kind == "cluster" else sentinel
        self.fleet: Fleet = stack.enter_context(make.start(folder / kind, replicas=1, wait_s=60))
        self.url: str = self.fleet.url
        self.version = f"{kind}, {self.fleet.version}"

    def url_for(self, role: str) -> str:  # noqa: ARG002 - all go there directly
        """See Site."""
        return self.url

    def servers(self) -> list[redis.Redis]:
        """See Site."""
        password = self.fleet.record.password
        return [redis.Redis(port=node.port, password=password) for node in primaries(self.fleet)]

    def await_whole(self, wait_s: float = 30.0) -> None:
        """Returns when each primary has its replica again, or after that long: the next fault finds what there is."""
        end = time.monotonic() + wait_s
        while time.monotonic() < end and not self._whole():
            time.sleep(0.1)

    def _whole(self) -> bool:
        found = 0
        for node in self.fleet.servers:
            try:
                said = fields(node.ask("INFO", "replication"))
            except (OSError, Refused):
                return False
            found += said.get("role") == "master" and int(said.get("connected_slaves", "0")) > 0
            if said.get("role") == "slave" and said.get("master_link_status") != "up":
                return False
        return found == len(self.fleet.servers) // 2


@contextlib.contextmanager
def open_site(name: str, folder: Path, shim: Path | None, fsync: str = "always") -> Iterator[Single | Many]:
    """The place of a round. Raises ServerAbsent."""
    with contextlib.ExitStack() as stack:
        if name in ("valkey", "redis"):
            yield Single(name, folder, shim, stack, fsync)
        else:
            yield Many(name, folder, stack)

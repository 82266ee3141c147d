"""The directory of a fleet: whose it is now, and what must be the same in every run.

Files in it (mode 0700):

    fleet.lock      exclusive flock: the program whose fleet this is; its process id, for people
    fleet.json      `Record` (mode 0600: it holds the password)
    server-N/       one server each, see `node.py`
    sentinel-N/     likewise
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import shutil
import socket
from pathlib import Path
from typing import Final, NamedTuple

from headrace.embedded import keeper, node, server
from headrace.errors import ConfigurationError

PORTS: Final = range(20_000, 32_000)
"""Below the range from which the kernel picks the ports of clients, so that a port is still free after a restart."""


class Shape(NamedTuple):
    """How many servers of what kind a fleet has."""

    kind: str
    """`cluster` or `sentinel`."""
    primaries: int
    replicas: int
    """Of each primary."""
    sentinels: int = 0

    @property
    def servers(self) -> int:
        """Those with data."""
        return self.primaries * (1 + self.replicas)


class Record(NamedTuple):
    """What the directory remembers: the shape, and what was chosen once."""

    kind: str
    primaries: int
    replicas: int
    sentinels: int
    password: str
    ports: list[int]
    """Of the servers with data, then of the sentinels."""
    buses: list[int]
    """The second port of each server of a Cluster, for talking to the others."""
    formed: bool
    """Whether it has ever been ready. What has not is begun anew, without anybody's data."""


class Home:
    """A fleet's directory, held by this program until `release()`."""

    def __init__(self, directory: Path | None, shape: Shape) -> None:
        """Take it, made if need be; None is `default_directory()/KIND`. Raises ConfigurationError."""
        self.shape = shape
        home = server.default_directory() / shape.kind if directory is None else directory.absolute()
        try:
            self.directory = home.resolve()
            if directory is None:
                server.prepare(self.directory.parent)  # for this user alone too: the embedded server may move in later
            server.prepare(self.directory)
            self._lock = keeper.open_lock(self.directory, "fleet.lock")
        except OSError as failure:
            raise ConfigurationError(
                f"The embedded {shape.kind} cannot live in {home}: {failure.strerror or failure}. {server.ELSEWHERE}"
            ) from failure
        if not keeper.try_lock(self._lock, fcntl.LOCK_EX):
            holder = os.pread(self._lock, 20, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._lock)
            raise ConfigurationError(
                f"The embedded {shape.kind} in {self.directory} already runs, started by process {holder}. "
                "Use its URL, end that process first, or set HEADRACE_HOME to another directory."
            )

    def release(self) -> None:
        """Let the next program have it. May be called again."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)

    def record(self) -> Record:
        """What the fleet that lives here must be like, with fresh ports if it was never ready. All its ports are free.

        Raises ConfigurationError (another shape, a port that is taken, a server of an earlier run that does not end).
        """
        former = self._read()
        try:
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
            self._wait_for_former_servers(former)
        except (RuntimeError, OSError) as failure:
            raise ConfigurationError(f"The {self.shape.kind} cannot be started: {failure}. End it first.") from failure
        if former is not None and former.formed:
            self._check_shape(former)
            self._check_ports(former)
            return former
        shape = self.shape
        ports = _free_ports(shape.servers + shape.sentinels + (shape.servers if shape.kind == "cluster" else 0))
        count = shape.servers + shape.sentinels
        fresh = Record(*shape, secrets.token_hex(16), ports[:count], ports[count:], formed=False)
        self.write(fresh)
        return fresh

    def write(self, record: Record) -> None:
        """Replace the record atomically. Raises ConfigurationError."""
        draft = self.directory / "fleet.json.new"
        try:
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                json.dump(record._asdict(), file)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self.directory / "fleet.json")
        except OSError as failure:
            raise ConfigurationError(f"{draft} cannot be written: {failure}. {server.ELSEWHERE}") from failure

    def _read(self) -> Record | None:
        path = self.directory / "fleet.json"
        try:
            return Record(**json.loads(path.read_bytes()))
        except FileNotFoundError:  # the first run
            return None
        except (OSError, ValueError, TypeError) as failure:  # not to be guessed: the data hangs on it
            raise ConfigurationError(
                f"{path} cannot be read ({failure}): restore it, or delete {self.directory} to begin anew without its data."
            ) from failure

    def _wait_for_former_servers(self, former: Record | None) -> None:
        """Return when no process of an earlier run is left, nor what it left if that was never ready."""
        found = [path for path in sorted(self.directory.iterdir()) if re.fullmatch(r"(server|sentinel)-\d+", path.name)]
        if found and former is None:
            raise ConfigurationError(
                f"{found[0]} is in the way: it belongs to no fleet that is known here. Move it, or use another directory."
            )
        for folder in found:
            gate = node.wait_for_former(folder, keeper.stop_s)
            try:
                if former is not None and not former.formed:
                    shutil.rmtree(folder)
            finally:
                os.close(gate)

    def _check_shape(self, former: Record) -> None:
        wanted = self.shape
        for name, was, asked in (
            ("kind", former.kind, wanted.kind),
            ("primaries", former.primaries, wanted.primaries),
            ("replicas", former.replicas, wanted.replicas),
        ):
            if was != asked:
                raise ConfigurationError(
                    f"{name}: the fleet in {self.directory} was made with {was}, got {asked}. Ask for {was}, "
                    f"use another directory (HEADRACE_HOME), or delete {self.directory} to begin anew without its data."
                )

    def _check_ports(self, former: Record) -> None:
        for port in (*former.ports, *former.buses):
            if not _is_free(port):
                raise ConfigurationError(
                    f"Port {port} of 127.0.0.1 belongs to the {former.kind} in {self.directory}, but another program has "
                    f"taken it. End that program (`ss -ltnp sport = :{port}` names it), or delete {self.directory} to "
                    "begin anew with other ports and without its data."
                )


def _free_ports(count: int) -> list[int]:
    """So many different ports that nobody listens on now."""
    found: set[int] = set()
    while len(found) < count:
        port = secrets.choice(PORTS)
        if _is_free(port):
            found.add(port)
    return sorted(found)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True

"""Several embedded servers that belong together: started, watched and stopped as one.

A fleet lives exactly as long as the program that started it: its `with` block, or the program's end, however that comes.
Its data stay in its directory, and the next start finds them at the same ports.
"""

from __future__ import annotations

import atexit
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from headrace.embedded import keeper, node, server
from headrace.embedded.home import Home, Record, Shape
from headrace.embedded.node import PRIMARY, REPLICA, SENTINEL, Crew, Node
from headrace.errors import Closed, ConfigurationError, NotConnected

tick_s: Final = 0.1
"""How often it looks for servers that died."""
attempts: Final = 3
"""How often a new fleet is given fresh ports, if somebody takes one of them between the look and the start."""

RESERVED: Final = server.RESERVED | {
    "aclfile",
    "bind",
    "cluster-announce-ip",
    "cluster-config-file",
    "cluster-enabled",
    "cluster-port",
    "include",
    "masterauth",
    "port",
    "primaryauth",
    "replicaof",
    "slaveof",
}
"""Settings that a fleet relies on; `options` may not change them."""

_SOCKET: Final = ("port", "unixsocketperm")
"""Settings of an embedded server that is reached through its socket."""

Tell = Callable[[str], None]
"""Hears what goes on while a fleet is started."""


def quiet(_stage: str) -> None:
    """A `Tell` that nobody listens to."""


class Form(Protocol):
    """What makes servers a Cluster, or a Sentinel set-up."""

    def url(self, record: Record) -> str:
        """Where a client connects."""

    def configure(self, fleet: Fleet) -> None:
        """Write the servers' files. Raises OSError."""

    def bring_up(self, fleet: Fleet, wait_s: float, tell: Tell) -> None:
        """Launch the servers, introduce them if they are new, and return when they are ready. Raises NotConnected."""


class Fleet:
    """The servers of this program. Use it as a context manager, or call `close()`."""

    def __init__(self, home: Home, record: Record, plan: keeper.Plan, url: str) -> None:
        """Made by `launch`, which has every server started. Raises OSError."""
        self.directory: Path = home.directory
        self.url = url
        """Where a client connects, password included."""
        self.version = plan.version
        """Name and version of the servers, for people: `valkey 9.1.2`."""
        self.record = record
        self.settings = {name: value for name, value in server.SETTINGS.items() if name not in _SOCKET} | dict(
            plan.options
        )
        """Of the servers with data, beyond what makes each of them what it is."""
        self._home = home
        self._owner = os.getpid()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._closed = False
        self._door = threading.Lock()  # no job comes after the one that ends the thread
        self.nodes: Sequence[Node] = self._make_nodes(Crew(plan, record.password, self._hand))
        """Primaries first, then replicas, then sentinels; as they were made, whoever is primary now."""
        self._thread = threading.Thread(target=self._watch, name=f"headrace-{record.kind}", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def _make_nodes(self, crew: Crew) -> tuple[Node, ...]:
        record = self.record
        servers = record.primaries * (1 + record.replicas)
        nodes = []
        for n, port in enumerate(record.ports):
            role = PRIMARY if n < record.primaries else REPLICA if n < servers else SENTINEL
            name = f"sentinel-{n - servers + 1}" if role == SENTINEL else f"server-{n + 1}"
            folder = self.directory / name
            folder.mkdir(mode=0o700, exist_ok=True)
            nodes.append(Node(name, role, port, folder, crew))
        return tuple(nodes)

    @property
    def servers(self) -> Sequence[Node]:
        """The nodes with data."""
        return self.nodes[: self.record.primaries * (1 + self.record.replicas)]

    @property
    def sentinels(self) -> Sequence[Node]:
        """The others."""
        return self.nodes[len(self.servers) :]

    def close(self) -> None:
        """Stop every server in order. Blocks until all are gone; may be called again. The data stays."""
        if os.getpid() != self._owner:  # a fork of the program does not own the servers
            return
        with self._door:
            if self._closed:
                return
            self._closed = True
            before = self._put(lambda: None)
        atexit.unregister(self.close)
        before.result()  # a start that was under way is over, so that what it started is stopped
        for group in (self.sentinels, self.servers):  # sentinels first: what follows is no failure
            for member in group:
                member.begin_stop()
            for member in group:
                member.finish_stop()
        self._jobs.put(None)
        self._thread.join()
        self._home.release()

    def __enter__(self) -> Self:
        """The fleet itself."""
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Stop every server."""
        self.close()

    def _watch(self) -> None:
        """The fleet's thread: starts every server, and those that die by themselves again."""
        looked = time.monotonic()
        while True:
            try:
                job = self._jobs.get(timeout=tick_s)
            except queue.Empty:  # nothing to do but to look
                job = self._look
            if job is None:
                return
            job()
            if time.monotonic() - looked > tick_s:
                self._look()
                looked = time.monotonic()

    def _look(self) -> None:
        for member in self.nodes:
            member.revive()

    def _hand(self, job: Callable[[], None]) -> None:
        """Run a job in the fleet's thread and wait for it. Raises what it raises, and Closed."""
        with self._door:
            if self._closed:
                raise Closed(f"The fleet in {self.directory} was closed.")
            done = self._put(job)
        done.result()

    def _put(self, job: Callable[[], None]) -> Future[None]:
        done: Future[None] = Future()

        def work() -> None:
            try:
                job()
            except Exception as failure:  # noqa: BLE001 - raised again where it was asked for
                done.set_exception(failure)
            else:
                done.set_result(None)

        self._jobs.put(work)
        return done


def launch(
    form: Form,
    shape: Shape,
    directory: Path | None,
    options: Mapping[str, str] | None,
    wait_s: float,
    tell: Tell | None,
) -> Fleet:
    """The fleet of `directory`, ready. Blocks.

    Raises ConfigurationError (no usable directory or binary, a reserved option, another shape than before, a port that is
    taken, or another program that runs it), NotConnected (it does not get ready within `wait_s`).
    """
    chosen = dict(options or {})
    if wrong := sorted(RESERVED & chosen.keys()):
        raise ConfigurationError(f"options: these are not for the caller to choose: {', '.join(wrong)}")
    if broken := sorted(name for name, value in chosen.items() if "\n" in name + value):
        raise ConfigurationError(f"options: expected names and values of one line, got {broken}")
    plan = server.make_plan(chosen)
    home = Home(directory, shape)
    try:
        for attempt in range(1, attempts + 1):
            record = home.record()
            try:
                return _raised(form, home, record, plan, wait_s, tell or quiet)
            except NotConnected as failure:
                if record.formed or attempt == attempts or "in use" not in str(failure):
                    raise
    except BaseException:
        home.release()
        raise
    raise AssertionError("the last attempt returns or raises")


def _raised(form: Form, home: Home, record: Record, plan: keeper.Plan, wait_s: float, tell: Tell) -> Fleet:
    """One attempt. Raises ConfigurationError, NotConnected; then nothing of it runs."""
    try:
        fleet = Fleet(home, record, plan, form.url(record))
        try:
            form.configure(fleet)
            form.bring_up(fleet, wait_s, tell)
            if not record.formed:
                fleet.record = record._replace(formed=True)
                home.write(fleet.record)
        except BaseException:
            fleet.close()
            raise
    except OSError as failure:
        raise ConfigurationError(
            f"The {record.kind} cannot live in {home.directory}: {failure.strerror or failure}. {server.ELSEWHERE}"
        ) from failure
    return fleet


def wait_for(predicate: Callable[[], str], fleet: Fleet, wait_s: float) -> None:
    """Return when `predicate` finds nothing missing. Raises NotConnected with what it says after `wait_s`."""
    until = time.monotonic() + wait_s
    while missing := predicate():
        if time.monotonic() > until:
            raise NotConnected(
                f"The {fleet.record.kind} in {fleet.directory} is not ready after {wait_s:g} s: {missing}. "
                "See server.log of the server that is named, or wait longer."
            )
        time.sleep(node.poll_s)

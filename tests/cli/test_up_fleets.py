"""`headrace up --cluster` and `--sentinel`: what they print, how they end, what they refuse."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.cli.shell import environment, line_of, run, running
from tests.servers import require, wait_for


@pytest.fixture
def env(tmp_path: Path) -> Mapping[str, str]:
    """Where the fleets of a test live."""
    require("valkey")
    return {"HEADRACE_HOME": str(tmp_path / "home")}


def test_cluster_for_scripts(env: Mapping[str, str]) -> None:
    """One JSON object; SIGTERM stops all of it in order; a second one is refused meanwhile."""
    with running("up", "--cluster", "3", "--replicas", "1", "--json", env=env) as process:
        shown = json.loads(line_of(process))
        assert shown.keys() == {"url", "directory", "server", "nodes"}
        assert shown["directory"] == env["HEADRACE_HOME"] + "/cluster"
        assert [node["role"] for node in shown["nodes"]] == ["primary"] * 3 + ["replica"] * 3
        ports = ",".join(f"127.0.0.1:{node['port']}" for node in shown["nodes"][:3])
        assert re.fullmatch(rf"redis\+cluster://:[0-9a-f]{{32}}@{ports}", shown["url"])
        second = run("up", "--cluster", "3", env=env)
        assert second.code == 2
        assert re.fullmatch(
            rf"headrace: The embedded cluster in \S+ already runs, started by process {process.pid}\. .*\n", second.err
        )
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out, err) == (0, b"", b"")
    assert not any(_runs(node["pid"]) for node in shown["nodes"])


def test_sentinel_for_people(env: Mapping[str, str]) -> None:
    """The URL, a line for each server, how programs find it; a death is told; Ctrl-C is a good end; a pipe sees no progress."""
    with running("up", "--sentinel", env=env) as process:
        assert process.stderr is not None
        lines = [line_of(process).rstrip("\n") for _ in range(8)]
        assert re.fullmatch(
            r"url: redis\+sentinel://:[0-9a-f]{32}@127.0.0.1:\d+,127.0.0.1:\d+,127.0.0.1:\d+/headrace", lines[0]
        )
        assert lines[1] == f"directory: {env['HEADRACE_HOME']}/sentinel"
        assert lines[2].startswith("server: valkey ")
        nodes = [re.fullmatch(r"(\S+): (\w+), 127\.0\.0\.1:\d+, process (\d+)", line) for line in lines[3:]]
        assert [(node[1], node[2]) for node in nodes if node] == [
            ("server-1", "primary"),
            ("server-2", "replica"),
            *((f"sentinel-{n}", "sentinel") for n in (1, 2, 3)),
        ]
        assert process.stderr.readline() == b"Programs find it with\n"
        assert process.stderr.readline().decode() == f"    export HEADRACE_URL='{lines[0].removeprefix('url: ')}'\n"
        assert process.stderr.readline().startswith(b"Ctrl-C stops all of it")
        pids = [int(node[3]) for node in nodes if node]
        os.kill(pids[-1], signal.SIGKILL)
        told = process.stderr.readline().decode()
        back = re.fullmatch(r"headrace: sentinel-3 died and is back, process (\d+)\n", told)
        assert back, told
        assert _runs(int(back[1]))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out, err) == (0, b"", b"")
    assert not any(map(_runs, (*pids, int(back[1]))))


def test_it_can_be_stopped_while_it_forms(env: Mapping[str, str]) -> None:
    """Then nothing was printed, and nothing is left that runs; on a terminal the line of progress is cleared."""
    folder = Path(env["HEADRACE_HOME"]) / "cluster"
    with running("up", "--cluster", "3", env=env) as process:
        wait_for((folder / "server-3" / "server.log").exists, "the servers are being started", 20)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out, err) == (0, b"", b"")
    assert not _servers_below(folder)


def test_progress_is_for_terminals(env: Mapping[str, str]) -> None:
    """What goes on, on one line of the terminal, which is cleared at the end."""
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "headrace", "up", "--cluster", "3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment(env)) as process:
        os.close(theirs)
        screen = b""
        with contextlib.suppress(OSError):  # the end of what a terminal gets
            while chunk := os.read(ours, 65_536):
                screen += chunk
                if b"introducing" in screen:
                    process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)
        assert (process.returncode, out) == (0, b"")
    os.close(ours)
    before, first, second, cleared, after = screen.decode().split("\r")
    assert (before, first) == ("", "starting 3 servers ...")
    assert second == "introducing them to each other ..."
    assert (cleared, after) == (" " * len(second), "")


@pytest.mark.parametrize(
    ("words", "screen"),
    [
        (
            ("--cluster", "2"),
            "headrace: primaries: a Cluster needs 3 (two of three are a majority) and here has at most 16, got 2\n-> 2",
        ),
        (
            ("--cluster", "0"),
            "headrace: primaries: a Cluster needs 3 (two of three are a majority) and here has at most 16, got 0\n-> 2",
        ),
        (
            ("--cluster", "17"),
            "headrace: primaries: a Cluster needs 3 (two of three are a majority) and here has at most 16, got 17\n-> 2",
        ),
        (
            ("--cluster", "many"),
            "headrace: argument --cluster: invalid int value: 'many'\nhint: headrace up --help\n-> 2",
        ),
        (
            ("--cluster", "3", "--replicas", "5"),
            "headrace: replicas: expected 0 to 4 of each primary, got 5\n-> 2",
        ),
        (
            ("--sentinel", "--replicas", "0"),
            "headrace: replicas: expected 1 to 4 (without one nobody can take over), got 0\n-> 2",
        ),
        (
            ("--replicas", "1"),
            "headrace: --replicas: goes with --cluster N or --sentinel; the embedded server is a single one\n-> 2",
        ),
        (
            ("--cluster", "3", "--sentinel"),
            "headrace: argument --sentinel: not allowed with argument --cluster\nhint: headrace up --help\n-> 2",
        ),
    ],
)
def test_bad_values(words: tuple[str, ...], screen: str, env: Mapping[str, str]) -> None:
    """One clear sentence each, and nothing is made."""
    assert run("up", *words, env=env).screen == screen
    assert not Path(env["HEADRACE_HOME"]).exists()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _servers_below(folder: Path) -> list[Path]:
    """Processes whose command line names a file below this directory."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended while we looked
            if os.fsencode(folder) in line.read_bytes():
                found.append(line)
    return found

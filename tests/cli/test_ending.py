"""How a worker process ends: in order, whatever its handlers have left behind."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from pathlib import Path

import hiredis
import pytest

from tests.cli.shell import running, say
from tests.servers import Server, wait_for

APPS = """\
import asyncio, atexit, sys, time
from pathlib import Path
from headrace import Headrace

atexit.register(print, "goodbye")

def app(handle):
    own = Headrace()
    own.topic("orders", dict).subscribe("billing", lanes=20)(handle)
    return own

async def leave(order: dict) -> None:
    async def leave_from_a_task() -> None:
        sys.exit(order["n"])
    async with asyncio.TaskGroup() as group:
        group.create_task(leave_from_a_task())

def compute(order: dict) -> None:
    print("computed", order["n"])

async def hang(order: dict) -> None:
    print("hangs", order["n"])
    Path(f"hangs-{order['n']}").touch()
    await asyncio.to_thread(time.sleep, 60)

leaving, computing, hanging = app(leave), app(compute), app(hang)
"""


@pytest.fixture
def where(tmp_path: Path, cli_server: Server) -> Path:
    """A directory with apps, while twenty orders wait."""
    (tmp_path / "apps.py").write_text(APPS)
    for n in range(20):
        assert say("publish", "orders", f'{{"n":{n}}}').code == 0
    return tmp_path


def ended(process: subprocess.Popen[bytes], within_s: float) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=within_s)
    return process.returncode, out.decode(), err.decode()


def pending(server: Server) -> int:
    with contextlib.suppress(hiredis.ReplyError):  # no group yet
        return int(server.command("XPENDING", "orders", "billing")[0])
    return 0


def test_a_task_of_a_handler_that_exits_ends_the_worker_in_order(where: Path, cli_server: Server) -> None:
    with running("run", "apps:leaving", "--url", cli_server.url, cwd=where) as process:
        code, _, err = ended(process, 20)
    assert code == 1
    assert "a task that a handler has started ended with SystemExit(" in err
    assert "HandlerError: the handler called sys.exit(" in err
    assert pending(cli_server) == 0


def test_a_worker_with_threads_ends_in_order(where: Path, cli_server: Server) -> None:
    with running("run", "apps:computing", "--url", cli_server.url, cwd=where, env={"PYTHONUNBUFFERED": ""}) as process:
        wait_for(
            lambda: cli_server.command("HGET", "{orders}:group:billing", "handled") == b"20", "all are handled", 20
        )
        process.send_signal(signal.SIGTERM)
        code, out, err = ended(process, 20)
    assert (code, out.count("computed"), out.count("goodbye")) == (0, 20, 1)
    assert "ERROR" not in err


def test_a_thread_that_hangs_does_not_keep_the_worker(where: Path, cli_server: Server) -> None:
    with running("run", "apps:hanging", "--url", cli_server.url, cwd=where, env={"PYTHONUNBUFFERED": ""}) as process:
        wait_for(lambda: len(list(where.glob("hangs-*"))) == 20, "all hang", 20)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        code, out, err = ended(process, 10)
    assert (code, out.count("hangs")) == (0, 20)
    assert "threads of handlers are still at work and cannot be stopped; ending the process around them" in err
    assert pending(cli_server) == 0

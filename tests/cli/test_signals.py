"""One wish to stop is one, and two are two: with one worker process and with several, from a terminal, a service manager, or `kill`."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.cli.shell import environment, say
from tests.servers import Server, wait_for

SHOP: Final = """\
import asyncio, os
from pathlib import Path
from headrace import Context, Headrace

app = Headrace()
orders = app.topic("orders", dict)

@orders.subscribe("billing")
async def bill(order: dict, ctx: Context) -> None:
    Path(f"began-{os.getpid()}").touch()
    await asyncio.sleep(order["s"])
    ctx.redis.incrby("handled", 1)
"""
WORKERS: Final = pytest.mark.parametrize("workers", ["1", "2"])


@contextlib.contextmanager
def shop(server: Server, where: Path, workers: str) -> Iterator[subprocess.Popen[bytes]]:
    """Workers in a process group of their own, as a terminal and a service manager have them."""
    (where / "shop.py").write_text(SHOP)
    command = [sys.executable, "-m", "headrace", "run", "shop:app", "--workers", workers, "--url", server.url]
    process = subprocess.Popen(command, cwd=where, env=environment(), stderr=subprocess.PIPE, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def send(process: subprocess.Popen[bytes], how: str, numbers: Sequence[signal.Signals]) -> None:
    for number in numbers:  # different ones, so that none stands for both
        if how == "kill":
            process.send_signal(number)
        else:
            os.killpg(process.pid, number)


def order(where: Path, seconds: float) -> None:
    """Publishes it, and returns when its handler is at work."""
    assert say("publish", "orders", f'{{"s":{seconds}}}').code == 0
    wait_for(lambda: any(where.glob("began-*")), "it is at work", 20)


@WORKERS
@pytest.mark.parametrize("how", ["terminal", "service manager", "kill"])
def test_once_lets_handlers_finish(tmp_path: Path, cli_server: Server, how: str, workers: str) -> None:
    with shop(cli_server, tmp_path, workers) as process:
        order(tmp_path, 1.0)
        send(process, how, [signal.SIGINT if how == "terminal" else signal.SIGTERM])
        _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert b"stopping now" not in err
    assert cli_server.command("GET", "handled") == b"1"


@WORKERS
@pytest.mark.parametrize("how", ["terminal", "kill"])
def test_twice_ends_them_now(tmp_path: Path, cli_server: Server, how: str, workers: str) -> None:
    with shop(cli_server, tmp_path, workers) as process:
        order(tmp_path, 60.0)
        send(process, how, [signal.SIGINT, signal.SIGTERM])
        _, err = process.communicate(timeout=10)
    assert process.returncode == 0
    assert b"stopping now" in err
    assert cli_server.command("GET", "handled") is None
    assert cli_server.command("XPENDING", "orders", "billing")[0] == 0, "handed back"


def test_a_killed_parent_after_a_first_signal_is_no_second_one(tmp_path: Path, cli_server: Server) -> None:
    with shop(cli_server, tmp_path, "2") as process:
        order(tmp_path, 2.0)
        os.killpg(process.pid, signal.SIGTERM)
        process.kill()
        wait_for(lambda: cli_server.command("GET", "handled") == b"1", "the child finishes what it is at work on", 20)

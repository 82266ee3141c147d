"""What becomes of the exit code when nobody reads what is printed, or when it cannot be shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping

import pytest

from tests.cli.shell import environment
from tests.servers import Server, require


def _unread(*words: str, stream: str, env: Mapping[str, str], stdin: bytes = b"") -> tuple[int, str]:
    """Runs a command line whose stdout, or stderr, has lost its reader; its exit code and what the other stream got."""
    reader, writer = os.pipe()
    os.close(reader)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: writer}
    command = [sys.executable, "-m", "headrace", *words]
    try:
        done = subprocess.run(command, input=stdin, env=environment(env), timeout=60, check=False, **streams)  # type: ignore[call-overload]  # the stubs cannot see into **streams
    finally:
        os.close(writer)
    return done.returncode, (done.stdout or b"").decode() + (done.stderr or b"").decode()


@pytest.mark.parametrize("buffered", [True, False])
def test_a_no_stays_a_no_although_nobody_reads_it(orders: Server, *, buffered: bool) -> None:
    """The exit code of `ledger` is its answer, whether the output breaks off in its midst or at its end."""
    env = {"HEADRACE_URL": orders.url, "PYTHONUNBUFFERED": "" if buffered else "1"}
    assert _unread("ledger", stream="stdout", env=env) == (0, "")
    [[held, *_]] = orders.command("XPENDING", "orders", "billing", "-", "+", 1)
    orders.command("XACK", "orders", "billing", held)
    for words in (("ledger",), ("ledger", "--json")):
        code, said = _unread(*words, stream="stdout", env=env)
        assert code == 1
        assert "Traceback" not in said
        assert _unread(*words, stream="stderr", env=env)[0] == 1
    assert _unread("tail", "orders", stream="stdout", env=env) == (0, "")


def test_doctor_says_no_to_nobody() -> None:
    """As `ledger` does."""
    require("valkey")
    with Server("valkey", appendfsync="everysec") as server:
        for unbuffered in ("", "1"):
            env = {"HEADRACE_URL": server.url, "PYTHONUNBUFFERED": unbuffered}
            assert _unread("doctor", stream="stdout", env=env) == (1, "")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("nosuch",), 2),
        (("tail", "nosuch"), 4),
        (("publish", "orders", "no JSON"), 2),
        (("publish", "orders", "--lines"), 2),
    ],
)
def test_a_failure_stays_one_although_nobody_reads_why(orders: Server, words: tuple[str, ...], code: int) -> None:
    assert _unread(*words, stream="stderr", env={"HEADRACE_URL": orders.url}, stdin=b"1\nno JSON\n") == (code, "")


def test_help_for_nobody() -> None:
    assert _unread("--help", stream="stdout", env={}) == (0, "")


def _shell(line: str, env: Mapping[str, str]) -> tuple[int, str, str]:
    done = subprocess.run(
        ["bash", "-c", line.replace("headrace", f"{sys.executable} -m headrace")],
        capture_output=True,
        env=environment(env),
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout.decode("latin-1"), done.stderr.decode()


def test_closed_streams_lose_what_is_written_to_them(orders: Server) -> None:
    """The command is done, and its exit code says how."""
    env = {"HEADRACE_URL": orders.url}
    assert _shell("headrace publish orders 7 >&-", env) == (0, "", "")
    assert orders.command("XLEN", "orders") == 8
    assert _shell("headrace publish orders 8 >&- 2>&-", env) == (0, "", "")
    assert _shell("headrace publish orders nope 2>&-", env) == (2, "", "")
    for command in (
        "topics",
        "ledger",
        "doctor",
        "tail orders",
        "dead list orders billing",
        "dead show orders billing --all",
    ):
        assert _shell(f"headrace {command} >&-", env) == (0, "", "")


def test_a_character_that_cannot_be_shown_is_escaped(orders: Server) -> None:
    """As JSON writes it, so that JSON stays JSON."""
    env = {"HEADRACE_URL": orders.url, "PYTHONIOENCODING": "latin-1"}
    text = "ü→𝄞" + "x" * 100
    orders.command("XADD", "orders", "*", "data", json.dumps(text, ensure_ascii=False))
    code, out, err = _shell("headrace tail orders --count 1", env)
    assert (code, err) == (0, "")
    assert '"ü\\u2192\\ud834\\udd1ex' in out
    assert out.endswith("x\\u2026\n")
    code, out, err = _shell("headrace tail orders --count 1 --json", env)
    assert (code, json.loads(out)["data"], err) == (0, text, "")

"""The command as a whole: help, version, exit codes, errors."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from headrace.version import VERSION
from tests.cli.shell import line_of, run, running, say
from tests.servers import Server, free_port

NO_SERVER_WORDS = (
    ("topics",),
    ("groups",),
    ("pending", "orders", "billing"),
    ("dead", "list", "orders", "billing"),
    ("tail", "orders"),
    ("ledger",),
    ("doctor",),
    ("publish", "orders", "{}"),
    ("replay", "orders", "billing", "--from", "-1h", "--to", "now"),
)


def test_version_is_quick() -> None:
    """The best of a few, because the machine may be busy."""
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        result = run("--version")
        seconds.append(time.perf_counter() - start)
        assert result == (0, f"headrace {VERSION}\n", "")
    assert min(seconds) < 0.150, (
        f"headrace --version took {min(seconds) * 1000:.0f} ms: import less in headrace/__init__.py"
    )


def test_help_names_every_command_and_exit_code() -> None:
    """The epilog is the reference of the exit codes."""
    result = say("--help")
    assert result.code == 0
    for word in (
        "run",
        "demo",
        "up",
        "publish",
        "tail",
        "topics",
        "groups",
        "pending",
        "dead",
        "replay",
        "ledger",
        "doctor",
    ):
        assert f"\n    {word} " in result.out
    for code in ("0 ", "1 ", "2 ", "3 ", "4 ", "70 ", "130 "):
        assert f"\n  {code}" in result.out


@pytest.mark.parametrize(
    "command",
    ["run", "demo", "up", "publish", "tail", "topics", "groups", "pending", "dead", "replay", "ledger", "doctor"],
)
def test_every_command_has_help(command: str) -> None:
    """`headrace COMMAND --help` ends well."""
    result = say(command, "--help")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"usage: headrace {command}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("nosuch",), "invalid choice: 'nosuch'"),
        (("tail",), "the following arguments are required: TOPIC"),
        (("topics", "--nosuch"), "unrecognized arguments: --nosuch"),
        (("dead", "list", "orders"), "the following arguments are required: GROUP"),
    ],
)
def test_wrong_usage(words: tuple[str, ...], said: str) -> None:
    """One sentence and where to find help."""
    result = say(*words)
    assert result.code == 2
    first, second = result.err.splitlines()
    assert first.startswith("headrace: ")
    assert said in first
    assert second.startswith("hint: headrace ")


def test_options_between_arguments(orders: Server) -> None:
    """They may stand anywhere; what comes after `--` is no option, and a value that is missing is said to be."""
    assert say("publish", "orders", "--key", "ann", '{"n":7}', "--id", "order-7").code == 0
    [event] = json.loads(f"[{say('tail', '--count', '1', 'orders', '--json').out}]")
    assert (event["attributes"]["key"], event["data"]) == ("ann", {"n": 7})
    assert len(json.loads(say("ledger", "orders", "--json", "billing").out)) == 1
    one, two = (letter["token"] for letter in json.loads(say("dead", "list", "orders", "--json", "billing").out))
    assert say("dead", "show", "orders", "billing", "--json", one).out.startswith(f'{{"token":"{one}"')
    assert say("dead", "replay", "orders", "--url", orders.url, "billing", one, "--json", two).code == 0
    assert say("publish", "orders", "--", "-1").code == say("publish", "orders", "-1").code == 0
    assert "data: not JSON" in say("publish", "orders", "--", "--raw").err
    assert "argument --key: expected one argument" in say("publish", "orders", "--raw", "{}", "--key").err
    assert "unrecognized arguments: --nosuch\n" in say("publish", "orders", "--nosuch", "{}").err


@pytest.mark.parametrize("words", NO_SERVER_WORDS)
def test_no_server(words: tuple[str, ...]) -> None:
    """One sentence, a hint, and the exit code for it; the password is not in it."""
    result = say(*words, "--url", f"redis://me:hunter2@127.0.0.1:{free_port()}")
    assert (result.code, result.out) == (3, "")
    assert result.err.startswith("headrace: redis://***@127.0.0.1:")
    assert "\nhint: " in result.err
    assert "hunter2" not in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("words", "screen"),
    [
        (
            ("topics", "--url", "http://me:hunter2@host"),
            "headrace: url: expected one that begins with redis://, rediss://, unix://, redis+cluster://, rediss+cluster://, redis+sentinel://, rediss+sentinel://, got 'http://***@host'\n-> 2",
        ),
        (
            ("topics", "--durability", "hope"),
            "headrace: durability: expected one of fsync, quorum, relaxed, got 'hope'\n-> 2",
        ),
        (
            ("tail", "two words"),
            "headrace: topic name: expected 1 to 128 of A-Z a-z 0-9 . _ -, got 'two words'\n-> 2",
        ),
        (
            ("pending", "orders", "billing", "--count", "none"),
            "headrace: number: expected 1 or more, got 'none'\n-> 2",
        ),
    ],
)
def test_wrong_configuration(words: tuple[str, ...], screen: str) -> None:
    """Each is one sentence that says what was expected."""
    assert say(*words).screen == screen


def test_password_that_is_wrong_is_not_shown() -> None:
    """The server's refusal has an exit code of its own."""
    with Server("valkey", tcp=True, requirepass="right") as server:
        result = say("topics", "--url", server.tcp_url.replace("//", "//me:hunter2@"))
    assert result.code == 4
    assert result.err.startswith("headrace: redis://***@127.0.0.1:")
    assert result.err.count("\n") == 1
    assert "hunter2" not in result.err


@pytest.mark.parametrize("idle", [True, False])
def test_reader_that_has_seen_enough(orders: Server, *, idle: bool) -> None:
    """A follower whose output nobody reads any more ends without a word, whether or not something more comes."""
    with running("tail", "orders", "--follow", env={"HEADRACE_URL": orders.url}) as process:
        assert "order-0" in line_of(process)
        assert process.stdout is not None
        process.stdout.close()
        if not idle:
            orders.command("XADD", "orders", "*", "data", "{}")
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_interrupted(orders: Server) -> None:
    """Ctrl-C ends a follower without a traceback."""
    with running("tail", "orders", "--follow", env={"HEADRACE_URL": orders.url}) as process:
        assert "order-0" in line_of(process)
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=20)
        assert (process.returncode, err) == (130, b"")

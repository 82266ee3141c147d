"""Workers and servers that are started from the command line."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest

from tests.cli.shell import line_of, run, running, say
from tests.servers import Server, require, wait_for

SHOP = """\
from headrace import Context, Headrace

app = Headrace()
orders = app.topic("orders", dict)

@orders.subscribe("billing")
async def bill(order: dict, ctx: Context) -> None:
    ctx.redis.incrby("revenue", order["n"])
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A directory with an app, and modules that are wrong in their ways."""
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "empty.py").write_text("from headrace import Headrace\napp = Headrace()\nnumber = 1\n")
    (tmp_path / "broken.py").write_text("import nosuchlibrary\n")
    (tmp_path / "failing.py").write_text("def start():\n    raise RuntimeError('no')\n\nstart()\n")
    (tmp_path / "unreadable.py").write_text("def (\n")
    (tmp_path / "fixed.py").write_text(SHOP.replace("Headrace()", "Headrace('redis://me:hunter2@elsewhere')"))
    (tmp_path / "misnamed.py").write_text(
        "from headrace import Headrace\napp = Headrace()\napp.topic('two words', dict)\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("shop",), "target: expected MODULE:ATTRIBUTE, got 'shop'; `headrace run shop:app`"),
        (("nosuch:app",), "target: no module 'nosuch' in "),
        (("no.such:app",), "target: no module 'no.such' in "),
        (("shop:nosuch",), "target: module shop has no 'nosuch'; its apps: app"),
        (("empty:number",), "target: empty:number is a int, expected a Headrace app; its apps: app"),
        (("empty:app",), "empty:app has no subscriptions"),
        (("broken:app",), "target: module broken cannot be imported: No module named 'nosuchlibrary'"),
        (("failing:app",), "target: module failing cannot be imported: RuntimeError: no"),
        (("unreadable:app",), "target: module unreadable cannot be imported: SyntaxError: "),
        (("misnamed:app",), "topic name: expected 1 to 128 of "),
        (("fixed:app", "--url", "redis://here"), "fixed:app names its own url: leave out --url"),
        (("shop:app", "--workers", "0"), "number: expected 1 or more, got '0'"),
        (("shop:app", "--durability", "hope"), "durability: expected one of fsync, quorum, relaxed, got 'hope'"),
    ],
)
def test_wrong_target(shop: Path, words: tuple[str, ...], said: str) -> None:
    """Each is one sentence, after the user's own traceback where their module failed."""
    result = run("run", *words, cwd=shop)
    assert (result.code, result.out) == (2, "")
    sentence = result.err.splitlines()[-1]
    assert sentence.startswith(f"headrace: {said}")
    assert "hunter2" not in result.err
    assert "importlib" not in result.err
    assert ("Traceback" in result.err) == (words[0] in {"broken:app", "failing:app"})


@pytest.mark.parametrize("workers", ["1", "2"])
def test_run_handles_and_stops(shop: Path, cli_server: Server, workers: str) -> None:
    """Started before there are events; SIGTERM ends it with 0 and everything handled."""
    with running("run", "shop:app", "--workers", workers, "--lanes", "7", "--url", cli_server.url, cwd=shop) as process:
        for n in range(1, 11):
            assert say("publish", "orders", f'{{"n":{n}}}').code == 0
        wait_for(lambda: cli_server.command("GET", "revenue") == b"55", "all are handled", 30)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert b"serving group billing of topic orders" in process.stderr.read()
    [group] = json.loads(say("ledger", "--json").out)
    assert (group["handled"], group["missing"]) == (10, 0)


def test_a_failure_is_one_line_of_the_log(shop: Path, cli_server: Server) -> None:
    """So that it can be searched by what operations.md says, also if its text is many lines long, as SQLAlchemy's is."""
    long = SHOP.replace("ctx.redis.incrby", 'raise ValueError("\\nno such table\\n[SQL: ...]\\n(Background: ...)") #')
    (shop / "long.py").write_text(long)
    with running("run", "long:app", "--url", cli_server.url, cwd=shop) as process:
        assert say("publish", "orders", "{}").code == 0
        assert process.stderr is not None
        line = next(line for line in process.stderr if b" failed (attempt 1): " in line).decode()
    assert re.search(r"failed \(attempt 1\): ValueError: no such table; again in \d+\.\d s\n$", line)


def test_run_replaces_a_killed_worker(shop: Path, cli_server: Server) -> None:
    """One of two processes is killed; the others go on and a new one comes."""
    with running("run", "shop:app", "--workers", "2", "--url", cli_server.url, cwd=shop) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

        def pids() -> set[str]:
            return set(children.read_text().split())

        wait_for(lambda: len(pids()) == 2, "two workers", 20)
        before = pids()
        os.kill(int(min(before)), signal.SIGKILL)
        wait_for(lambda: len(pids()) == 2 and pids() != before, "two workers again", 20)
        assert say("publish", "orders", '{"n":5}').code == 0
        wait_for(lambda: cli_server.command("GET", "revenue") == b"5", "it is handled", 30)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_embedded_server_is_the_default(tmp_path: Path) -> None:
    """Commands without a URL share the server of the project; `up` shows it and holds it."""
    require("valkey")
    env = {"HEADRACE_HOME": str(tmp_path / "home")}
    with running("up", "--json", env=env) as process:
        shown = json.loads(line_of(process))
        assert shown.keys() == {"url", "directory", "server", "pid"}
        assert shown["directory"] == str(tmp_path / "home")
        assert run("publish", "orders", "{}", env=env).code == 0
        topics = run("topics", "--json", "--url", shown["url"], env=env)
        assert [topic["topic"] for topic in json.loads(topics.out)] == ["orders"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    wait_for(lambda: not _runs(shown["pid"]), "the server stops when nobody uses it", 20)
    assert json.loads(run("topics", "--json", env=env).out)[0]["published"] == 1


def test_up_for_people(tmp_path: Path) -> None:
    """Where it is, what it is, how to end it."""
    require("valkey")
    with running("up", env={"HEADRACE_HOME": str(tmp_path / "home")}) as process:
        lines = [line_of(process) for _ in range(3)]
        assert lines[0].startswith("url: unix:///")
        assert lines[1] == f"directory: {tmp_path / 'home'}\n"
        assert lines[2].startswith("server: valkey ")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
        assert process.returncode == 0
        assert err.startswith(b"Programs of this project find it by themselves.")


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

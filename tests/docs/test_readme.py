"""The documentation is true: its Python is strictly typed and can be imported, its console sessions say what they show, its links lead
somewhere, and its tables agree with the code.

A `python` block whose first line is `# name.py` begins that file of its page; any other block goes on with the file before it. In a
`console` block each line after `$ ` is a command, and what follows is its output, but for what differs from run to run.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from headrace import errors, limits
from headrace.backends.redis import replies
from headrace.backends.redis.node import load_scripts
from tests.cli.shell import _FILTERS, environment
from tests.servers import Server, require
from tests.waiting import wait_until

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
_FENCE: Final = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Command(NamedTuple):
    line: str
    output: str


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    return [body for kind, body in _FENCE.findall(page.read_text(encoding="utf-8")) if kind == language]


def files(page: Path) -> dict[str, str]:
    """The Python files of a page."""
    out: dict[str, str] = {}
    name = f"{page.stem.replace('-', '_').lower()}_page.py"
    for body in blocks(page, "python"):
        first = re.match(r"# (\w+\.py)\n", body)
        if first:
            name = first[1]
        out[name] = out.get(name, "") + body
    return out


def write(page: Path, folder: Path) -> list[Path]:
    written = []
    for name, body in files(page).items():
        (folder / name).write_text(body, encoding="utf-8")
        written.append(folder / name)
    return written


def said(process: subprocess.CompletedProcess[str]) -> str:
    return process.stdout + process.stderr


WITH_PYTHON: Final = [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES if blocks(page, "python")]


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_is_strictly_typed(page: Path, tmp_path: Path) -> None:
    names = [str(path) for path in write(page, tmp_path)]
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--config-file",
        os.devnull,
        "--cache-dir",
        str(ROOT / ".mypy_cache" / "docs"),
        *names,
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, said(done)


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_can_be_imported_and_its_tests_pass(page: Path, tmp_path: Path) -> None:
    written = write(page, tmp_path)
    for path in written:
        if path.name.startswith("test_"):
            words = [
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:cacheprovider",
                "-c",
                os.devnull,
                "--rootdir",
                str(tmp_path),
                str(path),
            ]
        elif "asyncio.run(main())" in path.read_text():
            continue  # a program for a server: the console sessions run it
        else:
            words = ["-c", f"import {path.stem}"]
        done = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{path.name}: {said(done)}"


# Console sessions


def session(page: Path) -> list[Command]:
    out: list[Command] = []
    for body in blocks(page, "console"):
        for line in body.splitlines():
            if line.startswith("$ "):
                out.append(Command(line[2:], ""))
            else:
                out[-1] = Command(out[-1].line, out[-1].output + line + "\n")
    return out


def filtered(screen: str) -> list[str]:
    for pattern, word in _FILTERS:
        screen = pattern.sub(word, screen)
    return [line.strip() for line in screen.splitlines()]


class Terminal:
    """Runs the commands of a page, those that go on beside the others included."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder = folder
        self.env = environment({"HEADRACE_URL": server.url})
        self.running: list[subprocess.Popen[bytes]] = []

    def words(self, line: str) -> list[str]:
        program, *rest = shlex.split(line)
        assert program in ("headrace", "python"), line
        return [sys.executable, *(("-m", "headrace") if program == "headrace" else ()), *rest]

    def run(self, line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.words(line), cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=60, check=False
        )

    def ledger(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.run("headrace ledger --json").stdout or "[]")
        return found

    def settled(self) -> bool:
        groups = self.ledger()
        return bool(groups) and not any(
            g[state] for g in groups for state in ("unread", "pending", "delayed", "retrying")
        )

    def joined(self, workers: int) -> bool:
        groups = self.ledger()
        return bool(groups) and all(g["workers"] == workers for g in groups)

    def do(self, command: Command) -> None:
        if command.line.startswith("headrace run"):
            log = (self.folder / "workers.log").open("wb")
            self.running.append(
                subprocess.Popen(self.words(command.line), cwd=self.folder, env=self.env, stdout=log, stderr=log)
            )
            log.close()
            wait_until(lambda: self.joined(int(command.line.split()[-1])), "all workers have joined")
            return
        if self.running and "publish" not in command.line and "place.py" not in command.line:
            wait_until(self.settled, "every event is settled")
        done = self.run(command.line)
        assert filtered(said(done)) == filtered(command.output), f"$ {command.line}"
        assert done.returncode == 0, f"$ {command.line}"


@contextlib.contextmanager
def terminal(folder: Path, server: Server) -> Iterator[Terminal]:
    it = Terminal(folder, server)
    try:
        yield it
    finally:
        for process in it.running:
            process.terminate()
        for process in it.running:
            process.wait(40)


@pytest.mark.parametrize("page", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in PAGES if session(p)])
def test_console_sessions_say_what_they_show(page: Path, tmp_path: Path) -> None:
    require("valkey")
    write(page, tmp_path)
    with Server("valkey") as server, terminal(tmp_path, server) as it:
        for command in session(page):
            it.do(command)


# Links, style, tables


@pytest.mark.parametrize("page", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", _FENCE.sub("", page.read_text(encoding="utf-8"))):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target} does not exist"


@pytest.mark.parametrize(
    "page", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in PAGES if p.name != "performance.md"]
)
def test_one_sentence_per_line(page: Path) -> None:
    prose = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for line in prose.splitlines():
        if not line.startswith("|"):
            assert not re.search(r"[a-z`)][.?!] [A-Z]", line), (
                f"{page.relative_to(ROOT)}: two sentences on a line: {line}"
            )


def test_make_targets_exist() -> None:
    makefile = text("Makefile")
    for page in PAGES:
        for target in re.findall(r"\bmake ([a-z]+)\b", "\n".join(blocks(page, "sh"))):
            assert f"\n{target}:" in makefile, f"{page}: make {target}"


def test_every_command_and_option_is_in_the_reference() -> None:
    page = text("docs/reference/cli.md")

    def shown(*words: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "headrace", *words, "--help"],
            env=environment(),
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    commands = re.findall(r"^    ([a-z]+)  ", shown(), flags=re.MULTILINE)
    assert len(commands) >= 12
    for command in commands:
        assert f"`headrace {command}" in page or f"## headrace {command}" in page, command
        acts = ("list", "show", "replay", "drop") if command == "dead" else ("",)
        for act in acts:
            for option in re.findall(r"(?<![\w-])--[a-z-]+", shown(*filter(None, (command, act)))):
                assert f"`{option}" in page, f"headrace {command} {act}: {option}"


def test_every_error_is_in_the_reference() -> None:
    page = text("docs/reference/errors.md")
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, errors.HeadraceError):
            assert f"`{name}`" in page, name
    for codes, kind in replies._FAMILIES:
        for code in codes:
            assert re.search(rf"^\| `{code}` \| `{kind.__name__}` \|", page, flags=re.MULTILINE), (
                f"{code}: {kind.__name__}"
            )


def test_every_limit_is_in_the_reference_with_its_value() -> None:
    page = text("docs/reference/configuration.md")
    for name, value in vars(limits).items():
        if isinstance(value, int | float) and not name.startswith("_"):
            row = re.search(rf"^\| `{name}` \| ([\d,.]+) ", page, flags=re.MULTILINE)
            assert row is not None, f"{name} is not in the table"
            assert float(row[1].replace(",", "")) == value, f"{name}: the page says {row[1]}, it is {value}"


def test_every_script_is_in_the_reference() -> None:
    page = text("docs/reference/wire.md")
    for name, script in load_scripts().items():
        assert f"### {name}" in page, name
        flags = script.text.partition("\n")[0].removeprefix("#!lua").strip() or "none"
        assert re.search(rf"### {name}\n\n(?:[^#]*\n)?Flags: `?{re.escape(flags.removeprefix('flags='))}`?\.", page), (
            f"{name}: flags {flags}"
        )


ACL_SHOP: Final = """
import asyncio
from msgspec import Struct
from headrace import Context, Headrace, Reject

app = Headrace()

class Order(Struct):
    n: int

orders, invoices = app.topic("orders", Order), app.topic("invoices", Order)

@orders.subscribe("billing")
async def bill(order: Order, ctx: Context) -> None:
    if order.n == 7:
        raise Reject("seven")
    if order.n == 8 and ctx.attempt == 1:
        raise ValueError("again")
    ctx.publish(invoices, order, delay_s=0.1)
    ctx.redis.hincrby("revenue", "sum", order.n)

async def main() -> None:
    async with app:
        await orders.publish_many(Order(n) for n in range(10))
        await orders.publish(Order(100), id="a", delay_s=0.1)

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_the_access_rights_suffice(server: Server, tmp_path: Path) -> None:
    """Users with exactly the rights of the reference can work and operate; nothing in the log of any of them is refused."""
    rules = [
        re.sub(r"\s+", " ", rule)
        for block in blocks(ROOT / "docs/reference/wire.md", "text")
        for rule in block.split("\n\n")
        if rule.startswith("ACL SETUSER")
    ]
    assert len(rules) == 2
    for rule in rules:
        server.command(*rule.split())
    (tmp_path / "shop.py").write_text(ACL_SHOP)
    users = {
        name: environment({"HEADRACE_URL": server.url.replace("unix://", f"unix://{name}:secret@")})
        for name in ("worker", "operator")
    }

    def say(user: str, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env=users[user],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {said(done)}"
        return done.stdout

    def ledger() -> dict[str, int]:
        found: list[dict[str, int]] = json.loads(say("operator", "-m", "headrace", "ledger", "--json"))
        return found[0] if found else {}

    with (tmp_path / "workers.log").open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "headrace", "run", "shop:app"],
            cwd=tmp_path,
            env=users["worker"],
            stdout=log,
            stderr=log,
        )
    try:
        say("worker", "shop.py")
        wait_until(lambda: ledger().get("handled") == 10, "all but one are handled")
        assert ledger()["missing"] == 0
        token = json.loads(say("operator", "-m", "headrace", "dead", "list", "orders", "billing", "--json"))[0]["token"]
        for words in (
            ("topics",), ("groups",), ("pending", "orders", "billing"), ("tail", "orders"), ("doctor",),
            ("dead", "show", "orders", "billing", token), ("dead", "replay", "orders", "billing", token),
            ("replay", "orders", "billing", "--from", "-1h", "--to", "now"),
        ):  # fmt: skip
            say("operator", "-m", "headrace", *words)
    finally:
        worker.terminate()
        worker.wait(40)
    assert "NOPERM" not in (tmp_path / "workers.log").read_text()
    say("operator", "-m", "headrace", "groups", "orders", "--reset", "billing", "--to", "latest", "--yes")
    denied = [dict(zip(entry[::2], entry[1::2], strict=True))[b"object"] for entry in server.command("ACL", "LOG")]
    assert set(denied) <= {b"client|setinfo"}


ENTRIES_SHOP: Final = """
from msgspec import Struct
from headrace import Headrace

app = Headrace()

class Order(Struct):
    id: str

orders = app.topic("orders", Order)

@orders.subscribe("billing")
async def bill(order: Order) -> None: ...
"""


def test_entries_of_other_tools_are_events_and_a_group_can_be_removed(server: Server, tmp_path: Path) -> None:
    """As the reference says of a plain XADD, and the guide to operations of a group that nobody serves any more."""
    (tmp_path / "shop.py").write_text(ENTRIES_SHOP)
    server.command("XADD", "orders", "*", "data", '{"id":"o-1"}')
    server.command("XADD", "orders", "*", "data", b'{"id":\xff', "colour", "red")
    server.command("XADD", "orders", "*", "order", "o-3")
    with terminal(tmp_path, server) as it:
        it.do(Command("headrace run shop:app --workers 1", ""))
        wait_until(
            lambda: it.ledger()[0]["handled"] == 1 and it.ledger()[0]["dead"] == 2, "one is handled, two are dead"
        )
        letters = json.loads(it.run("headrace dead list orders billing --json").stdout)
        assert [letter["reason"].partition(":")[0] for letter in letters] == ["Undecodable"] * 2
        assert server.command("XRANGE", "{orders}:dead:billing", "-", "+")[0][1][-4:] == [
            b"data",
            b'{"id":\xff',
            b"colour",
            b"red",
        ]
        server.command("XGROUP", "CREATE", "orders", "old-group", "0")
        assert {group["group"] for group in it.ledger()} == {"billing", "old-group"}
        (removal,) = [b for b in blocks(ROOT / "docs/guides/operations.md", "sh") if "XGROUP DESTROY" in b]
        for line in removal.splitlines():
            program, *words = shlex.split(line)
            assert program == "redis-cli"
            server.command(*words)
        assert {group["group"] for group in it.ledger()} == {"billing"}
        assert not [key for key in server.command("KEYS", "*") if b"old-group" in key]

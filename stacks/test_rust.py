"""The Rust services: compiled, linted and tested as their users do it, and beside Python in the same topics and groups."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from headrace import Headrace
from stacks.conftest import ROOT, run
from tests.absent import not_run
from tests.secure import certificate, secured
from tests.servers import Server, require

pytestmark = pytest.mark.timeout(1_800)
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / ".cargo-target"))
"""Shared by all, so that what they have in common is compiled once."""
CARGO = {"CARGO_TARGET_DIR": str(TARGET), "CARGO_PROFILE_DEV_DEBUG": "0", "CARGO_INCREMENTAL": "0"}
"""Without what only debuggers and second builds need: compiling is most of the time that this takes."""
COUNT = 3_000
ANSWERS = """
from msgspec import Struct
from headrace import Context, Headrace

app = Headrace()


class OrderAccepted(Struct):
    order_id: str


accepted = app.topic("orders.accepted", OrderAccepted)


@accepted.subscribe("till")
async def book(answer: OrderAccepted, ctx: Context) -> None:
    ctx.redis.hincrby("booked", answer.order_id, 1)
"""


ORDERED = """
quality:
  events:
    type: redis-streams
    why: the orders of a customer are handled in their order
    streams:
      - name: orders
        partitions: 8
        key: customer
        retention: {maxage: 1d}
        group: desk
        consumer: {ordered: true, deadLetter: "{orders}:dead:desk"}
      - {name: orders.accepted, role: [produce], retention: {maxage: 1d}}
"""
PEER = """
from msgspec import Struct
from headrace import Context, Headrace, Retry

app = Headrace(lease_s=2)


class OrderPlaced(Struct):
    order_id: str
    customer: str
    amount_cents: int


class OrderAccepted(Struct):
    order_id: str
    customer: str
    amount_cents: int


orders = app.topic("orders", OrderPlaced, key="customer", partitions=8)
accepted = app.topic("orders.accepted", OrderAccepted, key="customer")


@orders.subscribe("desk", ordered=True, retry=Retry(first_s=0.05))
async def accept(order: OrderPlaced, ctx: Context) -> None:
    if order.order_id.endswith("7") and ctx.attempt < 2:
        raise RuntimeError("not yet")
    ctx.redis.hincrby("revenue", order.customer, order.amount_cents)
    ctx.publish(accepted, OrderAccepted(order.order_id, order.customer, order.amount_cents))
"""


class OrderPlaced(Struct):  # noqa: D101 - as the service has it
    order_id: str
    customer: str
    amount_cents: int


@pytest.fixture(scope="session", autouse=True)
def crates(tmp_path_factory: pytest.TempPathFactory, tool: Path) -> None:
    """The compiler and all crates are here, or can be had; without them no test of Rust runs, and the end says so."""
    for words in (["rustc"], ["cargo", "fmt"], ["cargo", "clippy"]):
        name = "-".join(words)
        try:
            said = subprocess.run([*words, "--version"], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            not_run(name, "not on PATH; install Rust with rustfmt and clippy (rustup does)")
        if said.returncode:
            not_run(name, (said.stderr.strip() or said.stdout.strip()).splitlines()[0])
    for kind in ("rust-axum", "rust-grpc"):
        service = generated(tool, tmp_path_factory.mktemp(kind), kind)
        said = subprocess.run(["cargo", "fetch"], cwd=service, capture_output=True, text=True, timeout=600, check=False)
        if said.returncode and any(words in said.stderr for words in ("failed to download", "network failure")):
            not_run("crates", f"`cargo fetch` cannot download them: {said.stderr.strip().splitlines()[-1].strip()}")
        assert said.returncode == 0, said.stderr


def generated(tool: Path, folder: Path, kind: str, *, ordered: bool = False) -> Path:
    name, options = "shop", list[str]()
    if ordered:
        (folder / "desk.yaml").write_text(ORDERED)
        name, options = "desk", ["--stack", "desk.yaml"]
    run([tool, "new", name, "--type", kind, *options], folder)
    return folder / name


@pytest.mark.parametrize(("kind", "ordered"), [("rust-axum", False), ("rust-axum", True), ("rust-grpc", False)])
def test_a_generated_service_passes_its_tests_the_first_time(
    tmp_path: Path, tool: Path, kind: str, *, ordered: bool
) -> None:
    shop = generated(tool, tmp_path, kind, ordered=ordered)
    tested = run(["make", "check", "test"], shop, **CARGO)
    assert "test result: ok" in tested
    assert "NOT RUN" not in tested, tested
    read = [p for p in (shop / "src").rglob("*.rs") if "headrace" not in p.relative_to(shop).parts]
    assert sum(len(path.read_text().splitlines()) for path in read) <= 900, "lines of Rust that a person must read"
    assert json.loads(run([tool, "stack", "lint", "--format", "json"], shop)) == []


def wait(done: Callable[[], bool], limit_s: float) -> None:
    """Until then, or as long as it is waited for; what is wrong is said by what is looked at next."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end and not done():
        time.sleep(0.2)


class Stage:
    """A server, services in Rust, and a worker in Python."""

    def __init__(self, server: Server, binary: Path, folder: Path) -> None:
        self.server, self.binary, self.folder = server, binary, folder
        self.processes: list[subprocess.Popen[bytes]] = []
        (folder / "till.py").write_text(ANSWERS)
        (folder / "peer.py").write_text(PEER)

    def start(self, words: list[str], **environment: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            words,
            cwd=self.folder,
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.processes.append(process)
        return process

    def rust(self, **environment: str) -> subprocess.Popen[bytes]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        own = {"APP_REDIS_URL": self.server.url, "APP_HTTP_ADDR": address, "APP_LEASE_SECONDS": "2"}
        return self.start([str(self.binary)], **own | environment)

    def python(self, module: str) -> subprocess.Popen[bytes]:
        return self.start([sys.executable, "-m", "headrace", "run", f"{module}:app"], HEADRACE_URL=self.server.url)

    def publish(self, order: str, *options: str) -> None:
        options = options or ("--type", "OrderPlaced")
        words = ["-m", "headrace", "publish", "orders", order, *options, "--url", self.server.url]
        run([sys.executable, *words], self.folder)

    def headrace(self, *words: str) -> Any:
        said = run([sys.executable, "-m", "headrace", *words, "--url", self.server.url, "--json"], self.folder)
        return json.loads(said)

    def end(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGKILL)
            process.wait()


@pytest.fixture
def stage(request: pytest.FixtureRequest, tmp_path: Path, tool: Path) -> Iterator[Stage]:
    service = generated(tool, tmp_path, "rust-axum", ordered=getattr(request, "param", False))
    run(["cargo", "build"], service, **CARGO)
    with Server("redis", tcp=True) as server:
        stage = Stage(server, TARGET / "debug" / service.name, tmp_path)
        try:
            yield stage
        finally:
            stage.end()


def test_python_publishes_rust_answers_and_python_handles_the_answer(stage: Stage) -> None:
    """Workers of both are killed on the way; each order is answered and booked once, and one ledger says so."""

    async def publish() -> None:
        async with Headrace(stage.server.url) as app:
            orders = app.topic("orders", OrderPlaced, key="customer")
            for first in range(0, COUNT, 100):
                await orders.publish_many(OrderPlaced(f"o-{n}", f"c-{n % 7}", 1) for n in range(first, first + 100))
                if first == COUNT // 2:
                    victims[0].kill()
                    victims[1].kill()
                    stage.python("till")
                await asyncio.sleep(0.05)

    victims = [stage.rust(), stage.python("till")]
    stage.rust()
    time.sleep(1.0)
    asyncio.run(publish())
    wait(lambda: stage.server.command("HLEN", "booked") >= COUNT, 90)
    flat = stage.server.command("HGETALL", "booked")
    booked = dict(zip(flat[::2], flat[1::2], strict=True))
    assert booked == {b"o-%d" % n: b"1" for n in range(COUNT)}
    time.sleep(0.5)
    ledgers = {(one["topic"], one["group"]): one for one in stage.headrace("ledger")}
    for group in (("orders", "shop"), ("orders.accepted", "till")):
        assert (ledgers[group]["published"], ledgers[group]["handled"], ledgers[group]["missing"]) == (COUNT, COUNT, 0)
    assert int(stage.server.command("HGET", "revenue", "c-0")) == len(range(0, COUNT, 7))


@pytest.mark.parametrize("stage", [True], indirect=True)
def test_one_ordered_group_has_workers_in_both_languages(stage: Stage) -> None:
    """They share its partitions; one of each is killed, one stops, one is silent, the server is killed, the topic grows."""

    async def publish() -> None:
        async with Headrace(stage.server.url) as app:
            orders = app.topic("orders", OrderPlaced, key="customer", partitions=8)
            for first in range(0, COUNT, 100):
                await orders.publish_many(OrderPlaced(f"o-{n}", f"c-{n % 50}", 1) for n in range(first, first + 100))
                await asyncio.to_thread(faults.get(first, time.monotonic))
                await asyncio.sleep(0.1)

    def owners(partitions: int) -> list[int]:
        found = [stage.server.command("HGET", f"{{orders.{n}}}:group:desk", "owner") for n in range(partitions)]
        return sorted(Counter(found).values())

    def silent() -> None:
        workers[2].send_signal(signal.SIGSTOP)
        time.sleep(3.0)
        workers[2].send_signal(signal.SIGCONT)

    def again(n: int, how: signal.Signals) -> None:
        workers[n].send_signal(how)
        assert workers[n].wait(20) == (0 if how == signal.SIGTERM else -how)
        workers[n] = stage.rust() if n % 2 else stage.python("peer")

    def one_of_each() -> None:
        again(0, signal.SIGKILL)
        again(1, signal.SIGKILL)

    workers = [stage.python("peer"), stage.rust(), stage.python("peer"), stage.rust()]
    faults: dict[int, Callable[[], object]] = {
        300: lambda: again(0, signal.SIGKILL),
        600: lambda: again(1, signal.SIGKILL),
        900: silent,
        1_200: lambda: again(3, signal.SIGTERM),
        1_500: stage.server.restart,
        1_800: lambda: again(2, signal.SIGTERM),
        2_100: lambda: run([sys.executable, "-m", "headrace", "partitions", "orders", "16", "--url", stage.server.url], ROOT),
        2_400: one_of_each,
    }  # fmt: skip
    wait(lambda: owners(8) == [2, 2, 2, 2], 20)
    assert owners(8) == [2, 2, 2, 2]
    asyncio.run(publish())
    wait(lambda: stage.server.command("XLEN", "orders.accepted") >= COUNT, 90)
    wait(lambda: owners(16) == [4, 4, 4, 4], 30)
    assert owners(16) == [4, 4, 4, 4]
    answers = stage.server.command("XRANGE", "orders.accepted", "-", "+")
    got: dict[bytes, list[int]] = {}
    for _entry, fields in answers:
        data = dict(zip(fields[::2], fields[1::2], strict=True))
        got.setdefault(data[b"key"], []).append(int(json.loads(data[b"data"])["order_id"][2:]))
    assert got == {b"c-%d" % c: list(range(c, COUNT, 50)) for c in range(50)}
    assert {int(value) for value in stage.server.command("HVALS", "revenue")} == {COUNT // 50}
    (ledger,) = (one for one in stage.headrace("ledger") if one["group"] == "desk")
    assert (ledger["published"], ledger["handled"], ledger["missing"]) == (COUNT, COUNT, 0)


@pytest.mark.parametrize("stage", [False, True], indirect=True, ids=["shared", "ordered"])
def test_no_event_is_passed_over_for_what_it_says_of_its_type(stage: Stage) -> None:
    """The topic has one type, so that whatever is published to it is of that type, or a dead letter: as in Python."""
    stage.rust()
    wait(lambda: bool(stage.server.command("HGET", "headrace:topics", "orders")), 30)
    for options in (["--key", "ann"], ["--key", "ann", "--type", "Renamed"]):
        for amount in ("5", "-4", '"x"'):
            stage.publish(f'{{"order_id": "o-1", "customer": "ann", "amount_cents": {amount}}}', *options)

    def ledger() -> tuple[int, int, int]:
        (one,) = (one for one in stage.headrace("ledger") if one["topic"] == "orders")
        return one["handled"], one["dead"], one["missing"]

    wait(lambda: ledger() == (2, 4, 0), 30)
    assert ledger() == (2, 4, 0)
    assert stage.server.command("HGET", "revenue", "ann") == b"10"


def test_a_server_that_may_lose_events_is_refused_unless_that_is_accepted(stage: Stage) -> None:
    stage.server.command("CONFIG", "SET", "appendfsync", "everysec")
    assert stage.rust().wait(30) == 1
    assert stage.server.command("DBSIZE") == 0
    stage.rust(APP_DURABILITY="relaxed")
    wait(lambda: bool(stage.server.command("EXISTS", "{orders}:group:shop")), 30)
    assert stage.server.command("EXISTS", "{orders}:group:shop") == 1


def test_a_service_speaks_tls(tmp_path: Path, tool: Path) -> None:
    require("redis")
    service = generated(tool, tmp_path, "rust-axum")
    run(["cargo", "build", "--features", "tls"], service, **CARGO)
    authority = certificate(tmp_path, "DNS:localhost")
    with secured(authority) as (server, url):
        stage = Stage(server, TARGET / "debug" / "shop", tmp_path)
        stranger = certificate(tmp_path, "DNS:stranger")
        try:
            stage.rust(APP_REDIS_URL=url.partition("?")[0], SSL_CERT_FILE=str(stranger))
            time.sleep(1.0)
            assert server.command("DBSIZE") == 0, "a server that cannot prove who it is gets nothing"
            stage.rust(APP_REDIS_URL=url.partition("?")[0], SSL_CERT_FILE=str(authority))
            stage.publish('{"order_id": "o-1", "customer": "ann", "amount_cents": 5}')
            wait(lambda: server.command("HGET", "revenue", "ann") == b"5", 30)
            assert server.command("HGET", "revenue", "ann") == b"5"
        finally:
            stage.end()


def test_the_command_line_operates_the_groups_of_a_rust_service(stage: Stage) -> None:
    stage.rust()
    stage.publish('{"order_id": "bad", "customer": "ann", "amount_cents": 0}')
    wait(lambda: bool(stage.server.command("XLEN", "{orders}:dead:shop")), 30)
    (letter,) = stage.headrace("dead", "list", "orders", "shop")
    assert "expected more than 0" in letter["reason"]
    (group,) = stage.headrace("groups", "orders")
    assert (group["group"], group["dead"]) == ("shop", 1)
    stage.headrace("dead", "replay", "orders", "shop", "--all")
    end, again = time.monotonic() + 30, list[Any]()
    while time.monotonic() < end and (not again or again[0]["token"] == letter["token"]):
        again = stage.headrace("dead", "list", "orders", "shop")
        time.sleep(0.1)
    assert again[0]["token"] != letter["token"], "it was handled again, and failed again"
    (group,) = stage.headrace("ledger", "orders", "shop")
    assert (group["published"], group["dead"], group["missing"]) == (1, 1, 0)

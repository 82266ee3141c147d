"""The Rust services: compiled, linted and tested as their users do it, and beside Python in the same topics and groups."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from headrace import Headrace
from stacks.conftest import ROOT, run
from tests.servers import Server

pytestmark = [
    pytest.mark.timeout(1_800),
    pytest.mark.skipif(
        shutil.which("cargo") is None, reason="NOT RUN: Rust services; install cargo, rustfmt and clippy"
    ),
]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / ".cargo-target"))
"""Shared by all, so that what they have in common is compiled once."""
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


class OrderPlaced(Struct):  # noqa: D101 - as the service has it
    order_id: str
    customer: str
    amount_cents: int


def generated(tool: Path, folder: Path, kind: str) -> Path:
    run([tool, "new", "shop", "--type", kind], folder)
    return folder / "shop"


@pytest.mark.parametrize("kind", ["rust-axum", "rust-grpc"])
def test_a_generated_service_passes_its_tests_the_first_time(tmp_path: Path, tool: Path, kind: str) -> None:
    shop = generated(tool, tmp_path, kind)
    tested = run(["make", "check", "test"], shop, CARGO_TARGET_DIR=str(TARGET))
    assert "test result: ok" in tested
    assert "NOT RUN" not in tested, tested
    read = [p for p in (shop / "src").rglob("*.rs") if "headrace" not in p.relative_to(shop).parts]
    assert sum(len(path.read_text().splitlines()) for path in read) <= 900, "lines of Rust that a person must read"
    assert json.loads(run([tool, "stack", "lint", "--format", "json"], shop)) == []


class Stage:
    """A server, services in Rust, and a worker in Python."""

    def __init__(self, server: Server, binary: Path, folder: Path) -> None:
        self.server, self.binary, self.folder = server, binary, folder
        self.processes: list[subprocess.Popen[bytes]] = []
        (folder / "till.py").write_text(ANSWERS)

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

    def shop(self) -> subprocess.Popen[bytes]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        return self.start(
            [str(self.binary)], APP_REDIS_URL=self.server.url, APP_HTTP_ADDR=address, APP_LEASE_SECONDS="2"
        )

    def till(self) -> subprocess.Popen[bytes]:
        return self.start([sys.executable, "-m", "headrace", "run", "till:app"], HEADRACE_URL=self.server.url)

    def headrace(self, *words: str) -> Any:
        said = run([sys.executable, "-m", "headrace", *words, "--url", self.server.url, "--json"], self.folder)
        return json.loads(said)

    def end(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGKILL)
            process.wait()


@pytest.fixture
def stage(tmp_path: Path, tool: Path) -> Iterator[Stage]:
    shop = generated(tool, tmp_path, "rust-axum")
    run(["cargo", "build"], shop, CARGO_TARGET_DIR=str(TARGET))
    with Server("redis", tcp=True) as server:
        stage = Stage(server, TARGET / "debug" / "shop", tmp_path)
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
                    stage.till()
                await asyncio.sleep(0.05)

    victims = [stage.shop(), stage.till()]
    stage.shop()
    time.sleep(1.0)
    asyncio.run(publish())
    end = time.monotonic() + 90
    while time.monotonic() < end and stage.server.command("HLEN", "booked") < COUNT:
        time.sleep(0.2)
    flat = stage.server.command("HGETALL", "booked")
    booked = dict(zip(flat[::2], flat[1::2], strict=True))
    assert booked == {b"o-%d" % n: b"1" for n in range(COUNT)}
    time.sleep(0.5)
    ledgers = {(one["topic"], one["group"]): one for one in stage.headrace("ledger")}
    for group in (("orders", "shop"), ("orders.accepted", "till")):
        assert (ledgers[group]["published"], ledgers[group]["handled"], ledgers[group]["missing"]) == (COUNT, COUNT, 0)
    assert int(stage.server.command("HGET", "revenue", "c-0")) == len(range(0, COUNT, 7))


def test_the_command_line_operates_the_groups_of_a_rust_service(stage: Stage) -> None:
    stage.shop()
    bad = '{"order_id": "bad", "customer": "ann", "amount_cents": 0}'
    words = [sys.executable, "-m", "headrace", "publish", "orders", "--type", "OrderPlaced", "--url", stage.server.url]
    subprocess.run([*words[:5], bad, *words[5:]], check=True)
    end = time.monotonic() + 30
    while time.monotonic() < end and not stage.server.command("XLEN", "{orders}:dead:shop"):
        time.sleep(0.1)
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

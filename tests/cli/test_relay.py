"""`headrace relay` as a process of its own, beside a database that crashes."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.cli.shell import environment, say
from tests.postgres import Postgres
from tests.servers import Server, require
from tests.waiting import wait_until

SHOP = """
import sys
from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from headrace import Headrace
from headrace.once import Outbox

engine = create_async_engine("postgresql+asyncpg://{address}")
app = Headrace("{url}", outbox=Outbox(engine))


class Order(Struct):
    id: int


orders = app.topic("orders", Order)


async def place(first: int, count: int) -> None:
    async with AsyncSession(engine) as session, session.begin():
        for n in range(first, first + count):
            await orders.publish(Order(n), sql=session)


if __name__ == "__main__":
    import asyncio

    asyncio.run(place(int(sys.argv[1]), int(sys.argv[2])))
"""


def _until(lines: Iterable[str], word: str) -> str:
    """The first line with this word."""
    return next(line for line in lines if word in line)


def test_it_sends_until_it_is_stopped_and_survives_its_database(tmp_path: Path) -> None:
    require("valkey")
    with Postgres() as postgres, Server("valkey") as server:
        (tmp_path / "shop.py").write_text(SHOP.format(address=postgres.address, url=server.url))
        assert say("sql", "init", f"postgresql://{postgres.address}").code == 0
        words = [sys.executable, "-m", "headrace", "relay", "shop:app"]
        server.kill()  # it is waited for
        relay = subprocess.Popen(words, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True)
        try:
            assert relay.stderr is not None
            assert "connecting: " in relay.stderr.readline()
            server.start()
            outbox = f"headrace_outbox in postgresql+asyncpg://{postgres.address}"
            assert f" INFO headrace: relaying the outbox {outbox}; topics: orders\n" in _until(relay.stderr, "relaying")
            for n in range(3):
                subprocess.run(
                    [sys.executable, "shop.py", str(100 * n), "100"], cwd=tmp_path, env=environment(), check=True
                )
                wait_until(lambda n=n: server.command("XLEN", "orders") == 100 * n + 100, "they are sent")  # type: ignore[misc]
                postgres.kill()
                postgres.start()
        finally:
            relay.send_signal(signal.SIGTERM)
            _, said = relay.communicate(timeout=20)
        assert relay.returncode == 0, said
        numbers = [int(fields[-1].split(b":")[1][:-1]) for _, fields in server.command("XRANGE", "orders", "-", "+")]
        assert numbers == list(range(300))


def test_an_app_without_an_outbox(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text("from headrace import Headrace\napp = Headrace('redis://127.0.0.1:1')\n")
    words = [sys.executable, "-m", "headrace", "relay", "plain:app"]
    said = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert (said.returncode, "plain:app has no outbox" in said.stderr) == (2, True), said

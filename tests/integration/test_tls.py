"""Over TLS: everything as without, through a server that is killed; and a server that is not who it says it is gets nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace import Context, Headrace, NotConnected
from headrace.runtime.signals import Stop
from headrace.runtime.worker import serve
from tests.secure import certificate, secured, watched
from tests.servers import Server, require
from tests.waiting import wait_until, wait_until_async

COUNT = 600


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[tuple[Server, str]]:
    """A server that speaks TLS at a port, and its address. The embedded Valkey is built without TLS."""
    require("redis")
    with secured(certificate(tmp_path, "DNS:localhost")) as server_and_url:
        yield server_and_url


@pytest.fixture
def of_cluster(tmp_path: Path) -> Iterator[tuple[Server, str]]:
    """The same of a Cluster's only primary."""
    require("redis")
    file = certificate(tmp_path, "DNS:localhost", "IP:127.0.0.1")
    with secured(file, cluster_enabled="yes", tls_cluster="yes") as (server, url):
        server.command("CLUSTER", "ADDSLOTSRANGE", 0, 16_383)
        wait_until(lambda: b"cluster_state:ok" in server.command("CLUSTER", "INFO"), "the Cluster is whole")
        yield server, url.replace("rediss://", "rediss+cluster://")


@pytest.fixture
def behind_sentinel(tmp_path: Path) -> Iterator[tuple[Server, str]]:
    """The same of a primary that a sentinel names, which speaks TLS, too."""
    require("redis")
    file = certificate(tmp_path, "DNS:localhost", "IP:127.0.0.1")
    with secured(file) as (server, url), watched(file, url) as found:
        yield server, found


@pytest.mark.parametrize("where", ["secure", "of_cluster", "behind_sentinel"])
def test_events_are_handled_once_though_the_server_is_killed(request: pytest.FixtureRequest, where: str) -> None:
    server, url = request.getfixturevalue(where)

    async def seen_all() -> bool:
        return bool(server.command("HLEN", "{orders}:seen") == COUNT)

    async def run() -> None:
        async with Headrace(url, lease_s=1.0) as app:
            orders = app.topic("orders", int)

            @orders.subscribe("g")
            async def count(n: int, ctx: Context) -> None:
                ctx.redis.hincrby("{orders}:seen", str(n), 1)

            stop = Stop()
            worker = asyncio.ensure_future(serve(app, stop))
            for first in range(0, COUNT, 100):
                await orders.publish_many(range(first, first + 100))
                if first == COUNT // 2:
                    server.kill()
                    server.start()
            await wait_until_async(seen_all, "all are handled")
            stop.ask()
            await worker
        assert set(server.command("HVALS", "{orders}:seen")) == {b"1"}

    asyncio.run(run())


@pytest.mark.parametrize(("wrong", "says"), [("authority", "verify failed"), ("name", "not valid for|doesn't match")])
def test_a_server_that_cannot_prove_who_it_is_gets_nothing(
    secure: tuple[Server, str], tmp_path: Path, wrong: str, says: str
) -> None:
    server, url = secure
    other = certificate(tmp_path, "DNS:other")
    old, new = ("localhost.pem", other.name) if wrong == "authority" else ("localhost:", "127.0.0.1:")
    url = url.replace(old, new)

    async def run() -> None:
        async with Headrace(url) as app:
            await app.topic("orders", int).publish(1)

    with pytest.raises(NotConnected, match=says):
        asyncio.run(run())
    assert server.command("DBSIZE") == 0

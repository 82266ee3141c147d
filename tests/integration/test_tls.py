"""Over TLS: everything as without, through a server that is killed; and a server that is not who it says it is gets nothing."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from headrace import Context, Headrace, NotConnected
from headrace.runtime.signals import Stop
from headrace.runtime.worker import serve
from tests.absent import not_run
from tests.servers import Server, free_port, require
from tests.waiting import wait_until, wait_until_async

COUNT = 600


def certificate(folder: Path, *names: str) -> Path:
    """One that vouches for itself, of a server of these names, with its key beside it."""
    if shutil.which("openssl") is None:
        not_run("openssl", "makes the certificates of the tests of TLS")
    file = folder / f"{names[0].partition(':')[2]}.pem"
    words = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    files = ["-keyout", str(file.with_suffix(".key")), "-out", str(file), "-subj", "/CN=test"]
    subprocess.run(
        ["openssl", "req", *words, *files, "-addext", f"subjectAltName={','.join(names)}"],
        check=True,
        capture_output=True,
    )
    return file


@contextmanager
def secured(file: Path, **settings: Any) -> Iterator[tuple[Server, str]]:
    port = free_port()
    keys = {"tls_cert_file": file, "tls_key_file": file.with_suffix(".key"), "tls_ca_cert_file": file}
    settings |= {name: str(path) for name, path in keys.items()}
    with Server("redis", tls_port=port, tls_auth_clients="no", **settings) as server:
        yield server, f"rediss://localhost:{port}?ssl_ca_certs={file}"


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


@pytest.mark.parametrize("where", ["secure", "of_cluster"])
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

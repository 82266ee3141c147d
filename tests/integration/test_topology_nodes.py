"""Nodes of a Cluster that have moved to other addresses, and nodes that serve nothing yet."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

from headrace import NotConnected
from headrace.backends.redis.client import Client
from headrace.settings import Settings
from headrace.testing.faults import Proxy
from tests.servers import Server, require
from tests.waiting import wait_until


@contextmanager
def node(*, slots: bool = True) -> Iterator[Server]:
    """A Cluster of one node."""
    require("valkey")
    with Server("valkey", tcp=True, cluster_enabled="yes") as server:
        if slots:
            server.command("CLUSTER", "ADDSLOTSRANGE", 0, 16_383)
            wait_until(lambda: b"cluster_state:ok" in server.command("CLUSTER", "INFO"), "the Cluster is up")
        yield server


async def answered(client: Client, key: str, value: str) -> None:
    """Returns when the server of the key is found again."""
    async with asyncio.timeout(20):
        while True:
            try:
                assert await client.command("SET", key, value) == b"OK"
                return
            except NotConnected:
                await asyncio.sleep(0.02)


def test_a_node_that_comes_back_at_another_address_is_found_by_the_name_in_the_url() -> None:
    """As in Kubernetes: the name, which here is a proxy, leads to the new address."""

    async def play(first: Server, second: Server) -> None:
        with Proxy(first.tcp_url) as name:
            client = Client(Settings(url=f"redis+cluster://127.0.0.1:{name.port}"))
            await answered(client, "k", "1")
            assert first.command("GET", "k") == b"1"
            first.kill()
            name._target = urlsplit(second.tcp_url)
            await answered(client, "k", "2")
            assert second.command("GET", "k") == b"2"
            await client.aclose()

    with node() as first, node() as second:
        asyncio.run(play(first, second))


def test_a_node_that_is_not_in_the_url_is_remembered() -> None:
    """The only one that is may be the one that is down."""

    async def play(server: Server) -> None:
        with Proxy(server.tcp_url) as name:
            client = Client(Settings(url=f"redis+cluster://127.0.0.1:{name.port}"))
            await answered(client, "k", "1")
        server.restart()
        await answered(client, "k", "2")
        await client.aclose()

    with node() as server:
        asyncio.run(play(server))


def test_a_cluster_that_is_not_set_up_yet_is_waited_for() -> None:
    async def play(server: Server) -> None:
        client = Client(Settings(url=server.tcp_url.replace("redis://", "redis+cluster://")))
        with pytest.raises(NotConnected, match="no node of the Cluster has slots"):
            await client.command("SET", "k", "1")
        server.command("CLUSTER", "ADDSLOTSRANGE", 0, 16_383)
        await answered(client, "k", "1")
        await client.aclose()

    with node(slots=False) as server:
        asyncio.run(play(server))

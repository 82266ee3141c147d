"""Connections that are cut or cancelled while they are opened."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.asyncio import UnixDomainSocketConnection

from headrace.backends.redis.client import Client
from headrace.errors import NotConnected
from headrace.settings import Settings
from tests.servers import Server

pytest_plugins = ["tests.servers"]


def test_opening_can_be_cancelled_at_any_moment(server: Server) -> None:
    async def play() -> None:
        client = Client(Settings(url=server.url))
        turns, opened = 0, False
        while not opened:
            opening = asyncio.ensure_future(client.open(b"", 5.0))
            for _ in range(turns):
                await asyncio.sleep(0)
            if opened := opening.done():
                opening.result().close()
            else:
                opening.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await opening
            turns += 1
        assert turns > 10
        await client.aclose()

    asyncio.run(play())


@pytest.mark.parametrize("hung_up", [True, False], ids=["hung up", "reset"])
def test_a_connection_that_is_cut_just_when_it_is_opened_is_known_to_be(
    server: Server, monkeypatch: pytest.MonkeyPatch, *, hung_up: bool
) -> None:
    """The one who opened it has heard of the end, and would not hear of it again."""
    connect: Any = UnixDomainSocketConnection.connect

    async def cut(connection: Any) -> None:
        await connect(connection)
        if hung_up:
            server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            while not connection._reader.at_eof():
                await asyncio.sleep(0)
        else:
            connection._writer.transport.abort()
            await asyncio.sleep(0)

    async def play() -> None:
        client = Client(Settings(url=server.url))
        with monkeypatch.context() as patched:
            patched.setattr(UnixDomainSocketConnection, "connect", cut)
            async with asyncio.timeout(3):
                with pytest.raises(NotConnected, match="cut while it was opened"):
                    await client.command("PING")
        assert await client.command("PING") == b"PONG"
        await client.aclose()

    asyncio.run(play())

"""Connections that are cut or cancelled while they are opened."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.asyncio import UnixDomainSocketConnection

from headrace.backends.contract import Record, Route, Subscription
from headrace.backends.redis import takeover
from headrace.backends.redis.backend import RedisBackend
from headrace.backends.redis.client import Client
from headrace.backends.redis.shared import SharedFeed
from headrace.errors import Closed, NotConnected
from headrace.settings import Settings
from tests.servers import Server
from tests.waiting import wait_until_async

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


def test_there_may_be_reason_to_look_again_while_one_looks(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> None:
        backend = RedisBackend(Settings(url=server.url))
        await backend.open()
        orders = Route("orders")
        feed = await backend.subscribe(Subscription(orders, "g", "w"))
        assert isinstance(feed, SharedFeed)
        await backend.publish(orders, [Record(b"1")])
        claim = takeover.claim

        async def late(*words: Any) -> Any:
            taken = await claim(*words)
            if not server.command("XPENDING", "orders", "g")[0]:
                server.command("XREADGROUP", "GROUP", "g", "w/0", "STREAMS", "orders", ">")
                feed.sweep()
            return taken

        feed.sweep()
        monkeypatch.setattr(takeover, "claim", late)
        got: list[Any] = []
        async with asyncio.timeout(10):
            while not got:
                got += await feed.take(10, 0.1)
        assert [d.fields[-1] for d in got] == [b"1"]
        assert not await feed.commit(got)
        await backend.aclose()

    asyncio.run(play())


def test_a_read_that_was_given_up_may_still_reach_the_server(server: Server) -> None:
    """Some network held it back; what it gave to a name that is not used any more is found by the next sweep."""

    async def play() -> None:
        backend = RedisBackend(Settings(url=server.url))
        await backend.open()
        orders = Route("orders")
        feed = await backend.subscribe(Subscription(orders, "g", "w"))
        assert isinstance(feed, SharedFeed)
        reading = asyncio.ensure_future(feed.take(10, 5.0))
        while not any(b"xreadgroup" in line for line in server.command("CLIENT", "LIST").splitlines()):
            await asyncio.sleep(0.01)
        server.command("CLIENT", "KILL", "TYPE", "normal")
        with pytest.raises(NotConnected):
            await reading
        assert not await feed.take(10, 0.0)
        await backend.publish(orders, [Record(b"1")])
        server.command("XREADGROUP", "GROUP", "g", "w/1", "STREAMS", "orders", ">")
        assert not await feed.take(10, 0.1)
        feed.sweep()
        (delivery,) = await feed.take(10, 5.0)
        assert not await feed.commit([delivery])
        assert server.command("XPENDING", "orders", "g")[0] == 0
        await backend.aclose()

    asyncio.run(play())


def test_a_first_call_that_connects_while_the_app_is_closed_says_so(server: Server) -> None:
    async def play() -> None:
        backend = RedisBackend(Settings(url=server.url))
        await backend.open()
        server.pause()
        backend.client.drop(b"")
        waiting = asyncio.ensure_future(backend.publish(Route("orders"), [Record(b"1")]))
        (node,) = backend.client._nodes.values()

        async def connecting() -> bool:
            return node._opening is not None

        await wait_until_async(connecting, "it connects again")
        await backend.aclose()
        server.resume()
        with pytest.raises(Closed):
            await waiting

    asyncio.run(play())

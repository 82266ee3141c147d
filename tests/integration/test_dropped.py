"""A connection that one caller gives up is no end for another that has it in hand."""

from __future__ import annotations

import pytest

from headrace import NotConnected
from headrace.backends.redis.backend import RedisBackend
from headrace.backends.redis.connection import pack
from tests.playing import with_backend
from tests.servers import Server

pytest_plugins = ["tests.servers"]


def test_who_has_it_in_hand_connects_again(server: Server) -> None:
    async def play(backend: RedisBackend) -> None:
        wire = await backend.client.wire(b"orders")
        backend.client.drop(b"orders")
        with pytest.raises(NotConnected, match="connecting again"):
            wire.send(pack(("PING",)))
        assert await (await backend.client.wire(b"orders")).send(pack(("PING",))) == b"PONG"

    with_backend(server, play)

"""Two topics never share a stream: `orders.3` is a topic, or a partition of `orders`."""

from __future__ import annotations

import asyncio

import pytest

from headrace import Headrace, Refused
from tests.servers import Server

pytest_plugins = ["tests.servers"]


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        (("orders", 4), ("orders.3", 1), "orders.3 is a partition of topic orders"),
        (("orders.3", 1), ("orders", 4), "there is a topic of that name"),
    ],
)
def test_the_name_of_a_partition_is_none_of_a_topic(
    server: Server, first: tuple[str, int], second: tuple[str, int], says: str
) -> None:
    async def publish(name: str, partitions: int) -> None:
        async with Headrace(server.url) as app:
            await app.topic(name, dict, key="c", partitions=partitions).publish({"c": "ann"})

    async def play() -> None:
        await publish(*first)
        with pytest.raises(Refused, match=says):
            await publish(*second)
        await publish("orders.4", 1)
        await publish("orders.03", 1)
        await publish(*first)

    asyncio.run(play())

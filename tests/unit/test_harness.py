"""What `app.testing()` says when a test goes wrong."""

from __future__ import annotations

import asyncio

import pytest

from headrace import Headrace, Refused


def test_what_is_not_settled_in_time_is_named() -> None:
    app = Headrace()
    orders, quiet = app.topic("orders", dict), app.topic("quiet", dict)

    @orders.subscribe("slow", lanes=1)
    async def handle(order: dict) -> None:  # type: ignore[type-arg]
        del order
        await asyncio.Event().wait()

    @quiet.subscribe("done")
    async def ignore(event: dict) -> None:  # type: ignore[type-arg]
        del event

    async def play() -> None:
        async with app.testing() as t:
            await orders.publish_many([{}, {}])
            await quiet.publish({})
            for waiting in (t.drain(timeout_s=0.1), t.advance(1, timeout_s=0.1)):
                with pytest.raises(TimeoutError) as caught:
                    await waiting
                assert str(caught.value) == (
                    "after 0.1 s not everything is settled: "
                    "group slow of topic orders (2 at work or waiting for a handler, 0 unread, 0 retrying)"
                )

    asyncio.run(play())


def test_a_group_that_does_not_exist_is_said_to_be_none() -> None:
    app = Headrace()
    orders = app.topic("orders", dict)

    @orders.subscribe("billing")
    async def handle(order: dict) -> None:  # type: ignore[type-arg]
        del order

    async def play() -> None:
        async with app.testing() as t:
            for asked in (t.ledger(orders, "typo"), t.dead(orders, "typo")):
                with pytest.raises(Refused, match="no group 'typo' on topic 'orders'; groups: billing"):
                    await asked

    asyncio.run(play())

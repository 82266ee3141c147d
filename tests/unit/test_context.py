"""What a handler may record with its ack: so much, and only while it runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from msgspec import Struct

from headrace import Context, Headrace, Retry, limits
from headrace.errors import HandlerError
from tests.waiting import wait_until_async


class Order(Struct):
    id: str


def test_outputs_and_effects_have_one_bound() -> None:
    app = Headrace()
    orders, out = app.topic("orders", Order), app.topic("out", Order)
    half = limits.scripts_writes_max // 2

    @orders.subscribe("g", retry=Retry(attempts=1))
    async def handle(order: Order, ctx: Context) -> None:
        effects = ctx.redis
        for _ in range(half):
            ctx.publish(out, order)
            effects.incr("count")
        if order.id == "an output more":
            ctx.publish(out, order)
        if order.id == "an effect more":
            ctx.redis.incr("count")

    async def play() -> None:
        async with app.testing() as t:
            await orders.publish_many([Order("an output more"), Order("enough"), Order("an effect more")])
            await t.drain()
            assert [letter.reason for letter in await t.dead(orders, "g")] == [
                "InvalidEvent: one event may record at most 1,000 writes, by ctx.redis and ctx.publish together"
            ] * 2
            assert t.redis("count") == str(half)
            assert t.published(out) == [Order("enough")] * half

    asyncio.run(play())


@pytest.mark.parametrize("shape", ["single", "batch", "failed"])
@pytest.mark.parametrize(
    "use",
    [
        lambda ctx, out: ctx.publish(out, Order("late")),
        lambda ctx, out: ctx.redis.incr("late"),
        lambda ctx, out: ctx.fail("late"),
        lambda ctx, out: ctx.reject("late"),
        lambda ctx, out: ctx.sql,
    ],
    ids=["publish", "redis", "fail", "reject", "sql"],
)
def test_after_its_handler_a_context_takes_nothing(shape: str, use: Callable[[Context, Any], Any]) -> None:
    app = Headrace()
    orders, out = app.topic("orders", Order), app.topic("out", Order)
    late: list[asyncio.Task[Any]] = []

    async def use_late(ctx: Context) -> Any:
        await settled.wait()
        return use(ctx, out)

    subscribe = orders.subscribe("g", retry=Retry(attempts=1))
    if shape == "batch":

        @subscribe
        async def handle_many(events: list[Order], contexts: list[Context]) -> None:
            late.append(asyncio.create_task(use_late(contexts[0])))
    else:

        @subscribe
        async def handle(order: Order, ctx: Context) -> None:
            late.append(asyncio.create_task(use_late(ctx)))
            if shape == "failed":
                raise ValueError(shape)

    async def play() -> None:
        async with app.testing() as t:
            await orders.publish(Order("1"), id="o-1")
            await t.drain()
            settled.set()
            with pytest.raises(HandlerError, match="ctx of event o-1: its handler has ended"):
                await late[0]

    settled = asyncio.Event()
    asyncio.run(play())


def test_a_thread_whose_time_is_over_is_told_when_it_records() -> None:
    app = Headrace()
    orders, out = app.topic("orders", Order), app.topic("out", Order)
    settled = threading.Event()
    said: list[str] = []

    @orders.subscribe("g", timeout_s=0.05, retry=Retry(attempts=1))
    def handle(order: Order, ctx: Context) -> None:
        settled.wait(10)
        try:
            ctx.publish(out, order)
        except HandlerError as e:
            said.append(str(e))

    async def told() -> bool:
        return bool(said)

    async def play() -> None:
        async with app.testing() as t:
            await orders.publish(Order("1"))
            await t.drain()
            settled.set()
            await wait_until_async(told, "the thread is told")

    asyncio.run(play())
    assert "or its time is over" in said[0]

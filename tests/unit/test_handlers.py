"""Handlers of every shape, through the real runtime on the memory backend in virtual time."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from msgspec import Struct

from headrace import ConfigurationError, Context, Headrace, Reject, Retry
from headrace.errors import HandlerError


class Order(Struct):
    id: str
    cents: int = 1


class Paid(Struct):
    order: str


def run(coroutine: Any) -> Any:
    return asyncio.run(coroutine)


def test_effects_and_outputs_leave_with_the_ack() -> None:
    app = Headrace()
    orders, paid = app.topic("orders", Order), app.topic("paid", Paid)

    @orders.subscribe("billing")
    async def bill(order: Order, ctx: Context) -> None:
        ctx.publish(paid, Paid(order.id))
        ctx.redis.hincrby("sums", "cents", order.cents)
        if order.cents < 0:
            raise Reject("negative")

    async def play() -> None:
        async with app.testing() as t:
            await orders.publish_many(Order(str(i), i - 1) for i in range(5))
            await t.drain()
            assert t.redis("sums") == {"cents": "6"}
            assert sorted(p.order for p in t.published(paid)) == ["1", "2", "3", "4"]
            assert [d.reason for d in await t.dead(orders, "billing")] == ["Reject: negative"]
            assert (await t.ledger(orders, "billing")).missing == 0

    run(play())


def test_retries_back_off_and_end_in_the_dead_letters() -> None:
    app = Headrace()
    orders = app.topic("orders", Order)
    seen: list[tuple[int, float]] = []

    async def play() -> None:
        async with app.testing() as t:

            @orders.subscribe("ignored")
            async def _(order: Order) -> None: ...

            await orders.publish(Order("1"))
            await t.drain()
            assert [a for a, _ in seen] == [1, 2, 3, 4]
            waits = [round(b[1] - a[1]) for a, b in zip(seen, seen[1:], strict=False)]
            assert waits == [10, 20, 25]
            (letter,) = await t.dead(orders, "billing")
            assert letter.reason == "ValueError: no"
            assert letter.data == b'{"id":"1","cents":1}'

        assert t.server.idle()

    @orders.subscribe("billing", retry=Retry(attempts=4, first_s=10, max_s=25, jitter=0))
    async def bill(order: Order, ctx: Context) -> None:
        del order
        seen.append((ctx.attempt, t_now()))
        raise ValueError("no")

    def t_now() -> float:
        backend: Any = app.backend()
        return float(backend._server.now())

    run(play())


@pytest.mark.parametrize(
    "raised",
    [
        ValueError("x"),
        SystemExit(3),
        KeyboardInterrupt(),
        asyncio.CancelledError(),
        BaseException("odd"),
        StopIteration(),
    ],
)
def test_whatever_a_handler_raises_is_its_event_s_failure(raised: BaseException) -> None:
    app = Headrace()
    orders = app.topic("orders", Order)

    @orders.subscribe("asynchronous", retry=Retry(attempts=1))
    async def one(order: Order) -> None:
        if order.id == "bad":
            raise raised

    @orders.subscribe("threaded", retry=Retry(attempts=1))
    def two(order: Order) -> None:
        if order.id == "bad":
            raise raised

    async def play() -> None:
        async with app.testing() as t:
            await orders.publish_many([Order("1"), Order("bad"), Order("2")])
            await t.drain()
            for group in ("asynchronous", "threaded"):
                ledger = await t.ledger(orders, group)
                assert (ledger.handled, ledger.dead, ledger.missing) == (2, 1, 0), group

    run(play())


def test_exceptions_by_type_go_straight_to_the_dead_letters() -> None:
    app = Headrace()
    orders = app.topic("orders", Order)
    calls: list[str] = []

    @orders.subscribe("g", retry=Retry(attempts=9, dead=(LookupError,)))
    async def handle(order: Order) -> None:
        calls.append(order.id)
        raise KeyError(order.id)

    async def play() -> None:
        async with app.testing() as t:
            await orders.publish(Order("1"))
            await t.drain()
            assert len(await t.dead(orders, "g")) == 1

    run(play())
    assert calls == ["1"]


def test_a_handler_that_hangs_is_cancelled_and_its_event_retried() -> None:
    app = Headrace()
    orders = app.topic("orders", Order)
    seen: list[tuple[int, bool]] = []

    @orders.subscribe("g", timeout_s=0.05, retry=Retry(attempts=2, first_s=1))
    async def handle(order: Order, ctx: Context) -> None:
        del order
        assert ctx.deadline is not None
        seen.append((ctx.attempt, ctx.deadline > time.monotonic()))
        await asyncio.sleep(3600)

    async def play() -> None:
        async with app.testing() as t:
            await orders.publish(Order("1"))
            await t.drain()
            (letter,) = await t.dead(orders, "g")
            assert letter.reason.startswith("DeadlineExceeded: the handler ran longer than 0.05 s")

    run(play())
    assert seen == [(1, True), (2, True)]


def test_each_handler_of_a_group_has_its_own_deadline() -> None:
    app = Headrace()
    orders = app.topic("orders", Order | Paid)
    handled: list[str] = []

    @orders.subscribe("g", timeout_s=0.05, retry=Retry(attempts=1))
    async def quick(order: Order, ctx: Context) -> None:
        assert ctx.timeout_s == 0.05
        if order.id == "hangs":
            await asyncio.sleep(3600)
        raise TimeoutError("its own")

    @orders.subscribe("g", timeout_s=600)
    async def patient(paid: Paid, ctx: Context) -> None:
        assert ctx.timeout_s == 600
        await asyncio.sleep(0.1)
        handled.append(paid.order)

    async def play() -> None:
        async with app.testing() as t:
            await orders.publish_many([Order("hangs"), Order("fails"), Paid("1")])
            await t.drain()
            reasons = sorted(letter.reason for letter in await t.dead(orders, "g"))
            assert reasons == ["DeadlineExceeded: the handler ran longer than 0.05 s", "TimeoutError: its own"]

    run(play())
    assert handled == ["1"]


def test_a_handler_that_swallows_its_cancellation_and_ends_is_handled_and_the_next_is_unharmed() -> None:
    app = Headrace()
    orders = app.topic("orders", Order)

    @orders.subscribe("g", timeout_s=0.05, lanes=1, retry=Retry(attempts=1))
    async def handle(order: Order) -> None:
        if order.id == "slow":
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                return
        async with asyncio.timeout(1):
            await asyncio.sleep(0)

    async def play() -> None:
        async with app.testing() as t:
            await orders.publish_many([Order("slow"), *(Order(str(i)) for i in range(20))])
            await t.drain()
            assert (await t.ledger(orders, "g")).handled == 21

    run(play())


def test_batches_are_settled_one_by_one_if_asked() -> None:
    app = Headrace()
    orders = app.topic("orders", Order)
    sizes: list[int] = []

    @orders.subscribe("g", batch=10, retry=Retry(attempts=2))
    async def handle(events: list[Order], ctx: list[Context]) -> None:
        sizes.append(len(events))
        for event, c in zip(events, ctx, strict=True):
            if event.cents < 0:
                c.fail("negative")
            elif event.cents == 0:
                c.reject("zero")
            else:
                c.redis.incrby("sum", event.cents)

    async def play() -> None:
        async with app.testing() as t:
            await orders.publish_many(Order(str(i), i - 3) for i in range(40))
            await t.drain()
            assert t.redis("sum") == str(sum(range(1, 37)))
            assert sorted(d.reason for d in await t.dead(orders, "g")) == ["HandlerError: negative"] * 3 + [
                "Reject: zero"
            ]
            assert (await t.ledger(orders, "g")).missing == 0

    run(play())
    assert max(sizes) == 10
    assert sizes.count(1) >= 3, "what failed is handled alone"


def test_a_batch_that_fails_is_retried_event_by_event() -> None:
    app = Headrace()
    orders = app.topic("orders", Order)

    @orders.subscribe("g", batch=50, retry=Retry(attempts=3))
    async def handle(events: list[Order]) -> None:
        if any(e.cents < 0 for e in events):
            raise ValueError("poison")

    async def play() -> None:
        async with app.testing() as t:
            await orders.publish_many(Order(str(i), i - 1) for i in range(50))
            await t.drain()
            ledger = await t.ledger(orders, "g")
            assert (ledger.handled, ledger.dead, ledger.missing) == (49, 1, 0)

    run(play())


def test_handlers_of_one_group_share_its_events_by_type() -> None:
    app = Headrace()
    both = app.topic("both", Order | Paid)
    seen: list[str] = []

    @both.subscribe("g")
    async def on_order(event: Order) -> None:
        seen.append(f"order {event.id}")

    @both.subscribe("g")
    def on_paid(event: Paid, ctx: Context) -> None:
        seen.append(f"paid {event.order} {ctx.type}")

    @both.subscribe("only-paid")
    async def only_paid(event: Paid) -> None:
        seen.append(f"only {event.order}")

    async def play() -> None:
        async with app.testing() as t:
            await both.publish_many([Order("1"), Paid("1")])
            await t.drain()
            assert (await t.ledger(both, "only-paid")).handled == 2

    run(play())
    assert sorted(seen) == ["only 1", "order 1", "paid 1 Paid"]


def test_delayed_events_wait_in_virtual_time() -> None:
    app = Headrace()
    orders = app.topic("orders", Order)
    seen: list[str] = []

    @orders.subscribe("g")
    async def handle(order: Order) -> None:
        seen.append(order.id)

    async def play() -> None:
        async with app.testing() as t:
            await orders.publish(Order("later"), delay_s=3600)
            await orders.publish(Order("now"))
            await t.advance(60)
            assert seen == ["now"]
            await t.drain()
            assert seen == ["now", "later"]

    run(play())


def test_context_says_what_it_knows() -> None:
    app = Headrace()
    orders = app.topic("orders", Order, key="id")
    seen: dict[str, Any] = {}

    @orders.subscribe("g")
    async def handle(order: Order, ctx: Context) -> None:
        del order
        seen.update(
            id=ctx.id,
            key=ctx.key,
            attempt=ctx.attempt,
            headers=dict(ctx.headers),
            topic=ctx.topic,
            group=ctx.group,
            year=ctx.time.year,
        )
        ctx.log.info("handled")

    async def play() -> None:
        async with app.testing() as t:
            await orders.publish(Order("1"), id="mine", headers={"tenant": "blue", "traceparent": "00-1-2-01"})
            await orders.publish(Order("1"), id="mine")
            await t.drain()
            assert (await t.ledger(orders, "g")).handled == 1

    run(play())
    assert seen.pop("year") == 2026, "virtual time begins there"
    assert seen == {
        "id": "mine",
        "key": "1",
        "attempt": 1,
        "headers": {"tenant": "blue", "traceparent": "00-1-2-01"},
        "topic": "orders",
        "group": "g",
    }


def test_reads_and_foreign_commands_are_refused() -> None:
    app = Headrace()
    orders = app.topic("orders", Order)

    @orders.subscribe("g", retry=Retry(attempts=1))
    async def handle(order: Order, ctx: Context) -> None:
        getattr(ctx.redis, order.id)("k")

    async def play() -> None:
        async with app.testing() as t:
            await orders.publish_many([Order("get"), Order("blpop"), Order("flushall"), Order("eval")])
            await t.drain()
            letters = await t.dead(orders, "g")
            assert len(letters) == 4
            assert all("not a write that can happen with the ack" in d.reason for d in letters)

    run(play())


def test_a_write_that_cannot_be_made_fails_its_event_alone() -> None:
    app = Headrace()
    orders = app.topic("orders", Order)

    @orders.subscribe("g", retry=Retry(attempts=1))
    async def handle(order: Order, ctx: Context) -> None:
        if order.id == "0":
            ctx.redis.set("text", "words")
        ctx.redis.incrby("text" if order.id == "bad" else "count")

    async def play() -> None:
        async with app.testing() as t:
            await orders.publish(Order("0"))
            await t.drain()
            await orders.publish_many([Order("1"), Order("bad"), Order("2")])
            await t.drain()
            assert t.redis("count") == "3"
            (letter,) = await t.dead(orders, "g")
            assert "cannot be made" in letter.reason

    run(play())


@pytest.mark.parametrize(
    ("declare", "match"),
    [
        (lambda t: t.subscribe("g")(lambda: None), "expected \\(event\\) or \\(event, ctx\\)"),
        (lambda t: t.subscribe("g")(lambda a, b, c: None), "expected \\(event\\) or \\(event, ctx\\)"),
        (lambda t: t.subscribe("a b"), "group name"),
        (lambda t: t.subscribe("g", start="middle"), "start: expected earliest or latest"),
        (lambda t: t.subscribe("g", lanes=0), "lanes"),
        (lambda t: t.subscribe("g", timeout_s=0), "timeout_s"),
        (lambda t: [t.subscribe("g")(lambda e: None) for _ in range(2)], "already has"),
    ],
)
def test_declarations_that_cannot_be_meant(declare: Any, match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        declare(Headrace().topic("orders", Order))


def test_a_handler_of_another_type_is_refused() -> None:
    orders = Headrace().topic("orders", Order)

    async def wrong(event: Paid) -> None: ...

    with pytest.raises(ConfigurationError, match="takes Paid, but the topic has Order"):
        orders.subscribe("g")(wrong)


@pytest.mark.parametrize(
    "options", [{"attempts": 0}, {"first_s": -1}, {"first_s": 10, "max_s": 1}, {"factor": 0.5}, {"jitter": 2}]
)
def test_retry_policies_that_cannot_be_meant(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="Retry"):
        Retry(**options)


def test_backoff_is_exponential_bounded_and_jittered() -> None:
    policy = Retry(attempts=99, first_s=1, factor=2, max_s=60, jitter=0.5)
    for attempt in range(1, 90):
        exact = min(2.0 ** (attempt - 1), 60)
        again = policy.again_in_s(attempt, HandlerError("x"))
        assert again is not None
        assert exact * 0.5 <= again <= exact * 1.5
    assert policy.again_in_s(99, HandlerError("x")) is None
    assert policy.again_in_s(1, Reject("x")) is None


def test_batch_handlers_of_one_group_share_its_events_by_type() -> None:
    app = Headrace()
    both = app.topic("both", Order | Paid)
    seen: list[str] = []

    @both.subscribe("g", batch=10)
    async def on_orders(events: list[Order]) -> None:
        assert all(isinstance(e, Order) for e in events)
        seen.extend(e.id for e in events)

    @both.subscribe("g", batch=10, retry=Retry(attempts=1))
    async def on_paid(events: list[Paid]) -> None:
        assert all(isinstance(e, Paid) for e in events)
        raise ValueError("no")

    async def play() -> None:
        async with app.testing() as t:
            await both.publish_many([Order("1"), Paid("1"), Order("2"), Paid("2")])
            await t.drain()
            ledger = await t.ledger(both, "g")
            assert (ledger.handled, ledger.dead, ledger.missing) == (2, 2, 0)

    run(play())
    assert sorted(seen) == ["1", "2"]

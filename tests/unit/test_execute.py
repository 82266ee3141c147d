"""One event's misfortune is its own: whatever its class, its handler or its error do, its lane goes on."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from typing import Any

import pytest
from msgspec import Struct

from headrace import ConfigurationError, Context, Headrace, Reject, Retry, Topic
from headrace.backends.contract import Record
from headrace.observe import LogObserver


class Order(Struct):
    id: str


class Priced(Struct):
    """Its class refuses some of them in a way that no decoder expects."""

    id: str

    def __post_init__(self) -> None:
        if self.id == "bad":
            raise KeyError("currency")


class Refund(Struct):
    order: str


class Mute(Exception):
    """Cannot say what it is."""

    def __str__(self) -> str:
        raise KeyError("no text")

    __repr__ = __str__


def reasons(app: Headrace, topic: Topic[Any]) -> list[str]:
    """Serves three events named bad among others, and returns why they are dead; the others are handled."""

    async def play() -> list[str]:
        async with app.testing() as t:
            for id_ in ("1", "bad", "2", "bad", "3", "bad", "4"):
                body = b'{"id":"%s"}' % id_.encode()
                await app.backend().publish(topic.route, [Record(body, topic.event_type.__name__.encode())])
            await t.drain()
            ledger = await t.ledger(topic, "g")
            assert (ledger.handled, ledger.dead, ledger.missing) == (4, 3, 0)
            return [letter.reason for letter in await t.dead(topic, "g")]

    return asyncio.run(play())


@pytest.mark.parametrize("batched", [False, True])
def test_an_event_whose_class_refuses_it_has_failed(*, batched: bool) -> None:
    app = Headrace()
    topic = app.topic("o", Priced)
    subscribe = topic.subscribe("g", lanes=1, retry=Retry(attempts=2))
    if batched:

        @subscribe
        async def handle_many(events: list[Priced]) -> None: ...
    else:

        @subscribe
        async def handle(event: Priced) -> None: ...

    assert reasons(app, topic) == ["KeyError: 'currency'"] * 3


@pytest.mark.parametrize("level", [logging.DEBUG, logging.WARNING])
@pytest.mark.parametrize("raised", [Mute("x"), SystemExit(Mute("x")), asyncio.CancelledError(Mute("x"))])
def test_an_error_that_cannot_say_what_it_is(
    raised: BaseException, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    app = Headrace()
    topic = app.topic("o", Order)

    @topic.subscribe("g", lanes=1, retry=Retry(attempts=2))
    async def handle(order: Order) -> None:
        if order.id == "bad":
            raise raised

    with caplog.at_level(level, "headrace"):
        told = reasons(app, topic)
    expected = {
        Mute: "Mute: (no text: its class raised KeyError)",
        SystemExit: "HandlerError: the handler called sys.exit((no text: its class raised KeyError))",
        asyncio.CancelledError: "HandlerError: the handler raised CancelledError",
    }
    assert told == [expected[type(raised)]] * 3
    assert told[0] in caplog.text


def test_whoever_watches_cannot_stop_a_lane(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def failed(*_: object) -> None:
        raise OSError("nobody collects")

    monkeypatch.setattr(LogObserver, "failed", failed)
    app = Headrace()
    topic = app.topic("o", Order)

    @topic.subscribe("g", lanes=1, retry=Retry(attempts=2))
    async def handle(order: Order, ctx: Context) -> None:
        if order.id == "bad":
            ctx.reject("no good")

    assert reasons(app, topic) == ["Reject: no good"] * 3
    assert "OSError: nobody collects" in caplog.text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"dead": KeyError},
            "dead: expected a tuple of exceptions, as in dead=\\(KeyError,\\), got <class 'KeyError'>",
        ),
        ({"dead": ("KeyError",)}, "dead: expected a tuple of exceptions"),
        ({"attempts": 0}, "attempts: expected a whole number from 1, got 0"),
        ({"attempts": float("nan")}, "attempts: expected a whole number"),
        ({"first_s": float("nan")}, "first_s <= max_s"),
        ({"max_s": float("nan")}, "first_s <= max_s"),
        ({"first_s": -1}, "first_s <= max_s"),
        ({"factor": float("nan")}, "factor: expected 1 to 1,000, got nan"),
        ({"factor": float("inf")}, "factor: expected 1 to 1,000"),
        ({"factor": 0.5}, "factor: expected 1 to 1,000"),
        ({"jitter": float("nan")}, "jitter: expected a fraction in 0..1, got nan"),
    ],
)
def test_retries_that_cannot_be_meant(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Retry(**options)


def test_a_steep_retry_has_a_pause_for_every_attempt() -> None:
    steep = Retry(attempts=10_000, first_s=1, factor=1_000, max_s=60, jitter=0)
    assert [steep.pause_s(attempt) for attempt in (1, 2, 100, 9_999)] == [1, 60, 60, 60]


def test_handlers_of_one_group_may_have_the_same_name() -> None:
    app = Headrace()
    money = app.topic("money", Order | Refund)
    seen: list[str] = []

    def note(kind: type, *, batched: bool, timeout_s: float) -> Any:
        async def _(event: Any, ctx: Context) -> None:
            seen.append(f"{kind.__name__} {type(event).__name__} {ctx.timeout_s}")

        async def many(events: Any, contexts: Any) -> None:
            seen.extend(f"{kind.__name__} {type(event).__name__}" for event in events)
            contexts[0].reject("no good")

        _.__annotations__["event"], many.__annotations__["events"] = kind, list[kind]  # type: ignore[valid-type]
        if batched:
            money.subscribe("batched", retry=Retry(attempts=1))(many)
        else:
            money.subscribe("single", timeout_s=timeout_s)(_)

    async def play() -> None:
        async with app.testing() as t:
            await money.publish_many([Order("1"), Refund("2"), Order("3")])
            await t.drain()
            assert len(await t.dead(money, "batched")) == 2

    note(Order, batched=False, timeout_s=10)
    note(Refund, batched=False, timeout_s=20)
    note(Order, batched=True, timeout_s=10)
    note(Refund, batched=True, timeout_s=20)
    asyncio.run(play())
    assert sorted(seen) == [
        "Order Order",
        "Order Order",
        "Order Order 10",
        "Order Order 10",
        "Refund Refund",
        "Refund Refund 20",
    ]


def test_a_batch_handler_may_take_its_lists_apart() -> None:
    app = Headrace()
    orders = app.topic("orders", Order)

    @orders.subscribe("g", retry=Retry(attempts=1))
    async def handle(events: list[Order], contexts: list[Context]) -> None:
        while events:
            order, ctx = events.pop(), contexts.pop()
            if order.id == "3":
                ctx.reject("no good")
            elif order.id == "4":
                raise ValueError("the rest")
            else:
                ctx.redis.incr("count")

    async def play() -> None:
        async with app.testing() as t:
            await orders.publish_many(Order(str(n % 4)) for n in range(20))
            await t.drain()
            assert t.redis("count") == "15"
            assert len(await t.dead(orders, "g")) == 5
            await orders.publish_many([Order("4"), Order("1")])
            await t.drain()
            ledger = await t.ledger(orders, "g")
            assert (ledger.handled + ledger.dead, ledger.pending, ledger.missing) == (22, 0, 0)

    asyncio.run(play())


async def work(order: Order) -> None:
    """What a handler of another shape leads to."""


def generate(order: Order) -> Any:
    yield order


async def generate_later(order: Order) -> Any:
    yield order


def traced(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def traced_call(*arguments: Any) -> Any:
        return function(*arguments)

    return traced_call


@pytest.mark.parametrize(
    ("function", "returned"),
    [
        (lambda order: work(Order(order.id)), "coroutine"),
        (functools.partial(traced(work)), "coroutine"),
        (lambda order: generate(Order(order.id)), "generator"),
        (lambda order: generate_later(Order(order.id)), "async_generator"),
        (traced(generate), "generator"),
    ],
)
def test_a_plain_handler_whose_work_nobody_would_run_has_failed(function: Any, returned: str) -> None:
    app = Headrace()
    orders = app.topic("orders", Order)
    orders.subscribe("g", retry=Retry(attempts=1))(function)

    async def play() -> None:
        async with app.testing() as t:
            await orders.publish(Order("1"))
            await t.drain()
            (letter,) = await t.dead(orders, "g")
            assert letter.reason == (
                f"HandlerError: the handler is a plain function and returned a {returned}, which nobody runs; "
                "declare an `async def` that awaits it"
            )

    asyncio.run(play())


def test_a_plain_function_around_an_async_one_is_no_handler() -> None:
    orders = Headrace().topic("orders", Order)
    with pytest.raises(ConfigurationError, match="work: expected `async def`, got a plain function that a decorator"):
        orders.subscribe("g")(traced(traced(work)))
    orders.subscribe("g")(work)


def test_what_a_plain_handler_returns_otherwise_is_not_looked_at() -> None:
    app = Headrace()
    orders = app.topic("orders", Order)

    @orders.subscribe("g")
    def handle(order: Order) -> str:
        return order.id

    async def play() -> None:
        async with app.testing() as t:
            await orders.publish(Order("1"))
            await t.drain()
            assert (await t.ledger(orders, "g")).handled == 1

    asyncio.run(play())


@pytest.mark.parametrize(
    ("raised", "calls", "reason"),
    [
        ([Reject("no good")], 1, "Reject: no good"),
        ([KeyError("a"), ExceptionGroup("inner", [Reject("b"), Reject("c")])], 1, "KeyError: 'a' (and 2 more)"),
        ([ExceptionGroup("inner", [Reject("b")]), OSError("away")], 2, "Reject: b (and 1 more)"),
        ([OSError("away")], 2, "OSError: away"),
    ],
)
def test_an_exception_group_is_what_it_holds(raised: list[Exception], calls: int, reason: str) -> None:
    app = Headrace()
    orders = app.topic("orders", Order)
    attempts: list[int] = []

    @orders.subscribe("g", retry=Retry(attempts=2, dead=(LookupError,)))
    async def handle(order: Order, ctx: Context) -> None:
        attempts.append(ctx.attempt)
        raise ExceptionGroup("unhandled errors in a TaskGroup", raised)

    async def play() -> None:
        async with app.testing() as t:
            await orders.publish(Order("1"))
            await t.drain()
            (letter,) = await t.dead(orders, "g")
            assert letter.reason == reason

    asyncio.run(play())
    assert attempts == [1, 2][:calls]


def test_each_type_of_a_group_has_the_retries_of_its_own_handler() -> None:
    """Also where the write that a handler has recorded is refused, or nobody could decode the event."""
    app = Headrace()
    both = app.topic("both", Order | Priced)

    @both.subscribe("g", retry=Retry(attempts=1))
    async def on_order(order: Order, ctx: Context) -> None:
        ctx.redis.set("text", "words")
        if order.id == "bad":
            ctx.redis.incr("text")

    @both.subscribe("g", retry=Retry(attempts=3, first_s=1))
    async def on_priced(event: Priced, ctx: Context) -> None:
        ctx.redis.incr("text")

    async def play() -> None:
        async with app.testing() as t:
            await both.publish(Order("1"))
            await t.drain()
            await both.publish_many([Order("bad"), Priced("1")])
            await app.backend().publish(both.route, [Record(b'{"id":"bad"}', b"Priced")])
            await t.drain()
            dead = await t.dead(both, "g")
            assert sorted((d.attributes["type"], d.attributes.get("attempt", "1"), d.reason[:7]) for d in dead) == [
                ("Order", "1", "Refused"),
                ("Priced", "3", "KeyErro"),
                ("Priced", "3", "Refused"),
            ]

    asyncio.run(play())

"""Whose fault a deadline is, where the handler runs in a transaction: its own while it runs, the database's before and after."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import Executor as Threads
from typing import Any

import pytest
from msgspec import Struct

from headrace import Context, Headrace, Retry, limits
from headrace.transaction import Call


class Order(Struct):
    id: str


class Refund(Struct):
    order: str


class Slow:
    """Transactions of which the first takes its time, before the handler and after it."""

    keep_s = 1.0

    def __init__(
        self, *, asynchronous: bool = True, before_s: float = 0.0, after_s: float = 0.0, deaf: bool = False
    ) -> None:
        """`deaf`: a cancellation before the handler makes it go on waiting, as a driver does that first asks its server to stop."""
        self.asynchronous = asynchronous
        self._deaf = deaf
        self._pauses = [(before_s, after_s)]

    async def run(
        self, topic: str, group: str, contexts: Sequence[Context], call: Call, threads: Threads
    ) -> Sequence[Context]:
        before_s, after_s = self._pauses.pop() if self._pauses else (0.0, 0.0)
        try:
            await asyncio.sleep(before_s)
        except asyncio.CancelledError:
            if self._deaf:
                await asyncio.sleep(before_s)
            raise
        fresh = list(contexts)
        if self.asynchronous:
            await call(fresh)
        else:
            await asyncio.get_running_loop().run_in_executor(threads, call, fresh)
        assert len(fresh) == len(contexts), "they are this transaction's, too"
        await asyncio.sleep(after_s)
        return contexts

    async def prune(self, topic: str, group: str) -> int:
        return 0


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "database_pause_s", 0.01)


def reasons(inbox: Slow, seen: list[int], *, takes_s: float, longest_s: float) -> list[str]:
    """Serves one event to a handler that has 0.1 s, and returns why it is dead, if it is. `longest_s`: of the group's handlers."""
    app = Headrace()
    money = app.topic("money", Order | Refund)
    options: Any = {"timeout_s": 0.1, "retry": Retry(attempts=1), "inbox": inbox}
    if inbox.asynchronous:

        @money.subscribe("g", **options)
        async def handle(order: Order, ctx: Context) -> None:
            seen.append(ctx.attempt)
            await asyncio.sleep(takes_s)

        @money.subscribe("g", **{**options, "timeout_s": longest_s})
        async def handle_refund(refund: Refund) -> None: ...
    else:

        @money.subscribe("g", **options)
        def handle_here(order: Order, ctx: Context) -> None:
            seen.append(ctx.attempt)
            asyncio.run(asyncio.sleep(takes_s))

        @money.subscribe("g", **{**options, "timeout_s": longest_s})
        def handle_refund_here(refund: Refund) -> None: ...

    async def play() -> list[str]:
        async with app.testing() as t:
            await money.publish(Order("1"))
            await t.drain()
            ledger = await t.ledger(money, "g")
            assert (ledger.handled + ledger.dead, ledger.missing) == (1, 0)
            return [letter.reason for letter in await t.dead(money, "g")]

    return asyncio.run(play())


@pytest.mark.parametrize("longest_s", [0.1, 60])
@pytest.mark.parametrize("asynchronous", [True, False], ids=["async def", "def"])
class TestDeadline:
    def test_before_the_handler(
        self, caplog: pytest.LogCaptureFixture, *, asynchronous: bool, longest_s: float
    ) -> None:
        seen: list[int] = []
        with caplog.at_level(logging.WARNING, "headrace"):
            slow = Slow(asynchronous=asynchronous, before_s=60)
            assert reasons(slow, seen, takes_s=0, longest_s=longest_s) == []
        assert seen == [1], "called once, and no attempt was counted before"
        assert "no answer within 0.1 s, before its handler was called. Trying again, 1 events wait" in caplog.text

    def test_in_the_handler(self, *, asynchronous: bool, longest_s: float) -> None:
        seen: list[int] = []
        (reason,) = reasons(Slow(asynchronous=asynchronous), seen, takes_s=0.5, longest_s=longest_s)
        assert reason == "DeadlineExceeded: the handler ran longer than 0.1 s"
        assert seen == [1]

    def test_after_the_handler(self, caplog: pytest.LogCaptureFixture, *, asynchronous: bool, longest_s: float) -> None:
        seen: list[int] = []
        with caplog.at_level(logging.WARNING, "headrace"):
            slow = Slow(asynchronous=asynchronous, after_s=60)
            assert reasons(slow, seen, takes_s=0, longest_s=longest_s) == []
        assert seen == [1, 1], "whether it was handled is unknown, which is no failure"
        assert "no answer within 0.1 s, after its handler had returned" in caplog.text


def test_a_database_that_lets_even_a_cancellation_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "abandon_s", 0.2)
    seen: list[int] = []
    assert reasons(Slow(before_s=60, deaf=True), seen, takes_s=0, longest_s=0.1) == []
    assert seen == [1], "the lane is given up, and another handles the event"


def test_a_lane_that_is_given_up_while_it_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "abandon_s", 0.1)
    monkeypatch.setattr(limits, "database_pause_s", 0.5)
    seen: list[int] = []
    assert reasons(Slow(before_s=60), seen, takes_s=0, longest_s=0.1) == []
    assert seen == [1]


def test_a_batch_handler_may_take_its_lists_apart() -> None:
    app = Headrace()
    orders = app.topic("orders", Order)

    @orders.subscribe("g", inbox=Slow())
    async def handle(events: list[Order], contexts: list[Context]) -> None:
        while events:
            del events[0]
            contexts.pop().redis.incr("count")

    async def play() -> None:
        async with app.testing() as t:
            await orders.publish_many(Order(str(n)) for n in range(10))
            await t.drain()
            assert t.redis("count") == "10"

    asyncio.run(play())

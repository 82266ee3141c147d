"""The path of an event stays short: calls into the library per consumed event, and the files they are in. Deterministic counts."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from msgspec import Struct

import headrace
from headrace import Context, Headrace

CALLS_MAX = 6
"""Per event, amortised over a batch. The design allows 40; it is 4 now. More needs a reason, written here."""
FILES_MAX = 8
EVENTS = 2_000
HOME = str(Path(headrace.__file__).parent)


class Order(Struct):
    id: int


def count(events: int, *, with_context: bool) -> tuple[float, set[str]]:
    app = Headrace()
    orders = app.topic("orders", Order)
    left = events
    done = asyncio.Event()

    def tick() -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set()

    if with_context:

        @orders.subscribe("g")
        async def with_ctx(order: Order, ctx: Context) -> None:
            tick()

    else:

        @orders.subscribe("g")
        async def without(order: Order) -> None:
            tick()

    calls: Counter[str] = Counter()

    def profile(frame: FrameType, event: str, _: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(HOME) and "/backends/memory/" not in name:
            calls[name] += 1

    async def play() -> None:
        async with app.testing() as t:
            await orders.publish_many(Order(i) for i in range(events))
            sys.setprofile(profile)
            try:
                await done.wait()
            finally:
                sys.setprofile(None)
            await t.drain()

    asyncio.run(play())
    return sum(calls.values()) / events, {Path(name).name for name in calls}


def test_calls_per_event() -> None:
    for with_context in (False, True):
        per_event, files = count(EVENTS, with_context=with_context)
        assert per_event <= CALLS_MAX, (
            f"{per_event:.1f} calls per event: what is called for each event that could be called for each batch?"
        )
        assert len(files) <= FILES_MAX, f"an event passes through {sorted(files)}"

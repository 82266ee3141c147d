"""What aclose() promises: nothing that was taken is stuck, and nothing works afterwards."""

from __future__ import annotations

import asyncio
import contextlib

from headrace.backends.contract import Settlement, Subscription, Verdict
from headrace.errors import Closed
from headrace.testing.conformance.scenario import scenarios
from headrace.testing.conformance.stage import ORDERS, Stage, attributes, bodies, expect_error, expect_same, numbered


async def closing_a_feed_hands_back_at_once(stage: Stage) -> None:
    """What a worker took and did not settle is another's at once, unchanged and with the same attempt."""
    first, second = await stage.worker(), await stage.worker()
    await stage.publish(*numbered(5))
    held = await stage.receive(first, 5)
    await stage.commit(first, held[:2])
    began = await stage.now()
    await first.aclose()
    got = await stage.receive(second, 3)
    waited = await stage.now() - began
    if (
        waited >= stage.harness.lease_s / 2
    ):  # a machine that stalls proves nothing: look at what the server says instead
        expect_same(
            "deliveries by dead workers",
            [h.deliveries for h in await stage.inspector.pending("orders", "billing")],
            [1, 1, 1],
        )
    expect_same("bodies", bodies(got), [b"2", b"3", b"4"])
    expect_same("ids", [d.id for d in got], [d.id for d in held[2:]])
    expect_same("attempts", [d.attempt for d in got], [1, 1, 1])
    expect_same("attributes", [attributes(d) for d in got], [attributes(d) for d in held[2:]])
    await stage.commit(second, got)
    expect_same("handled", (await stage.group()).handled, 5)


async def closing_a_feed_hands_back_retries_too(stage: Stage) -> None:
    """A retry that is handed back keeps its attempt."""
    first, second = await stage.worker(), await stage.worker()
    await stage.publish(*numbered(1))
    await stage.commit(first, [Settlement(d, Verdict.RETRY) for d in await stage.receive(first, 1)])
    expect_same("attempt of the retry", (await stage.receive(first, 1))[0].attempt, 2)
    await first.aclose()
    got = await stage.receive(second, 1)
    expect_same("attempt after it was handed back", got[0].attempt, 2)
    await stage.commit(second, got)


async def closing_a_backend_closes_its_feeds(stage: Stage) -> None:
    """Backend.aclose() hands back what its feeds hold."""
    backend = await stage.harness.backend()
    first = await backend.subscribe(Subscription(ORDERS, "billing", "first", lease_s=stage.harness.lease_s))
    await stage.publish(*numbered(3))
    await stage.receive(first, 3)
    await backend.aclose()
    await expect_error(Closed, first.take(1, 0), "take of a closed backend's feed")
    expect_same("bodies", bodies(await stage.drain(await stage.worker(), 3)), [b"0", b"1", b"2"])


async def closing_ends_a_waiting_take(stage: Stage) -> None:
    """A take that waits is not cancelled but ended by closing its feed: it returns nothing, or raises Closed."""
    feed = await stage.worker()
    waiting = await stage.start(feed.take(5, 30))
    await feed.aclose()
    with contextlib.suppress(Closed):  # the other of the two answers that the contract allows
        expect_same("what it took", list(await asyncio.wait_for(waiting, 20)), [])


async def the_closed_stay_closed(stage: Stage) -> None:
    """After aclose() every call raises Closed; aclose() itself may be repeated."""
    backend = await stage.harness.backend()
    subscription = Subscription(ORDERS, "billing", "me", lease_s=stage.harness.lease_s)
    feed = await backend.subscribe(subscription)
    await stage.publish(*numbered(1))
    held = await stage.receive(feed, 1)
    await feed.aclose()
    await feed.aclose()
    await expect_error(Closed, feed.take(1, 0), "take after aclose")
    await expect_error(Closed, feed.commit(held), "commit after aclose")
    await backend.aclose()
    await backend.aclose()
    await expect_error(Closed, backend.publish(ORDERS, numbered(1)), "publish after aclose")
    await expect_error(Closed, backend.subscribe(subscription), "subscribe after aclose")


SCENARIOS = scenarios(
    closing_a_feed_hands_back_at_once,
    closing_a_feed_hands_back_retries_too,
    closing_a_backend_closes_its_feeds,
    closing_ends_a_waiting_take,
    the_closed_stay_closed,
)

"""What groups and take() promise."""

from __future__ import annotations

import asyncio

from headrace.backends.contract import Delivery, Settlement, Verdict
from headrace.testing.conformance.scenario import scenarios
from headrace.testing.conformance.stage import CLOCK_S, Stage, bodies, expect, expect_same, numbered


async def every_group_gets_everything(stage: Stage) -> None:
    """Groups do not know of each other."""
    billing, shipping = await stage.worker("billing"), await stage.worker("shipping")
    await stage.publish(*numbered(20))
    first, second = await stage.drain(billing, 20), await stage.drain(shipping, 20)
    expect_same("bodies of the second group", bodies(second), bodies(first))
    expect_same("handled by the first group", (await stage.group("billing")).handled, 20)


async def workers_of_a_group_share(stage: Stage) -> None:
    """Each event goes to one worker of the group."""
    workers = [await stage.worker(), await stage.worker()]
    await stage.publish(*numbered(40))
    got: list[Delivery] = []
    for turn in range(8):
        took = await stage.receive(workers[turn % 2], 5)
        got += took
        await stage.commit(workers[turn % 2], took)
    expect_same("events of both workers", sorted(int(b or b"") for b in bodies(got)), list(range(40)))
    expect_same("workers in the ledger", (await stage.group()).workers, 2)


async def earliest_begins_with_what_is_there(stage: Stage) -> None:
    """A group created at `earliest` gets the backlog; `start` is ignored once the group exists."""
    await stage.publish(*numbered(3))
    first = await stage.worker(start="earliest")
    took = await stage.receive(first, 1)
    await stage.commit(first, took)
    second = await stage.worker(start="latest")
    expect_same("bodies", bodies(await stage.receive(second, 2)), [b"1", b"2"])


async def latest_begins_with_what_comes(stage: Stage) -> None:
    """A group created at `latest` gets what is published from then on, and its ledger begins there; `start` is ignored later."""
    await stage.publish(*numbered(3))
    first = await stage.worker(start="latest")
    await stage.publish(*numbered(2, b"new "))
    second = await stage.worker(start="earliest")
    got = [*await stage.receive(first, 1), *await stage.receive(second, 1)]
    expect_same("bodies", bodies(got), [b"new 0", b"new 1"])
    await stage.expect_nothing(second, "what was there before the group is not for it")
    expect_same("published to the group", (await stage.group()).published, 2)


async def take_respects_its_limit(stage: Stage) -> None:
    """take() never gives more than it was asked for, retries and new events together."""
    feed = await stage.worker()
    await stage.publish(*numbered(10))
    back = await stage.receive(feed, 5)
    await stage.commit(feed, [Settlement(d, Verdict.RETURN) for d in back])
    got: list[Delivery] = []
    while len(got) < 10:
        took = await feed.take(3, 0)
        expect(0 < len(took) <= 3, f"take(3) gave {len(took)} while {10 - len(got)} were there")
        got += took
        await stage.commit(feed, took)
    expect_same("events", sorted(int(b or b"") for b in bodies(got)), list(range(10)))


async def what_is_held_is_not_given_again(stage: Stage) -> None:
    """An event that a live worker holds is given to nobody, that worker included."""
    first, second = await stage.worker(), await stage.worker()
    await stage.publish(*numbered(4))
    held = await stage.receive(first, 4)
    await stage.expect_nothing(first, "it holds all events")
    await stage.expect_nothing(second, "another worker holds all events")
    await stage.commit(first, held)


async def an_empty_take_waits_and_returns(stage: Stage) -> None:
    """take() with nothing to give waits for `wait_s` and returns nothing; with 0 it does not wait."""
    feed = await stage.worker()
    expect_same("take without waiting", list(await feed.take(5, 0)), [])
    began = await stage.now()
    waiting = await stage.start(feed.take(5, 0.3))
    while not waiting.done():
        await stage.elapse(0.1)
    expect_same("take that waited", list(await waiting), [])
    waited = await stage.now() - began
    expect(waited >= 0.3 - CLOCK_S, f"take was to wait for 0.3 s and returned nothing after {waited:.3f} s")


async def a_publish_wakes_a_waiting_take(stage: Stage) -> None:
    """take() returns when something comes, not at the end of its wait."""
    feed = await stage.worker()
    waiting = await stage.start(feed.take(5, 30))
    await stage.publish(*numbered(1))
    got = list(await asyncio.wait_for(waiting, 20))
    expect_same("bodies", bodies(got), [b"0"])
    await stage.commit(feed, got)


SCENARIOS = scenarios(
    every_group_gets_everything,
    workers_of_a_group_share,
    earliest_begins_with_what_is_there,
    latest_begins_with_what_comes,
    take_respects_its_limit,
    what_is_held_is_not_given_again,
    an_empty_take_waits_and_returns,
    a_publish_wakes_a_waiting_take,
)

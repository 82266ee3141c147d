"""What cap and retention promise: nothing that someone needs is ever removed, and a full topic says so."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from headrace.backends.contract import Feed, Record, Route, Settlement
from headrace.errors import Overloaded
from headrace.testing.conformance.scenario import scenarios
from headrace.testing.conformance.stage import (
    PATIENCE_S,
    STEP_S,
    Stage,
    bodies,
    expect,
    expect_error,
    expect_same,
    numbered,
)

SMALL = Route("orders", cap_events=10, retain_events=2)
NOBODYS = Route("bills", cap_events=40, retain_events=10, keep_for_first_group=False)
CLOSE = Route("orders", cap_events=20, retain_events=1_000)
NOBODYS_CLOSE = Route("bills", cap_events=40, retain_events=1_000, keep_for_first_group=False)
SHORT = Route("orders", retain_events=5)


async def a_full_topic_refuses_more(stage: Stage) -> None:
    """At `cap_events` publish raises Overloaded, says what to do and writes nothing; when groups have caught up there is room again."""
    feed = await stage.worker(route=SMALL)
    await stage.publish(*numbered(8), route=SMALL)
    message = await expect_error(
        Overloaded, stage.publish(*numbered(3, b"too many "), route=SMALL), "publish beyond the cap"
    )
    expect("orders" in message, f"the error names the topic: {message}")
    await stage.publish(*numbered(2, b"fits "), route=SMALL)
    await expect_error(Overloaded, stage.publish(*numbered(1, b"too many "), route=SMALL), "publish at the cap")
    got = await stage.drain(feed, 10)
    expect_same("bodies", bodies(got)[7:], [b"7", b"fits 0", b"fits 1"])
    again = partial(stage.publish, *numbered(3, b"new "), route=SMALL)
    await when_there_is_room(stage, again, "everything was handled, yet there is still no room")
    expect_same("bodies", bodies(await stage.drain(feed, 3)), [b"new 0", b"new 1", b"new 2"])


async def what_a_group_needs_is_not_trimmed(stage: Stage) -> None:
    """A slow group still gets everything, whatever the others have settled and however little is to be retained."""
    fast, slow = await stage.worker("fast", SHORT), await stage.worker("slow", SHORT)
    await stage.publish(*numbered(40), route=SHORT)
    held = await stage.receive(slow, 2)
    await stage.drain(fast, 40)
    await stage.elapse(stage.harness.lease_s)
    expect_same("events held", (await stage.inspector.topics())[0].events, 40)
    rest = await stage.receive(slow, 38)
    await stage.commit(slow, rest)
    await stage.publish(*numbered(1, b"one more "), route=SHORT)
    await stage.elapse(stage.harness.lease_s)
    letters = await stage.inspector.read("orders", count=1)
    expect_same("the first event, which is still pending", letters[0].data, b"0")
    await slow.aclose()
    again = await stage.worker("slow", SHORT)
    expect_same("bodies", sorted(b or b"" for b in bodies(await stage.receive(again, 3))), [b"0", b"1", b"one more 0"])
    expect_same("ids of what was held", len({d.id for d in held}), 2)


async def settled_events_are_trimmed(stage: Stage) -> None:
    """What all groups have settled is kept up to `retain_events`; the ledger goes on."""
    feed = await stage.worker(route=SHORT)
    await stage.publish(*numbered(40), route=SHORT)
    await stage.drain(feed, 40)
    waited = 0.0
    while (topic := (await stage.inspector.topics())[0]).events > SHORT.retain_events:
        expect(waited < PATIENCE_S, f"all 40 were settled and 5 are to be kept, yet the topic holds {topic.events}")
        await stage.elapse(STEP_S)
        waited += STEP_S
    expect_same("events kept, events ever published", (topic.events, topic.published), (5, 40))
    late = await stage.worker("late", SHORT)
    expect_same("what a new group finds", bodies(await stage.drain(late, 5)), [b"35", b"36", b"37", b"38", b"39"])
    info = await stage.group()
    expect_same("published, handled", (info.published, info.handled), (40, 40))


async def nothing_is_trimmed_before_a_group_exists(stage: Stage) -> None:
    """Retention is about settled events; without a group nothing is settled."""
    await stage.publish(*numbered(8), route=SMALL)
    await stage.publish(*numbered(2), route=SMALL)
    await expect_error(Overloaded, stage.publish(*numbered(1), route=SMALL), "publish at the cap")
    await stage.drain(await stage.worker(route=SMALL), 10)


async def what_nobody_waits_for_does_not_fill_its_topic(stage: Stage) -> None:
    """With `keep_for_first_group=False` retention holds before a group exists; from then on nothing is trimmed that it has not settled."""
    for n in range(20):
        await stage.publish(*numbered(5, b"%d " % n), route=NOBODYS)
    await expect_nobodys(stage, b"19 4")
    first = await stage.worker("archive", NOBODYS)
    held = (await stage.inspector.topics())[0].events
    await stage.publish(*numbered(40 - held), route=NOBODYS)
    await expect_error(Overloaded, stage.publish(*numbered(1), route=NOBODYS), "publish at the cap")
    await stage.drain(first, 40)


async def an_output_that_nobody_waits_for_is_written(stage: Stage) -> None:
    """As above, for the outputs of a commit."""
    await write_outputs(stage, await stage.worker())


async def an_output_that_nobody_waits_for_is_written_in_order(stage: Stage) -> None:
    """As above, for a commit of an ordered group."""
    await write_outputs(stage, await stage.worker(ordered=True))


async def write_outputs(stage: Stage, feed: Feed) -> None:
    """Many more than their topic holds."""
    for n in range(20):
        await stage.publish(*numbered(5, b"%d " % n))
        for _ in range(5):
            (got,) = await stage.receive(feed, 1)
            settled = [Settlement(got, outputs=[(NOBODYS_CLOSE, Record(got.get(b"data") or b""))])]
            commit = partial(stage.commit, feed, settled)
            await when_there_is_room(stage, commit, "nobody reads the topic, yet there is no room in it")
    await expect_nobodys(stage, b"19 4")


async def when_there_is_room(stage: Stage, attempt: Callable[[], Awaitable[None]], complaint: str) -> None:
    """Makes the attempt as the runtime does: again and again while there is no room."""
    waited = 0.0
    while True:
        try:
            return await attempt()
        except Overloaded as e:
            expect(waited < PATIENCE_S, f"{complaint}: {e}")
            await stage.elapse(STEP_S)
            waited += STEP_S


async def what_is_kept_for_replay_gives_way(stage: Stage) -> None:
    """A topic that is at its cap with settled events has room, however many of them were to be kept."""
    feed = await stage.worker(route=CLOSE)
    for n in range(6):
        await stage.publish(*numbered(6, b"%d " % n), route=CLOSE)
        await stage.drain(feed, 6)
    letters = await stage.inspector.read("orders", count=100)
    expect_same("the newest event", letters[-1].data, b"5 5")
    expect(len(letters) <= CLOSE.cap_events, f"{CLOSE.cap_events} events at most: {len(letters)}")


async def expect_nobodys(stage: Stage, newest: bytes) -> None:
    """It holds its newest events, 10 to 40 of them."""
    letters = await stage.inspector.read("bills", count=100)
    expect_same("the newest event", letters[-1].data, newest)
    expect(10 <= len(letters) <= 40, f"10 to 40 events are kept: {len(letters)}")


SCENARIOS = scenarios(
    a_full_topic_refuses_more,
    what_a_group_needs_is_not_trimmed,
    settled_events_are_trimmed,
    nothing_is_trimmed_before_a_group_exists,
    what_nobody_waits_for_does_not_fill_its_topic,
    what_is_kept_for_replay_gives_way,
    (an_output_that_nobody_waits_for_is_written, "outputs"),
    (an_output_that_nobody_waits_for_is_written_in_order, "outputs", "ordered"),
)

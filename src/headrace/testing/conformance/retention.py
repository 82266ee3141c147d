"""What cap and retention promise: nothing that someone needs is ever removed, and a full topic says so."""

from __future__ import annotations

from headrace.backends.contract import Route
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
    waited = 0.0
    while True:
        try:
            await stage.publish(*numbered(3, b"new "), route=SMALL)
            break
        except Overloaded:
            expect(waited < PATIENCE_S, "everything was handled, yet there is still no room")
            await stage.elapse(STEP_S)
            waited += STEP_S
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


SCENARIOS = scenarios(
    a_full_topic_refuses_more,
    what_a_group_needs_is_not_trimmed,
    settled_events_are_trimmed,
    nothing_is_trimmed_before_a_group_exists,
)

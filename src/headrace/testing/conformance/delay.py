"""What delays, retries, returns and dead letters promise."""

from __future__ import annotations

from headrace.backends.contract import Record, Settlement, Verdict
from headrace.testing.conformance.publish import ODD_BYTES
from headrace.testing.conformance.scenario import scenarios
from headrace.testing.conformance.stage import CLOCK_S, STEP_S, Stage, attributes, bodies, expect, expect_same, numbered


async def a_delayed_event_comes_when_it_is_due(stage: Stage) -> None:
    """`delay_ms` counts from the publish; until then the event is in the ledger as delayed. Others pass it."""
    feed = await stage.worker()
    began = await stage.now()
    await stage.publish(Record(b"later", b"t", b"k", headers=((b"x-odd", ODD_BYTES),), delay_ms=400), Record(b"now"))
    expect_same("what came first", bodies(await stage.receive(feed, 1)), [b"now"])
    info = await stage.group()
    expect_same("published", info.published, 2)
    if await stage.now() - began < 0.3:
        expect_same("delayed", info.delayed, 1)
    got = await stage.receive(feed, 1)
    waited = await stage.now() - began
    expect(waited >= 0.4 - CLOCK_S, f"due after 0.4 s, came after {waited:.3f} s")
    expect_same(
        "attributes", attributes(got[0]), [(b"type", b"t"), (b"x-odd", ODD_BYTES), (b"key", b"k"), (b"data", b"later")]
    )
    expect(got[0].get(b"id"), "a delayed event has an id")


async def an_event_can_be_due_at_a_moment(stage: Stage) -> None:
    """`at_ms` is Unix time by the server's clock; a moment that is past means at once."""
    feed, due = await stage.worker(), await stage.now() + 0.4
    await stage.publish(Record(b"then", at_ms=int(due * 1000)), Record(b"past", at_ms=1))
    got = await stage.receive(feed, 2)
    now = await stage.now()
    expect_same("bodies", bodies(got), [b"past", b"then"])
    expect(now >= due - CLOCK_S, f"came {due - now:.3f} s before its moment")


async def delayed_events_come_in_order_of_time(stage: Stage) -> None:
    """What is due earlier comes earlier."""
    feed = await stage.worker()
    await stage.publish(Record(b"third", delay_ms=400), Record(b"first", delay_ms=100), Record(b"second", delay_ms=250))
    expect_same("bodies", bodies(await stage.drain(feed, 3)), [b"first", b"second", b"third"])


async def a_repeated_id_is_dropped_while_delayed(stage: Stage) -> None:
    """The window of an id begins with the publish, not when the event is due."""
    feed = await stage.worker()
    await stage.publish(Record(b"delayed", id=b"A", delay_ms=300))
    await stage.publish(Record(b"again", id=b"A"))
    expect_same("bodies", bodies(await stage.drain(feed, 1)), [b"delayed"])


async def a_retry_comes_after_its_delay(stage: Stage) -> None:
    """A retry is the same event, one attempt later, not before its delay is over, and only for the group that asked for it."""
    feed, other = await stage.worker(), await stage.worker("shipping")
    headers = ((b"x-odd", ODD_BYTES), (b"x-empty", b""))
    await stage.publish(Record(ODD_BYTES, b"order.created", b"ann", headers=headers))
    first = (await stage.receive(feed, 1))[0]
    before = first
    for attempt in (2, 3):
        began = await stage.now()
        await stage.commit(feed, [Settlement(before, Verdict.RETRY, delay_ms=300, reason=b"server busy")])
        info = await stage.group()
        expect_same("retrying, pending, handled", (info.retrying, info.pending, info.handled), (1, 0, 0))
        again = (await stage.receive(feed, 1))[0]
        waited = await stage.now() - began
        expect(waited >= 0.3 - CLOCK_S, f"the retry was due after 0.3 s and came after {waited:.3f} s")
        expect_same("attempt", again.attempt, attempt)
        expect_same("id", again.id, first.id)
        expect_same("attributes", attributes(again), attributes(first))
        before = again
    await stage.commit(feed, [before])
    expect_same("handled", (await stage.group()).handled, 1)
    await stage.drain(other, 1)


async def many_retries_all_come_back(stage: Stage) -> None:
    """A whole batch of retries: each comes back once."""
    feed = await stage.worker()
    await stage.publish(*numbered(120))
    await stage.commit(feed, [Settlement(d, Verdict.RETRY, delay_ms=100) for d in await stage.receive(feed, 120)])
    got = await stage.drain(feed, 120)
    expect_same("events", sorted(int(b or b"") for b in bodies(got)), list(range(120)))
    expect_same("attempts", {d.attempt for d in got}, {2})


async def a_returned_event_is_there_at_once(stage: Stage) -> None:
    """RETURN hands an event back: another worker may take it at once; it has cost no attempt."""
    first, second = await stage.worker(), await stage.worker()
    await stage.publish(Record(ODD_BYTES, b"order.created", b"ann"))
    held = await stage.receive(first, 1)
    await stage.commit(first, [Settlement(held[0], Verdict.RETURN)])
    got = await second.take(1, 0)
    expect_same("what take() without waiting gave after RETURN", [(d.id, d.attempt) for d in got], [(held[0].id, 1)])
    expect_same("attributes", attributes(got[0]), attributes(held[0]))
    await stage.commit(second, [Settlement(got[0], Verdict.RETRY)])
    again = await stage.receive(first, 1)
    await stage.commit(first, [Settlement(again[0], Verdict.RETURN)])
    got = await stage.receive(second, 1)
    expect_same("attempt of a retry that was returned", got[0].attempt, 2)
    await stage.commit(second, got)


async def a_dead_letter_keeps_everything(stage: Stage) -> None:
    """A dead letter has its reason, its id and every byte of the event; it does not come again, and other groups are not touched."""
    feed, other = await stage.worker(), await stage.worker("shipping")
    await stage.publish(Record(ODD_BYTES, b"order.created", "Zoë".encode(), id=b"order-7", headers=((b"x-a", b"1"),)))
    first = (await stage.receive(feed, 1))[0]
    await stage.commit(feed, [Settlement(first, Verdict.RETRY, reason=b"tried once")])
    again = await stage.receive(feed, 1)
    await stage.commit(feed, [Settlement(again[0], Verdict.DEAD, reason="Zoë owes too much".encode())])
    await stage.expect_nothing(feed, "the event is dead")
    letters = list(await stage.inspector.dead("orders", "billing"))
    expect_same("number of dead letters", len(letters), 1)
    expect_same("data", letters[0].data, ODD_BYTES)
    expect_same("reason", letters[0].reason, "Zoë owes too much")
    wanted = {"id": "order-7", "type": "order.created", "key": "Zoë", "x-a": "1", "attempt": "2"}
    expect_same("attributes", {name: letters[0].attributes.get(name) for name in wanted}, wanted)
    expect("data" not in letters[0].attributes, "data is apart from the attributes")
    info = await stage.group()
    expect_same("dead, handled, pending", (info.dead, info.handled, info.pending), (1, 0, 0))
    await stage.drain(other, 1)
    expect_same("dead letters of the other group", list(await stage.inspector.dead("orders", "shipping")), [])
    await stage.elapse(STEP_S)


SCENARIOS = scenarios(
    (a_delayed_event_comes_when_it_is_due, "delay"),
    (an_event_can_be_due_at_a_moment, "delay"),
    (delayed_events_come_in_order_of_time, "delay"),
    (a_repeated_id_is_dropped_while_delayed, "delay", "ids"),
    a_retry_comes_after_its_delay,
    many_retries_all_come_back,
    a_returned_event_is_there_at_once,
    a_dead_letter_keeps_everything,
)

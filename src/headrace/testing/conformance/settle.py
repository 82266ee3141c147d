"""What commit() promises: each delivery entirely or not at all, verdicts and outputs, the first to settle wins."""

from __future__ import annotations

from headrace.backends.contract import Record, Route, Settled, Settlement, Verdict
from headrace.backends.entry import derived_id
from headrace.errors import Overloaded
from headrace.testing.conformance.scenario import scenarios
from headrace.testing.conformance.stage import Stage, bodies, expect, expect_error, expect_same, numbered

BILLS = Route("bills")


async def commit_settles(stage: Stage) -> None:
    """What is committed is done with: it is not pending, it is counted, it never comes again."""
    feed = await stage.worker()
    await stage.publish(*numbered(10))
    got = await stage.receive(feed, 10)
    expect_same("pending", (await stage.group()).pending, 10)
    await stage.commit(feed, got[:7])
    info = await stage.group()
    expect_same("handled and pending", (info.handled, info.pending), (7, 3))
    await stage.commit(feed, got[7:])
    await feed.aclose()
    await stage.expect_nothing(await stage.worker(), "everything was settled")


async def one_commit_settles_in_every_way(stage: Stage) -> None:
    """Handled, retried, dead-lettered and handed back in one call."""
    feed = await stage.worker()
    await stage.publish(*numbered(6))
    plain, handled, retried, dead, returned, kept = await stage.receive(feed, 6)
    settled: list[Settled] = [
        plain,
        Settlement(handled, outputs=[(BILLS, Record(b"bill"))]),
        Settlement(retried, Verdict.RETRY, delay_ms=60_000, reason=b"busy"),
        Settlement(dead, Verdict.DEAD, reason=b"broken"),
        Settlement(returned, Verdict.RETURN),
    ]
    await stage.commit(feed, settled)
    info = await stage.group()
    expect_same("handled, dead", (info.handled, info.dead), (2, 1))
    expect_same("pending and retrying", info.pending + info.retrying, 3)
    expect_same("what came back", bodies(await stage.receive(feed, 1)), [b"4"])
    await stage.commit(feed, [kept])


async def a_repeated_commit_is_harmless(stage: Stage) -> None:
    """A commit whose answer was lost may be sent again: it is told that all is settled, and nothing is written twice."""
    feed, bills = await stage.worker(), await stage.worker("archive", BILLS)
    await stage.publish(*numbered(6))
    got = await stage.receive(feed, 6)
    settled: list[Settled] = [
        *got[:3],
        *(Settlement(d, outputs=[(BILLS, Record(b"bill"))]) for d in got[3:5]),
        Settlement(got[5], Verdict.DEAD),
    ]
    await stage.commit(feed, settled)
    for _ in range(2):
        again = await feed.commit(settled)
        expect_same("deliveries that the repeat did not apply", len(again), 6)
        expect(not any(u.refused for u in again), f"nothing was refused, it was settled before: {again}")
    info = await stage.group()
    expect_same("handled, dead, pending", (info.handled, info.dead, info.pending), (5, 1, 0))
    await stage.drain(bills, 2)


async def outputs_leave_with_the_commit(stage: Stage) -> None:
    """Outputs appear when their input is settled, once, with an identity derived from it; not before."""
    feed, bills = await stage.worker(), await stage.worker("archive", BILLS)
    await stage.publish(Record(b"order", id=b"order-7"))
    got = (await stage.receive(feed, 1))[0]
    outputs = [
        (BILLS, Record(b"one", b"bill", b"ann", headers=((b"x-a", b"1"),))),
        (BILLS, Record(b"two")),
        (Route("mails"), Record(b"mail")),
    ]
    settlement = Settlement(got, outputs=outputs)
    await stage.expect_nothing(bills, "the input is not settled")
    await stage.commit(feed, [settlement])
    sent = await stage.drain(bills, 2)
    expect_same("bodies", bodies(sent), [b"one", b"two"])
    expect_same("ids", [d.id for d in sent], [derived_id(got, "billing", 0), derived_id(got, "billing", 1)])
    expect_same("type, key, header", [sent[0].get(n) for n in (b"type", b"key", b"x-a")], [b"bill", b"ann", b"1"])
    mails = await stage.drain(await stage.worker("archive", Route("mails")), 1)
    expect_same("id of the third", mails[0].id, b"order-7:billing:2")


async def an_output_with_an_id_of_its_own_is_deduplicated(stage: Stage) -> None:
    """An output that brings an id obeys the window of its topic, beside what was published there."""
    feed, bills = await stage.worker(), await stage.worker("archive", BILLS)
    await stage.publish(Record(b"published", id=b"bill-1"), route=BILLS)
    await stage.publish(*numbered(2))
    ids = (b"bill-1", b"bill-2")
    await stage.commit(
        feed,
        [Settlement(d, outputs=[(BILLS, Record(b"output", id=i)) for i in ids]) for d in await stage.receive(feed, 2)],
    )
    got = await stage.drain(bills, 2)
    expect_same(
        "bodies and ids", [(d.get(b"data"), d.id) for d in got], [(b"published", b"bill-1"), (b"output", b"bill-2")]
    )


async def an_output_can_be_delayed(stage: Stage) -> None:
    """An output obeys its delay, counted from the commit."""
    feed, bills = await stage.worker(), await stage.worker("archive", BILLS)
    await stage.publish(*numbered(1))
    got = await stage.receive(feed, 1)
    began = await stage.now()
    await stage.commit(feed, [Settlement(got[0], outputs=[(BILLS, Record(b"later", delay_ms=300))])])
    await stage.receive(bills, 1)
    waited = await stage.now() - began
    expect(waited >= 0.29, f"the output was delayed by 0.3 s and came after {waited:.3f} s")


async def an_output_to_a_full_topic_waits(stage: Stage) -> None:
    """A commit whose outputs have no room raises Overloaded and writes nothing; the deliveries are still this worker's."""
    full = Route("bills", cap_events=2)
    feed, bills = await stage.worker(), await stage.worker("archive", full)
    await stage.publish(*numbered(2), route=full)
    await stage.publish(*numbered(5))
    got = await stage.receive(feed, 5)
    settled: list[Settled] = [*got[:4], Settlement(got[4], outputs=[(full, Record(b"bill"))])]
    message = await expect_error(Overloaded, feed.commit(settled), "commit with an output to a full topic")
    expect("bills" in message, f"the error names the full topic: {message}")
    info = await stage.group()
    expect_same("handled, pending", (info.handled, info.pending), (0, 5))
    await stage.commit(feed, got)
    expect_same("bodies on the full topic", bodies(await stage.receive(bills, 2)), [b"0", b"1"])
    await stage.expect_nothing(bills, "the output was not written")


SCENARIOS = scenarios(
    commit_settles,
    (one_commit_settles_in_every_way, "outputs"),
    (a_repeated_commit_is_harmless, "outputs"),
    (outputs_leave_with_the_commit, "outputs"),
    (an_output_with_an_id_of_its_own_is_deduplicated, "outputs", "ids"),
    (an_output_can_be_delayed, "outputs", "delay"),
    (an_output_to_a_full_topic_waits, "outputs"),
)

"""What leases promise: the events of a dead worker are taken over, of a live one never, and a late commit writes nothing."""

from __future__ import annotations

from collections.abc import Sequence

from headrace import limits
from headrace.backends.contract import Delivery, Feed, Record, Route, Settlement, Verdict, delivery_of
from headrace.testing.conformance.scenario import scenarios
from headrace.testing.conformance.stage import STEP_S, Stage, bodies, expect, expect_same, numbered

BILLS = Route("bills")


def _billed(deliveries: Sequence[Delivery], by: bytes, *, effects: bool) -> list[Settlement]:
    """Settlements that leave a trace of who made them."""
    traces = [(b"RPUSH", b"traces", by)] if effects else []
    return [Settlement(d, outputs=[(BILLS, Record(by))], effects=traces) for d in deliveries]


async def the_events_of_a_dead_worker_are_taken_over(stage: Stage) -> None:
    """A crashed worker's events are given to another one when its lease has ended, not before; attempts do not grow."""
    joined = await stage.now()
    first, second = await stage.worker(), await stage.worker()
    await stage.publish(*numbered(4))
    held = await stage.receive(first, 4)
    await stage.commit(first, [Settlement(held[3], Verdict.RETRY)])
    held[3] = (await stage.receive(first, 1))[0]
    await stage.harness.crash(first)
    got = await stage.receive(second, 4)
    waited = await stage.now() - joined
    lease = stage.harness.lease_s
    expect(
        waited >= lease * 0.99,
        f"the lease of {lease} s could not end before, yet its events came {waited:.3f} s after it was taken",
    )
    expect_same("ids", sorted(d.id for d in got), sorted(d.id for d in held))
    expect_same("attempts", sorted(d.attempt for d in got), [1, 1, 1, 2])
    await stage.commit(second, got)
    expect_same("handled", (await stage.group()).handled, 4)


async def a_late_commit_writes_nothing(stage: Stage) -> None:
    """A worker that was paused past its lease comes back: what another has settled it cannot settle, and it is told so."""
    first, second, bills = await stage.worker(), await stage.worker(), await stage.worker("archive", BILLS)
    effects = bool(stage.harness.features.effects)
    await stage.publish(*numbered(6))
    held = await stage.receive(first, 6)
    await stage.harness.pause(first)
    await stage.elapse(1.2 * stage.harness.lease_s)
    await stage.commit(second, _billed(await stage.receive(second, 6), b"second", effects=effects))
    late = await first.commit(_billed(held, b"first", effects=effects))
    expect_same("deliveries that the late commit did not settle", len(late), 6)
    expect(not any(u.refused for u in late), f"they were not refused but settled by another worker: {late}")
    expect_same("outputs", bodies(await stage.drain(bills, 6)), [b"second"] * 6)
    if effects:
        expect_same("effects", await stage.harness.redis_value("traces"), [b"second"] * 6)
    expect_same("handled", (await stage.group()).handled, 6)


async def the_first_to_settle_wins(stage: Stage) -> None:
    """Two workers hold the same events after a takeover: for each event one of them writes, the other is told."""
    first, second, bills = await stage.worker(), await stage.worker(), await stage.worker("archive", BILLS)
    await stage.publish(*numbered(6))
    held = await stage.receive(first, 6)
    await stage.harness.pause(first)
    await stage.elapse(1.2 * stage.harness.lease_s)
    got = await stage.receive(second, 6)
    late = await first.commit(_billed(held[:3], b"first", effects=False))
    lost = await second.commit(_billed(got, b"second", effects=False))
    expect_same("deliveries that one of the two did not settle", len(late) + len(lost), 3)
    expect_same("number of outputs", len(await stage.drain(bills, 6)), 6)
    expect_same("handled", (await stage.group()).handled, 6)


async def a_mixed_batch_settles_what_is_still_ours(stage: Stage) -> None:
    """Of a batch that was partly settled by another worker the rest is applied."""
    first, second, bills = await stage.worker(), await stage.worker(), await stage.worker("archive", BILLS)
    await stage.publish(*numbered(8))
    held = await stage.receive(first, 8)
    await stage.harness.pause(first)
    await stage.elapse(1.2 * stage.harness.lease_s)
    got = {d.id: d for d in await stage.receive(second, 8)}
    await stage.commit(second, [got[held[n].id] for n in (1, 4)])
    late = await first.commit([*held[:4], *_billed(held[4:], b"first", effects=False)])
    tokens = sorted(delivery_of(u.settled).id for u in late)
    expect_same("ids that were settled by the other", tokens, sorted(held[n].id for n in (1, 4)))
    await stage.drain(bills, 3)
    expect_same("handled, pending", ((await stage.group()).handled, (await stage.group()).pending), (8, 0))


async def a_long_handler_keeps_its_events(stage: Stage) -> None:
    """A live worker's lease is renewed however long it works; nobody takes over what it holds."""
    first, second = await stage.worker(), await stage.worker()
    await stage.publish(*numbered(3))
    held = await stage.receive(first, 3)
    for _ in range(5):
        await stage.elapse(stage.harness.lease_s / 2)
        await stage.expect_nothing(second, "the first worker is alive")
    await stage.commit(first, held)


async def groups_do_not_take_over_from_each_other(stage: Stage) -> None:
    """The events of a dead worker go to its own group."""
    billing, shipping = await stage.worker("billing"), await stage.worker("shipping")
    await stage.publish(*numbered(3))
    await stage.receive(billing, 3)
    await stage.drain(shipping, 3)
    await stage.harness.crash(billing)
    await stage.elapse(1.5 * stage.harness.lease_s)
    await stage.expect_nothing(shipping, "it has settled all of its events")
    await stage.drain(await stage.worker("billing"), 3)


async def a_dead_worker_that_took_nothing_is_forgotten(stage: Stage) -> None:
    """The ledger counts workers that live."""
    first, second = await stage.worker(), await stage.worker()
    await stage.harness.crash(first)
    await stage.elapse(1.5 * stage.harness.lease_s)
    await stage.expect_nothing(second, "nothing was published")
    expect_same("workers", (await stage.group()).workers, 1)


async def _some(stage: Stage, feed: Feed) -> Sequence[Delivery]:
    """What comes within two leases, if anything."""
    waited = 0.0
    while waited < 2 * stage.harness.lease_s:
        if got := await feed.take(10, 0):
            return got
        await stage.elapse(STEP_S)
        waited += STEP_S
    return ()


async def an_event_that_kills_workers_ends_in_the_dead_letters(stage: Stage) -> None:
    """An event that every worker dies of is soon given out alone, and dead-lettered after `limits.deaths_max` deaths; others survive."""
    await stage.publish(*numbered(2), Record(b"poison"), *numbered(3, b"late "))
    handled: list[bytes | None] = []
    deaths = 0
    while deaths <= limits.deaths_max:
        feed = await stage.worker()
        while got := await _some(stage, feed):
            if b"poison" in bodies(got):
                break
            handled += bodies(got)
            await stage.commit(feed, got)
        else:
            break
        alone = deaths < limits.deaths_alone or len(got) == 1
        expect(alone, f"{deaths} workers died of this event, yet it was given out in company: {bodies(got)}")
        deaths += 1
        await stage.harness.crash(feed)
        await stage.elapse(1.2 * stage.harness.lease_s)
    expect_same("workers that died", deaths, limits.deaths_max)
    expect_same("innocent events", sorted(b or b"" for b in handled), [b"0", b"1", b"late 0", b"late 1", b"late 2"])
    letters = await stage.inspector.dead("orders", "billing")
    expect_same("dead letters", [letter.data for letter in letters], [b"poison"])
    expect(letters[0].reason, "the dead letter has a reason")
    info = await stage.group()
    expect_same("handled, dead, pending", (info.handled, info.dead, info.pending), (5, 1, 0))


SCENARIOS = scenarios(
    the_events_of_a_dead_worker_are_taken_over,
    (a_late_commit_writes_nothing, "outputs"),
    (the_first_to_settle_wins, "outputs"),
    (a_mixed_batch_settles_what_is_still_ours, "outputs"),
    a_long_handler_keeps_its_events,
    groups_do_not_take_over_from_each_other,
    a_dead_worker_that_took_nothing_is_forgotten,
    an_event_that_kills_workers_ends_in_the_dead_letters,
)

"""Ordered mode: the events of one key one after the other, in their order, whatever fails.

A feed may give out several events of a key at once, or one at a time; the scenarios allow for both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from headrace.backends.contract import Delivery, Feed, Record, Route, Settled, Settlement, Verdict
from headrace.errors import Refused
from headrace.testing.conformance.scenario import scenarios
from headrace.testing.conformance.stage import Stage, bodies, expect, expect_error, expect_same

BILLS = Route("bills")


def _keyed(*names: str) -> list[Record]:
    """Records whose key is the first letter of their body."""
    return [Record(name.encode(), key=name[:1].encode()) for name in names]


def _billed(deliveries: Sequence[Delivery], by: bytes = b"") -> list[Settlement]:
    """Settlements that each publish what was handled, and by whom."""
    return [Settlement(d, outputs=[(BILLS, Record(by + (d.get(b"data") or b"")))]) for d in deliveries]


async def _some(stage: Stage, feed: Feed, most: int) -> list[Delivery]:
    """Waits for the first, and takes what else is there."""
    got = await stage.receive(feed, 1)
    return [*got, *await feed.take(most - 1, 0)] if most > 1 else got


async def _handle(
    stage: Stage, feed: Feed, count: int, settle: Callable[[Sequence[Delivery]], Sequence[Settled]] = list
) -> list[Delivery]:
    """Takes and settles until there were `count`."""
    got: list[Delivery] = []
    while len(got) < count:
        some = await _some(stage, feed, count - len(got))
        await stage.commit(feed, settle(some))
        got += some
    return got


def _expect_order(deliveries: Sequence[Delivery], *wanted: Sequence[bytes]) -> None:
    """For each key, its bodies in this order."""
    for own in wanted:
        got = [b for b in bodies(deliveries) if b is not None and b[:1] == own[0][:1]]
        expect_same(f"order of key {own[0][:1].decode()}", got, list(own))


async def _fail_first(stage: Stage, feed: Feed, delay_ms: int) -> list[Delivery]:
    """Settles a0 by RETRY, others of its key by RETURN; handles the rest. Returns what was handled."""
    some = await _some(stage, feed, 3)
    settled: list[Settled] = []
    handled = []
    for delivery in some:
        if delivery.get(b"data") == b"a0":
            settled.append(Settlement(delivery, Verdict.RETRY, delay_ms=delay_ms))
        elif delivery.key == b"a":
            settled.append(Settlement(delivery, Verdict.RETURN))
        else:
            settled.append(delivery)
            handled.append(delivery)
    await stage.commit(feed, settled)
    return handled


async def events_come_in_the_order_of_their_publication(stage: Stage) -> None:
    """Of each key, what one call or several published comes in that order."""
    await stage.publish(*_keyed("a0", "b0", "a1"))
    await stage.publish(*_keyed("a2", "b1"))
    feed = await stage.worker(ordered=True)
    _expect_order(await _handle(stage, feed, 5), [b"a0", b"a1", b"a2"], [b"b0", b"b1"])
    await stage.expect_nothing(feed, "all five events were settled")
    expect_same("handled", (await stage.group()).handled, 5)


async def a_failed_event_is_not_overtaken_by_its_key(stage: Stage) -> None:
    """Later events of its key, those that were given out and those published since, come after it; other keys go on meanwhile."""
    feed = await stage.worker(ordered=True)
    await stage.publish(*_keyed("a0", "b0", "a1"))
    handled = await _fail_first(stage, feed, 500)
    await stage.publish(*_keyed("a2", "b1"))
    handled += await _handle(stage, feed, 5 - len(handled))
    _expect_order(handled, [b"a0", b"a1", b"a2"], [b"b0", b"b1"])
    attempts = {d.get(b"data"): d.attempt for d in handled}
    expect_same("attempts", (attempts[b"a0"], attempts[b"a1"], attempts[b"a2"]), (2, 1, 1))
    meanwhile = bodies(handled)
    expect(meanwhile.index(b"b1") < meanwhile.index(b"a0"), f"another key had to wait for the retry: {meanwhile}")
    expect_same("handled, retrying", ((info := await stage.group()).handled, info.retrying), (5, 0))


async def a_failed_event_is_not_overtaken_while_another_key_is_at_work(stage: Stage) -> None:
    """Also while an event before it is not settled yet, so that the feed may not be able to write anything."""
    await stage.publish(*_keyed("b0", "a0", "c0", "d0"))
    feed = await stage.worker(ordered=True)
    held = await stage.receive(feed, 4)
    by_body = {d.get(b"data"): d for d in held}
    await stage.commit(feed, [Settlement(by_body[b"a0"], Verdict.RETRY), Settlement(by_body[b"c0"], Verdict.RETURN)])
    await stage.publish(*_keyed("a1", "c1", "d1"))
    seen = [b for b in bodies(await feed.take(10, 0.5)) if b is not None]
    for early, late in ((b"a1", b"a0"), (b"c1", b"c0")):
        ahead = early in seen and late not in seen[: seen.index(early)]
        expect(
            not ahead, f"{early.decode()} was given out before {late.decode()}, which was to be handled again: {seen}"
        )


async def what_waits_in_order_survives_its_worker(stage: Stage) -> None:
    """A failed event and those behind it are given to the next worker in their order."""
    first = await stage.worker(ordered=True)
    await stage.publish(*_keyed("a0", "a1", "b0"))
    handled = await _fail_first(stage, first, 0)
    await stage.harness.crash(first)
    handled += await _handle(stage, await stage.worker(ordered=True), 3 - len(handled))
    _expect_order(handled, [b"a0", b"a1"], [b"b0"])


async def a_dead_letter_lets_its_key_go_on(stage: Stage) -> None:
    """An event that ends in the dead letters holds up nothing."""
    feed = await stage.worker(ordered=True)
    await stage.publish(*_keyed("a0"))
    await stage.publish(*_keyed("a1"))
    (first,) = await stage.receive(feed, 1)
    await stage.commit(feed, [Settlement(first, Verdict.DEAD, reason=b"why")])
    await stage.publish(*_keyed("a2"))
    _expect_order(await _handle(stage, feed, 2), [b"a1", b"a2"])
    expect_same("handled, dead", ((info := await stage.group()).handled, info.dead), (2, 1))


async def an_ordered_worker_is_relieved_when_its_lease_ends(stage: Stage) -> None:
    """What a dead worker had in hand comes again, when its lease has ended and not before."""
    joined = await stage.now()
    first = await stage.worker(ordered=True)
    for record in _keyed("a0", "b0", "a1"):
        await stage.publish(record)
    held = await stage.receive(first, 2)
    await stage.commit(first, held[:1])
    second = await stage.worker(ordered=True)
    await stage.harness.crash(first)
    late: list[Delivery] = []
    while b"b0" not in bodies(late):
        late += await _handle(stage, second, 1)
    waited = await stage.now() - joined
    expect(waited >= stage.harness.lease_s * 0.99, f"they came {waited:.3f} s after the lease was taken")
    late += await _handle(stage, second, 2 - len(late))
    _expect_order(late, [b"a1"], [b"b0"])


async def an_ordered_worker_keeps_what_it_has_in_hand(stage: Stage) -> None:
    """However many workers come, and however long it takes: what a live worker has in hand is given to nobody else."""
    first = await stage.worker(ordered=True)
    await stage.publish(*_keyed("a0"))
    await stage.publish(*_keyed("a1"))
    held = await stage.receive(first, 1)
    others = [await stage.worker(ordered=True) for _ in range(4)]
    for _ in range(3):
        await stage.elapse(stage.harness.lease_s / 2)
        for other in others:
            await stage.expect_nothing(other, "the first event of the key is in the hands of another worker")
    await stage.commit(first, held)


async def an_ordered_worker_writes_nothing_after_its_lease(stage: Stage) -> None:
    """A worker that was paused past its lease, while another went on, is told so, and nothing of it is written."""
    first, bills = await stage.worker(ordered=True), await stage.worker("archive", BILLS)
    await stage.publish(*_keyed("a0", "b0", "a1", "b1"))
    held = await _some(stage, first, 4)
    await stage.harness.pause(first)
    await stage.elapse(1.2 * stage.harness.lease_s)
    second = await stage.worker(ordered=True)
    taken = await _handle(stage, second, 4, lambda got: _billed(got, b"second "))
    late = await first.commit(_billed(held, b"first "))
    expect_same("deliveries that the late commit did not settle", len(late), len(held))
    wanted = [b"second " + (body or b"") for body in bodies(taken)]
    expect_same("outputs", bodies(await stage.drain(bills, 4)), wanted)
    expect_same("handled", (await stage.group()).handled, 4)


async def effects_behind_a_gap_happen_once(stage: Stage) -> None:
    """What is settled while something before it is not, and whose worker then dies, has its effects once."""
    first, bills = await stage.worker(ordered=True), await stage.worker("archive", BILLS)
    await stage.publish(*_keyed("a0", "b0", "c0"))
    held = await stage.receive(first, 3)
    await stage.commit(first, _billed(held[1:]))
    await stage.harness.crash(first)
    second = await stage.worker(ordered=True)
    handled = await stage.receive(second, 1)
    expect_same("the first that comes again", bodies(handled), [b"a0"])
    while handled:
        await stage.commit(second, _billed(handled))
        await stage.elapse(0.05)
        handled = list(await second.take(10, 0))
    expect_same("outputs", sorted(bodies(await stage.drain(bills, 3)), key=str), [b"a0", b"b0", b"c0"])
    expect_same("handled", (await stage.group()).handled, 3)


async def a_stopped_ordered_worker_hands_over_at_once(stage: Stage) -> None:
    """Closing a feed frees what it had; the next worker need not wait for the lease."""
    first = await stage.worker(ordered=True)
    for record in _keyed("a0", "a1", "a2"):
        await stage.publish(record)
    await stage.commit(first, await stage.receive(first, 1))
    await stage.receive(first, 1)
    await first.aclose()
    stopped = await stage.now()
    got = await stage.receive(await stage.worker(ordered=True), 1)
    waited = await stage.now() - stopped
    expect(waited < stage.harness.lease_s / 2, f"it came {waited:.3f} s after the stop")
    expect_same("body, attempt", (bodies(got), got[0].attempt), ([b"a1"], 1))


async def a_group_is_shared_or_ordered(stage: Stage) -> None:
    """A group that was used in one mode is refused in the other."""
    await (await stage.worker(ordered=True)).aclose()
    await expect_error(Refused, stage.worker(), "a shared worker of an ordered group")
    await (await stage.worker("shipping")).aclose()
    await expect_error(Refused, stage.worker("shipping", ordered=True), "an ordered worker of a shared group")


SCENARIOS = scenarios(
    (events_come_in_the_order_of_their_publication, "ordered"),
    (a_failed_event_is_not_overtaken_by_its_key, "ordered"),
    (a_failed_event_is_not_overtaken_while_another_key_is_at_work, "ordered"),
    (what_waits_in_order_survives_its_worker, "ordered"),
    (a_dead_letter_lets_its_key_go_on, "ordered"),
    (an_ordered_worker_is_relieved_when_its_lease_ends, "ordered"),
    (an_ordered_worker_keeps_what_it_has_in_hand, "ordered"),
    (an_ordered_worker_writes_nothing_after_its_lease, "ordered", "outputs"),
    (effects_behind_a_gap_happen_once, "ordered", "outputs"),
    (a_stopped_ordered_worker_hands_over_at_once, "ordered"),
    (a_group_is_shared_or_ordered, "ordered"),
)

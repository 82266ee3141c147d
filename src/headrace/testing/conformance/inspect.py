"""What operators see and do."""

from __future__ import annotations

from collections.abc import Awaitable

from headrace.backends.contract import Record, Settlement, Verdict
from headrace.errors import Closed, Refused
from headrace.testing.conformance.scenario import scenarios
from headrace.testing.conformance.stage import (
    ORDERS,
    Stage,
    attributes,
    bodies,
    expect,
    expect_error,
    expect_same,
    numbered,
)


async def the_inspector_shows_topics_and_groups(stage: Stage) -> None:
    """Numbers of topics and groups, each in its place."""
    billing = await stage.worker("billing")
    await stage.publish(*numbered(10), Record(b"later", delay_ms=60_000))
    await stage.worker("shipping", start="latest")
    got = await stage.receive(billing, 6)
    await stage.commit(
        billing, [got[0], got[1], Settlement(got[2], Verdict.DEAD), Settlement(got[3], Verdict.RETRY, delay_ms=60_000)]
    )
    topics = {t.topic: t for t in await stage.inspector.topics()}
    expect_same("topics", sorted(topics), ["orders"])
    orders = topics["orders"]
    expect_same("events, published, delayed", (orders.events, orders.published, orders.delayed), (10, 10, 1))
    expect_same("groups of the topic", orders.groups, ("billing", "shipping"))
    groups = {g.group: g for g in await stage.inspector.groups()}
    expect_same("groups", sorted(groups), ["billing", "shipping"])
    g = groups["billing"]
    names = (
        "published",
        "replayed",
        "handled",
        "dead",
        "dropped",
        "pending",
        "unread",
        "delayed",
        "retrying",
        "workers",
    )
    expect_same(f"{names} of billing", tuple(getattr(g, n) for n in names), (11, 0, 2, 1, 0, 2, 4, 1, 1, 1))
    g = groups["shipping"]
    expect_same(f"{names} of shipping", tuple(getattr(g, n) for n in names), (1, 0, 0, 0, 0, 0, 0, 1, 0, 1))


async def the_inspector_shows_who_holds_what(stage: Stage) -> None:
    """Pending entries with worker, time and number of deliveries; the age of the oldest unsettled event."""
    feed = await stage.worker()
    await stage.publish(*numbered(3))
    got = await stage.receive(feed, 3)
    await stage.elapse(0.2)
    held = list(await stage.inspector.pending("orders", "billing"))
    expect_same("tokens", [h.token.encode() for h in held], [d.token for d in got])
    expect_same("deliveries", [h.deliveries for h in held], [1, 1, 1])
    expect_same("workers", {h.worker for h in held}, {"worker1"})
    expect(all(h.idle_s >= 0.19 for h in held), f"held for 0.2 s: {held}")
    expect_same("with a count", len(await stage.inspector.pending("orders", "billing", 2)), 2)
    oldest = (await stage.group()).oldest_s
    expect(oldest >= 0.19, f"the oldest event is 0.2 s old, not {oldest}")
    await stage.commit(feed, got)
    expect_same("after the commit", list(await stage.inspector.pending("orders", "billing")), [])
    expect_same("age of the oldest when all is settled", (await stage.group()).oldest_s, 0)


async def the_inspector_reads_a_topic(stage: Stage) -> None:
    """Entries in pages, from the first or after a token; `$` gives the place of the last and no entry."""
    await stage.worker()
    await stage.publish(Record(b"\xff\x00", b"order.created", b"ann", headers=((b"x-a", b"1"),)), *numbered(4))
    first = list(await stage.inspector.read("orders", count=2))
    rest = list(await stage.inspector.read("orders", first[-1].token))
    expect_same("data", [letter.data for letter in (*first, *rest)], [b"\xff\x00", b"0", b"1", b"2", b"3"])
    names = {name: first[0].attributes.get(name) for name in ("type", "key", "x-a", "data")}
    expect_same("attributes", names, {"type": "order.created", "key": "ann", "x-a": "1", "data": None})
    last = list(await stage.inspector.read("orders", "$"))
    expect_same("what $ gives", [(letter.token, letter.data) for letter in last], [(rest[-1].token, b"")])
    expect_same("after the last", list(await stage.inspector.read("orders", last[0].token)), [])


async def dead_letters_can_be_replayed(stage: Stage) -> None:
    """A dead letter goes back to its group with attempt 1; what is not there is not counted."""
    feed = await stage.worker()
    await stage.publish(Record(b"\xff0", b"t", b"k", id=b"A"), Record(b"1"))
    got = await stage.receive(feed, 2)
    await stage.commit(feed, [Settlement(d, Verdict.DEAD, reason=b"broken") for d in got])
    letters = list(await stage.inspector.dead("orders", "billing"))
    expect_same("second page", list(await stage.inspector.dead("orders", "billing", letters[0].token)), letters[1:])
    moved = await stage.inspector.dead_replay("orders", "billing", [letters[0].token, "1-1"])
    expect_same("moved", moved, 1)
    again = await stage.receive(feed, 1)
    expect_same("id, attempt", (again[0].id, again[0].attempt), (b"A", 1))
    expect_same("attributes", attributes(again[0]), attributes(got[0]))
    await stage.commit(feed, again)
    info = await stage.group()
    expect_same("handled, dead, replayed", (info.handled, info.dead, info.replayed), (1, 1, 0))


async def dead_letters_can_be_dropped(stage: Stage) -> None:
    """A dropped dead letter is gone, and the ledger says so."""
    feed = await stage.worker()
    await stage.publish(*numbered(2))
    await stage.commit(feed, [Settlement(d, Verdict.DEAD) for d in await stage.receive(feed, 2)])
    letters = list(await stage.inspector.dead("orders", "billing"))
    tokens = [letters[0].token]
    expect_same("dropped", await stage.inspector.dead_drop("orders", "billing", tokens), 1)
    expect_same("dropped again", await stage.inspector.dead_drop("orders", "billing", tokens), 0)
    expect_same("left", list(await stage.inspector.dead("orders", "billing")), letters[1:])
    info = await stage.group()
    expect_same("dead, dropped", (info.dead, info.dropped), (1, 1))


async def a_range_can_be_replayed_to_one_group(stage: Stage) -> None:
    """Retained events between two tokens are handled by one group again, in pages; other groups notice nothing."""
    billing, shipping = await stage.worker("billing"), await stage.worker("shipping")
    await stage.publish(*numbered(10))
    got = await stage.drain(billing, 10)
    await stage.drain(shipping, 10)
    tokens = [d.token.decode() for d in got]
    copied, following = await stage.inspector.replay("orders", "billing", tokens[2], tokens[8], 4)
    expect_same("copied of the first page", copied, 4)
    expect(following, "there is a second page")
    copied, following = await stage.inspector.replay("orders", "billing", following, tokens[8], 4)
    expect_same("copied of the second page, and what follows", (copied, following), (3, ""))
    again = await stage.drain(billing, 7)
    expect_same("bodies", bodies(again), [b"%d" % n for n in range(2, 9)])
    expect_same("ids", [d.id for d in again], [d.id for d in got[2:9]])
    await stage.expect_nothing(shipping, "the replay was for another group")
    info = await stage.group("billing")
    expect_same("published, replayed, handled", (info.published, info.replayed, info.handled), (10, 7, 17))


async def a_group_can_be_placed_anew(stage: Stage) -> None:
    """seek() starts a group anew at the earliest event, at the latest, or after a token; its counts start again."""
    feed = await stage.worker()
    await stage.publish(*numbered(5))
    got = await stage.drain(feed, 5)
    await stage.inspector.seek("orders", "billing", got[2].token.decode())
    expect_same("handled after seek", (await stage.group()).handled, 0)
    expect_same("bodies after a token", bodies(await stage.drain(feed, 2)), [b"3", b"4"])
    await stage.inspector.seek("orders", "billing", "earliest")
    expect_same("bodies from the earliest", bodies(await stage.drain(feed, 5)), [b"0", b"1", b"2", b"3", b"4"])
    await stage.inspector.seek("orders", "billing", "latest")
    await stage.publish(*numbered(1, b"new "))
    expect_same("bodies from the latest", bodies(await stage.drain(feed, 1)), [b"new 0"])


async def the_unknown_is_refused_with_what_exists(stage: Stage) -> None:
    """A name that is not there is answered with those that are."""
    await stage.worker()
    look = stage.inspector
    topics: dict[str, Awaitable[object]] = {
        "groups": look.groups("order"),
        "read": look.read("order"),
        "pending": look.pending("order", "billing"),
    }
    for what, call in topics.items():
        message = await expect_error(Refused, call, f"{what} of an unknown topic")
        expect("orders" in message, f"the error names the topics that exist: {message}")
    calls: dict[str, Awaitable[object]] = {
        "pending": look.pending("orders", "bill"),
        "dead": look.dead("orders", "bill"),
        "dead_replay": look.dead_replay("orders", "bill", ["1-1"]),
        "dead_drop": look.dead_drop("orders", "bill", ["1-1"]),
        "replay": look.replay("orders", "bill", "-", "+"),
    }
    for what, call in calls.items():
        message = await expect_error(Refused, call, f"{what} of an unknown group")
        expect("billing" in message, f"the error names the groups that exist: {message}")


async def a_closed_inspector_stays_closed(stage: Stage) -> None:
    """After aclose() every call raises Closed."""
    await (await stage.backend()).publish(ORDERS, numbered(1))
    other = stage.harness.inspector()
    await other.topics()
    await other.aclose()
    await other.aclose()
    await expect_error(Closed, other.topics(), "topics after aclose")
    await expect_error(Closed, other.groups("orders"), "groups after aclose")


SCENARIOS = scenarios(
    (the_inspector_shows_topics_and_groups, "delay"),
    the_inspector_shows_who_holds_what,
    the_inspector_reads_a_topic,
    dead_letters_can_be_replayed,
    dead_letters_can_be_dropped,
    (a_range_can_be_replayed_to_one_group, "replay"),
    (a_group_can_be_placed_anew, "replay"),
    the_unknown_is_refused_with_what_exists,
    a_closed_inspector_stays_closed,
)

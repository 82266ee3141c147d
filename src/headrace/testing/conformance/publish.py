"""What publish() promises: everything arrives, once, as it was; repeats of an id do not."""

from __future__ import annotations

import asyncio

from headrace.backends.contract import Record, Route
from headrace.testing.conformance.scenario import scenarios
from headrace.testing.conformance.stage import ORDERS, Stage, bodies, expect, expect_same, numbered

ODD_BYTES = bytes(range(256)) + b"\r\n$3\r\n\x00"


async def events_arrive_in_order_with_their_fields(stage: Stage) -> None:
    """A group gets a topic's events in the order in which they were appended, every byte as it was."""
    headers = ((b"time", b"2026-01-01T00:00:00Z"), (b"x-empty", b""), (b"x-odd", ODD_BYTES))
    sent = [
        Record(b'{"n":1}', b"order.created", "Zoë/☃".encode(), headers=headers),
        Record(ODD_BYTES, b"order.created", b"k\x00\xff"),
        Record(b"", b"order.created"),
        Record(b"plain"),
    ]
    feed = await stage.worker()
    await stage.publish(*sent)
    got = await stage.receive(feed, len(sent))
    for record, delivery in zip(sent, got, strict=True):
        expect_same("data", delivery.get(b"data"), record.body)
        expect_same("type", delivery.get(b"type") or b"", record.type)
        expect_same("key", delivery.get(b"key"), record.key)
        for name, value in record.headers:
            expect_same(f"attribute {name.decode()}", delivery.get(name), value)
        expect_same("attempt of the first delivery", delivery.attempt, 1)
        expect(delivery.get(b"id"), "an event published without an id is given one")
    expect_same("number of different ids", len({d.id for d in got}), len(sent))
    await stage.commit(feed, got)


async def a_large_batch_arrives_whole(stage: Stage) -> None:
    """A call with more records than fit in one request arrives in order, each once."""
    feed, count = await stage.worker(), 2_300
    await stage.publish(*numbered(count))
    got = await stage.receive(feed, count)
    expect_same("bodies", bodies(got), bodies_of(count))
    for start in range(0, count, 1_000):
        await stage.commit(feed, got[start : start + 1_000])


def bodies_of(count: int) -> list[bytes | None]:
    """The bodies of `numbered`."""
    return [b"%d" % n for n in range(count)]


async def concurrent_publishes_all_arrive_once(stage: Stage) -> None:
    """Many callers in two processes at once: nothing lost, nothing doubled, and each call's records in their order."""
    feed = await stage.worker()
    backends = [await stage.harness.backend(), await stage.harness.backend()]
    calls = [(backends[n % 2], numbered(15, b"%d:" % n)) for n in range(30)]
    await asyncio.gather(*(backend.publish(ORDERS, records) for backend, records in calls))
    got = await stage.drain(feed, 30 * 15)
    for _, records in calls:
        prefix = records[0].body.partition(b":")[0] + b":"
        expect_same(
            f"records of call {prefix.decode()}",
            [b for b in bodies(got) if b and b.startswith(prefix)],
            [r.body for r in records],
        )


async def a_repeated_id_is_dropped(stage: Stage) -> None:
    """A caller-given id drops repeats inside the window, in one call, in another, and from another process; other ids are kept."""
    feed, other = await stage.worker(), await stage.harness.backend()
    await stage.publish(Record(b"first", id=b"A"), Record(b"again", id=b"A"), Record(b"B", id=b"B"))
    await stage.publish(Record(b"once more", id=b"A"), Record(b"C", id=b"C"))
    await other.publish(ORDERS, [Record(b"elsewhere", id=b"B"), Record(b"no id")])
    got = await stage.drain(feed, 4)
    expect_same("bodies", bodies(got), [b"first", b"B", b"C", b"no id"])
    expect_same("ids", [d.id for d in got[:3]], [b"A", b"B", b"C"])


async def an_id_is_forgotten_after_its_window(stage: Stage) -> None:
    """After `id_window_s` the same id is a new event."""
    route = Route("orders", id_window_s=0.3)
    feed = await stage.worker(route=route)
    await stage.publish(Record(b"first", id=b"A"), route=route)
    await stage.elapse(0.5)
    await stage.publish(Record(b"second", id=b"A"), route=route)
    expect_same("bodies", bodies(await stage.drain(feed, 2)), [b"first", b"second"])


async def publishing_needs_no_group(stage: Stage) -> None:
    """Events published before anyone subscribed wait for the first group."""
    await stage.publish(*numbered(3))
    expect_same("bodies", bodies(await stage.drain(await stage.worker(), 3)), bodies_of(3))


SCENARIOS = scenarios(
    events_arrive_in_order_with_their_fields,
    a_large_batch_arrives_whole,
    concurrent_publishes_all_arrive_once,
    (a_repeated_id_is_dropped, "ids"),
    (an_id_is_forgotten_after_its_window, "ids"),
    publishing_needs_no_group,
)

"""Record batches on real servers: several events in one entry, each by itself for whoever handles it."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Sequence

import pytest

from headrace import NotConnected, Overloaded
from headrace.backends.contract import (
    Delivery,
    Feed,
    GroupInfo,
    Record,
    Route,
    Settled,
    Settlement,
    Subscription,
    Verdict,
)
from headrace.backends.redis import record_batch, retention
from headrace.backends.redis.backend import RedisBackend
from headrace.backends.redis.client import Client
from headrace.backends.redis.inspect import RedisInspector
from headrace.backends.redis.replies import ServerSaid
from headrace.backends.redis.shared import SharedFeed
from headrace.settings import Settings
from tests.servers import Server

PACKED = Route("orders", packing=4)
LEASE_S = 1.0


class Play:
    """A backend, workers, and the ledger."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.backend = RedisBackend(Settings(url=server.url, publish_wait_s=0.3))
        self.inspector = RedisInspector(Client(Settings(url=server.url)))
        self._workers = 0

    async def publish(self, *records: Record, route: Route = PACKED) -> None:
        await self.backend.publish(route, records)

    async def worker(self, start: str = "earliest") -> Feed:
        self._workers += 1
        return await self.backend.subscribe(Subscription(PACKED, "g", f"w{self._workers}", start, LEASE_S))

    async def ledger(self) -> GroupInfo:
        (info,) = await self.inspector.groups("orders")
        assert not info.missing, info
        return info

    def entries(self, key: str = "orders") -> list[tuple[bytes, list[bytes]]]:
        return self.server.command("XRANGE", key, "-", "+")  # type: ignore[no-any-return]

    def counted(self) -> dict[str, int]:
        flat = self.server.command("HGETALL", "counted")
        return {k.decode(): int(v) for k, v in zip(flat[::2], flat[1::2], strict=True)}


def playing(server: Server, play: Callable[[Play], Awaitable[None]]) -> None:
    async def run() -> None:
        stage = Play(server)
        await stage.backend.open()
        try:
            await play(stage)
        finally:
            await stage.backend.aclose()
            await stage.inspector.aclose()

    asyncio.run(run())


def records(count: int, first: int = 0) -> list[Record]:
    return [Record(b"%d" % i) for i in range(first, first + count)]


def singles(count: int, first: int) -> list[Record]:
    """Events that travel alone, for they have ids of their own."""
    return [Record(b"%d" % i, id=b"own%d" % i) for i in range(first, first + count)]


def bodies(deliveries: Sequence[Delivery]) -> list[bytes | None]:
    return [d.get(b"data") for d in deliveries]


def counting(delivery: Delivery) -> Settlement:
    """Handled, with an effect that shows how often."""
    return Settlement(delivery, effects=[(b"HINCRBY", b"counted", delivery.get(b"data") or b"", b"1")])


async def take(feed: Feed, count: int) -> list[Delivery]:
    got: list[Delivery] = []
    async with asyncio.timeout(10 * LEASE_S):
        while len(got) < count:
            got += await feed.take(count - len(got), 0.2)
    return got


async def nothing_comes(feed: Feed) -> None:
    assert not await feed.take(10, 0.05)


def test_events_of_one_call_share_an_entry(server: Server) -> None:
    async def play(stage: Play) -> None:
        headers = ((b"x-tenant", b"a"),)
        await stage.publish(*[Record(b'{"n":%d}' % i, b"Order", b"k%d" % i, None, headers) for i in range(6)])
        (_, first), (_, second) = stage.entries()
        assert first[::2] == [
            b"id",
            b"events",
            b"before",
            b"type",
            b"x-tenant",
            b"keysizes",
            b"keys",
            b"sizes",
            b"data",
        ]
        fields = dict(zip(first[::2], first[1::2], strict=True))
        assert (fields[b"events"], fields[b"before"], fields[b"keys"]) == (b"4", b"0", b"k0k1k2k3")
        assert fields[b"data"] == b'{"n":0}{"n":1}{"n":2}{"n":3}'
        assert json.loads(fields[b"sizes"]) == [7] * 4
        assert (second[3], second[5]) == (b"2", b"3")
        feed = await stage.worker()
        got = await take(feed, 6)
        stem = first[1].rpartition(b".")[0]
        assert [d.id for d in got] == [b"%b.%d" % (stem, n) for n in range(1, 7)]
        assert [d.get(b"key") for d in got] == [b"k%d" % n for n in range(6)]
        assert {d.get(b"x-tenant") for d in got} == {b"a"}
        assert {d.get(b"type") for d in got} == {b"Order"}
        assert bodies(got) == [b'{"n":%d}' % n for n in range(6)]
        assert len({d.token for d in got}) == 6
        await feed.commit(got)
        assert (await stage.ledger()).handled == 6

    playing(server, play)


def test_what_cannot_share_an_entry_travels_alone(server: Server) -> None:
    async def play(stage: Play) -> None:
        many = [
            Record(b"0", b"A"), Record(b"1", b"A"), Record(b"2", b"B"), Record(b"3", b"A", b"k"), Record(b"4", b"A"),
            Record(b"5", b"A", id=b"mine"), Record(b"6", b"A"), Record(b"7", b"A", delay_ms=1), Record(b"8", b"A"),
        ]  # fmt: skip
        await stage.publish(*many)
        feed = await stage.worker()
        got = await take(feed, 9)
        assert sorted(bodies(got), key=str) == [b"%d" % n for n in range(9)]
        packed = [fields[3] for _, fields in stage.entries() if fields[2] == b"events"]
        assert packed == [b"2"]
        await feed.commit(got)
        info = await stage.ledger()
        assert (info.published, info.handled, info.pending, info.unread) == (9, 9, 0, 0)

    playing(server, play)


def test_an_entry_has_a_bound_of_bytes(server: Server) -> None:
    async def play(stage: Play) -> None:
        route = Route("orders", packing=100)
        await stage.publish(*[Record(b"x" * 30_000) for _ in range(5)], Record(b"y" * 200_000), route=route)
        assert [fields[3] if fields[2] == b"events" else b"1" for _, fields in stage.entries()] == [
            b"2",
            b"2",
            b"1",
            b"1",
        ]
        assert len(await take(await stage.worker(), 6)) == 6

    playing(server, play)


def test_a_repeated_call_writes_nothing_and_a_part_is_refused(server: Server) -> None:
    async def play(stage: Play) -> None:
        client = stage.backend.client
        run = record_batch.words([Record(b"a"), Record(b"b")], [])
        keys = (b"orders", b"{orders}:producer:p", b"{orders}:delayed", b"{orders}:ids", b"{orders}:packed")

        async def send(first: int) -> object:
            return await client.call("publish", keys, b"p", 1, first, 2, 1000, 60, 1000, 1, *run)

        assert await send(1) == [2, 0, 0]
        assert await send(1) == [0, 2, 0]
        with pytest.raises(ServerSaid, match="a part of these 2 packed events"):
            await send(2)
        assert len(stage.entries()) == 1
        assert await send(3) == [2, 0, 0]

    playing(server, play)


def test_an_entry_is_settled_with_its_last_event(server: Server) -> None:
    async def play(stage: Play) -> None:
        await stage.publish(*records(4))
        feed = await stage.worker()
        got = await take(feed, 4)
        assert not await feed.commit([counting(d) for d in got[:3]])
        assert not stage.counted()
        assert (await stage.ledger()).pending == 4
        assert not await feed.commit([counting(got[3])])
        assert stage.counted() == {str(n): 1 for n in range(4)}
        info = await stage.ledger()
        assert (info.handled, info.pending) == (4, 0)
        assert len(await feed.commit([counting(got[0])])) == 1  # settled before
        assert stage.counted()["0"] == 1

    playing(server, play)


def test_each_event_fails_by_itself(server: Server) -> None:
    async def play(stage: Play) -> None:
        await stage.publish(*[Record(b"%d" % n, b"Order", b"k") for n in range(4)])
        feed = await stage.worker()
        got = await take(feed, 4)
        await feed.commit(
            [
                got[0],
                Settlement(got[1], Verdict.RETRY, reason=b"again"),
                Settlement(got[2], Verdict.DEAD, reason=b"no"),
                got[3],
            ]
        )
        info = await stage.ledger()
        assert (info.handled, info.dead, info.retrying, info.pending) == (2, 1, 1, 0)
        (letter,) = await stage.inspector.dead("orders", "g")
        assert (letter.data, letter.attributes["id"], letter.attributes["origin"]) == (
            b"2", got[2].id.decode(), got[2].token.decode()
        )  # fmt: skip
        (again,) = await take(feed, 1)
        assert (again.id, again.attempt, again.get(b"key"), again.get(b"data")) == (got[1].id, 2, b"k", b"1")
        await feed.commit([again])
        assert await stage.inspector.dead_replay("orders", "g", [letter.token]) == 1
        (replayed,) = await take(feed, 1)
        assert (replayed.id, replayed.attempt) == (got[2].id, 1)
        await feed.commit([replayed])
        assert (await stage.ledger()).handled == 4

    playing(server, play)


def test_a_refused_effect_fails_its_own_event(server: Server) -> None:
    async def play(stage: Play) -> None:
        stage.server.command("SET", "text", "x")
        await stage.publish(*records(8))
        feed = await stage.worker()
        got = await take(feed, 8)
        settled: list[Settled] = [counting(d) for d in got]
        settled[1] = Settlement(
            got[1], effects=[(b"HINCRBY", b"counted", b"1", b"1"), (b"HINCRBY", b"text", b"f", b"1")]
        )
        settled[2] = got[2]
        (left,) = await feed.commit(settled)
        assert left.settled is settled[1]
        assert "text" in left.refused
        assert stage.counted() == {str(n): 1 for n in range(4, 8)}
        assert not await feed.commit([Settlement(got[1], Verdict.DEAD, reason=b"refused")])
        assert stage.counted() == {str(n): 1 for n in (0, 3, 4, 5, 6, 7)}
        info = await stage.ledger()
        assert (info.handled, info.dead) == (7, 1)

    playing(server, play)


def test_a_crash_with_some_events_settled_repeats_all_and_counts_once(server: Server) -> None:
    async def play(stage: Play) -> None:
        await stage.publish(*records(4))
        feed = await stage.worker()
        got = await take(feed, 4)
        await feed.commit([counting(d) for d in got[:3]])
        assert isinstance(feed, SharedFeed)
        feed.abandon()
        other = await stage.worker()
        again = await take(other, 4)
        assert [(d.id, d.token) for d in again] == [(d.id, d.token) for d in got]
        await other.commit([counting(d) for d in again])
        assert stage.counted() == {str(n): 1 for n in range(4)}
        assert (await stage.ledger()).handled == 4

    playing(server, play)


def test_a_zombie_settles_nothing(server: Server) -> None:
    async def play(stage: Play) -> None:
        await stage.publish(*records(8))
        zombie = await stage.worker()
        got = await take(zombie, 8)
        assert isinstance(zombie, SharedFeed)
        zombie._presence.stop()
        other = await stage.worker()
        again = await take(other, 8)
        await other.commit([counting(d) for d in again])
        left = await zombie.commit([counting(d) for d in got])
        assert {u.settled.delivery.token for u in left if isinstance(u.settled, Settlement)} == {d.token for d in got}
        assert not any(u.refused for u in left)
        assert stage.counted() == {str(n): 1 for n in range(8)}
        assert (await stage.ledger()).handled == 8

    playing(server, play)


@pytest.mark.parametrize("settled", [0, 3])
def test_closing_settles_what_is_done_and_hands_back_the_rest(server: Server, settled: int) -> None:
    async def play(stage: Play) -> None:
        await stage.publish(*[Record(b"%d" % n, b"Order", b"k%d" % n) for n in range(4)])
        feed = await stage.worker()
        got = await take(feed, 4)
        await feed.commit([counting(d) for d in got[:settled]])
        await feed.aclose()
        assert len(stage.counted()) == settled
        other = await stage.worker()
        info = await stage.ledger()
        assert (info.handled, info.retrying, info.pending) == (settled, 4 - settled, 0)
        again = await take(other, 4 - settled)
        assert [(d.id, d.attempt, d.get(b"key"), d.get(b"data")) for d in again] == [
            (d.id, 1, d.get(b"key"), d.get(b"data")) for d in got[settled:]
        ]
        assert [d.get(b"origin") for d in again] == [d.token for d in got[settled:]]
        await other.commit([counting(d) for d in again])
        assert stage.counted() == {str(n): 1 for n in range(4)}
        assert (await stage.ledger()).handled == 4

    playing(server, play)


def test_a_cut_in_the_middle_of_a_commit_is_repeated(server: Server) -> None:
    async def play(stage: Play) -> None:
        await stage.publish(*records(8))
        feed = await stage.worker()
        got = await take(feed, 8)
        settled = [counting(d) for d in got]
        committing = asyncio.ensure_future(feed.commit(settled))
        await asyncio.sleep(0)
        stage.backend.client.drop(b"orders")
        with pytest.raises(NotConnected):
            await committing
        await feed.commit(settled)
        assert stage.counted() == {str(n): 1 for n in range(8)}
        assert (await stage.ledger()).handled == 8

    playing(server, play)


def test_an_event_that_kills_workers_dies_alone(server: Server) -> None:
    async def play(stage: Play) -> None:
        await stage.publish(*records(4))
        handled: list[bytes] = []
        for _ in range(12):
            feed = await stage.worker()
            assert isinstance(feed, SharedFeed)
            async with asyncio.timeout(10 * LEASE_S):
                while (got := await feed.take(10, 0.2)) and b"2" not in bodies(got):
                    handled += [d.get(b"data") or b"" for d in got]
                    await feed.commit(got)
            if not got and (await stage.ledger()).dead:
                break
            feed.abandon()
            stage.server.command("ZADD", "{orders}:workers:g", "XX", "1", feed._sub.consumer)  # its lease has ended
        info = await stage.ledger()
        assert (info.dead, info.handled) == (1, 3)
        assert sorted(handled) == [b"0", b"1", b"3"]
        (letter,) = await stage.inspector.dead("orders", "g")
        assert letter.data == b"2"

    playing(server, play)


def test_ledgers_count_events_wherever_a_group_begins(server: Server) -> None:
    async def play(stage: Play) -> None:
        await stage.publish(*records(10))
        await stage.publish(*singles(3, 10))
        await stage.publish(*records(6, 13))
        early = await stage.worker()
        assert ((await stage.ledger()).published, (await stage.ledger()).unread) == (19, 19)
        got = await take(early, 5)
        info = await stage.ledger()
        assert (info.pending, info.unread) == (12, 7)  # whole entries are taken, and their size was not known
        await early.commit(got)
        got += await take(early, 14)
        await early.commit(got[5:])
        assert bodies(got) == [b"%d" % n for n in range(19)]
        (topic,) = await stage.inspector.topics()
        assert (topic.events, topic.published) == (19, 19)
        await early.aclose()
        place = stage.entries()[1][0].decode()
        for start, left in (("earliest", 19), ("latest", 0), (f"{place}/2", 11)):
            await stage.inspector.seek("orders", "g", start)
            info = await stage.ledger()
            assert (info.published, info.unread) == (left, left), start
        feed = await stage.worker()
        await feed.commit(await take(feed, 11))
        await stage.publish(*records(4))
        info = await stage.ledger()
        assert (info.handled, info.unread) == (11, 4)

    playing(server, play)


def test_a_group_that_begins_at_latest_counts_from_there(server: Server) -> None:
    async def play(stage: Play) -> None:
        await stage.publish(*records(10))
        feed = await stage.worker("latest")
        await stage.publish(*records(4, 10))
        assert bodies(await take(feed, 4)) == [b"10", b"11", b"12", b"13"]
        info = await stage.ledger()
        assert (info.published, info.pending) == (4, 4)

    playing(server, play)


def test_the_cap_counts_events_and_trimming_makes_room(server: Server) -> None:
    async def play(stage: Play) -> None:
        route = Route("orders", cap_events=20, retain_events=0, packing=4)
        feed = await stage.worker()
        await stage.publish(*records(20), route=route)
        with pytest.raises(Overloaded):
            await stage.publish(*records(1), route=route)
        got = await take(feed, 20)
        with pytest.raises(Overloaded):
            await stage.publish(*records(1), route=route)
        await feed.commit(got)
        await stage.publish(*records(4, 20), route=route)
        (topic,) = await stage.inspector.topics()
        assert topic.published == 24
        assert topic.events <= 8
        assert bodies(await take(feed, 4)) == [b"20", b"21", b"22", b"23"]
        assert (await stage.ledger()).published == 24

    playing(server, play)


def test_what_is_retained_counts_for_the_cap(server: Server) -> None:
    async def play(stage: Play) -> None:
        route = Route("orders", cap_events=50_000, retain_events=10_000, packing=100)
        feed = await stage.worker()
        body = b"x" * 400  # an entry of 100 is a node of the stream of its own, so trimming is exact
        for _ in range(4):
            await stage.publish(*[Record(body)] * 10_000, route=route)
        left = 40_000
        while left:
            got = await feed.take(1_000, 1.0)
            await feed.commit(got)
            left -= len(got)
        while await retention.trim(stage.backend.client, route, "orders", b"{orders}:group:g", 100_000):
            pass
        (topic,) = await stage.inspector.topics()
        assert topic.published == 40_000
        assert 10_000 <= topic.events <= 10_200
        await stage.publish(*[Record(body)] * 30_000, route=route)
        (topic,) = await stage.inspector.topics()
        assert 40_000 <= topic.events <= 40_200
        assert (await stage.ledger()).unread == 30_000

    playing(server, play)


def test_a_deleted_topic_does_not_fill_its_successor(server: Server) -> None:
    async def play(stage: Play) -> None:
        route = Route("orders", cap_events=20, packing=4)
        await stage.publish(*records(20), route=route)
        stage.server.command("DEL", "orders")
        await stage.publish(
            *records(20), route=route
        )  # full at first, by what the deleted entries had; trimming finds that they are gone
        (topic,) = await stage.inspector.topics()
        assert topic.events == 20
        with pytest.raises(Overloaded):
            await stage.publish(*records(1), route=route)

    playing(server, play)


def test_operators_see_and_copy_single_events(server: Server) -> None:
    async def play(stage: Play) -> None:
        await stage.publish(*records(10))
        seen, after = [], "-"
        while page := await stage.inspector.read("orders", after, 3):
            assert len(page) <= 3
            seen += [letter.data for letter in page]
            after = page[-1].token
        assert seen == [b"%d" % n for n in range(10)]
        feed = await stage.worker()
        await feed.commit(await take(feed, 10))
        copied, more = await stage.inspector.replay("orders", "g", "-", "+")
        assert (copied, more) == (10, "")
        again = await take(feed, 10)
        assert bodies(again) == seen
        await feed.commit(again)
        info = await stage.ledger()
        assert (info.replayed, info.handled) == (10, 20)

    playing(server, play)


@pytest.mark.parametrize(
    "fields",
    [
        ["id", "p.1.1", "events", "2", "before", "0", "sizes", "[1,2]", "data", "ab"],
        ["id", "p.1.1", "events", "3", "before", "0", "sizes", "[1,1]", "data", "ab"],
        ["id", "p.1.1", "events", "2", "before", "0", "sizes", "[-1,3]", "data", "ab"],
        ["id", "p.1.1", "events", "2", "before", "0", "sizes", "nonsense", "data", "ab"],
        ["id", "p.1.x", "events", "2", "before", "0", "sizes", "[1,1]", "data", "ab"],
        ["id", "p.1.1", "events", "2", "before", "0", "keysizes", "[9]", "keys", "kk", "sizes", "[1,1]", "data", "ab"],
        ["id", "p.1.1", "events", "2", "before", "0", "data", "ab", "sizes", "[1,1]"],
    ],
)
def test_an_entry_that_only_looks_packed_is_one_event(server: Server, fields: list[str]) -> None:
    async def play(stage: Play) -> None:
        stage.server.command("XADD", "orders", "*", *fields)
        feed = await stage.worker()
        (got,) = await take(feed, 1)
        assert got.get(b"data") == b"ab"
        await feed.aclose()  # hands it back by the script
        other = await stage.worker()
        (again,) = await take(other, 1)
        assert (again.get(b"data"), again.get(b"events")) == (b"ab", fields[3].encode())
        await other.commit([again])
        assert await stage.inspector.replay("orders", "g", "-", "+") == (1, "")
        assert len(await stage.inspector.read("orders")) == 1

    playing(server, play)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_each_event_counts_once(server: Server, seed: int) -> None:
    """Workers that settle in any order and in any way, crash and close, on a topic of packed and single events."""
    chance = random.Random(seed)

    async def play(stage: Play) -> None:
        published = 0
        feeds: list[tuple[Feed, list[Delivery]]] = [(await stage.worker(), []) for _ in range(2)]
        for _ in range(150):
            act, i = chance.random(), chance.randrange(2)
            feed, held = feeds[i]
            if act < 0.2:
                n = chance.randrange(1, 12)
                await stage.publish(*(records if chance.random() < 0.8 else singles)(n, published))
                published += n
            elif act < 0.5:
                held += await feed.take(chance.randrange(1, 15), 0)
            elif act < 0.93 and held:
                chance.shuffle(held)
                some = [held.pop() for _ in range(chance.randrange(1, len(held) + 1))]
                verdicts = [chance.choice([Verdict.HANDLED] * 4 + [Verdict.RETRY, Verdict.RETURN]) for _ in some]
                await feed.commit(
                    [
                        counting(d) if v is Verdict.HANDLED else Settlement(d, v)
                        for d, v in zip(some, verdicts, strict=True)
                    ]
                )
            elif act > 0.96:
                assert isinstance(feed, SharedFeed)
                if chance.random() < 0.5:
                    feed.abandon()
                    stage.server.command("ZADD", "{orders}:workers:g", "XX", "1", feed._sub.consumer)
                else:
                    await feed.aclose()
                feeds[i] = (await stage.worker(), [])
            await stage.ledger()
        for feed, _ in feeds:
            await feed.aclose()
        last = await stage.worker()
        async with asyncio.timeout(20):
            while (info := await stage.ledger()).handled < published:
                await last.commit([counting(d) for d in await last.take(100, 0.1)])
        assert info.handled == published, info
        assert stage.counted() == {str(n): 1 for n in range(published)}

    playing(server, play)

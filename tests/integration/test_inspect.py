"""What operators see and do, on real servers; every scenario ends with a ledger that balances."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from headrace.backends.contract import GroupInfo
from headrace.backends.redis import keys
from headrace.backends.redis.client import Client
from headrace.backends.redis.inspect import RedisInspector
from headrace.errors import Refused
from headrace.settings import Settings
from tests.servers import Server

TOPIC = "orders"
OWN = keys.group(TOPIC, "g")
PART = keys.partition(TOPIC)


class Desk:
    """An inspector and the plain commands that stand for publishers and workers."""

    def __init__(self, client: Client) -> None:
        """Both on one client."""
        self.client = client
        self.inspector = RedisInspector(client)

    async def publish(self, count: int, topic: str = TOPIC) -> list[str]:
        """Appends events 0, 1, ... as any tool can; their tokens."""
        await self.client.command("HSET", keys.TOPICS, topic, 1)
        add = [
            self.client.command(
                "XADD", topic, "*", "id", f"e{i}", "type", "order", "key", "ann", "data", f'{{"n":{i}}}'
            )
            for i in range(count)
        ]
        return [token.decode() for token in await asyncio.gather(*add)]

    async def join(self, group: str = "g", start: str = "0", worker: str = "w1") -> bytes:
        """A worker joins."""
        await self.client.command("HSET", keys.TOPICS, TOPIC, 1)
        own = keys.group(TOPIC, group)
        names = (PART.stream, own.retry, own.record, own.workers, own.dead, own.delayed, PART.packed)
        joined: bytes = await self.client.call("join", names, group, worker, 15_000, start)
        return joined

    async def take(
        self, count: int, stream: bytes = PART.stream, consumer: str = "w1/0"
    ) -> list[tuple[bytes, list[bytes]]]:
        """A worker reads."""
        reply = await self.client.command("XREADGROUP", "GROUP", "g", consumer, "COUNT", count, "STREAMS", stream, ">")
        return reply[0][1] if reply else []

    async def handle(self, entries: Sequence[tuple[bytes, list[bytes]]], stream: bytes = PART.stream) -> None:
        """A worker settles what it handled."""
        ids = [token for token, _ in entries]
        names = (stream, OWN.retry, OWN.record, OWN.dead, OWN.delayed)
        won, lost, refused = await self.client.call("commit", names, "g", "w1/0", -1, len(ids), 0, *ids)
        assert (won, lost, refused) == (len(ids), [], [])

    async def fail(
        self, entry: tuple[bytes, list[bytes]], op: str, *, delay_ms: int = 0, reason: bytes = b"bad amount"
    ) -> None:
        """A worker settles one as dead (D), to be repeated now (B) or later (Z)."""
        token, fields = entry
        copy = [b"id", b"e", b"attempt", b"2", b"origin", token, b"reason", reason, *fields[2:]]
        write: list[str | bytes | int] = [op, *([delay_ms] if op == "Z" else []), len(copy), *copy]
        names = (PART.stream, OWN.retry, OWN.record, OWN.dead, OWN.delayed)
        won, *_ = await self.client.call("commit", names, "g", "w1/0", -1, 0, 1, token, 0, 1, len(write), *write)
        assert won == 1

    async def group(self, name: str = "g") -> GroupInfo:
        """The ledger of one group, which must balance."""
        (info,) = [g for g in await self.inspector.groups(TOPIC) if g.group == name]
        assert info.missing == 0, info
        return info


Scenario = Callable[[Desk], Awaitable[None]]


def play(server: Server, scenario: Scenario) -> None:
    """Runs a scenario on a client of its own."""

    async def run() -> None:
        desk = Desk(Client(Settings(url=server.url)))
        try:
            await scenario(desk)
        finally:
            await desk.inspector.aclose()
            await desk.inspector.aclose()

    asyncio.run(run())


def test_an_empty_server_has_no_topics_and_no_groups(server: Server) -> None:
    async def scenario(desk: Desk) -> None:
        assert list(await desk.inspector.topics()) == []
        assert list(await desk.inspector.groups()) == []

    play(server, scenario)


def test_topics_are_listed_by_name_with_their_numbers(server: Server) -> None:
    async def scenario(desk: Desk) -> None:
        await desk.publish(3)
        await desk.publish(1, "billing")
        await desk.client.command("HSET", keys.TOPICS, "gone", 1)
        await desk.client.command("ZADD", PART.delayed, 1, "2:id,1:x,")
        await desk.join()
        await desk.client.command("XADD", "unlisted", "*", "data", "x")
        billing, gone, orders = await desk.inspector.topics()
        assert (billing.topic, billing.published, billing.groups) == ("billing", 1, ())
        assert (gone.topic, gone.events, gone.published, gone.groups, gone.bytes) == ("gone", 0, 0, (), 0)
        assert (orders.topic, orders.events, orders.published, orders.delayed, orders.groups) == (
            TOPIC,
            3,
            3,
            1,
            ("g",),
        )
        assert orders.bytes > 100

    play(server, scenario)


def test_a_ledger_follows_every_fate_of_an_event(server: Server) -> None:
    async def scenario(desk: Desk) -> None:
        await desk.join()
        await desk.publish(10)
        await desk.client.command("ZADD", PART.delayed, 1, "2:id,1:x,")
        new = await desk.group()
        assert (new.published, new.unread, new.delayed, new.workers) == (11, 10, 1, 1)
        assert 0 < new.oldest_s < 60
        entries = await desk.take(6)
        await desk.handle(entries[:2])
        await desk.fail(entries[2], "D")
        await desk.fail(entries[3], "B")
        await desk.fail(entries[4], "Z", delay_ms=60_000)
        now = await desk.group()
        assert (now.published, now.handled, now.dead, now.retrying, now.pending, now.unread, now.delayed) == (
            11,
            2,
            1,
            2,
            1,
            4,
            1,
        )

    play(server, scenario)


def test_the_age_is_that_of_the_event_though_only_its_retry_is_left(server: Server) -> None:
    async def scenario(desk: Desk) -> None:
        for op in "BZ":
            await desk.client.command("FLUSHALL")
            await desk.client.command("XADD", TOPIC, "1000-1", "id", "old", "data", "x")
            await desk.join()
            await desk.fail((await desk.take(1))[0], op, delay_ms=60_000)
            info = await desk.group()
            assert (info.retrying, info.pending, info.unread) == (1, 0, 0)
            assert info.oldest_s > 365 * 86_400

    play(server, scenario)


def test_a_settled_group_has_no_oldest(server: Server) -> None:
    async def scenario(desk: Desk) -> None:
        await desk.join()
        await desk.publish(2)
        await desk.handle(await desk.take(2))
        info = await desk.group()
        assert (info.handled, info.oldest_s) == (2, 0.0)

    play(server, scenario)


def test_a_group_at_the_end_owns_nothing_before_it(server: Server) -> None:
    async def scenario(desk: Desk) -> None:
        await desk.publish(5)
        await desk.join(start="$")
        await desk.publish(2)
        info = await desk.group()
        assert (info.published, info.unread) == (2, 2)

    play(server, scenario)


def test_a_group_of_another_tool_balances(server: Server) -> None:
    async def scenario(desk: Desk) -> None:
        await desk.publish(5)
        await desk.client.command("XGROUP", "CREATE", TOPIC, "g", "0")
        entries = await desk.take(3, consumer="plain")
        await desk.client.command("XACK", TOPIC, "g", entries[0][0])
        info = await desk.group()
        assert (info.published, info.handled, info.pending, info.unread) == (4, 0, 2, 2)
        assert [held.worker for held in await desk.inspector.pending(TOPIC, "g")] == ["plain", "plain"]

    play(server, scenario)


def test_a_group_of_another_tool_in_the_middle_of_the_stream_balances(server: Server) -> None:
    async def scenario(desk: Desk) -> None:
        tokens = await desk.publish(5)
        await desk.client.command("XGROUP", "CREATE", TOPIC, "g", tokens[1])
        info = await desk.group()
        assert (info.published, info.unread) == (3, 3)

    play(server, scenario)


def test_an_entry_deleted_by_a_stranger_is_missing(server: Server) -> None:
    async def scenario(desk: Desk) -> None:
        await desk.join()
        tokens = await desk.publish(10)
        await desk.client.command("XDEL", TOPIC, tokens[5])
        await desk.take(3)  # from here on the server no longer knows how many were read
        (info,) = await desk.inspector.groups(TOPIC)
        assert (info.pending, info.unread, info.missing) == (3, 6, 1)

    play(server, scenario)


def test_pending_shows_worker_idle_time_and_deliveries_of_both_streams(server: Server) -> None:
    async def scenario(desk: Desk) -> None:
        await desk.join()
        await desk.publish(4)
        entries = await desk.take(3)
        await desk.fail(entries[0], "B")
        await desk.take(1, OWN.retry, "w2/1")
        held = await desk.inspector.pending(TOPIC, "g")
        assert [(h.worker, h.deliveries) for h in held] == [("w1", 1), ("w1", 1), ("w2", 1)]
        assert held[0].token == entries[1][0].decode()
        assert all(0 <= h.idle_s < 60 for h in held)
        assert len(await desk.inspector.pending(TOPIC, "g", count=2)) == 2

    play(server, scenario)


def test_reading_goes_page_by_page_and_follows_from_the_end(server: Server) -> None:
    async def scenario(desk: Desk) -> None:
        await desk.client.command("HSET", keys.TOPICS, TOPIC, 1)
        (nowhere,) = await desk.inspector.read(TOPIC, "$")
        assert (nowhere.token, nowhere.attributes, nowhere.data) == ("0-0", {}, b"")
        tokens = await desk.publish(5)
        first = await desk.inspector.read(TOPIC, count=3)
        rest = await desk.inspector.read(TOPIC, first[-1].token, count=3)
        assert [letter.token for letter in (*first, *rest)] == tokens
        assert first[0].attributes == {"id": "e0", "type": "order", "key": "ann"}
        assert list(first[0].attributes) == ["id", "type", "key"]
        assert first[0].data == b'{"n":0}'
        (end,) = await desk.inspector.read(TOPIC, "$")
        assert end.token == tokens[-1]
        assert list(await desk.inspector.read(TOPIC, end.token)) == []
        (new,) = await desk.publish(1)
        assert [letter.token for letter in await desk.inspector.read(TOPIC, end.token)] == [new]
        assert [letter.token for letter in await desk.inspector.read(TOPIC, nowhere.token)] == [*tokens, new]

    play(server, scenario)


def test_bytes_that_are_no_text_can_be_looked_at(server: Server) -> None:
    async def scenario(desk: Desk) -> None:
        await desk.publish(0)
        await desk.client.command("XADD", TOPIC, "*", b"\xff", b"\xfe", "data", b"\x00\xff", "after", "x")
        (letter,) = await desk.inspector.read(TOPIC)
        assert (letter.attributes, letter.data) == ({"\ufffd": "\ufffd", "after": "x"}, b"\x00\xff")

    play(server, scenario)


def test_dead_letters_are_shown_replayed_and_dropped(server: Server) -> None:
    async def scenario(desk: Desk) -> None:
        await desk.join()
        await desk.publish(3)
        for entry in await desk.take(3):
            await desk.fail(entry, "D", reason=b"ValueError: no \xff")
        letters = await desk.inspector.dead(TOPIC, "g")
        assert [letter.reason for letter in letters] == ["ValueError: no \ufffd"] * 3
        assert letters[0].attributes["type"] == "order"
        assert letters[0].data == b'{"n":0}'
        assert len(await desk.inspector.dead(TOPIC, "g", letters[0].token, 1)) == 1
        assert await desk.inspector.dead_replay(TOPIC, "g", [letters[0].token, letters[0].token, "5-5"]) == 1
        assert await desk.inspector.dead_drop(TOPIC, "g", [letters[1].token]) == 1
        assert await desk.inspector.dead_drop(TOPIC, "g", []) == 0
        info = await desk.group()
        assert (info.dead, info.dropped, info.retrying) == (1, 1, 1)
        ((token, fields),) = again = await desk.take(5, OWN.retry)
        retried = dict(zip(fields[::2], fields[1::2], strict=True))
        assert retried[b"attempt"] == b"1"
        assert retried[b"data"] == b'{"n":0}'
        assert b"reason" not in retried
        await desk.handle(again, OWN.retry)
        assert (await desk.group()).handled == 1
        assert token

    play(server, scenario)


def test_dead_letters_move_in_chunks(server: Server) -> None:
    async def scenario(desk: Desk) -> None:
        await desk.join()
        await desk.publish(250)
        for entry in await desk.take(250):
            await desk.fail(entry, "D")
        tokens = [letter.token for letter in await desk.inspector.dead(TOPIC, "g", count=1_000)]
        assert await desk.inspector.dead_replay(TOPIC, "g", tokens) == 250
        assert (await desk.group()).retrying == 250

    play(server, scenario)


def test_replay_copies_a_range_to_one_group_only(server: Server) -> None:
    async def scenario(desk: Desk) -> None:
        await desk.join()
        await desk.join("other")
        tokens = await desk.publish(250)
        await desk.handle(await desk.take(250))
        assert await desk.inspector.replay(TOPIC, "g", tokens[10], tokens[12]) == (3, "")
        copied, following, calls = 0, "-", 0
        while following:
            n, following = await desk.inspector.replay(TOPIC, "g", following, "+", count=110)
            copied, calls = copied + n, calls + 1
        assert (copied, calls) == (250, 3)
        info = await desk.group()
        assert (info.replayed, info.retrying, info.handled) == (253, 253, 250)
        assert (await desk.group("other")).replayed == 0
        entries = await desk.take(300, OWN.retry)
        assert dict(zip(entries[0][1][::2], entries[0][1][1::2], strict=True))[b"origin"].decode() == tokens[10]
        await desk.handle(entries, OWN.retry)
        assert (await desk.group()).handled == 503

    play(server, scenario)


def test_replay_takes_times_and_ends_exactly_at_the_end(server: Server) -> None:
    async def scenario(desk: Desk) -> None:
        await desk.join()
        for ms in (1_000, 2_000, 3_000):
            await desk.client.command("XADD", TOPIC, f"{ms}-7", "id", ms, "data", "x")
        assert await desk.inspector.replay(TOPIC, "g", "1500", "3000") == (2, "")
        assert await desk.inspector.replay(TOPIC, "g", "-", "+", count=3) == (3, "")
        assert await desk.inspector.replay(TOPIC, "g", "-", "+", count=2) == (2, "2000-8")
        assert await desk.inspector.replay(TOPIC, "g", "4000", "+") == (0, "")

    play(server, scenario)


@pytest.mark.parametrize(("start", "unread"), [("earliest", 10), ("latest", 0), ("0", 10), ("$", 0), ("token", 6)])
def test_seek_begins_anew_and_keeps_dead_letters_and_retries(server: Server, start: str, unread: int) -> None:
    async def scenario(desk: Desk) -> None:
        await desk.join()
        tokens = await desk.publish(10)
        entries = await desk.take(5)
        await desk.handle(entries[:2])
        await desk.fail(entries[2], "D")
        await desk.fail(entries[3], "B")
        await desk.inspector.seek(TOPIC, "g", tokens[3] if start == "token" else start)
        info = await desk.group()
        assert (info.published, info.unread, info.handled, info.pending) == (unread, unread, 0, 0)
        assert (info.dead, info.retrying, info.replayed) == (1, 1, 2)
        assert await desk.join() == b"joined"
        assert len(await desk.take(100)) == unread
        await desk.handle(await desk.take(100, OWN.retry), OWN.retry)
        assert (await desk.group()).pending == unread

    play(server, scenario)


def test_seek_brings_a_destroyed_group_back(server: Server) -> None:
    async def scenario(desk: Desk) -> None:
        await desk.join()
        await desk.publish(3)
        await desk.fail((await desk.take(1))[0], "D")
        await desk.client.command("XGROUP", "DESTROY", TOPIC, "g")
        assert list(await desk.inspector.groups(TOPIC)) == []
        assert len(await desk.inspector.dead(TOPIC, "g")) == 1
        with pytest.raises(Refused, match="no group 'g'"):
            await desk.inspector.replay(TOPIC, "g", "-", "+")
        await desk.inspector.seek(TOPIC, "g", "earliest")
        info = await desk.group()
        assert (info.published, info.unread, info.dead) == (3, 3, 1)

    play(server, scenario)


def test_unknown_topics_and_groups_are_refused_with_those_that_exist(server: Server) -> None:
    async def scenario(desk: Desk) -> None:
        with pytest.raises(
            Refused, match=r"no topic 'order' on this server; topics: none yet \(see `headrace topics`\)"
        ):
            await desk.inspector.groups("order")
        await desk.join()
        with pytest.raises(Refused, match="topics: orders"):
            await desk.inspector.read("order")
        inspector = desk.inspector
        calls: list[Awaitable[object]] = [
            inspector.pending(TOPIC, "h"),
            inspector.dead(TOPIC, "h"),
            inspector.dead_replay(TOPIC, "h", ["1-1"]),
            inspector.dead_drop(TOPIC, "h", ["1-1"]),
            inspector.replay(TOPIC, "h", "-", "+"),
            inspector.seek(TOPIC, "h", "earliest"),
        ]
        for call in calls:
            with pytest.raises(
                Refused, match=r"no group 'h' on topic 'orders'; groups: g \(see `headrace groups orders`\)"
            ):
                await call

    play(server, scenario)


def test_malformed_places_are_refused_before_anything_moves(server: Server) -> None:
    async def scenario(desk: Desk) -> None:
        await desk.join()
        await desk.publish(1)
        await desk.fail((await desk.take(1))[0], "D")
        (letter,) = await desk.inspector.dead(TOPIC, "g")
        inspector = desk.inspector
        calls: list[Awaitable[object]] = [
            inspector.read(TOPIC, "x"),
            inspector.dead(TOPIC, "g", "1-1-1"),
            inspector.dead_drop(TOPIC, "g", [letter.token, "7"]),
            inspector.replay(TOPIC, "g", "+", "-"),
            inspector.seek(TOPIC, "g", "yesterday"),
        ]
        for call in calls:
            with pytest.raises(Refused, match="expected a token like"):
                await call
        assert (await desk.group()).dead == 1

    play(server, scenario)


def test_the_ledger_balances_after_a_restart_with_a_backlog(server: Server) -> None:
    """Redis 7.0 forgets with a restart how many entries a group has read; the ledger must not believe it."""
    from headrace.backends import inspector
    from headrace.backends.contract import Record, Route, Subscription
    from headrace.backends.redis.backend import RedisBackend
    from headrace.settings import Settings

    async def play() -> None:
        settings = Settings(url=server.url)
        backend = RedisBackend(settings)
        await backend.publish(Route("orders"), [Record(b"%d" % i) for i in range(500)])
        feed = await backend.subscribe(Subscription(Route("orders"), "g", "w"))
        taken = await feed.take(16, 1)
        await feed.commit(taken)
        held = await feed.take(16, 1)
        server.kill()
        server.start()
        inspect = await inspector(settings)
        (info,) = await inspect.groups("orders")
        assert (info.handled, info.pending, info.unread, info.missing) == (
            len(taken),
            len(held),
            500 - len(taken) - len(held),
            0,
        )
        await inspect.aclose()
        await backend.aclose()

    asyncio.run(play())

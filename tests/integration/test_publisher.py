"""The publisher against a server that misbehaves: sequence, epochs, caps, quorum, what a caller learns."""

from __future__ import annotations

import asyncio
import logging
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from headrace import Closed, NotConnected, Overloaded, Refused, limits
from headrace.backends.contract import Record, Route, Settlement, Subscription, Verdict
from headrace.backends.partition import partition_of
from headrace.backends.redis import retention
from headrace.backends.redis.backend import RedisBackend
from headrace.backends.redis.client import Client
from headrace.backends.redis.publish import Publisher
from headrace.embedded import cluster
from headrace.settings import Durability, Settings
from tests.playing import bodies, records, with_backend
from tests.servers import Server, require
from tests.waiting import wait_until_async

ORDERS = Route("orders")


def playing(server: Server, play: Any, **settings: Any) -> None:
    with_backend(server, play, **{"publish_wait_s": 5.0, **settings})


def test_records_of_many_shapes_arrive_in_order(server: Server) -> None:
    async def play(backend: RedisBackend) -> None:
        many = [
            Record(
                b"%d" % i,
                b"A" if i % 3 else b"B",
                b"k" if i % 2 else None,
                b"id%d" % i if i % 5 == 0 else None,
                ((b"x-h", b"%d" % (i % 4)),) if i % 7 else (),
            )
            for i in range(3_000)
        ]
        await backend.publish(ORDERS, many)
        got = server.command("XRANGE", "orders", "-", "+")
        assert len(got) == 3_000
        for i, (_, flat) in enumerate(got):
            fields = dict(zip(flat[::2], flat[1::2], strict=True))
            assert fields.pop(b"data") == b"%d" % i
            assert fields.pop(b"type") == (b"A" if i % 3 else b"B")
            assert fields.pop(b"key", None) == (b"k" if i % 2 else None)
            assert fields.pop(b"x-h", None) == (b"%d" % (i % 4) if i % 7 else None)
            own = fields.pop(b"id")
            assert own == b"id%d" % i if i % 5 == 0 else own.endswith(b".%d" % (i + 1))
            assert not fields

    playing(server, play)


def test_a_server_that_restarts_under_load_loses_and_doubles_nothing(server: Server) -> None:
    async def play(backend: RedisBackend) -> None:
        async def caller(n: int) -> None:
            for i in range(200):
                await backend.publish(ORDERS, [Record(b"%d.%d" % (n, i))])

        callers = asyncio.gather(*(caller(n) for n in range(50)))
        for at in (2_000, 6_000):
            await wait_until_async(lambda at=at: length(at), f"{at} events")  # type: ignore[misc]
            server.kill()
            server.start()
        await callers
        assert sorted(bodies(server)) == sorted(b"%d.%d" % (n, i) for n in range(50) for i in range(200))

    async def length(at: int) -> bool:
        return bool(server.command("XLEN", "orders") >= at)

    playing(server, play, publish_wait_s=30.0)


def test_a_caller_of_many_records_learns_of_the_failure_of_any(server: Server) -> None:
    route = Route("orders", cap_events=700)

    async def play(backend: RedisBackend) -> None:
        with pytest.raises(Overloaded, match="at its cap"):
            await backend.publish(route, records(1_000))
        assert len(bodies(server)) == 500, "the first batch is there, the second is not"

    playing(server, play, publish_wait_s=0.3)


def test_after_a_failure_the_producer_goes_on_with_new_numbers(server: Server) -> None:
    route = Route("orders", cap_events=10)

    async def play(backend: RedisBackend) -> None:
        await backend.publish(route, records(10))
        with pytest.raises(Overloaded):
            await backend.publish(route, records(5, 10))
        server.command("XTRIM", "orders", "MAXLEN", "0")
        await backend.publish(route, records(5, 20))
        assert bodies(server) == [b"%d" % i for i in range(20, 25)]

    playing(server, play, publish_wait_s=0.3)


def test_a_full_topic_slows_the_publisher_until_there_is_room(server: Server) -> None:
    route = Route("orders", cap_events=1_000, retain_events=0)

    async def play(backend: RedisBackend) -> None:
        feed = await backend.subscribe(Subscription(route, "g", "w"))
        publishing = asyncio.ensure_future(backend.publish(route, records(5_000)))
        got: list[bytes] = []
        while len(got) < 5_000:
            taken = await feed.take(1_000, 5.0)
            got += [d.fields[-1] for d in taken]
            await feed.commit(taken)
        await publishing
        assert got == [b"%d" % i for i in range(5_000)]

    playing(server, play, publish_wait_s=30.0)


def test_what_the_server_forgot_is_said_loudly(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    async def play(backend: RedisBackend) -> None:
        await backend.publish(ORDERS, records(7))
        server.command("FLUSHALL")
        with caplog.at_level(logging.ERROR, "headrace"):
            await backend.publish(ORDERS, records(3, 7))
        assert "forgotten 7 acknowledged events" in caplog.text
        assert bodies(server) == [b"7", b"8", b"9"]
        await backend.publish(ORDERS, records(1, 10))
        assert server.command("HKEYS", "headrace:topics") == [b"orders"], "it is on the list again"

    playing(server, play)


def test_a_lost_script_is_loaded_again(server: Server) -> None:
    async def play(backend: RedisBackend) -> None:
        await backend.publish(ORDERS, records(2))
        server.command("SCRIPT", "FLUSH")
        await asyncio.gather(*(backend.publish(ORDERS, records(1, 2 + i)) for i in range(3)))
        assert bodies(server) == [b"0", b"1", b"2", b"3", b"4"]

    playing(server, play)


def test_a_refusal_reaches_its_callers_and_only_them(server: Server) -> None:
    async def play(backend: RedisBackend) -> None:
        server.command("SET", "taken", "by a string")
        with pytest.raises(Refused, match="another type"):
            await backend.publish(Route("taken"), records(1))
        await backend.publish(ORDERS, records(1))
        server.command("DEL", "taken")
        await backend.publish(Route("taken"), records(1))

    playing(server, play)


def test_an_absent_server_is_reported_after_the_wait_not_before(server: Server) -> None:
    async def play(backend: RedisBackend) -> None:
        server.kill()
        with pytest.raises(NotConnected):
            await backend.publish(ORDERS, records(1))

    playing(server, play, publish_wait_s=0.3)


def test_closing_fails_what_waits(server: Server) -> None:
    async def play(backend: RedisBackend) -> None:
        server.kill()
        waiting = asyncio.ensure_future(backend.publish(ORDERS, records(1)))
        await asyncio.sleep(0)
        await backend.aclose()
        with pytest.raises(Closed):
            await waiting

    playing(server, play)


def test_an_unforeseen_error_fails_the_callers_instead_of_hanging_them(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(backend: RedisBackend) -> None:
        await backend.publish(ORDERS, records(1))

        def broken(*_: object) -> Any:
            raise ZeroDivisionError

        monkeypatch.setattr(Publisher, "_send", broken)
        with pytest.raises(Refused, match="unforeseen"):
            await asyncio.wait_for(backend.publish(ORDERS, records(1)), 5)

    playing(server, play)


def test_quorum_waits_for_the_replica() -> None:
    require("valkey")
    with Server("valkey", tcp=True) as primary, Server("valkey") as replica:
        port = primary.tcp_url.rpartition(":")[2].rstrip("/")
        replica.command("REPLICAOF", "127.0.0.1", port)

        async def play() -> None:
            async def synced() -> bool:
                return b"master_link_status:up" in replica.command("INFO", "replication")

            await wait_until_async(synced, "the replica follows")
            backend = RedisBackend(
                Settings(url=primary.url, durability=Durability.QUORUM, publish_wait_s=1.0, connect_s=0.5)
            )
            await backend.open()
            await backend.publish(ORDERS, records(3))
            assert bodies(replica) == [b"0", b"1", b"2"]
            replica.pause()
            with pytest.raises(NotConnected, match="0 of 1 replicas confirmed"):
                await backend.publish(ORDERS, records(1, 3))
            replica.resume()
            await backend.publish(ORDERS, records(1, 4))
            assert bodies(primary)[-1] == b"4"
            await backend.aclose()

        asyncio.run(play())


def test_a_commit_that_fails_in_the_middle_can_be_repeated(server: Server) -> None:
    """Entries of the topic and of the retry stream, and more writes than one call carries: a failure anywhere strands none of them."""

    async def play(backend: RedisBackend) -> None:
        feed = await backend.subscribe(Subscription(ORDERS, "g", "w"))
        await backend.publish(ORDERS, records(3))
        first = await feed.take(10, 1.0)
        await feed.commit([Settlement(d, Verdict.RETURN) for d in first])
        await backend.publish(ORDERS, records(3, 3))
        held: list[Any] = []
        while len(held) < 6:
            held += await feed.take(10, 1.0)
        big = [Settlement(d, outputs=[(Route("out"), Record(b"x" * 700_000))]) for d in held]
        real, calls = Client.wire, 0

        async def failing(client: Client, key: bytes) -> Any:
            nonlocal calls
            calls += 1
            if calls in (2, 4):
                raise NotConnected("cut")
            return await real(client, key)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Client, "wire", failing)
            for _ in range(10):
                try:
                    await feed.commit(big)
                    break
                except NotConnected:
                    continue
        assert len(bodies(server, "out")) == 6
        assert server.command("XPENDING", "orders", "g")[0] == 0
        assert server.command("XLEN", "{orders}:retry:g") == 0
        assert await feed.take(10, 0.1) == []

    playing(server, play)


def test_a_publisher_appends_its_own_short_delays(server: Server) -> None:
    """No worker is there whose heartbeat would do it."""

    async def play(backend: RedisBackend) -> None:
        await backend.publish(ORDERS, [Record(b"later", delay_ms=200), Record(b"now")])
        assert bodies(server) == [b"now"]

        async def appended() -> bool:
            return bodies(server) == [b"now", b"later"]

        await wait_until_async(appended, "the delayed event is in the topic")

    playing(server, play)


def test_many_that_are_due_at_once_are_appended_by_few_calls(server: Server) -> None:
    async def play(backend: RedisBackend) -> None:
        await backend.publish(ORDERS, [Record(b"%d" % n, delay_ms=300) for n in range(5_000)])
        server.command("CONFIG", "RESETSTAT")

        async def appended() -> bool:
            return len(bodies(server)) == 5_000

        await wait_until_async(appended, "all delayed events are in the topic")
        (calls,) = re.findall(rb"cmdstat_evalsha:calls=(\d+)", server.command("INFO", "commandstats"))
        assert int(calls) < 200

    playing(server, play)


def test_a_retry_is_appended_when_it_is_due_and_not_with_the_next_heartbeat(server: Server) -> None:
    async def play(backend: RedisBackend) -> None:
        await backend.publish(ORDERS, [Record(b"x")])
        feed = await backend.subscribe(Subscription(ORDERS, "g", "w", lease_s=600.0))  # a heartbeat each 200 s
        (first,) = await feed.take(1, 1.0)
        await feed.commit([Settlement(first, Verdict.RETRY, delay_ms=200)])
        async with asyncio.timeout(20):
            while not (again := await feed.take(1, 1.0)):
                pass
        assert again[0].attempt == 2

    playing(server, play)


def test_what_is_settled_and_old_is_trimmed(server: Server) -> None:
    async def play(backend: RedisBackend) -> None:
        await backend.publish(ORDERS, records(1_000))
        feed = await backend.subscribe(Subscription(ORDERS, "g", "w"))
        left = 1_000
        while left:
            took = await feed.take(1_000, 1.0)
            await feed.commit(took)
            left -= len(took)
        young, old = Route("orders", retain_s=3_600), Route("orders", retain_s=0.001)
        assert not await retention.trim(backend.client, young, "orders", b"{orders}:group:g", 10_000)
        assert len(bodies(server)) == 1_000
        await retention.trim(backend.client, old, "orders", b"{orders}:group:g", 10_000)
        assert len(bodies(server)) < 200  # whole nodes of the stream are removed

    playing(server, play)


def test_a_topic_that_only_handlers_publish_to_is_listed(server: Server) -> None:
    async def play(backend: RedisBackend) -> None:
        await backend.publish(ORDERS, [Record(b"x")])
        feed = await backend.subscribe(Subscription(ORDERS, "g", "w"))
        (got,) = await feed.take(1, 1.0)
        await feed.commit([Settlement(got, outputs=[(Route("paid"), Record(b"y"))])])
        assert server.command("HGET", "headrace:topics", "paid") == b"1"

    playing(server, play)


def test_a_producer_that_was_idle_for_long_numbers_anew(server: Server) -> None:
    """Before the server forgets its mark: then a number that goes on would be a gap."""

    async def play(backend: RedisBackend) -> None:
        await backend.publish(ORDERS, [Record(b"a"), Record(b"b")])
        publisher = backend._publishers["orders", 1]
        publisher._heard -= limits.producer_idle_s
        await backend.publish(ORDERS, [Record(b"c")])
        ids = [fields[1] for _, fields in server.command("XRANGE", "orders", "-", "+")]
        assert [i.partition(b".")[2] for i in ids] == [b"1.1", b"1.2", b"2.1"]

    playing(server, play)


@pytest.mark.parametrize("partitions", [1, 3])
def test_the_first_calls_of_a_program_keep_their_order_though_the_server_is_away(
    server: Server, partitions: int
) -> None:
    route = Route("orders", partitions=partitions)

    async def play(backend: RedisBackend) -> None:
        await asyncio.to_thread(server.kill)
        calls = []
        for n in range(40):
            calls.append(asyncio.ensure_future(backend.publish(route, [Record(b"%d" % n, key=b"k")])))
            await asyncio.sleep(0.01)
        await asyncio.to_thread(server.start)
        for _ in range(300):
            calls.append(asyncio.ensure_future(backend.publish(route, [Record(b"%d" % len(calls), key=b"k")])))
            await asyncio.sleep(0)
        await asyncio.gather(*calls)
        name = "orders" if partitions == 1 else f"orders.{partition_of(b'k', partitions)}"
        assert bodies(server, name) == [b"%d" % n for n in range(len(calls))]

    playing(server, play)


def fill_and_go_on(user: str, publisher: str, partitions: int) -> None:
    """A topic is full of events that its group is done with and its worker would keep; its publisher makes room."""
    route = Route("orders", partitions=partitions, cap_events=100)

    async def run() -> None:
        worker, backend = (RedisBackend(Settings(url=url, publish_wait_s=5.0)) for url in (user, publisher))
        await asyncio.gather(worker.open(), backend.open())
        feed = await worker.subscribe(Subscription(route, "g", "w"))
        for _ in range(2):
            await backend.publish(structs.replace(route, retain_events=0), [Record(b"x", key=b"k")] * 100)
            handled = 0
            while handled < 100:
                handled += len(taken := await feed.take(100, 5.0))
                assert not await feed.commit(taken)
        await asyncio.gather(worker.aclose(), backend.aclose())

    asyncio.run(run())


def test_a_publisher_makes_room_with_the_rights_of_the_reference(server: Server) -> None:
    reference = (Path(__file__).parents[2] / "docs/reference/wire.md").read_text()
    server.command(*re.findall(r"ACL SETUSER worker [^`]*", reference)[0].split())
    fill_and_go_on(server.url, server.url.replace("unix://", "unix://worker:secret@"), 1)


def test_a_publisher_makes_room_in_a_cluster() -> None:
    require("valkey")
    with tempfile.TemporaryDirectory(prefix="hrp-") as root, cluster.start(Path(root) / "fleet") as fleet:
        fill_and_go_on(fleet.url, fleet.url, 2)

"""A live topic gets more partitions: nothing lost, doubled or overtaken, whatever interrupts it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import pytest
from msgspec import structs

from headrace.backends.contract import Delivery, Feed, Record, Route, Settlement, Subscription, Verdict
from headrace.backends.partition import partition_of
from headrace.backends.redis.backend import RedisBackend
from headrace.backends.redis.client import Client
from headrace.backends.redis.growth import grow
from headrace.backends.redis.inspect import RedisInspector
from headrace.errors import NotConnected, Refused
from headrace.settings import Settings
from tests.cli.shell import run as command_line
from tests.servers import Server
from tests.trial import Interrupted

pytest_plugins = ["tests.servers"]
ORDERS = Route("orders", partitions=2)
BILLS = Route("bills", partitions=2)


def key_of(before: int, after: int) -> bytes:
    """A key that was in one partition of two and comes into another of four."""
    names = (b"k%d" % n for n in range(1_000))
    return next(n for n in names if (partition_of(n, 2), partition_of(n, 4)) == (before, after))


MOVES, STAYS = key_of(1, 3), key_of(1, 1)


class Play:
    """One server, and programs that know only of two partitions."""

    def __init__(self, server: Server, topic: str = "orders") -> None:
        self.route = Route(topic, partitions=2)
        self.settings = Settings(url=server.url)
        self.backends: list[RedisBackend] = []

    async def program(self) -> RedisBackend:
        backend = RedisBackend(self.settings)
        await backend.open()
        self.backends.append(backend)
        return backend

    async def worker(self, name: str = "w", *, ordered: bool = False, start: str = "earliest") -> Feed:
        backend = await self.program()
        return await backend.subscribe(Subscription(self.route, "g", name, start, lease_s=0.6, ordered=ordered))

    async def grow(self, wanted: int = 4, client: Client | None = None) -> None:
        client = client or Client(self.settings)
        try:
            await grow(client, self.route.topic, wanted)
        finally:
            await client.aclose()

    async def balance(self) -> tuple[int, int]:
        """Handled, and missing."""
        inspector = RedisInspector(Client(self.settings))
        try:
            (group,) = await inspector.groups(self.route.topic)
            return group.handled, group.missing
        finally:
            await inspector.aclose()


def playing(server: Server, play: Callable[[Play], Awaitable[None]]) -> None:
    async def run() -> None:
        stage = Play(server)
        try:
            async with asyncio.timeout(60):
                await play(stage)
        finally:
            for backend in stage.backends:
                await backend.aclose()

    asyncio.run(run())


def numbered(key: bytes, *numbers: int) -> list[Record]:
    return [Record(b"%d" % n, key=key) for n in numbers]


def numbers(deliveries: Sequence[Delivery]) -> list[int]:
    return [int(d.fields[-1]) for d in deliveries]


async def handle(feed: Feed, count: int) -> list[int]:
    """Takes and settles what comes until there were so many."""
    got: list[int] = []
    while len(got) < count:
        some = await feed.take(100, 0.2)
        got += numbers(some)
        assert not await feed.commit(some)
    assert not await feed.take(100, 0.3)
    return got


def test_a_new_partition_waits_for_what_its_keys_had_in_the_old_one(server: Server) -> None:
    """Also for an event that has failed and waits for its retry."""

    async def play(stage: Play) -> None:
        publisher = await stage.program()
        await publisher.publish(ORDERS, numbered(MOVES, *range(5)))
        feed = await stage.worker(ordered=True)
        held = [*await feed.take(100, 1)]
        await stage.grow()
        await publisher.publish(ORDERS, numbered(MOVES, *range(5, 8)))
        assert server.command("XLEN", "orders.3") == 3
        other = await stage.worker("other", ordered=True)
        for one in (feed, other):
            assert not await one.take(100, 1), "the old partition is not done with"
        back = [Settlement(d, Verdict.RETURN) for d in held[3:]]
        await feed.commit([*held[:2], Settlement(held[2], Verdict.RETRY, delay_ms=1_500), *back])
        early = time.monotonic() + 1.0
        got: list[int] = []
        while len(got) < 6:
            for one in (feed, other):
                some = await one.take(100, 0.1)
                got += numbers(some)
                assert not some or time.monotonic() > early, f"{numbers(some)} overtook the failed event"
                assert not await one.commit(some)
        assert got == [2, 3, 4, 5, 6, 7]
        assert await stage.balance() == (8, 0)

    playing(server, play)


@pytest.mark.parametrize("start", ["earliest", "latest"])
def test_a_shared_group_takes_up_the_new_partitions(server: Server, start: str) -> None:
    """From their first event on, wherever the group itself began."""

    async def play(stage: Play) -> None:
        publisher, feed = await stage.program(), await stage.worker(start=start)
        await publisher.publish(ORDERS, numbered(MOVES, 0, 1))
        await stage.grow()
        await publisher.publish(ORDERS, numbered(MOVES, 2, 3) + numbered(STAYS, 4))
        assert sorted(await handle(feed, 5)) == [0, 1, 2, 3, 4]
        assert await stage.balance() == (5, 0)

    playing(server, play)


def test_a_group_that_was_just_begun_anew_may_still_be_either(server: Server) -> None:
    """Whoever joins it next decides; the new partitions must not have decided otherwise."""

    async def play(stage: Play) -> None:
        publisher, first = await stage.program(), await stage.worker(ordered=True)
        await publisher.publish(ORDERS, numbered(MOVES, 0, 1))
        await first.aclose()
        inspector = RedisInspector(Client(stage.settings))
        await inspector.seek("orders", "g", "earliest")
        await inspector.aclose()
        await stage.grow()
        await publisher.publish(ORDERS, numbered(MOVES, 2, 3))
        assert await handle(await stage.worker("w2", ordered=True), 4) == [0, 1, 2, 3]
        assert await stage.balance() == (4, 0)

    playing(server, play)


def test_ids_are_remembered_where_their_repeats_go(server: Server) -> None:
    async def play(stage: Play) -> None:
        publisher, feed = await stage.program(), await stage.worker()
        mine = [Record(b"0", key=MOVES, id=b"o-1"), Record(b"1", id=b"o-2"), Record(b"2", key=STAYS, id=b"o-3")]
        await publisher.publish(ORDERS, mine)
        await stage.grow()
        await publisher.publish(ORDERS, mine)
        await (await stage.program()).publish(Route("orders", partitions=4), mine)
        assert sorted(await handle(feed, 3)) == [0, 1, 2]
        assert server.command("PTTL", "{orders.3}:ids") > 0

    playing(server, play)


def test_delayed_events_move_with_their_keys(server: Server) -> None:
    async def play(stage: Play) -> None:
        publisher, feed = await stage.program(), await stage.worker()
        later = [Record(b"%d" % n, key=key, delay_ms=1_500) for n, key in enumerate((MOVES, STAYS, MOVES))]
        await publisher.publish(ORDERS, [*later, Record(b"3", delay_ms=1_500)])
        await stage.grow()
        assert server.command("ZCARD", "{orders.3}:delayed") == 2
        assert sum(server.command("ZCARD", f"{{orders.{n}}}:delayed") for n in range(3)) == 2
        assert server.command("EXISTS", "{orders.0}:moving", "{orders.1}:moving") == 0
        assert sorted(await handle(feed, 4)) == [0, 1, 2, 3]
        assert server.command("XLEN", "orders.3") == 2

    playing(server, play)


def test_many_delayed_events_move_or_stay(server: Server) -> None:
    """More than are looked at in one step, twice over, and by two who do it at once after a third was interrupted."""

    async def play(stage: Play) -> None:
        publisher = await stage.program()
        keys = [MOVES if n % 3 else STAYS for n in range(2_400)]
        await publisher.publish(ORDERS, [Record(b"%d" % n, key=key, delay_ms=3_600_000) for n, key in enumerate(keys)])
        with pytest.raises(NotConnected):
            await stage.grow(client=Interrupted(stage.settings, 20, answered=True))
        await asyncio.gather(stage.grow(), stage.grow())
        for n, count in ((0, 0), (1, keys.count(STAYS)), (2, 0), (3, keys.count(MOVES))):
            assert server.command("ZCARD", f"{{orders.{n}}}:delayed") == count
            assert server.command("EXISTS", f"{{orders.{n}}}:moving") == 0

    playing(server, play)


@pytest.mark.parametrize("ordered", [False, True])
def test_what_handlers_publish_follows(server: Server, *, ordered: bool) -> None:
    """A commit that names a partition of the time before is refused whole, and goes to the present one when it is repeated."""

    async def play(stage: Play) -> None:
        publisher, feed = await stage.program(), await stage.worker(ordered=ordered)
        await publisher.publish(BILLS, numbered(STAYS, 0))
        await publisher.publish(ORDERS, numbered(b"k", 0, 1))
        first, second = [*await feed.take(1, 1), *await feed.take(1, 1)]
        assert not await feed.commit([Settlement(first, outputs=[(BILLS, Record(b"1", key=MOVES))])])
        client = Client(stage.settings)
        await grow(client, "bills", 4)
        await client.aclose()
        settled = [Settlement(second, outputs=[(BILLS, Record(b"2", key=MOVES))])]
        with pytest.raises(NotConnected, match="the topic has 4 partitions now"):
            await feed.commit(settled)
        assert not await feed.commit(settled)
        assert (server.command("XLEN", "bills.1"), server.command("XLEN", "bills.3")) == (2, 1)
        assert await stage.balance() == (2, 0)

    playing(server, play)


def test_a_flood_of_events_follows_in_its_order(server: Server) -> None:
    """Calls that wait for their turn, full batches, and batches in flight; each is answered, and nothing overtakes."""

    async def play(stage: Play) -> None:
        publisher = await stage.program()
        await publisher.publish(ORDERS, numbered(MOVES, 0))
        growing = asyncio.ensure_future(stage.grow())
        sent, n = [], 1
        while not growing.done() or n < 150_000:
            sent.append(asyncio.ensure_future(publisher.publish(ORDERS, numbered(MOVES, *range(n, n + 700)))))
            n += 700
            await asyncio.sleep(0)
        await growing
        await asyncio.gather(*sent)
        before, after = (
            [int(f[-1]) for _, f in server.command("XRANGE", name, "-", "+")] for name in ("orders.1", "orders.3")
        )
        assert after, "everything was there before it grew"
        assert [*before, *after] == list(range(n))

    playing(server, play)


def test_it_grows_again(server: Server) -> None:
    """A program of the first days publishes through every growth; programs of any number that there was are taken."""

    async def play(stage: Play) -> None:
        publisher, feed = await stage.program(), await stage.worker(ordered=True)
        for n, wanted in enumerate((4, 12, 24)):
            await publisher.publish(ORDERS, numbered(MOVES, 2 * n))
            await stage.grow(wanted)
            await publisher.publish(ORDERS, numbered(MOVES, 2 * n + 1))
        for declared in (2, 4, 12, 24):
            await (await stage.program()).publish(Route("orders", partitions=declared), numbered(MOVES, 6 + declared))
        with pytest.raises(Refused, match="has 24 partitions on the server, and this program declares 48"):
            await (await stage.program()).publish(Route("orders", partitions=48), numbered(MOVES, 0))
        assert await handle(feed, 10) == [*range(6), 8, 10, 18, 30]
        assert await stage.balance() == (10, 0)

    playing(server, play)


@pytest.mark.parametrize("answered", [False, True], ids=["before", "after"])
def test_it_is_interrupted_at_every_call(server: Server, *, answered: bool) -> None:
    """Killed with its n-th call, for every n, and then run to its end by two others at once."""

    async def play(calls: int) -> bool:
        stage = Play(server, f"orders{calls}")
        try:
            return await interrupted(stage, Interrupted(stage.settings, calls, answered=answered))
        finally:
            for backend in stage.backends:
                await backend.aclose()

    async def run() -> None:
        done, n = 0, 0
        while done == n:
            n += 12
            done += sum(await asyncio.gather(*(play(calls) for calls in range(n - 12, n))))
        assert done > 20, "it makes more calls than that"

    asyncio.run(run())


async def interrupted(stage: Play, client: Interrupted) -> bool:
    """False: it made fewer calls than it was to die with."""
    publisher, feed = await stage.program(), await stage.worker(ordered=True)
    late = [Record(b"%d" % n, key=key, delay_ms=300, id=b"o-%d" % n) for n, key in ((5, MOVES), (6, STAYS))]
    await publisher.publish(stage.route, [*numbered(MOVES, 0, 1), *numbered(STAYS, 2), *late])
    try:
        await stage.grow(client=client)
    except NotConnected:
        sending = asyncio.ensure_future(publisher.publish(stage.route, numbered(MOVES, 3) + numbered(STAYS, 4)))
        await asyncio.gather(stage.grow(), stage.grow())
        await sending
        await publisher.publish(stage.route, late)  # all of them repeats
        got = await handle(feed, 7)
        assert sorted(got) == list(range(7))
        assert [n for n in got if n in (0, 1, 3)] == [0, 1, 3]
        assert await stage.balance() == (7, 0)
        return True
    return False


def test_publishing_waits_for_a_growth_that_was_interrupted(server: Server) -> None:
    """With an error that says what to do; nothing was written, and afterwards it goes on."""

    async def play(stage: Play) -> None:
        publisher = await stage.program()
        await publisher.publish(ORDERS, numbered(MOVES, 0))
        with pytest.raises(NotConnected):
            await stage.grow(client=Interrupted(stage.settings, 12))
        stage.settings = structs.replace(stage.settings, publish_wait_s=0.3)
        hasty = await stage.program()
        with pytest.raises(NotConnected, match="was `headrace partitions` interrupted"):
            await hasty.publish(ORDERS, numbered(MOVES, 1))
        sending = asyncio.ensure_future(publisher.publish(ORDERS, numbered(MOVES, 2)))
        await stage.grow()
        await sending
        await hasty.publish(ORDERS, numbered(MOVES, 3))
        assert await handle(await stage.worker(ordered=True), 3) == [0, 2, 3]

    playing(server, play)


def test_what_cannot_be_had(server: Server) -> None:
    async def play(stage: Play) -> None:
        publisher = await stage.program()
        await publisher.publish(ORDERS, numbered(MOVES, 0))
        await publisher.publish(Route("plain"), [Record(b"0")])
        for wanted, says in (
            (1, "has 2 partitions and cannot get fewer"),
            (3, "has to be a multiple of that.*possible are 4, 6, 8"),
            (4_096, "of at most 1024"),
        ):
            with pytest.raises(Refused, match=says):
                await stage.grow(wanted)
        client = Client(stage.settings)
        for topic, says in (("plain", "has one partition"), ("nothing", "no topic 'nothing'")):
            with pytest.raises(Refused, match=says):
                await grow(client, topic, 2)
        server.command("SET", "orders.3", "something else")
        with pytest.raises(Refused, match=r"the key orders\.3 is in use"):
            await stage.grow()
        server.command("DEL", "orders.3")
        await publisher.publish(ORDERS, numbered(MOVES, 1))
        with pytest.raises(NotConnected):
            await stage.grow(client=Interrupted(stage.settings, 12))
        with pytest.raises(Refused, match="is getting 4 partitions: first run `headrace partitions orders 4`"):
            await stage.grow(8)
        await client.aclose()

    playing(server, play)


def test_the_command_says_what_there_is_now(server: Server) -> None:
    async def play(stage: Play) -> None:
        await (await stage.program()).publish(ORDERS, numbered(MOVES, 0))

    playing(server, play)
    done = command_line("partitions", "orders", "4", "--url", server.url)
    assert (done.code, done.out) == (0, "topic orders has 4 partitions\n")
    assert command_line("partitions", "orders", "4", "--url", server.url).code == 0
    refused = command_line("partitions", "orders", "2", "--url", server.url)
    assert refused.code == 4
    assert "cannot get fewer" in refused.err

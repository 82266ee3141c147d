"""A trial of ordered groups: workers come, go, fall silent and crash at random while events are published and handlers fail at random.

Every handled event appends its number to a list of its key, in the commit. In the end each list must be 0, 1, 2 ... without a gap, a
repeat or a swap; that is order per key and exactly once in one look. And no handler may end well before the ones of all earlier events
of its key have, in whichever worker: what they do outside of the commit is in order, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from headrace import Context, DurabilityError, Headrace, NotConnected, Retry, Topic
from headrace.backends.partition import partition_of, streams
from headrace.backends.redis.backend import RedisBackend
from headrace.backends.redis.client import Client
from headrace.backends.redis.growth import grow
from headrace.backends.redis.ordered import OrderedFeed
from headrace.observe import LogObserver
from headrace.route import Packing
from headrace.runtime.pump import Pump
from headrace.runtime.worker import start
from headrace.settings import Settings

KEYS = 11
LEASE_S = 1.0
_FAILS = 0.02
"""How often a handler fails."""
_STUCK_S = 100.0


class Event(msgspec.Struct):
    key: str
    n: int


class Plan(msgspec.Struct, frozen=True):
    """What a trial is like."""

    seed: int
    events: int = 1_500
    partitions: int = 4
    batched: bool = False
    packing: Packing = "none"
    durability: str = "fsync"
    grow_to: int = 0


class Interrupted(Client):
    """A client whose program dies with its n-th call: before it, or before the answer."""

    def __init__(self, settings: Settings, calls: int, *, answered: bool = False) -> None:
        super().__init__(settings)
        self._left, self._answered = calls, answered

    async def _count(self, call: Coroutine[Any, Any, Any]) -> Any:
        self._left -= 1
        if self._left < 0 and not self._answered:
            call.close()
            raise NotConnected("killed")
        answer = await call
        if self._left < 0:
            raise NotConnected("killed")
        return answer

    async def command(self, *words: bytes | str | int | float) -> Any:
        return await self._count(super().command(*words))

    async def call(self, name: str, keys: tuple[bytes, ...], *words: bytes | str | int | float) -> Any:
        return await self._count(super().call(name, keys, *words))


class Worker:
    """One worker, in this process, that can crash or fall silent."""

    def __init__(self, app: Headrace) -> None:
        self.app = app
        self.pump: Pump
        self._running: asyncio.Future[None]
        self._threads = ThreadPoolExecutor(1)

    async def start(self) -> None:
        while True:
            try:
                await self.app.connect()
                break
            except (NotConnected, DurabilityError):  # a failover is under way, a replica is not back yet
                await asyncio.sleep(0.2)
        groups = self.app.groups.values()
        (self.pump,) = await start(groups, self.app.backend(), self._threads, LogObserver(), LEASE_S)
        self._running = asyncio.ensure_future(self.pump.run())

    @property
    def feed(self) -> OrderedFeed:
        feed = self.pump._feed
        assert isinstance(feed, OrderedFeed)
        return feed

    async def crash(self) -> None:
        """As a killed process: nothing more is sent, no connection is closed in order."""
        self.feed.abandon()
        tasks = [*(lane.task for lane in self.pump._lanes), *self.pump._commits, self._running]
        if self.pump._watcher is not None:
            tasks.append(self.pump._watcher)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        backend = self.app.backend()
        assert isinstance(backend, RedisBackend)
        await backend.client.aclose()

    async def stop(self) -> None:
        await self.pump.drain(5.0)
        await self._running
        await self.app.aclose()


def list_of(url: str, partition: str, key: str) -> str:
    """The list of a key: in a Cluster one for each partition that it was in, else only one."""
    return f"{{{partition}}}:seen:{key}" if "cluster" in url else f"seen:{key}"


class Ended:
    """Handlers that ended well, in all workers."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self.early: list[str] = []

    def note(self, event: Event) -> None:
        last = self._last.get(event.key, -1)
        if event.n > last + 1:
            self.early.append(f"{event.key} {event.n} after {last}")
        self._last[event.key] = max(last, event.n)


def declare(url: str, plan: Plan, chance: random.Random, ended: Ended) -> tuple[Headrace, Topic[Event]]:
    """An app with one ordered group whose handler fails now and then."""
    app = Headrace(url, lease_s=LEASE_S, durability=plan.durability)
    topic = app.topic("orders", Event, key="key", partitions=plan.partitions, packing=plan.packing)
    retry = Retry(attempts=1_000, first_s=0.01, max_s=0.3)

    def record(event: Event, ctx: Context) -> None:
        ctx.redis.rpush(list_of(url, ctx.partition, event.key), str(event.n))

    if plan.batched:

        @topic.subscribe("g", ordered=True, retry=retry, lanes=20, batch=17)
        async def handle_many(events: list[Event], ctxs: list[Context]) -> None:
            if chance.random() < 0.3:
                await asyncio.sleep(chance.random() * 0.01)
            if chance.random() < _FAILS:
                raise ValueError("all of them")
            failed = set()
            for event, ctx in zip(events, ctxs, strict=True):
                if chance.random() < _FAILS:
                    ctx.fail("this one")
                    failed.add(event.key)
                else:
                    record(event, ctx)
                    if event.key not in failed:
                        ended.note(event)
    else:

        @topic.subscribe("g", ordered=True, retry=retry, lanes=20)
        async def handle(event: Event, ctx: Context) -> None:
            if chance.random() < 0.2:
                await asyncio.sleep(chance.random() * 0.005)
            if chance.random() < _FAILS:
                raise ValueError("boom")
            record(event, ctx)
            ended.note(event)

    return app, topic


class Trial:
    """One trial, from the first event to the last."""

    def __init__(self, url: str, plan: Plan) -> None:
        self._url, self._plan = url, plan
        self._chance = random.Random(plan.seed)
        self.published: dict[str, int] = {f"k{n}": 0 for n in range(KEYS)}
        self.goes_on: Callable[[], bool] = lambda: False
        """Whether to publish on although there are enough events."""
        self._workers: list[Worker] = []
        self._silent: list[Worker] = []
        self._ended = Ended()

    async def run(self, look: Callable[[], None] = lambda: None) -> None:
        """Plays it and checks the lists; `look` is called now and then and may raise."""
        app, topic = declare(self._url, self._plan, self._chance, self._ended)
        client = Client(app.settings)
        async with app:
            publishing = asyncio.ensure_future(self._publish(topic))
            growing = asyncio.ensure_future(self._grow(topic)) if self._plan.grow_to else None
            async with asyncio.timeout(_STUCK_S):
                while not (publishing.done() and await self._all_there(client)):
                    await asyncio.sleep(self._chance.random() * 0.4)
                    await self._act(client)
                    look()
                    if publishing.done():
                        publishing.result()
                if growing is not None:
                    await growing
            await asyncio.sleep(0.3)  # whoever would still write something it must not, does it now
            for worker in (*self._workers, *self._silent):
                await worker.stop()
        found = await self._seen(client)
        await self._expect_settled(client)
        await client.aclose()
        assert not self._ended.early, f"seed {self._plan.seed}"
        assert found == {key: list(range(count)) for key, count in self.published.items()}, f"seed {self._plan.seed}"

    async def _publish(self, topic: Topic[Event]) -> None:
        total = 0
        while total < self._plan.events or self.goes_on():
            events = []
            for _ in range(self._chance.randrange(1, 60)):
                key = f"k{self._chance.randrange(KEYS)}"
                events.append(Event(key, self.published[key]))
                self.published[key] += 1
            total += await topic.publish_many(events)
            await asyncio.sleep(self._chance.random() * 0.02)

    async def _grow(self, topic: Topic[Event]) -> None:
        """In the middle of it all; the command is interrupted now and then, and run again."""
        while sum(self.published.values()) < self._plan.events / 3:
            await asyncio.sleep(0.01)
        while True:
            client = Interrupted(topic._app.backend().client.settings, self._chance.randrange(1, 90))  # type: ignore[attr-defined]
            try:
                await grow(client, topic.name, self._plan.grow_to)
            except NotConnected:
                await asyncio.sleep(self._chance.random() * 0.2)
            else:
                return
            finally:
                await client.aclose()

    async def _act(self, client: Client) -> None:
        if len(self._workers) < 3:
            worker = Worker(declare(self._url, self._plan, self._chance, self._ended)[0])
            await worker.start()
            self._workers.append(worker)
            return
        act = self._chance.random()
        if act > 0.5 and not client.clustered:
            with contextlib.suppress(NotConnected):
                await client.command("CLIENT", "KILL", "TYPE", "normal")
        if act >= 0.4:
            return
        worker = self._workers.pop(self._chance.randrange(len(self._workers)))
        if act < 0.15:
            await worker.crash()
        elif act < 0.3:
            await worker.stop()
        else:
            worker.feed.pause()
            self._silent.append(worker)

    def _list_of(self, key: str, partitions: int) -> str:
        name = streams("orders", partitions)[partition_of(key.encode(), partitions)]
        return list_of(self._url, name, key)

    async def _all_there(self, client: Client) -> bool:
        try:
            return sum(map(len, (await self._seen(client)).values())) >= sum(self.published.values())
        except NotConnected:
            return False

    async def _seen(self, client: Client) -> dict[str, list[int]]:
        """The lists of every key; if the topic grew, that of the old partition first."""
        counts = sorted({self._plan.partitions, self._plan.grow_to or self._plan.partitions})
        found: dict[str, list[int]] = {}
        for key in self.published:
            names = dict.fromkeys(self._list_of(key, count) for count in counts)
            lists: list[Any] = [await client.command("LRANGE", name, 0, -1) for name in names]
            found[key] = [int(n) for one in lists for n in one]
        return found

    async def _expect_settled(self, client: Client) -> None:
        for name in streams("orders", self._plan.grow_to or self._plan.partitions):
            assert await client.command("XLEN", f"{{{name}}}:retry:g") == 0, (
                f"seed {self._plan.seed}: {name} has events set aside"
            )
            assert await client.command("XLEN", name) or not self._plan.grow_to, f"nothing was published to {name}"

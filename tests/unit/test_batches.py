"""Which events a batch handler is called with together, and what becomes of the others when it hangs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from msgspec import Struct

from headrace import Context, Headrace, Retry, limits
from headrace.backends.contract import Delivery, Settled, Settlement, Unsettled, Verdict
from headrace.errors import Closed
from headrace.observe import LogObserver
from headrace.runtime.execute import Executor
from headrace.runtime.pump import Pump


class Job(Struct):
    key: str
    n: int


class Reads:
    """A feed that gives out what it is told to, each time as one read."""

    def __init__(self) -> None:
        self._reads = asyncio.Queue[Sequence[Delivery] | None]()
        self.settled = list[Settled]()

    def give(self, *deliveries: Delivery) -> None:
        self._reads.put_nowait(deliveries)

    async def take(self, limit: int, wait_s: float) -> Sequence[Delivery]:
        given = await self._reads.get()
        if given is None:
            raise Closed("closed")
        return given

    async def commit(self, settled: Sequence[Settled]) -> Sequence[Unsettled]:
        self.settled += settled
        return ()

    async def aclose(self) -> None:
        self._reads.put_nowait(None)


@contextlib.asynccontextmanager
async def served(app: Headrace, lanes: int) -> AsyncIterator[Reads]:
    """The only group of an app, served from a feed of ours."""
    (group,) = app.groups.values()
    feed, threads = Reads(), ThreadPoolExecutor(1)
    pump = Pump(feed, Executor(group, frozenset(), threads, LogObserver()), lanes, LogObserver())
    running = asyncio.ensure_future(pump.run())
    async with asyncio.timeout(10):
        yield feed
        await pump.drain(1.0)
        await running


async def settled(feed: Reads, count: int) -> None:
    while len(feed.settled) < count:
        await asyncio.sleep(0.001)


def delivery(n: int, key: str, attempt: int) -> Delivery:
    data = b'{"key":"%b","n":%d}' % (key.encode(), n)
    return Delivery(b"%d-0" % n, (b"id", b"%d" % n, b"key", key.encode(), b"data", data), None, attempt)


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("ordered", [False, True], ids=["shared", "ordered"])
@pytest.mark.parametrize("keys", ["abcdefghijkl", "abcabcabcabc", "aaaaaaaaaaaa"])
def test_what_failed_before_is_called_alone(keys: str, lanes: int, *, ordered: bool) -> None:
    attempts = [1, 1, 3, 1, 2, 2, 1, 1, 1, 2, 1, 2]
    calls = list[list[tuple[int, int]]]()

    async def play() -> None:
        app = Headrace()
        jobs = app.topic("jobs", Job, key="key")

        @jobs.subscribe("g", ordered=ordered, batch=4, lanes=lanes)
        async def handle(batch: list[Job], contexts: list[Context]) -> None:
            calls.append([(job.n, ctx.attempt) for job, ctx in zip(batch, contexts, strict=True)])
            await asyncio.sleep(0.001)

        async with served(app, lanes) as feed:
            feed.give(*(delivery(n, key, attempts[n]) for n, key in enumerate(keys)))
            await settled(feed, len(keys))

    asyncio.run(play())
    for call in calls:
        assert len(call) == 1 or {attempt for _, attempt in call} == {1}, calls
    handled = [n for call in calls for n, _ in call]
    assert sorted(handled) == list(range(len(keys))), "each once"
    assert any(len(call) > 1 for call in calls), "fresh ones still go together"
    if ordered:
        for key in set(keys):
            own = [n for n in handled if keys[n] == key]
            assert own == sorted(own)


def test_a_lane_that_is_left_alone_frees_all_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "abandon_s", 0.2)
    app, calls = Headrace(), list[list[int]]()
    jobs = app.topic("jobs", Job, key="key")

    async def play() -> None:
        began, go_on, release = asyncio.Event(), asyncio.Event(), asyncio.Event()

        @jobs.subscribe("g", ordered=True, batch=10, timeout_s=0.2, retry=Retry(attempts=1))
        async def handle(batch: list[Job]) -> None:
            calls.append([job.n for job in batch])
            if batch[0].n == 0:
                began.set()
                await go_on.wait()
            while batch[0].n == 3 and not release.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await release.wait()

        async with served(app, 3) as feed:
            feed.give(*(delivery(n, key, 1) for n, key in enumerate("abc")))
            await began.wait()
            feed.give(delivery(3, "a", 1), delivery(4, "c", 1), delivery(5, "d", 1))
            await settled(feed, 1)  # of a key that nothing waits for
            go_on.set()
            await settled(feed, 6)
            feed.give(*(delivery(n, key, 1) for n, key in enumerate("bd", 6)))
            await settled(feed, 8)
            release.set()
        assert calls == [[0, 1, 2], [5], [3], [6, 7]], (
            "the hanging one's later keys are free, and what waited went back"
        )
        verdicts = {s.delivery.token: s.verdict for s in feed.settled if isinstance(s, Settlement)}
        assert verdicts == {b"3-0": Verdict.DEAD, b"4-0": Verdict.RETURN}

    asyncio.run(play())

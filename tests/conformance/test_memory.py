"""The memory backend does what the contract says."""

from __future__ import annotations

import asyncio
import time

import pytest

from headrace.backends.contract import Record, Route, Subscription
from headrace.backends.memory.backend import MemoryBackend
from headrace.backends.memory.server import MemoryServer
from headrace.testing.conformance import SCENARIOS, Outcome, Scenario, check, run
from tests.conformance.memory_harness import memory

ORDERS = Route("orders")


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_conforms(scenario: Scenario) -> None:
    """Each scenario holds."""
    asyncio.run(check(scenario, memory()))


def test_names_are_unique_and_promises_are_written() -> None:
    """A report can name a scenario and say what it is about."""
    names = [s.name for s in SCENARIOS]
    assert len(names) == len(set(names))
    assert all(s.promise for s in SCENARIOS)


def test_run_reports_on_what_was_asked_for() -> None:
    """`run` takes names, and refuses those it does not know."""
    reports = asyncio.run(run(memory(), ["commit_settles"]))
    assert [(r.scenario, r.outcome) for r in reports] == [("commit_settles", Outcome.PASSED)]
    with pytest.raises(ValueError, match="got nonsense"):
        asyncio.run(run(memory(), ["nonsense"]))


def test_a_repeated_batch_of_a_producer_is_dropped() -> None:
    """The producer's mark drops what it has published before, whole batches or their beginning."""
    server = MemoryServer()
    one, two, three = Record(b"1"), Record(b"2"), Record(b"3")
    server.publish(ORDERS, b"p", 1, 1, [one, two])
    server.publish(ORDERS, b"p", 1, 1, [one, two])
    server.publish(ORDERS, b"p", 1, 2, [two, three])
    assert [e.fields[-1] for e in server.topics["orders"].entries] == [b"1", b"2", b"3"]


def test_virtual_time_tells_what_is_due_and_when_all_is_done() -> None:
    """`next_due` and `idle` are what a test needs to drain a server without sleeping."""

    async def play() -> None:
        server = MemoryServer()
        backend = MemoryBackend(server)
        assert server.idle()
        assert server.next_due() is None
        await backend.publish(ORDERS, [Record(b"later", delay_ms=5_000)])
        feed = await backend.subscribe(Subscription(ORDERS, "g", "w"))
        assert server.idle()
        due = server.next_due()
        assert due is not None
        assert due == pytest.approx(server.now() + 5)
        server.advance(due - server.now())
        assert not server.idle()
        await feed.commit(await feed.take(1, 0))
        assert server.idle()
        assert server.next_due() is None

    asyncio.run(play())


def test_with_a_real_clock_a_take_waits_for_what_becomes_due() -> None:
    """Given a clock, the server really waits: until something is due, or for as long as take was told to."""

    async def play() -> None:
        backend = MemoryBackend(MemoryServer(time.time))
        feed = await backend.subscribe(Subscription(ORDERS, "g", "w"))
        await backend.publish(ORDERS, [Record(b"later", delay_ms=50)])
        began = time.time()
        assert len(await feed.take(1, 30)) == 1
        assert time.time() - began >= 0.045
        assert list(await feed.take(1, 0.02)) == []

    asyncio.run(play())

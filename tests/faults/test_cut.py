"""Connections that are cut between request and reply, torn, or silent: every call is repeated, none has its effect twice."""

from __future__ import annotations

import pytest

from headrace.testing.faults import Fault, Matcher, Proxy, command
from tests.faults.stage import Stage, plain, script
from tests.waiting import wait_until

NTH = [1, 2, 3, 7]
CUTS = [Fault.LOSE_REQUEST, Fault.TEAR_REQUEST, Fault.LOSE_REPLY, Fault.TEAR_REPLY]


@pytest.mark.parametrize("fault", CUTS, ids=lambda f: f.name.lower())
def test_publish(stage: Stage, proxy: Proxy, fault: Fault) -> None:
    total = 0
    for nth in NTH:
        proxy.fail(fault, nth, script("publish"))
        stage.publishing(plain(range(total, total + 200)), url=proxy.url, chunk=20).join()
        assert proxy.fired.is_set()
        total += 200
    stage.worker()
    stage.settled(total)
    stage.exact(range(total))


@pytest.mark.parametrize(
    "fault", [Fault.LOSE_REQUEST, Fault.LOSE_REPLY, Fault.TEAR_REPLY], ids=lambda f: f.name.lower()
)
@pytest.mark.parametrize(
    ("when", "lease_s"),
    [(script("commit"), 60.0), (command("XREADGROUP"), 60.0), (script("tend"), 0.5)],
    ids=["commit", "read", "heartbeat"],
)
def test_worker(stage: Stage, proxy: Proxy, when: Matcher, lease_s: float, fault: Fault) -> None:
    """With a long lease: what a lost read was given does not wait for its end."""
    worker = stage.worker(url=proxy.url, lease_s=lease_s)
    stage.serving(worker)
    total = 0
    for nth in NTH[:3]:
        proxy.fail(fault, nth, when)
        wait_until(lambda: _feed(stage, proxy), "the fault happens")
        total = sum(1 for _ in stage.server.command("XRANGE", "jobs", "-", "+"))
    stage.settled(total)
    stage.exact(range(total))
    assert stage.pending == 0
    assert worker.code is None


def _feed(stage: Stage, proxy: Proxy) -> bool:
    """Gives the worker more to do, until the fault has happened."""
    if proxy.fired.is_set():
        return True
    first = stage.server.command("XLEN", "jobs")
    stage.publish(plain(range(first, first + 20)))
    return proxy.fired.wait(0.05)


def test_every_connection_again_and_again(stage: Stage, proxy: Proxy) -> None:
    worker = stage.worker(url=proxy.url)
    stage.serving(worker)
    publishing = stage.publishing(plain(range(2_000)), url=proxy.url, chunk=10, pace_s=0.005)
    for at in range(200, 2_000, 200):
        wait_until(lambda: publishing.acknowledged >= at, "it goes on")  # noqa: B023
        proxy.cut()
    publishing.join()
    stage.settled(2_000)
    stage.exact(range(2_000))
    assert worker.code is None


def test_half_open(stage: Stage, proxy: Proxy) -> None:
    """Nothing arrives and nothing is closed: both sides notice by the silence, and connect again."""
    worker = stage.worker(url=proxy.url, silence_s=1.0)
    stage.serving(worker)
    publishing = stage.publishing(
        plain(range(1_000)), url=proxy.url, chunk=10, pace_s=0.01, request_s=1.0, connect_s=1.0
    )
    wait_until(lambda: publishing.acknowledged > 100, "publishing has begun")
    proxy.freeze()
    wait_until(lambda: "no answer" in worker.log, "the worker notices")
    proxy.thaw()
    publishing.join()
    stage.settled(1_000)
    stage.exact(range(1_000))
    assert worker.code is None


def test_slow(valkey_stage: Stage) -> None:
    """A server far away: slower, and exact."""
    stage = valkey_stage
    with Proxy(stage.server.url) as proxy:
        proxy.delay_s = 0.02
        worker = stage.worker(url=proxy.url)
        stage.serving(worker)
        stage.publishing(plain(range(500)), url=proxy.url, chunk=100).join()
        stage.settled(500)
        stage.exact(range(500))

"""Servers that die, load, are full, turn read-only, or lose keys and scripts under running workers and publishers."""

from __future__ import annotations

import threading

import pytest

from headrace.testing.faults import Program
from tests.faults.apps import Job
from tests.faults.stage import Publishing, Stage, plain
from tests.servers import Server
from tests.waiting import wait_until


def load(stage: Stage, count: int) -> Publishing:
    """A publisher at work, in the middle of it."""
    publishing = stage.publishing([Job(n, "slow") for n in range(count)], chunk=10, pace_s=0.005)
    wait_until(lambda: publishing.acknowledged > 100, "publishing has begun")
    return publishing


def finish(stage: Stage, publishing: Publishing, count: int) -> None:
    """Nothing is lost and nothing is doubled."""
    publishing.join()
    stage.settled(count)
    stage.exact(range(count))


def alive(*workers: Program) -> None:
    assert all(worker.code is None for worker in workers)


def test_killed_under_load(stage: Stage) -> None:
    workers = [stage.worker(), stage.worker()]
    for worker in workers:
        stage.serving(worker)
    publishing = load(stage, 2_000)
    for at in (400, 1_200):
        wait_until(lambda: publishing.acknowledged >= at, "it goes on")  # noqa: B023
        stage.server.kill()
        stage.server.start()
    finish(stage, publishing, 2_000)
    alive(*workers)


def test_stopped_and_started(stage: Stage) -> None:
    worker = stage.worker()
    stage.serving(worker)
    publishing = load(stage, 1_000)
    stage.server.restart()
    finish(stage, publishing, 1_000)
    alive(worker)


def test_paused_longer_than_the_lease(stage: Stage) -> None:
    worker = stage.worker(lease_s=0.5)
    stage.serving(worker)
    publishing = load(stage, 1_000)
    stage.server.pause()
    paused = threading.Event()
    assert not paused.wait(1.5)  # the fault itself: nobody can tell that it is long enough but the clock
    stage.server.resume()
    finish(stage, publishing, 1_000)
    alive(worker)


def test_absent_at_the_start(stage: Stage) -> None:
    stage.publish(plain(range(10)))
    stage.server.kill()
    worker = stage.worker()
    wait_until(lambda: "cannot connect" in worker.log, "it says what it waits for")
    stage.server.start()
    stage.settled(10)
    stage.exact(range(10))


def test_loading(stage: Stage) -> None:
    worker = stage.worker()
    stage.serving(worker)
    stage.publish(plain(range(1_000)))
    stage.settled(1_000)
    publishing = stage.publishing(plain(range(1_000, 1_100)), chunk=2, pace_s=0.05)
    stage.settled(1_010)
    stage.server.kill()
    stage.server.settings |= {"key-load-delay": "300", "loading-process-events-interval-bytes": "1024"}
    starting = threading.Thread(target=stage.server.start)
    starting.start()
    try:
        wait_until(lambda: "loading its data" in worker.log, "it says what it waits for")
    finally:
        starting.join()
    publishing.join()
    stage.settled(1_100)
    stage.exact(range(1_100))
    alive(worker)


def test_out_of_memory(stage: Stage) -> None:
    worker = stage.worker()
    stage.serving(worker)
    stage.publish(plain(range(100)))
    stage.settled(100)
    stage.server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
    stage.server.command("CONFIG", "SET", "maxmemory", "1mb")
    publishing = stage.publishing(plain(range(100, 300)))
    starting = stage.worker()
    wait_until(lambda: "OOM" in starting.log or "serving" in starting.log, "a new worker starts or waits")
    assert not publishing.done, "publish() waits"
    assert publishing.acknowledged == 0
    stage.server.command("CONFIG", "SET", "maxmemory", "0")
    finish(stage, publishing, 300)
    alive(worker, starting)


def test_read_only(stage: Stage) -> None:
    worker = stage.worker()
    stage.serving(worker)
    publishing = load(stage, 1_000)
    with Server(stage.server.flavour, tcp=True) as other:
        stage.server.command("CONFIG", "SET", "replica-serve-stale-data", "yes")
        other.pause()  # it never answers as a primary, so the data stay
        stage.server.command("REPLICAOF", "127.0.0.1", other.port)
        wait_until(lambda: "read-only replica" in worker.log, "it says what it waits for")
        stage.server.command("REPLICAOF", "NO", "ONE")
    finish(stage, publishing, 1_000)
    alive(worker)


def test_script_flush(stage: Stage) -> None:
    worker = stage.worker()
    stage.serving(worker)
    publishing = load(stage, 1_000)
    for at in (200, 500, 800):
        wait_until(lambda: publishing.acknowledged >= at, "it goes on")  # noqa: B023
        stage.server.command("SCRIPT", "FLUSH")
    finish(stage, publishing, 1_000)
    alive(worker)


def test_client_kill(stage: Stage) -> None:
    worker = stage.worker()
    stage.serving(worker)
    publishing = load(stage, 1_000)
    for at in (200, 400, 600, 800):
        wait_until(lambda: publishing.acknowledged >= at, "it goes on")  # noqa: B023
        stage.server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    finish(stage, publishing, 1_000)
    alive(worker)


def test_a_destroyed_group_ends_its_workers(stage: Stage) -> None:
    worker = stage.worker(lease_s=30.0)  # between heartbeats
    stage.serving(worker)
    stage.publish(plain(range(10)))
    stage.settled(10)
    stage.server.command("XGROUP", "DESTROY", "jobs", "g")
    stage.publish(plain(range(10, 20)))
    assert worker.wait(10) == 4
    assert "headrace groups jobs --reset g --to" in worker.log
    again = stage.worker()
    assert again.wait(10) == 4, "it does not begin anywhere by itself"
    assert "headrace groups jobs --reset g --to" in again.log


@pytest.mark.parametrize("work", ["idle", "busy"])
@pytest.mark.parametrize("how", [("DEL", "jobs"), ("FLUSHALL",)], ids=["del", "flushall"])
def test_a_deleted_topic(stage: Stage, how: tuple[str, ...], work: str) -> None:
    """What was in it is lost, loudly; what comes after is handled."""
    worker = stage.worker(victim=True)
    stage.publish(plain(range(20)))
    stage.settled(20)
    if work == "busy":
        stage.publish([Job(n, "hold") for n in range(20, 40)])
        stage.called(40)
    stage.server.command(*how)
    stage.release()
    wait_until(lambda: "was deleted on the server" in worker.log, "it is said loudly")
    stage.publish(plain(range(100, 150)))
    wait_until(lambda: {c.n for c in stage.calls} >= set(range(100, 150)), "new events are handled")
    wait_until(lambda: (info := stage.group()).unread == info.pending == 0, "and settled")
    assert stage.group().missing == 0
    stage.traces([*(range(20) if how[0] == "DEL" else ()), *range(100, 150)])
    alive(worker)

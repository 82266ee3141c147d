"""Workers that stand still longer than their lease, and go on: they write nothing that another worker has settled."""

from __future__ import annotations

import re

import pytest

from headrace.testing.faults import Program
from tests.faults.apps import Job
from tests.faults.stage import Stage, plain
from tests.waiting import wait_until


def test_a_zombie_writes_nothing(stage: Stage) -> None:
    stage.publish([Job(n, "hold") for n in range(40)])
    zombie = stage.worker(victim=True)
    stage.called(16, zombie.pid)
    held = {c.n for c in stage.calls}
    zombie.pause()
    stage.worker()
    stage.settled(40)
    stage.release()
    zombie.resume()
    wait_until(lambda: "settled by another worker" in zombie.log, "its results are dropped")
    wait_until(lambda: "silent for" in zombie.log, "it is told why")
    stage.exact(range(40))
    assert held <= {c.n for c in stage.calls if c.pid != zombie.pid}
    stage.publish(plain(range(40, 60)))
    stage.settled(60)
    stage.exact(range(60))


def test_a_zombie_with_more_to_do(stage: Stage) -> None:
    """Paused at any moment, again and again, while others work: nothing is settled twice."""
    publishing = stage.publishing([Job(n, "slow") for n in range(2_000)], chunk=10, pace_s=0.01)
    one = stage.worker(lease_s=0.5)
    other = stage.worker(lease_s=0.5)

    def pause(worker: Program, awake: Program) -> None:
        stage.called(1, worker.pid)
        worker.pause()
        wait_until(lambda: awake.log.count("took over") > before or stage.group().handled == 2_000, "it is taken over")
        worker.resume()

    for worker, awake in ((one, other), (other, one)) * 2:
        before = awake.log.count("took over")
        pause(worker, awake)
    publishing.join()
    stage.settled(2_000)
    stage.exact(range(2_000))


@pytest.mark.parametrize("app", ["app", "threaded"])
def test_a_handler_that_blocks(valkey_stage: Stage, app: str) -> None:
    """On the event loop it costs the lease, and others take over; in a thread it costs nothing."""
    stage = valkey_stage
    stage.publish([Job(0, "block"), *plain(range(1, 16))])
    blocking = stage.worker(app, victim=True)
    stage.called(1, blocking.pid)
    other = stage.worker(app)
    stage.settled(16)
    if app == "app":
        assert "took over" in other.log
        wait_until(lambda: "settled by another worker" in blocking.log, "its results are dropped")
        said = re.compile(r"stood still for \d+\.\d s: .* handler \S+ blocks")
        wait_until(lambda: said.search(blocking.log), "the handler is named")
    else:
        assert "took over" not in other.log
        assert [c.pid for c in stage.calls if c.n == 0] == [blocking.pid]
    stage.exact(range(16))

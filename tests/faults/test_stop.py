"""Workers that are asked to stop: what they run is finished, what they hold is handed back at once and costs no attempt."""

from __future__ import annotations

import signal
import time

import pytest

from headrace.testing.faults import Program
from tests.faults.apps import Job
from tests.faults.stage import Stage, plain
from tests.waiting import wait_until

LONG_LEASE_S = 60.0
"""What others get sooner than this was handed back, not taken over."""


def full(stage: Stage, app: str = "app") -> Program:
    """A worker whose lanes all hold, with more read ahead: 1,000 jobs handled, 1,000 not."""
    stage.publish([*plain(range(1_000)), *(Job(n, "hold") for n in range(1_000, 2_000))])
    victim = stage.worker(app, victim=True, lease_s=LONG_LEASE_S)
    wait_until(lambda: sum(c.n >= 1_000 for c in stage.calls) == 100, "every lane is at work")
    wait_until(lambda: stage.pending > 120, "more is read ahead")
    return victim


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_full_worker_hands_back_what_it_has_not_started(stage: Stage, number: signal.Signals) -> None:
    victim = full(stage)
    stage.worker(lease_s=LONG_LEASE_S)
    victim.send(number)
    stage.settled(1_900, timeout_s=10)
    assert victim.code is None, "it waits for its handlers"
    asked = time.monotonic()
    stage.release()
    assert victim.wait(5) == 0
    assert time.monotonic() - asked < 2.0
    stage.settled(2_000, timeout_s=5)
    stage.exact(range(2_000))
    assert {c.attempt for c in stage.calls} == {1}
    assert len(stage.calls) == 2_000, "none was called twice"


def test_a_second_signal_ends_it(stage: Stage) -> None:
    victim = full(stage)
    victim.terminate()
    wait_until(lambda: stage.pending == 100, "what was not started is handed back")
    asked = time.monotonic()
    victim.terminate()
    assert victim.wait(5) == 0
    assert time.monotonic() - asked < 2.0
    assert stage.group().pending == 0
    stage.worker(lease_s=LONG_LEASE_S)
    stage.settled(2_000, timeout_s=10)
    stage.exact(range(2_000))
    assert {c.attempt for c in stage.calls} == {1}


def test_an_idle_worker_stops_at_once(stage: Stage) -> None:
    worker = stage.worker()
    stage.serving(worker)
    asked = time.monotonic()
    worker.terminate()
    assert worker.wait(5) == 0
    assert time.monotonic() - asked < 1.0
    assert stage.group().workers == 0


def test_it_stops_while_the_server_is_away(stage: Stage) -> None:
    worker = stage.worker()
    stage.serving(worker)
    stage.server.kill()
    wait_until(lambda: "cannot connect" in worker.log, "it has noticed")
    worker.terminate()
    assert worker.wait(10) == 0


def test_it_stops_while_it_waits_for_a_server(valkey_stage: Stage) -> None:
    valkey_stage.server.kill()
    worker = valkey_stage.worker()
    wait_until(lambda: "cannot connect" in worker.log, "it waits")
    worker.terminate()
    assert worker.wait(5) == 0


def test_it_stops_while_it_waits_to_join(valkey_stage: Stage) -> None:
    valkey_stage.server.command("CONFIG", "SET", "maxmemory", "1mb")
    worker = valkey_stage.worker()
    wait_until(lambda: "out of memory" in worker.log, "it waits")
    worker.terminate()
    assert worker.wait(5) == 0


def test_a_thread_that_does_not_end_is_left(valkey_stage: Stage) -> None:
    stage = valkey_stage
    stage.publish([Job(n, "hold") for n in range(40)])
    victim = stage.worker("threaded", lease_s=LONG_LEASE_S)
    wait_until(lambda: stage.pending > 8, "more is read ahead than its eight lanes hold")
    stage.called(8)
    victim.terminate()
    wait_until(lambda: stage.pending == 8, "what was not started is handed back")
    victim.terminate()
    assert victim.wait(10) == 0
    stage.release()
    stage.worker("threaded", lease_s=LONG_LEASE_S)
    stage.settled(40)
    stage.exact(range(40))


def test_a_leaked_task_does_not_keep_it(valkey_stage: Stage) -> None:
    stage = valkey_stage
    stage.publish([Job(n, "leak") for n in range(3)])
    worker = stage.worker()
    stage.settled(3)
    worker.terminate()
    assert worker.wait(5) == 0
    stage.exact(range(3))

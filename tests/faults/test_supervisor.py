"""Several worker processes under one command."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from headrace.testing.faults import Program
from tests.faults.apps import Job
from tests.faults.stage import Stage, plain
from tests.waiting import wait_until


def children(parent: Program) -> set[int]:
    return set(map(int, Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()))


def exists(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def serving(stage: Stage, supervisor: Program, workers: int) -> None:
    wait_until(lambda: len(children(supervisor)) == workers, "the children are there")
    wait_until(lambda: all(f"-{pid}-" in supervisor.log for pid in children(supervisor)), "each serves")


def test_a_killed_child_is_replaced(stage: Stage) -> None:
    supervisor = stage.worker("app", "--workers", "2")
    publishing = stage.publishing([Job(n, "slow") for n in range(2_000)], chunk=10, pace_s=0.005)
    for _ in range(3):
        serving(stage, supervisor, 2)
        before = children(supervisor)
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: victim not in children(supervisor) and len(children(supervisor)) == 2, "a new child")  # noqa: B023
    publishing.join()
    stage.settled(2_000)
    stage.exact(range(2_000))
    assert "ended with signal SIGKILL; starting another" in supervisor.log
    supervisor.terminate()
    assert supervisor.wait(10) == 0


def test_children_end_with_their_killed_parent(valkey_stage: Stage) -> None:
    stage = valkey_stage
    supervisor = stage.worker("app", "--workers", "2", lease_s=30.0)
    serving(stage, supervisor, 2)
    pids = children(supervisor)
    stage.publish(plain(range(50)))
    supervisor.kill()
    wait_until(lambda: not any(exists(pid) for pid in pids), "the children have ended", 10)
    stage.worker(lease_s=30.0)
    stage.settled(50, timeout_s=10)
    stage.exact(range(50))


def test_sigterm_ends_all_in_order(valkey_stage: Stage) -> None:
    stage = valkey_stage
    supervisor = stage.worker("app", "--workers", "2", lease_s=30.0)
    serving(stage, supervisor, 2)
    pids = children(supervisor)
    stage.publish([Job(n, "slow") for n in range(1_000)])
    supervisor.terminate()
    assert supervisor.wait(10) == 0
    assert not any(exists(pid) for pid in pids)
    assert stage.group().workers == 0
    assert stage.group().pending == 0
    stage.worker(lease_s=30.0)
    stage.settled(1_000)
    stage.exact(range(1_000))
    assert {c.attempt for c in stage.calls} == {1}


def test_a_child_that_is_refused_ends_all(valkey_stage: Stage) -> None:
    stage = valkey_stage
    stage.server.command("SET", "jobs", "not a stream")
    supervisor = stage.worker("app", "--workers", "2")
    assert supervisor.wait(10) == 4
    assert "another type of data" in supervisor.log

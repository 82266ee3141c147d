"""Workers that are killed: what they held is handled by others, once."""

from __future__ import annotations

from headrace.testing.faults import Fault, Proxy
from tests.faults.apps import Job
from tests.faults.stage import Stage, plain, script
from tests.waiting import wait_until


def test_in_the_handler(stage: Stage) -> None:
    stage.publish([Job(n, "hold") for n in range(50)])
    victim = stage.worker(victim=True)
    stage.called(16, victim.pid)
    victim.kill()
    stage.worker()
    stage.settled(50)
    stage.exact(range(50))
    assert "took over" in stage.workers[1].log


def test_after_the_commit_before_the_answer(stage: Stage, proxy: Proxy) -> None:
    proxy.fail(Fault.HOLD_REPLY, when=script("commit"))
    victim = stage.worker(url=proxy.url)
    stage.serving(victim)
    stage.publish(plain(range(50)))
    assert proxy.fired.wait(10)
    victim.kill()
    first = stage.group().handled
    assert first > 0
    stage.worker()
    stage.settled(50)
    stage.exact(range(50))
    by_others = {c.n for c in stage.calls if c.pid != victim.pid}
    assert len(by_others) == 50 - first, "what was committed is not handled again"


def test_between_read_and_commit(stage: Stage) -> None:
    stage.publish([*plain(range(2_000)), *(Job(n, "hold") for n in range(2_000, 3_000))])
    victim = stage.worker(victim=True)
    wait_until(lambda: sum(c.n >= 2_000 for c in stage.calls) == 100, "every lane is at work")
    wait_until(lambda: stage.pending > 300, "many are read ahead")
    victim.kill()
    stage.worker()
    stage.settled(3_000)
    stage.exact(range(3_000))


def test_again_and_again(stage: Stage) -> None:
    publishing = stage.publishing([Job(n, "slow") for n in range(4_000)], chunk=20, pace_s=0.01)
    survivor = stage.worker()
    for _ in range(4):
        victim = stage.worker()
        wait_until(lambda: any(c.pid == victim.pid for c in stage.calls) or publishing.done, "it works")  # noqa: B023
        victim.kill()
    publishing.join()
    stage.settled(4_000)
    stage.exact(range(4_000))
    assert survivor.code is None
